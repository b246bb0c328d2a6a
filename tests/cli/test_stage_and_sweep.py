"""``peerstage stage`` and ``peerstage sweep``: files on the disk, and output."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.command import Command


def test_files_are_staged_and_the_summary_counts_them(command: Command, collect: Path, target: Path) -> None:
    (collect / "one").write_bytes(b"1" * 1000)
    (collect / "two").write_bytes(b"2" * 10)
    (collect / ".hidden").write_bytes(b"3")
    done = command.reach("stage", command.spec(collect), target)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{command.sshd.host}:{collect} -> {target}: 2 files, 1010 bytes" in done.stdout
    assert {path.name: path.read_bytes() for path in target.iterdir()} == {"one": b"1" * 1000, "two": b"2" * 10}


def test_target_may_be_relative(command: Command, collect: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (collect / "one").write_bytes(b"1")
    monkeypatch.chdir(target.parent)
    assert command.reach("stage", command.spec(collect), target.name).returncode == 0
    assert os.listdir(target) == ["one"]


def test_mode_owner_and_times_are_set(command: Command, collect: Path, target: Path) -> None:
    (collect / "one").write_bytes(b"1")
    os.utime(collect / "one", (1_000_000, 1_000_000))
    owner = f"{os.getuid()}:{os.getgid()}"
    options = ["--permissions", "604", "--owner", owner, "--preserve-times", "--no-durable"]
    assert command.reach("stage", *options, command.spec(collect), target).returncode == 0
    report = (target / "one").stat()
    assert (stat.S_IMODE(report.st_mode), int(report.st_mtime)) == (0o604, 1_000_000)


@pytest.mark.parametrize("transport", ["sftp", "scp", "guarded", "rcp"])
def test_a_manifest_is_written_over_every_transport_and_verified(
    command: Command, collect: Path, target: Path, transport: str
) -> None:
    (collect / "one").write_bytes(b"1" * 1000)
    (collect / "empty").touch()
    options = ["--manifest", "--json", "--transport", transport]
    if transport == "rcp":
        script = target.parent / "rcp"
        script.write_text(f'#!/bin/sh\nfor last; do :; done\ncp {collect}/* "$last"\n')
        script.chmod(0o755)
        options += ["--rcp-command", str(script)]
    done = command.reach("stage", *options, command.spec(collect), target)
    assert done.returncode == 0
    assert json.loads(done.stdout)["report"]["count"] == 2
    assert sorted(os.listdir(target)) == ["empty", "one", "peerstage.json", "peerstage.sha256"]
    assert command("verify", target).returncode == 0
    (target / "one").write_bytes(b"1" * 999)
    assert command("verify", target).returncode == 8


def test_names_of_the_manifest_are_refused_in_a_dry_run_too(command: Command, collect: Path, target: Path) -> None:
    (collect / "peerstage.json").write_bytes(b"theirs")
    (collect / "one").write_bytes(b"1")
    for options in (["--dry-run"], []):
        done = command.reach("stage", *options, command.spec(collect), target)
        assert done.returncode == 5
        assert "       refused peerstage.json: This name is reserved for the manifest." in done.stdout
    done = command.reach("stage", "--dry-run", "--exclude", "peerstage.*", command.spec(collect), target)
    assert done.returncode == 0


def test_guarded_peers_keep_no_times(command: Command, collect: Path, target: Path) -> None:
    done = command.reach("stage", "--transport", "guarded", "--preserve-times", command.spec(collect), target)
    assert done.returncode == 2
    assert "Omit --preserve-times or --transport guarded" in done.stderr


def test_files_are_compared_with_the_peers_checksum_file(command: Command, collect: Path, target: Path) -> None:
    digest = hashlib.sha256(b"1").hexdigest()
    (collect / "one").write_bytes(b"1")
    (collect / "two").write_bytes(b"2")
    (collect / "SUMS").write_text(f"{digest}  one\n{digest}  two\n")
    done = command.reach("stage", "--json", "--verify", "sha256", "--checksums", "SUMS", command.spec(collect), target)
    result = json.loads(done.stdout)
    assert (done.returncode, result["status"], result["report"]["verify"]) == (5, "incomplete", "sha256")
    files = {file["name"]: (file["reason"], file["sha256"]) for file in result["report"]["files"]}
    assert files["one"] == (None, digest)
    assert files["two"] == ("digest-mismatch", None)
    assert sorted(os.listdir(target)) == ["SUMS", "one"]
    verify = ["--verify", "sha256", "--checksums", "OTHER"]
    done = command.reach("stage", *verify, command.spec(collect), target)
    assert (done.returncode, done.stdout) == (5, "")
    assert "OTHER: The peer has no such file" in done.stderr
    done = command.reach("stage", "--json", "--dry-run", *verify, command.spec(collect), target)
    assert (done.returncode, json.loads(done.stdout.splitlines()[0])["reason"]) == (5, "checksum-file-missing")
    done = command.reach("stage", "--dry-run", *verify[:-1], "SUMS", command.spec(collect), target)
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--verify", "sha256"], "--checksums must be the name of a file if verify is 'sha256', not None"),
        (["--checksums", "a"], "--verify must be 'sha256' if checksums names a file, not 'stable'"),
        (["--verify", "sha256", "--checksums", "a/b"], "--checksums must be the name of a file, without a directory"),
        (["--verify", "md5"], "'md5' is not one of"),
    ],
)
def test_a_checksum_file_and_its_use_go_together(
    command: Command, collect: Path, target: Path, options: list[str], message: str
) -> None:
    done = command.reach("stage", *options, command.spec(collect), target)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in " ".join(done.stderr.split())


def test_the_bandwidth_is_limited(command: Command, collect: Path, target: Path) -> None:
    (collect / "one").write_bytes(bytes(100_000))
    done = command.reach("stage", "--json", "--bwlimit", "200k", command.spec(collect), target)
    assert done.returncode == 0
    assert json.loads(done.stdout)["report"]["seconds"] > 0.3, "it cannot be faster"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--bwlimit", "20X"], "--bwlimit is a number of bytes, or one with K, M, G or T: '20X'"),
        (["--bwlimit", "1000"], "--bwlimit must be a number of bytes per second, 1024 or more, not 1000"),
        (["--bwlimit", "1M", "--transport", "rcp"], "--bwlimit cannot limit an rcp command"),
    ],
)
def test_a_bandwidth_that_cannot_be_limited_is_wrong_usage(
    command: Command, collect: Path, target: Path, options: list[str], message: str
) -> None:
    done = command.reach("stage", *options, command.spec(collect), target)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


def test_a_transport_that_cannot_continue_files_is_wrong_usage(command: Command, collect: Path, target: Path) -> None:
    options = ["--partial-dir", str(target.parent / "partial"), "--transport", "guarded"]
    done = command.reach("stage", *options, command.spec(collect), target)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--partial-dir requires SFTP" in done.stderr


def test_a_partial_dir_that_others_can_read_is_an_error_of_this_machine(
    command: Command, collect: Path, target: Path
) -> None:
    (collect / "one").write_bytes(b"1")
    done = command.reach("stage", "--json", "--partial-dir", str(collect), command.spec(collect), target)
    assert done.returncode == 6
    assert json.loads(done.stdout)["reason"] == "partial-dir-unusable"
    assert "must be 0700. Run `chmod 700 " in json.loads(done.stdout)["error"]
    assert os.listdir(target) == []


def test_large_files_are_kept_in_a_directory_relative_to_this_one(
    command: Command, collect: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (collect / "one").write_bytes(b"1")
    monkeypatch.chdir(target.parent)
    assert command.reach("stage", "--partial-dir", "partial", command.spec(collect), target).returncode == 0
    assert stat.S_IMODE((target.parent / "partial").stat().st_mode) == 0o700
    assert os.listdir(target) == ["one"]


def test_dry_run_lists_what_would_come_and_writes_nothing(command: Command, collect: Path, target: Path) -> None:
    (collect / "one").write_bytes(b"1" * 1000)
    (collect / "sub").mkdir()
    (collect / "taken").write_bytes(b"2")
    (target / "taken").mkdir()
    done = command.reach("stage", "--dry-run", command.spec(collect), target)
    assert done.returncode == 5
    lines = done.stdout.splitlines()
    assert lines[0] == "          1000 one"
    assert lines[1].startswith("       refused sub: It is a directory")
    assert lines[2].startswith("       refused taken: A directory has this name")
    assert "1 files, 1000 bytes would be staged, 2 would be refused; nothing was written" in lines[3]
    assert os.listdir(target) == ["taken"]


def test_dry_run_of_good_files_is_done_and_parses(command: Command, collect: Path, target: Path) -> None:
    (collect / "one").write_bytes(b"1" * 1000)
    done = command.reach("stage", "--dry-run", "--json", command.spec(collect), target)
    report = json.loads(done.stdout)
    assert done.returncode == 0
    assert (report["dry_run"], report["count"], report["bytes"], report["refused"]) == (True, 1, 1000, [])
    assert (report["files"][0]["name"], report["files"][0]["size"]) == ("one", 1000)
    assert os.listdir(target) == []


def test_files_are_selected_and_what_is_left_out_is_counted(command: Command, collect: Path, target: Path) -> None:
    for name, size in (("a.gz", 10), ("b.gz", 2000), ("c.gz", 30), ("d.txt", 1)):
        (collect / name).write_bytes(b"x" * size)
    (collect / "lost+found").mkdir()
    options = ["--include", "*.gz", "--include", "*.sum", "--exclude", "c*", "--max-size", "1K", command.spec(collect)]
    done = command.reach("stage", "--dry-run", *options, target)
    assert done.returncode == 0
    assert done.stdout.splitlines()[:5] == [
        "            10 a.gz",
        "      left out b.gz: It is larger than the maximum size of 1024 bytes.",
        "      left out c.gz: Its name matches the exclude pattern c*.",
        "      left out d.txt: Its name matches no include pattern.",
        "      left out lost+found: Its name matches no include pattern.",
    ]
    assert "1 files, 10 bytes would be staged, 0 would be refused, 4 left out; nothing" in done.stdout
    listed = json.loads(command.reach("stage", "--dry-run", "--json", *options, target).stdout)
    assert [file["reason"] for file in listed["left_out"]] == [
        "above-max-size", "excluded", "not-included", "not-included",
    ]  # fmt: skip
    done = command.reach("stage", *options, target)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(" 0 not staged, 4 left out\n")
    assert os.listdir(target) == ["a.gz"]
    report = json.loads(command.reach("stage", "--json", *options, target).stdout)["report"]
    assert sorted((file["name"], file["outcome"]) for file in report["left_out"]) == [
        (name, "left-out") for name in ("b.gz", "c.gz", "d.txt", "lost+found")
    ]
    assert (
        "left out c.gz: Its name matches the exclude pattern c*."
        in command.reach("stage", "-v", *options, target).stderr
    )


def test_a_stage_that_leaves_out_every_file_is_done_with_a_warning(
    command: Command, collect: Path, target: Path, assert_one_line: Callable[[str], None]
) -> None:
    (collect / "a").touch()
    for options in ([], ["--dry-run"]):
        assert command.reach("stage", *options, "--exclude", "*", command.spec(collect), target).returncode == 0
    assert_one_line(command.reach("stage", "--exclude", "*", command.spec(collect), target).stderr)
    assert os.listdir(target) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-size", "10X"], "--max-size is a number of bytes, or one with K, M, G or T: '10X'"),
        (["--max-size", "0"], "--max-size must be a number of bytes above 0"),
        (["--include", "a/b"], "--include must be patterns for names, which have no slash"),
        (["--exclude", ""], "--exclude must be patterns"),
    ],
)
def test_invalid_selections_are_wrong_usage(
    command: Command, collect: Path, target: Path, options: list[str], message: str
) -> None:
    done = command.reach("stage", *options, command.spec(collect), target)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


def test_incomplete_stage_keeps_the_good_files(
    command: Command, collect: Path, target: Path, assert_one_line: Callable[[str], None]
) -> None:
    (collect / "one").write_bytes(b"1")
    (collect / "sub").mkdir()
    done = command.reach("stage", command.spec(collect), target)
    assert done.returncode == 5
    assert_one_line(done.stderr)
    assert "refused sub: It is a directory" in done.stdout
    assert os.listdir(target) == ["one"]


def test_empty_collect_directory_is_incomplete(
    command: Command, collect: Path, target: Path, assert_one_line: Callable[[str], None]
) -> None:
    for options in ((), ("--dry-run",)):
        done = command.reach("stage", *options, command.spec(collect), target)
        assert done.returncode == 5
        assert_one_line(done.stderr)


def test_missing_collect_directory_is_refused(
    command: Command, tmp_path: Path, target: Path, assert_one_line: Callable[[str], None]
) -> None:
    for options in ((), ("--dry-run",)):
        done = command.reach("stage", *options, command.spec(tmp_path / "none"), target)
        assert (done.returncode, done.stdout) == (4, "")
        assert_one_line(done.stderr)


def test_a_full_disk_is_a_local_problem(
    command: Command, collect: Path, target: Path, assert_one_line: Callable[[str], None]
) -> None:
    with (collect / "huge").open("wb") as file:
        file.truncate(1 << 43)
    done = command.reach("stage", "--json", command.spec(collect), target)
    assert done.returncode == 6
    assert_one_line(done.stderr)
    assert json.loads(done.stdout)["kind"] == "TargetError"
    assert json.loads(done.stdout)["reason"] == "no-space"
    assert os.listdir(target) == []


def test_json_report_names_every_file(command: Command, collect: Path, target: Path) -> None:
    (collect / "one").write_bytes(b"1")
    (collect / "sub").mkdir()
    report = json.loads(command.reach("stage", "--json", command.spec(collect), target).stdout)
    assert (report["status"], report["kind"], report["exit"]) == ("incomplete", "IncompleteStage", 5)
    assert report["reason"] == "incomplete-stage"
    report = report["report"]
    assert report["schema"] == 1
    assert [(file["name"], file["outcome"], file["reason"]) for file in report["files"]] == [("one", "staged", None)]
    assert [(file["name"], file["outcome"], file["reason"]) for file in report["refused"]] == [
        ("sub", "failed", "not-a-file")
    ]
    listed = json.loads(command.reach("stage", "--dry-run", "--json", command.spec(collect), target).stdout)
    assert (listed["reason"], listed["refused"][0]["reason"]) == ("incomplete-stage", "not-a-file")


def test_a_target_that_is_missing_is_a_local_problem(
    command: Command, collect: Path, target: Path, assert_one_line: Callable[[str], None]
) -> None:
    file = target / "file"
    file.touch()
    for place in (target / "missing", file, file / "below"):
        done = command.reach("stage", command.spec(collect), place)
        assert (done.returncode, done.stdout) == (6, "")
        assert_one_line(done.stderr)
        assert str(place) in done.stderr


def test_a_configuration_that_is_refused_is_wrong_usage(
    command: Command, collect: Path, tmp_path: Path, assert_one_line: Callable[[str], None]
) -> None:
    config = tmp_path / "config"
    for line in ("Port many", "HostNam 127.0.0.1", "CanonicalizeHostname yes"):
        config.write_text(f"{line}\n")
        done = command("check", "--config", config, command.spec(collect))
        assert (done.returncode, done.stdout) == (2, "")
        assert_one_line(done.stderr)


def test_names_cannot_write_on_the_terminal(command: Command, collect: Path, target: Path) -> None:
    wild = os.fsencode(collect) + b"/\x1b[31m[red]evil\n\x7f\xff"
    with open(wild, "wb"):
        pass
    for options in (["--dry-run"], ["--dry-run", "--json"]):
        done = command.reach("stage", *options, command.spec(collect), target)
        assert done.returncode == 0
        assert not set(done.stdout.replace("\n", "")) & {"\x1b", "\x7f", "\r"}
    assert json.loads(done.stdout)["files"][0]["name"] == "\x1b[31m[red]evil\n\x7f\udcff"
    plain = command.reach("stage", "--dry-run", command.spec(collect), target).stdout
    assert r"\x1b[31m[red]evil\n\x7f\xff" in plain


def test_deadline_ends_what_takes_too_long(
    command: Command, collect: Path, target: Path, assert_one_line: Callable[[str], None]
) -> None:
    with (collect / "large").open("wb") as file:
        file.truncate(1 << 31)
    done = command.reach("stage", "--deadline", "0.3", command.spec(collect), target)
    assert done.returncode == 4
    assert_one_line(done.stderr)
    assert os.listdir(target) == []


@pytest.mark.parametrize("transport", ["auto", "scp", "guarded"])
def test_a_peer_is_staged_over_each_transport_and_through_another_host(
    command: Command, tmp_path: Path, target: Path, transport: str
) -> None:
    sshd = command.sshd
    collect = tmp_path / "plain"
    collect.mkdir()
    (collect / "cback.collect").touch()
    route = ["--jump", f"{sshd.user}@{sshd.host}:{sshd.port}", "--transport", transport]
    assert command.reach("check", *route, command.spec(collect)).returncode == 0
    done = command.reach("stage", *route, "--json", command.spec(collect), target)
    assert json.loads(done.stdout)["report"]["transport"] == ("sftp" if transport == "auto" else "scp")
    assert command.reach("mark", *route, command.spec(collect)).returncode == 0
    assert os.listdir(target) == ["cback.collect"]
    assert (collect / "cback.stage").exists()


def test_an_unavailable_feature_has_its_own_status(
    command: Command, collect: Path, target: Path, assert_one_line: Callable[[str], None]
) -> None:
    done = command.reach("stage", "--dry-run", "--transport", "rcp", command.spec(collect), target)
    assert done.returncode == 7
    assert_one_line(done.stderr)


def test_sweep_removes_leftovers_below_the_root(command: Command, target: Path) -> None:
    leftover = target / "day" / ".peerstage-0123abcd"
    leftover.mkdir(parents=True)
    (leftover / "lock").touch()
    (target / "day" / "good").touch()
    done = command("sweep", target)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"removed {leftover}\n{target}: 1 removed\n"
    assert os.listdir(target / "day") == ["good"]
    assert json.loads(command("sweep", "--json", target).stdout) == {
        "verb": "sweep",
        "root": str(target),
        "removed": [],
    }


def test_sweep_of_a_missing_directory_is_a_local_problem(
    command: Command, tmp_path: Path, assert_one_line: Callable[[str], None]
) -> None:
    done = command("sweep", tmp_path / "none")
    assert (done.returncode, done.stdout) == (6, "")
    assert_one_line(done.stderr)

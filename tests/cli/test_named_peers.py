"""Peers that are named as in the plan, in the verbs for one peer."""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path

import pytest

from cli.plan_setup import PlanSetup
from peerstage import Limits, SSHOptions, StageOptions
from peerstage.cli import named_peers
from peerstage.cli.access import Access
from peerstage.cli.arguments import parse_peer
from peerstage.exit_codes import ExitCode
from peerstage.testing.contract import files_in


def test_a_peer_of_the_plan_is_checked_with_its_options(fleet: PlanSetup) -> None:
    directory = fleet.collected("db1")
    fleet.write()
    done = fleet("check", "db1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "db1: ready\n", "")
    found = json.loads(fleet("check", "db1", "--json").stdout)
    assert (found["peer"], found["user"], found["directory"]) == ("db1", "backup", str(directory))


def test_peers_of_the_plan_and_others_are_checked_together(fleet: PlanSetup) -> None:
    directory = fleet.collected("db1")
    fleet.collected("db2")
    (fleet.root / "peers" / "db2" / "cback.collect").unlink()
    fleet.write()
    spec = f"backup@127.0.0.1:{directory}"
    done = fleet("check", "db1", "db2", spec, "--port", fleet.port, *fleet.master.arguments())
    assert done.stdout.splitlines() == [
        "db1: ready",
        "db2: not ready: cback.collect does not exist",
        f"127.0.0.1:{directory}: ready",
    ]
    assert done.returncode == ExitCode.NOT_READY


def test_a_connection_option_overrides_the_plan(fleet: PlanSetup) -> None:
    fleet.collected("db1")
    fleet.write(port=1)
    assert fleet("check", "db1").returncode == ExitCode.UNREACHED
    assert fleet("check", "db1", "--port", fleet.port).returncode == 0


@pytest.mark.parametrize(
    ("option", "expected"),
    [([], "4 attempts"), (["--connect-retries", "1"], "2 attempts"), (["--connect-retries", "0"], "refused")],
)
def test_an_option_overrides_the_plan_even_with_its_default(
    fleet: PlanSetup, option: list[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peerstage.watchdog.Watchdog.sleep", lambda self, seconds: None)
    fleet.collected("db1")
    fleet.write(port=1, connect_retries=3)
    done = fleet("check", "db1", *option)
    assert expected in done.stderr
    assert ("attempts" in done.stderr) is ("attempts" in expected)


@pytest.mark.parametrize("verb", ["check", "mark", "stage", "dry-run", "trust"])
def test_an_error_names_the_peer_as_the_plan_does(fleet: PlanSetup, target: Path, verb: str) -> None:
    fleet.collected("db1")
    (fleet.root / "peers" / "db1" / "directory").mkdir()
    known = fleet.known_hosts
    known.write_text("[127.0.0.1]:1 " + known.read_text().split(" ", 1)[1])
    if verb == "trust":
        known.write_text(f"@revoked * {known.read_text().split(' ', 1)[1]}")
    fleet.write()
    arguments = {"dry-run": ["stage", "--dry-run", "db1", target], "stage": ["stage", "db1", target]}
    done = fleet(*arguments.get(verb, [verb, "db1"]))
    assert done.returncode == ExitCode.UNREACHED
    assert re.match(r"peerstage: db1\b", done.stderr), done.stderr


def test_an_error_of_a_dry_run_names_the_peer_as_the_plan_does(fleet: PlanSetup, target: Path) -> None:
    (fleet.collected("db1") / "directory").mkdir()
    fleet.write()
    done = fleet("stage", "--dry-run", "db1", target)
    assert done.returncode == ExitCode.INCOMPLETE
    assert re.match(r"peerstage: db1\b", done.stderr), done.stderr


def test_a_peer_of_the_plan_is_marked(fleet: PlanSetup) -> None:
    directory = fleet.collected("db1")
    fleet.write()
    assert fleet("mark", "db1").stdout == "db1: marked\n"
    assert (directory / "cback.stage").exists()


def test_a_peer_of_the_plan_is_staged_with_its_options(fleet: PlanSetup, target: Path) -> None:
    fleet.collected("db1", data=b"d", skipped=b"s")
    fleet.add("db1", exclude=["skip*"])
    fleet.write(top='bwlimit = "100M"')
    done = fleet("stage", "db1", target)
    assert done.returncode == 0, done.stderr
    assert files_in(target) == {b"cback.collect": b"", b"data": b"d"}
    assert done.stdout.startswith(f"db1 -> {target}: 2 files")


def test_a_limit_on_the_command_line_applies_to_a_peer_of_the_plan(fleet: PlanSetup, target: Path) -> None:
    fleet.collected("db1", data=b"data")
    fleet.write()
    done = fleet("stage", "db1", target, "--limit", "file_bytes=3")
    assert done.returncode == ExitCode.INCOMPLETE
    assert files_in(target) == {b"cback.collect": b""}


@pytest.mark.parametrize(
    ("transport", "given", "expected"), [("auto", None, 10_240), ("auto", 5000, 5000), ("local", None, None)]
)
def test_a_single_stage_keeps_to_the_bandwidth_of_the_plan(
    fleet: PlanSetup, transport: str, given: int | None, expected: int | None
) -> None:
    fleet.collected("db1")
    fleet.add("db1", transport=transport)
    fleet.write(top='bwlimit = "10K"')
    access = Access(ssh=SSHOptions(), limits=Limits())
    named = named_peers.PlanNames(str(fleet.plan)).resolve("db1", parse_peer, access)
    assert named.stage_options(StageOptions(bwlimit=given)).bwlimit == expected


def test_an_option_for_a_stage_replaces_the_one_of_the_plan(fleet: PlanSetup, target: Path) -> None:
    fleet.collected("db1", data=b"d", skipped=b"s")
    fleet.add("db1", exclude=["skip*"])
    fleet.write()
    assert fleet("stage", "db1", target, "--exclude", "data", "--permissions", "600").returncode == 0
    assert files_in(target) == {b"cback.collect": b"", b"skipped": b"s"}
    assert stat.S_IMODE((target / "skipped").stat().st_mode) == 0o600


def test_a_dry_run_lists_the_files_that_the_plan_wants(fleet: PlanSetup, target: Path) -> None:
    fleet.collected("db1", data=b"d", skipped=b"s")
    fleet.add("db1", exclude=["skip*"])
    fleet.write()
    found = json.loads(fleet("stage", "--dry-run", "--json", "db1", target).stdout)
    assert [file["name"] for file in found["files"]] == ["cback.collect", "data"]
    assert os.listdir(target) == []


def test_the_doctor_examines_a_peer_of_the_plan(fleet: PlanSetup) -> None:
    fleet.collected("db1", data=b"d")
    fleet.write()
    done = fleet("doctor", "db1")
    assert done.returncode == 0, done.stdout
    assert done.stdout.endswith("db1: all is well\n")


def test_trust_adds_the_keys_of_peers_of_the_plan_where_the_plan_says(fleet: PlanSetup, tmp_path: Path) -> None:
    fleet.collected("db1")
    fleet.collected("db2")
    other = tmp_path / "other_known_hosts"
    fleet.add("db2", known_hosts=str(other))
    key = fleet.known_hosts.read_text().split()[1:]
    fleet.known_hosts.write_text("")
    fleet.write()
    done = fleet("trust", "db1", "db2", "--yes")
    assert done.returncode == 0, done.stderr
    assert fleet.known_hosts.read_text().split()[1:] == other.read_text().split()[1:] == key
    assert fleet("check", "db1", "db2").returncode == 0


def test_a_local_peer_is_checked_staged_and_marked(fleet: PlanSetup, target: Path) -> None:
    directory = fleet.collected("here", data=b"d")
    fleet.add("here", transport="local")
    fleet.write()
    assert fleet("check", "here").stdout == "here: ready\n"
    assert fleet("stage", "--dry-run", "here", target).returncode == 0
    assert fleet("stage", "here", target).returncode == 0
    assert files_in(target) == {b"cback.collect": b"", b"data": b"d"}
    assert fleet("mark", "here").returncode == 0
    assert (directory / "cback.stage").exists()


@pytest.mark.parametrize("verb", ["doctor", "trust"])
def test_verbs_about_ssh_refuse_a_local_peer(fleet: PlanSetup, verb: str) -> None:
    fleet.collected("here")
    fleet.add("here", transport="local")
    fleet.write()
    done = fleet(verb, "here")
    assert done.returncode == ExitCode.USAGE
    assert f"here is a directory of this machine: {verb} has nothing to do there" in done.stderr


def test_a_secret_is_read_when_the_peer_is_reached(fleet: PlanSetup, tmp_path: Path) -> None:
    fleet.collected("db1")
    secret = tmp_path / "password"
    secret.write_text("hunter2\n")
    secret.chmod(0o644)
    fleet.add("db1", password={"file": str(secret)})
    fleet.write()
    done = fleet("check", "db1")
    assert done.returncode == ExitCode.USAGE
    assert "chmod 600" in done.stderr
    secret.chmod(0o600)
    done = fleet("check", "db1", "--verbose")
    assert done.returncode == 0
    assert "hunter2" not in done.stderr


def test_all_problems_of_a_wrong_plan_are_told(fleet: PlanSetup) -> None:
    fleet.collected("db1")
    fleet.add("db1", prot=22)
    fleet.write(top="paralel = 4")
    done = fleet("check", "db1")
    assert done.returncode == ExitCode.USAGE
    problems = {line for line in done.stderr.splitlines() if str(fleet.plan) in line}
    assert problems == {
        f"peerstage: {fleet.plan}: paralel: unknown, did you mean parallel?",
        f"peerstage: {fleet.plan}: peers.db1.prot: unknown, did you mean port?",
    }


def test_a_peer_that_is_typed_in_full_does_not_need_the_plan(fleet: PlanSetup) -> None:
    directory = fleet.collected("db1")
    fleet.plan.write_text("not a plan")
    done = fleet("check", f"backup@127.0.0.1:{directory}", "--port", fleet.port, *fleet.master.arguments())
    assert done.returncode == 0, done.stderr


def test_a_name_that_the_plan_lacks_is_an_error_that_names_the_plan(fleet: PlanSetup) -> None:
    fleet.collected("db1")
    fleet.write()
    done = fleet("check", "db11")
    assert done.returncode == ExitCode.USAGE
    assert "this names no user: 'db11'" in done.stderr
    assert f"nor has the plan {fleet.plan} a peer of this name" in done.stderr


@pytest.mark.parametrize("mode", [0o644, None])
def test_the_default_plan_is_used_if_there_is_one(
    fleet: PlanSetup, monkeypatch: pytest.MonkeyPatch, mode: int | None
) -> None:
    fleet.collected("db1")
    fleet.write()
    monkeypatch.setattr(named_peers, "DEFAULT_PLAN", str(fleet.plan))
    if mode is None:
        fleet.plan.unlink()
        done = fleet.command("check", "db1")
        assert done.returncode == ExitCode.USAGE
        assert f"nor is there a plan {fleet.plan}" in done.stderr
    else:
        assert fleet.command("check", "db1").stdout == "db1: ready\n"


def test_a_host_that_the_plan_lacks_is_a_host_for_the_doctor_and_trust(fleet: PlanSetup) -> None:
    fleet.collected("db1")
    fleet.write()
    arguments = ["--port", fleet.port, *fleet.master.arguments()]
    assert fleet("trust", "127.0.0.1", *arguments).returncode == 0
    assert "127.0.0.1: all is well" in fleet("doctor", "backup@127.0.0.1", *arguments).stdout

"""``StageOptions(manifest=True)``: what a directory's manifest says after stages, failures and kills."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from target_cases import FailsAt, memory_peer, memory_peer_of, requires_mount, stage_into

from peerstage import LocalPeer, Reason, RemotePeer, StageReport, verify
from peerstage.errors import EntryError, IncompleteStage, NothingToStage, TargetError
from peerstage.records import Ownership
from peerstage.stage_options import StageOptions
from peerstage.target import durability, manifest_writer
from peerstage.target.checksum_file import format_checksum
from peerstage.target.file_descriptors import open_directory
from peerstage.target.manifest import CHECKSUMS, REPORT, read_digests, read_results
from peerstage.testing import ssh_server
from peerstage.testing.contract import files_in
from peerstage.testing.memory import MemoryFile, MemoryTransport
from support.examples import examples
from support.filesystems import tmpfs

MANIFEST = StageOptions(manifest=True)
NAMES = {os.fsencode(CHECKSUMS), os.fsencode(REPORT)}


def stage_with_manifest(target: Path, transport: MemoryTransport, **options: Any) -> StageReport:
    return stage_into(target, transport, options=MANIFEST, **options)


def digests_in(target: Path) -> dict[bytes, str]:
    """Return the digests that the manifest names."""
    fd = open_directory(str(target))
    try:
        return {name: digest.hex() for name, digest in read_digests(fd, str(target)).items()}
    finally:
        os.close(fd)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def assert_exact(target: Path) -> None:
    """Check that the manifest names every file of *target* with its digest, and both files agree."""
    files = {name: data for name, data in files_in(target).items() if name not in NAMES}
    expected = {name: digest(data) for name, data in files.items()}
    assert digests_in(target) == expected
    fd = open_directory(str(target))
    try:
        results = read_results(fd, str(target))
    finally:
        os.close(fd)
    assert {name: (record.sha256, record.size) for name, record in results.items()} == {
        name: (bytes.fromhex(expected[name]), len(data)) for name, data in files.items()
    }
    assert verify(target).is_intact


def differences(target: Path) -> dict[str, str]:
    return {difference.name: difference.kind for difference in verify(target).differences}


# One stage


def test_a_manifest_names_every_staged_file_and_is_not_counted(target: Path) -> None:
    report = stage_with_manifest(target, memory_peer(one=b"1", two=b"22", empty=b""))
    assert report.count == 3
    assert set(files_in(target)) == {b"one", b"two", b"empty"} | NAMES
    assert {file.name: file.sha256 for file in report.files} == {
        "one": digest(b"1"),
        "two": digest(b"22"),
        "empty": digest(b""),
    }
    assert_exact(target)


def test_the_json_file_is_the_report(target: Path) -> None:
    transport = memory_peer(one=b"1", two=b"22", unwanted=b"333")
    transport.directories[b"/c"][b"directory"] = MemoryFile(mode=stat.S_IFDIR | 0o755)
    with pytest.raises(IncompleteStage) as raised:
        stage_into(target, transport, options=StageOptions(manifest=True, exclude="unwanted"))
    assert raised.value.report is not None
    expected = json.loads(raised.value.report.to_json())
    written = json.loads((target / REPORT).read_bytes())
    assert written.pop("kept") == []
    assert 0 <= written.pop("seconds") <= expected.pop("seconds")
    times = {file["name"]: file.pop("staged_mtime_ns") for file in written["files"]}
    assert times == {name: (target / name).stat().st_mtime_ns for name in ("one", "two")}
    assert written == expected
    assert [file["mtime"] for file in written["files"]] == [1, 1]
    assert [len(written[key]) for key in ("refused", "left_out")] == [1, 1]


def test_without_the_option_nothing_is_written_or_digested(target: Path) -> None:
    report = stage_into(target, memory_peer(one=b"1"))
    assert set(files_in(target)) == {b"one"}
    assert report.files[0].sha256 is None


WILD = [b"new\nline", b"back\\slash", b"carriage\rreturn", b"\\n", b" *x", b"\xff\xfe", b"-c", b"#comment"]


@pytest.mark.usefixtures("coreutils")
def test_sha256sum_checks_the_directory(target: Path) -> None:
    stage_with_manifest(target, memory_peer_of({name: name for name in WILD}))
    stage_with_manifest(target, memory_peer_of({WILD[0]: b"replaced", b"later": b"later"}))
    command = ["sha256sum", "--check", "--strict", "--quiet", CHECKSUMS]
    assert subprocess.run(command, cwd=target, capture_output=True, check=True).stdout == b""
    with open(os.fsencode(target) + b"/" + WILD[1], "ab") as file:
        file.write(b"!")
    done = subprocess.run(command, cwd=target, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (1, b"back\\slash: FAILED\n")
    assert differences(target) == {"back\\slash": "changed"}


@pytest.mark.parametrize(("permissions", "expected"), [(None, 0o600), (0o640, 0o640), (0o444, 0o444)])
def test_the_manifest_is_private_unless_a_mode_is_given(target: Path, permissions: int | None, expected: int) -> None:
    stage_with_manifest(target, memory_peer(one=b"1"), permissions=permissions)
    assert {stat.S_IMODE((target / name).stat().st_mode) for name in (CHECKSUMS, REPORT)} == {expected}


@pytest.mark.usefixtures("root")
def test_the_manifest_has_the_owner_of_the_files(target: Path) -> None:
    stage_with_manifest(target, memory_peer(one=b"1"), ownership=Ownership(12, 34))
    for name in ("one", CHECKSUMS, REPORT):
        assert ((target / name).stat().st_uid, (target / name).stat().st_gid) == (12, 34)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_collected_file_with_a_name_of_the_manifest_fails_alone(target: Path, name: bytes) -> None:
    with pytest.raises(IncompleteStage) as raised:
        stage_with_manifest(target, memory_peer_of({name: b"theirs", b"one": b"1"}))
    assert raised.value.report is not None
    assert [(file.name, file.reason) for file in raised.value.report.failed] == [
        (os.fsdecode(name), Reason.NAME_RESERVED)
    ]
    assert_exact(target)
    assert files_in(target)[b"one"] == b"1"


@pytest.mark.parametrize("name", sorted(NAMES))
def test_without_the_option_a_peer_cannot_deliver_a_manifest_either(target: Path, name: bytes) -> None:
    files = {name: format_checksum(b"one", digest(b"1")), b"one": b"1"}
    with pytest.raises(IncompleteStage) as raised:
        stage_into(target, memory_peer_of(files))
    assert raised.value.report is not None
    assert [result.reason for result in raised.value.report.failed] == [Reason.NAME_RESERVED]
    assert files_in(target) == {b"one": b"1"}
    report = stage_into(target, memory_peer_of(files), options=StageOptions(exclude=os.fsdecode(name)))
    assert report.failed == ()


def test_a_peers_manifest_may_be_the_checksum_file_that_every_file_is_compared_with(target: Path) -> None:
    manifest = format_checksum(b"one", digest(b"1"))
    files = {os.fsencode(CHECKSUMS): manifest, os.fsencode(REPORT): b"theirs", b"one": b"1", b"two": b"2"}
    options = StageOptions(verify="sha256", checksums=CHECKSUMS)
    with pytest.raises(IncompleteStage) as raised:
        stage_into(target, memory_peer_of(files), options=options)
    assert raised.value.report is not None
    assert {result.name: result.reason for result in raised.value.report.failed} == {
        REPORT: Reason.NAME_RESERVED,
        "two": Reason.NO_DIGEST,
    }
    assert files_in(target) == {b"one": b"1", os.fsencode(CHECKSUMS): manifest}
    assert verify(target).is_intact


@pytest.mark.parametrize("name", [CHECKSUMS, REPORT])
@pytest.mark.usefixtures("leaves_nothing")
def test_a_directory_with_a_name_of_the_manifest_ends_the_run_before_it_begins(target: Path, name: str) -> None:
    (target / name).mkdir()
    transport = memory_peer(one=b"1")
    transport.pull = None  # type: ignore[method-assign,assignment]  # calling it would fail
    with pytest.raises(TargetError) as raised:
        stage_with_manifest(target, transport)
    assert raised.value.reason is Reason.NAME_TAKEN
    assert name in str(raised.value)
    assert os.listdir(target) == [name]


def test_an_empty_collect_directory_leaves_the_manifest_as_it_is(target: Path) -> None:
    with pytest.raises(NothingToStage):
        stage_with_manifest(target, memory_peer())
    assert files_in(target) == {}
    stage_with_manifest(target, memory_peer(one=b"1"))
    before = files_in(target)
    with pytest.raises(NothingToStage):
        stage_with_manifest(target, memory_peer())
    assert files_in(target) == before


@pytest.mark.usefixtures("fresh_interpreter")
@pytest.mark.parametrize("isolated", [False, True])
def test_a_remote_stage_writes_the_same_manifest_isolated_or_not(collect: Path, target: Path, isolated: bool) -> None:
    for name in WILD:
        with open(os.fsencode(collect) + b"/" + name, "wb") as file:
            file.write(name * 1000)
    with ssh_server(collect) as server:
        peer = RemotePeer(
            server.host, "/", "/tmp", server.username, ssh=server.options, isolated=isolated, stage=MANIFEST
        )
        assert peer.stagePeer(target) == len(WILD)
    assert_exact(target)
    assert json.loads((target / REPORT).read_bytes())["host_key"].startswith("SHA256:")


def test_a_local_stage_writes_a_manifest(collect: Path, target: Path) -> None:
    (collect / "one").write_bytes(b"1")
    assert LocalPeer("here", collect, stage=MANIFEST).stagePeer(target) == 1
    assert_exact(target)
    with pytest.raises(IncompleteStage, match=r"peerstage.json: This name is reserved for the manifest"):
        LocalPeer("here", target, stage=MANIFEST).stagePeer(collect)


# One stage after another


def test_entries_of_files_that_a_stage_does_not_touch_are_kept(target: Path) -> None:
    stage_with_manifest(target, memory_peer(one=b"1", two=b"22"))
    stage_with_manifest(target, memory_peer(two=b"new", three=b"333"))
    assert_exact(target)
    assert set(digests_in(target)) == {b"one", b"two", b"three"}
    report = json.loads((target / REPORT).read_bytes())
    assert [file["name"] for file in report["files"]] == ["two", "three"]
    assert [(file["name"], file["mtime"], file["size"]) for file in report["kept"]] == [("one", 1, 1)]
    assert (report["count"], report["bytes"]) == (2, 6)


def test_an_entry_goes_with_its_file(target: Path) -> None:
    stage_with_manifest(target, memory_peer(one=b"1", two=b"22", three=b"3"))
    (target / "one").unlink()
    (target / "three").unlink()
    (target / "three").symlink_to("two")
    assert differences(target) == {"one": "missing", "three": "changed"}
    stage_with_manifest(target, memory_peer(four=b"4"))
    assert set(digests_in(target)) == {b"two", b"four"}
    assert differences(target) == {"three": "extra"}


def test_a_file_that_has_changed_stays_changed_until_it_is_staged_again(target: Path) -> None:
    stage_with_manifest(target, memory_peer(one=b"1", two=b"22"))
    (target / "one").write_bytes(b"rotten")
    stage_with_manifest(target, memory_peer(two=b"22"))
    assert differences(target) == {"one": "changed"}
    stage_with_manifest(target, memory_peer(one=b"1"))
    assert_exact(target)


def test_a_file_that_fails_keeps_the_old_file_and_the_old_entry(target: Path) -> None:
    stage_with_manifest(target, memory_peer(one=b"1", two=b"22", three=b"3"))
    transport = memory_peer(one=b"new", two=b"new", three=b"new")
    error = EntryError("No.", reason=Reason.ENTRY_UNREADABLE)
    transport.directories[b"/c"][b"two"] = MemoryFile(b"new", error=error)
    transport.directories[b"/c"][b"three"] = MemoryFile(mode=stat.S_IFIFO | 0o600)
    with pytest.raises(IncompleteStage):
        stage_with_manifest(target, transport)
    assert files_in(target)[b"two"] == b"22"
    assert digests_in(target) == {b"one": digest(b"new"), b"two": digest(b"22"), b"three": digest(b"3")}
    assert verify(target).is_intact


def test_a_stage_without_the_option_makes_verify_report_what_it_replaced(target: Path) -> None:
    stage_with_manifest(target, memory_peer(one=b"1", two=b"22"))
    before = (target / CHECKSUMS).read_bytes()
    stage_into(target, memory_peer(one=b"new", more=b""))
    assert (target / CHECKSUMS).read_bytes() == before
    assert differences(target) == {"one": "changed", "more": "extra"}


@given(
    st.lists(
        st.tuples(
            st.dictionaries(st.sampled_from("abcdef"), st.binary(max_size=3), max_size=5),
            st.sets(st.sampled_from("abcdef"), max_size=2),
            st.sets(st.sampled_from("abcdef"), max_size=2),
            st.sampled_from([None, None, None, "checksums", "report"]),
        ),
        max_size=5,
    )
)
@examples(25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_after_any_stages_the_manifest_names_the_staged_files_that_exist(
    quick_target: Path, steps: list[tuple[dict[str, bytes], set[str], set[str], str | None]]
) -> None:
    """Each step removes files, then stages some, of which some fail; sometimes a file of the manifest is damaged."""
    for path in quick_target.iterdir():
        path.unlink()
    for files, failing, removed, damaged in steps:
        for name in removed:
            (quick_target / name).unlink(missing_ok=True)
        if damaged == "report" and (quick_target / REPORT).exists():
            (quick_target / REPORT).write_bytes(b"damaged")
        before = files_in(quick_target)
        old = digests_in(quick_target) if (quick_target / CHECKSUMS).exists() else {}
        if damaged == "checksums" and old:
            (quick_target / CHECKSUMS).write_bytes(b"damaged\n")
            old = {}
        transport = memory_peer(**files)
        for name in failing & files.keys():
            error = EntryError("No.", reason=Reason.ENTRY_UNREADABLE)
            transport.directories[b"/c"][name.encode()] = MemoryFile(b"?", error=error)
        staged = {name.encode(): data for name, data in files.items() if name not in failing}
        try:
            stage_with_manifest(quick_target, transport)
        except (IncompleteStage, NothingToStage):
            if not staged:
                assert {name: data for name, data in files_in(quick_target).items() if name not in NAMES} == {
                    name: data for name, data in before.items() if name not in NAMES
                }
                if damaged == "checksums":
                    (quick_target / CHECKSUMS).unlink(missing_ok=True)
                continue
        kept = {name: old[name] for name in old.keys() & before.keys()}
        assert digests_in(quick_target) == kept | {name: digest(data) for name, data in staged.items()}
        assert not {"changed", "missing", "unreadable"} & set(differences(quick_target).values())


@pytest.mark.parametrize("is_link", [True, False])
def test_files_that_come_from_the_day_before_keep_the_digests_of_what_was_staged(tmp_path: Path, is_link: bool) -> None:
    """A file that rotted since is not given a new digest, which would hide that."""
    days = [tmp_path / "1", tmp_path / "2"]
    for day in days:
        day.mkdir()
    stage_with_manifest(days[0], memory_peer(good=b"good", bad=b"bad"))
    before = (days[0] / "bad").stat()
    (days[0] / "bad").write_bytes(b"rot")
    os.utime(days[0] / "bad", ns=(before.st_atime_ns, before.st_mtime_ns))
    options = StageOptions(manifest=True, link_dest=str(days[0]))
    report = stage_into(
        days[1], memory_peer(good=b"good", bad=b"bad", new=b"new"), options=options,
        permissions=None if is_link else 0o600,
    )  # fmt: skip
    assert {file.name: file.outcome for file in report.files} == {"good": "linked", "bad": "linked", "new": "staged"}
    assert os.path.samefile(days[0] / "good", days[1] / "good") == is_link
    assert digests_in(days[1]) == {b"good": digest(b"good"), b"bad": digest(b"bad"), b"new": digest(b"new")}
    assert differences(days[0]) == differences(days[1]) == {"bad": "changed"}


# Old manifests that are not ours


def make_hostile(path: Path, kind: str) -> None:
    """Put something else under the name of an old manifest's file."""
    path.unlink(missing_ok=True)
    if kind == "link":
        (path.parent.parent / "victim").write_bytes(format_checksum(b"kept", digest(b"kept")))
        path.symlink_to(path.parent.parent / "victim")
    elif kind == "dangling link":
        path.symlink_to(path.parent.parent / "nowhere")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "huge":
        path.touch()
        os.truncate(path, 1 << 40)
    elif kind == "a line without end":
        path.write_bytes(b"0" * (1 << 20))
    elif kind == "names elsewhere":
        path.write_bytes(format_checksum(b"../victim", digest(b"")))
    else:
        path.write_bytes(os.urandom(1000))


KINDS = ["link", "dangling link", "fifo", "huge", "a line without end", "names elsewhere", "random"]


@pytest.mark.parametrize("kind", KINDS)
def test_an_old_manifest_that_is_not_ours_is_replaced_with_a_warning(
    target: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    stage_with_manifest(target, memory_peer(kept=b"kept"))
    make_hostile(target / CHECKSUMS, kind)
    with caplog.at_level(logging.WARNING, "peerstage.target"):
        stage_with_manifest(target, memory_peer(one=b"1"))
    (record,) = caplog.records
    assert "is not a valid manifest" in record.getMessage()
    assert "\n" not in record.getMessage()
    assert not (target / CHECKSUMS).is_symlink()
    assert digests_in(target) == {b"one": digest(b"1")}
    assert differences(target) == {"kept": "extra"}
    assert not (target.parent / "nowhere").exists()
    if kind == "link":
        assert (target.parent / "victim").read_bytes() == format_checksum(b"kept", digest(b"kept"))


@pytest.mark.parametrize("kind", KINDS)
def test_an_old_report_that_is_not_ours_costs_no_digests(
    target: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    stage_with_manifest(target, memory_peer(kept=b"kept"))
    make_hostile(target / REPORT, kind)
    with caplog.at_level(logging.WARNING, "peerstage.target"):
        stage_with_manifest(target, memory_peer(one=b"1"))
    assert len(caplog.records) == 1
    assert not (target / REPORT).is_symlink()
    assert_exact(target)
    kept = json.loads((target / REPORT).read_bytes())["kept"]
    assert [(file["name"], file["size"], file["mtime"]) for file in kept] == [("kept", 4, None)]


def test_a_result_whose_digest_is_not_that_of_the_manifest_is_not_believed(target: Path) -> None:
    """A run that was killed between the two last renames leaves the report of the run before it."""
    stage_with_manifest(target, memory_peer(one=b"old"))
    old = (target / REPORT).read_bytes()
    stage_with_manifest(target, memory_peer(one=b"newer"))
    (target / REPORT).write_bytes(old)
    stage_with_manifest(target, memory_peer(two=b"2"))
    assert_exact(target)
    assert json.loads((target / REPORT).read_bytes())["kept"][0]["mtime"] is None


def test_an_old_manifest_that_cannot_be_read_ends_the_run_with_nothing_published(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage_with_manifest(target, memory_peer(one=b"1"))
    before = files_in(target)
    original = os.open

    def failing(path: Any, *arguments: Any, **options: Any) -> int:
        if path == CHECKSUMS and not arguments[0] & os.O_CREAT:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return original(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", failing)
        with pytest.raises(TargetError) as raised:
            stage_with_manifest(target, memory_peer(one=b"new"))
    assert raised.value.reason is Reason.LOCAL_IO_ERROR
    assert raised.value.report is None
    assert files_in(target) == before


@pytest.mark.parametrize(("bound", "most"), [("MAX_LINES", 3), ("MAX_BYTES", 282)])
def test_more_files_than_a_manifest_can_name_are_not_published(
    target: Path, monkeypatch: pytest.MonkeyPatch, bound: str, most: int
) -> None:
    stage_with_manifest(target, memory_peer(one=b"1"))
    before = files_in(target)
    monkeypatch.setattr(manifest_writer, bound, most)
    with pytest.raises(TargetError) as raised:
        stage_with_manifest(target, memory_peer(two=b"2", three=b"3", four=b"4"))
    assert raised.value.reason is Reason.LIMIT_EXCEEDED
    assert files_in(target) == before
    stage_with_manifest(target, memory_peer(two=b"2", three=b"3"))
    assert_exact(target)


# Failing disks


def old_and_new(target: Path) -> tuple[dict[bytes, bytes], MemoryTransport]:
    """Stage two files, and return what is there, and a peer that has other content."""
    stage_with_manifest(target, memory_peer(one=b"old", two=b"old"))
    return files_in(target), memory_peer(one=b"new", two=b"new", three=b"new")


@pytest.mark.parametrize("function", ["fsync", "fchmod"])
@pytest.mark.parametrize("number", [4, 5])
def test_a_disk_that_fails_while_the_manifest_is_written_publishes_nothing(
    target: Path, monkeypatch: pytest.MonkeyPatch, function: str, number: int
) -> None:
    """The first three calls are those for the files."""
    before, transport = old_and_new(target)
    with monkeypatch.context() as patch:
        patch.setattr(os, function, FailsAt(getattr(os, function), errno.ENOSPC, number=number))
        with pytest.raises(TargetError) as raised:
            stage_with_manifest(target, transport)
    assert raised.value.reason is Reason.NO_SPACE
    assert raised.value.report is None
    assert files_in(target) == before
    assert verify(target).is_intact


@requires_mount
@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("free_pages", [3, 4])
def test_a_disk_without_space_for_the_manifest_publishes_nothing(tmp_path: Path, free_pages: int) -> None:
    """The three files take a page each, and so do the two of the manifest."""
    with tmpfs(tmp_path / "small", "size=1m") as target:
        _, transport = old_and_new(target)
        found = os.statvfs(target)
        (target / "filler").write_bytes(bytes((found.f_bfree - free_pages) * found.f_bsize))
        before = files_in(target)
        with pytest.raises(TargetError) as raised:
            stage_with_manifest(target, transport)
        assert raised.value.reason is Reason.NO_SPACE
        assert files_in(target) == before
        os.truncate(target / "filler", 0)
        stage_with_manifest(target, transport)
        assert differences(target) == {"filler": "extra"}


@pytest.mark.parametrize("number", range(1, 6))
def test_a_disk_that_fails_at_any_rename_leaves_a_manifest_that_the_next_stage_repairs(
    target: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    before, transport = old_and_new(target)
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", FailsAt(os.rename, errno.EIO, number=number))
        with pytest.raises(TargetError) as raised:
            stage_with_manifest(target, transport)
    assert (raised.value.report.count if raised.value.report else 0) == min(number - 1, 3)
    found = files_in(target)
    if number <= 4:
        assert [found[name] == before[name] for name in sorted(NAMES)] == [True, True]
        assert set(differences(target).values()) <= {"changed", "extra"}
        assert len(differences(target)) == min(number - 1, 3)
    else:
        assert found[os.fsencode(REPORT)] == before[os.fsencode(REPORT)]
        assert verify(target).is_intact
    stage_with_manifest(target, transport)
    assert_exact(target)


def test_a_name_that_is_refused_at_the_last_moment_keeps_its_old_entry(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, transport = old_and_new(target)
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", FailsAt(os.rename, errno.EPERM, number=2))
        with pytest.raises(IncompleteStage):
            stage_with_manifest(target, transport)
    assert digests_in(target) == {b"one": digest(b"new"), b"two": digest(b"old"), b"three": digest(b"new")}
    assert_exact(target)
    report = json.loads((target / REPORT).read_bytes())
    assert [file["outcome"] for file in report["files"]] == ["staged", "failed", "staged"]
    assert [file["name"] for file in report["kept"]] == ["two"]


class Recorded:
    """Records calls of functions by name, with the last argument that is a name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: list[str] = []
        self._patch = monkeypatch

    def record(self, function: str, describe: Callable[..., str]) -> None:
        original = getattr(os, function)

        def recording(*arguments: Any, **options: Any) -> Any:
            self.steps.append(describe(*arguments))
            return original(*arguments, **options)

        self._patch.setattr(os, function, recording)


@pytest.mark.parametrize("durable", [True, False])
def test_files_are_durable_under_their_names_before_the_manifest_names_them(
    target: Path, monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    recorded = Recorded(monkeypatch)
    recorded.record("rename", lambda source, final: f"rename {os.fsdecode(final)}")
    recorded.record("fsync", lambda fd: "sync directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else "sync file")
    stage_into(target, memory_peer(one=b"1"), options=StageOptions(manifest=True, durable=durable))
    renames = ["rename one", f"rename {CHECKSUMS}", f"rename {REPORT}"]
    if durable:
        renames = [*["sync file"] * 3, renames[0], "sync directory", *renames[1:], "sync directory"]
    assert recorded.steps == renames


def test_many_files_are_synced_together_and_the_manifest_by_itself(
    quick_target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = durability.MAX_FSYNCS + 1
    stage_with_manifest(quick_target, memory_peer_of({b"%d" % number: b"x" for number in range(count)}))
    assert_exact(quick_target)

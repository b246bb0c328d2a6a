"""Unchanged files are linked to those of an earlier staging directory instead of being fetched again."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import random
import stat
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerstage import LocalPeer, RemotePeer
from peerstage.errors import Cancelled, TargetError
from peerstage.reasons import Reason
from peerstage.records import LINKED, STAGED, FileResult, Limits, Ownership, StageReport
from peerstage.stage_options import StageOptions
from peerstage.staging import stage
from peerstage.target import DirectoryTarget, link_dest
from peerstage.target.attributes import current_umask
from peerstage.target.base import Target
from peerstage.target.checksum_file import format_checksum
from peerstage.target.manifest import read_confirmed_results
from peerstage.target.manifest_writer import ManifestWriter
from peerstage.target.report_file import write_report
from peerstage.testing.contract import files_in
from peerstage.testing.memory import MemoryFile, MemoryTransport
from peerstage.testing.peers import memory_peer
from peerstage.watchdog import Watchdog
from support.child_link import ChildLink
from support.examples import examples

pytestmark = pytest.mark.usefixtures("leaves_nothing")
YESTERDAY = 1_700_000_000


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    path = tmp_path / "earlier"
    path.mkdir()
    return path


def stage_files(
    files: dict[bytes, MemoryFile],
    target: Path,
    *,
    ownership: Ownership | None = None,
    permissions: int | None = None,
    **options: Any,
) -> tuple[StageReport, set[str]]:
    """Stage *files*; return the report and the names of the linked ones."""
    transport = MemoryTransport({b"/c": files})
    staging_target = DirectoryTarget(
        str(target), options=StageOptions(durable=False, **options), ownership=ownership, permissions=permissions
    )
    report = stage(transport, b"/c", staging_target)
    return report, {file.name for file in report.files if file.outcome == LINKED}


def file_of(data: bytes, mtime: int = YESTERDAY, mode: int = 0o644) -> MemoryFile:
    return MemoryFile(data, mode=stat.S_IFREG | mode, mtime=mtime)


def write_manifest(
    directory: Path, files: dict[bytes, MemoryFile], *, peer: str = "", staged_mtime_ns: bool = True
) -> None:
    """Write the manifest that a stage of *files* into *directory* would leave."""

    def mtime_ns_of(result: FileResult) -> int | None:
        return (directory / result.name).stat().st_mtime_ns if staged_mtime_ns else None

    digests = {name: hashlib.sha256(file.data).hexdigest() for name, file in files.items()}
    results = [
        FileResult(os.fsdecode(name), len(file.data), 0o644, file.mtime, sha256=digests[name])
        for name, file in files.items()
    ]
    with (directory / "peerstage.json").open("wb") as report_file:
        write_report(report_file, StageReport(peer, "sftp", str(directory)), results, (), (), mtime_ns_of)
    lines = [format_checksum(name, digest) for name, digest in digests.items()]
    (directory / "peerstage.sha256").write_bytes(b"".join(lines))


def change_in_place(path: Path, data: bytes, *, keep_time: bool = False) -> None:
    """Replace the content of a staged file, with a later time or, as a disk that rots, with the same."""
    mtime_ns = path.stat().st_mtime_ns + (0 if keep_time else 1)
    path.write_bytes(data)
    os.utime(path, ns=(mtime_ns, mtime_ns))


def inodes_of(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in directory.iterdir()}


def attributes_of(path: Path) -> tuple[int, ...]:
    found = path.stat()
    return found.st_mode, found.st_uid, found.st_gid, found.st_size, found.st_mtime_ns


# What is linked


def test_an_unchanged_file_is_a_link_by_the_time_in_the_manifest(earlier: Path, target: Path) -> None:
    files = {b"same": file_of(b"data"), b"larger": file_of(b"12"), b"newer": file_of(b"x")}
    stage_files(files, earlier)
    write_manifest(earlier, files)
    before = {name: attributes_of(earlier / name) for name in ("same", "larger", "newer")}
    changed = {b"same": files[b"same"], b"larger": file_of(b"123"), b"newer": file_of(b"y", YESTERDAY + 1)}
    report, linked = stage_files({**changed, b"new": file_of(b"new")}, target, link_dest=str(earlier))
    assert linked == {"same"}
    assert (report.count, report.linked, report.notes) == (4, 1, ())
    assert files_in(target) == {b"same": b"data", b"larger": b"123", b"newer": b"y", b"new": b"new"}
    assert inodes_of(target)["same"] == inodes_of(earlier)["same"]
    assert before == {name: attributes_of(earlier / name) for name in before}


def test_an_unchanged_file_is_a_link_by_its_own_time_if_times_are_preserved(earlier: Path, target: Path) -> None:
    files = {b"same": file_of(b"data"), b"newer": file_of(b"x")}
    stage_files(files, earlier, preserve_times=True)
    os.utime(earlier / "same", ns=(0, YESTERDAY * 10**9 + 5))
    changed = {**files, b"newer": file_of(b"y", YESTERDAY + 1)}
    _, linked = stage_files(changed, target, link_dest=str(earlier), preserve_times=True)
    assert linked == {"same"}
    assert inodes_of(target)["same"] == inodes_of(earlier)["same"]
    assert (earlier / "same").stat().st_mtime_ns == YESTERDAY * 10**9 + 5, "the earlier inode is not changed"
    assert int((target / "newer").stat().st_mtime) == YESTERDAY + 1


def test_the_content_of_a_linked_file_is_not_requested(earlier: Path, target: Path) -> None:
    stage_files({b"same": file_of(b"data")}, earlier, preserve_times=True)
    _, linked = stage_files(
        {b"same": MemoryFile(b"data", mtime=YESTERDAY, error=RuntimeError("requested"))},  # type: ignore[arg-type]
        target,
        link_dest=str(earlier),
        preserve_times=True,
    )
    assert linked == {"same"}


def test_a_child_process_does_not_fetch_what_its_parent_links(earlier: Path, target: Path) -> None:
    files = {b"same": file_of(b"data" * 100), b"new": file_of(b"new")}
    stage_files({b"same": files[b"same"]}, earlier, preserve_times=True)
    options = StageOptions(durable=False, link_dest=str(earlier), preserve_times=True)
    with DirectoryTarget(str(target), options=options) as staging_target:
        link = ChildLink(staging_target)
        MemoryTransport({b"/c": files}).pull(b"/c", link.child_target)
        staging_target.commit()
        assert {result.name: result.outcome for result in staging_target.pop_results()} == {
            "same": LINKED,
            "new": STAGED,
        }
    assert link.sent_bytes == 3
    assert files_in(target) == {b"same": b"data" * 100, b"new": b"new"}


def test_staging_again_into_the_same_directory_leaves_unchanged_files_alone(target: Path) -> None:
    files = {b"same": file_of(b"data"), b"newer": file_of(b"x")}
    stage_files(files, target, preserve_times=True)
    before = inodes_of(target)
    changed = {**files, b"newer": file_of(b"y", YESTERDAY + 1)}
    report, linked = stage_files(changed, target, link_dest=str(target), preserve_times=True)
    assert (linked, report.count) == ({"same"}, 2)
    assert files_in(target) == {b"same": b"data", b"newer": b"y"}
    assert inodes_of(target)["same"] == before["same"]
    assert (target / "same").stat().st_nlink == 1


# What is copied


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP])
def test_what_cannot_be_linked_is_copied(
    number: int, earlier: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {b"same": file_of(random.Random(1).randbytes(100_000), mode=0o600)}
    stage_files(files, earlier, preserve_times=True)

    def refuse(*args: Any, **options: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    _, linked = stage_files(files, target, link_dest=str(earlier), preserve_times=True)
    assert linked == {"same"}
    assert inodes_of(target)["same"] != inodes_of(earlier)["same"]
    assert attributes_of(target / "same") == attributes_of(earlier / "same")
    assert files_in(target) == {b"same": files[b"same"].data}


def test_a_file_that_gets_another_mode_is_copied_and_the_earlier_one_keeps_its_own(earlier: Path, target: Path) -> None:
    files = {b"same": file_of(b"data")}
    stage_files(files, earlier, preserve_times=True)
    _, linked = stage_files(files, target, link_dest=str(earlier), preserve_times=True, permissions=0o600)
    assert linked == {"same"}
    assert stat.S_IMODE((target / "same").stat().st_mode) == 0o600
    assert stat.S_IMODE((earlier / "same").stat().st_mode) == 0o644 & ~current_umask()
    assert inodes_of(target)["same"] != inodes_of(earlier)["same"]


@pytest.mark.usefixtures("root")
def test_a_file_that_gets_another_owner_is_copied_and_the_earlier_one_keeps_its_own(
    earlier: Path, target: Path
) -> None:
    files = {b"same": file_of(b"data")}
    stage_files(files, earlier, preserve_times=True)
    _, linked = stage_files(
        files, target, link_dest=str(earlier), preserve_times=True, ownership=Ownership(12345, 12346)
    )
    assert linked == {"same"}
    assert ((target / "same").stat().st_uid, (target / "same").stat().st_gid) == (12345, 12346)
    assert (earlier / "same").stat().st_uid == os.geteuid()
    again = target.with_name("again")
    again.mkdir()
    stage_files(files, again, link_dest=str(target), preserve_times=True, ownership=Ownership(12345, 12346))
    assert inodes_of(again) == inodes_of(target)


def test_a_file_that_gets_the_peers_time_is_copied_if_the_earlier_one_has_another(earlier: Path, target: Path) -> None:
    files = {b"same": file_of(b"data")}
    stage_files(files, earlier)
    write_manifest(earlier, files)
    _, linked = stage_files(files, target, link_dest=str(earlier), preserve_times=True)
    assert linked == {"same"}
    assert int((target / "same").stat().st_mtime) == YESTERDAY
    assert int((earlier / "same").stat().st_mtime) != YESTERDAY


@pytest.mark.parametrize("transport", ["memory", "child"])
def test_copies_need_free_space_as_fetched_files_do(
    transport: str, earlier: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {b"same": file_of(b"x" * 100_000)}
    stage_files(files, earlier, manifest=True)
    free = os.statvfs(target)
    limits = Limits(free_bytes=free.f_frsize * free.f_bfree * 2)
    options = StageOptions(durable=False, link_dest=str(earlier))
    peer = MemoryTransport({b"/c": files})
    stage(peer, b"/c", DirectoryTarget(str(target), options=options, limits=limits))
    assert inodes_of(target)["same"] == inodes_of(earlier)["same"], "a link needs no space"
    (target / "same").unlink()
    with (
        pytest.raises(TargetError, match="bytes are to be staged"),
        DirectoryTarget(str(target), options=options, limits=limits, permissions=0o600) as staging_target,
    ):
        peer.pull(b"/c", ChildLink(staging_target).child_target if transport == "child" else staging_target)
    assert files_in(target) == {}


def test_a_copy_can_be_cancelled_and_extends_the_deadline(
    earlier: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {b"same": file_of(b"x" * 10_000)}
    stage_files(files, earlier, manifest=True)
    monkeypatch.setattr(link_dest, "_CHUNK", 1000)
    pread, reads = os.pread, 0
    watchdog = Watchdog(Limits())

    def cancel_later(*args: int) -> bytes:
        nonlocal reads
        reads += 1
        if reads == 3:
            watchdog.cancel()
        return pread(*args)

    options = StageOptions(durable=False, link_dest=str(earlier))
    monkeypatch.setattr(os, "pread", cancel_later)
    copied: list[int] = []
    count_copied = watchdog.count_copied

    def count(size: int) -> None:
        copied.append(size)
        count_copied(size)

    monkeypatch.setattr(watchdog, "count_copied", count)
    with pytest.raises(Cancelled):
        stage(
            MemoryTransport({b"/c": files}),
            b"/c",
            DirectoryTarget(str(target), options=options, permissions=0o600),
            watchdog=watchdog,
        )
    assert (reads, sum(copied)) == (3, 3000)
    assert files_in(target) == {}


@pytest.mark.parametrize("change", [lambda path: change_in_place(path, b"evil"), Path.unlink])
def test_a_file_that_changes_before_it_is_copied_is_fetched(change: Any, earlier: Path, target: Path) -> None:
    files = {b"changed": file_of(b"data"), b"new": file_of(b"new")}
    stage_files(files, earlier, manifest=True)

    class ChangingTransport(MemoryTransport):
        def pull(self, directory: bytes, target: Target) -> None:
            super().pull(directory, target)
            if (earlier / "changed").exists():
                change(earlier / "changed")

    options = StageOptions(durable=False, link_dest=str(earlier))
    staging_target = DirectoryTarget(str(target), options=options, permissions=0o600)
    report = stage(ChangingTransport({b"/c": files}), b"/c", staging_target)
    assert {file.name: file.outcome for file in report.files} == {"changed": STAGED, "new": LINKED}
    assert files_in(target) == {b"changed": b"data", b"new": b"new"}


def test_a_file_that_changes_before_it_is_copied_fails_if_nothing_can_be_fetched_again(
    earlier: Path, target: Path
) -> None:
    files = {b"changed": file_of(b"data"), b"same": file_of(b"same")}
    stage_files(files, earlier, manifest=True)
    options = StageOptions(durable=False, link_dest=str(earlier))
    with DirectoryTarget(str(target), options=options, permissions=0o600) as staging_target:
        MemoryTransport({b"/c": files}).pull(b"/c", staging_target)
        change_in_place(earlier / "changed", b"evil")
        staging_target.commit()
        assert {result.name: result.reason for result in staging_target.pop_results()} == {
            "changed": Reason.CHANGED_WHILE_STAGED,
            "same": None,
        }
    assert files_in(target) == {b"same": b"same"}


# What is fetched


def test_without_a_manifest_or_preserved_times_every_file_is_fetched_and_the_report_says_so(
    earlier: Path, target: Path
) -> None:
    files = {b"same": file_of(b"data")}
    stage_files(files, earlier)
    report, linked = stage_files(files, target, link_dest=str(earlier))
    assert linked == set()
    assert len(report.notes) == 1
    assert "does not tell the times of its files, so that none was linked" in report.notes[0]
    assert "Stage into it with StageOptions(manifest=True)" in report.notes[0]
    assert StageReport.from_json(report.to_json()) == report


def test_without_the_directory_every_file_is_fetched_and_the_report_says_so(earlier: Path, target: Path) -> None:
    report, linked = stage_files({b"same": file_of(b"data")}, target, link_dest=str(earlier / "missing"))
    assert linked == set()
    assert report.notes == (
        f"{earlier / 'missing'} cannot be opened (No such file or directory), so that no file was linked to it.",
    )
    assert files_in(target) == {b"same": b"data"}


@pytest.mark.parametrize("content", [b"", b"{}", b"not JSON\n", b"[" * 100_000])
def test_a_damaged_manifest_links_nothing(content: bytes, earlier: Path, target: Path) -> None:
    stage_files({b"same": file_of(b"data")}, earlier)
    (earlier / "peerstage.json").write_bytes(content)
    report, linked = stage_files({b"same": file_of(b"data")}, target, link_dest=str(earlier))
    assert linked == set()
    assert "peerstage.json is not a valid manifest" in report.notes[0]
    assert files_in(target) == {b"same": b"data"}


def _make_symlink(path: Path) -> None:
    path.with_name("elsewhere").write_bytes(b"evil")
    path.symlink_to("elsewhere")


@pytest.mark.parametrize(
    "replace",
    [_make_symlink, os.mkfifo, Path.mkdir, lambda path: path.write_bytes(b"longer than it was"), lambda path: None],
    ids=["symlink", "fifo", "directory", "other size", "missing"],
)
def test_an_earlier_file_that_is_not_what_the_manifest_says_is_not_linked(
    replace: Any, earlier: Path, target: Path
) -> None:
    files = {b"same": file_of(b"data")}
    stage_files(files, earlier, manifest=True)
    (earlier / "same").unlink()
    replace(earlier / "same")
    _, linked = stage_files(files, target, link_dest=str(earlier))
    assert linked == set()
    assert files_in(target) == {b"same": b"data"}


def test_a_file_replaced_between_the_check_and_the_link_is_fetched(
    earlier: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {b"same": file_of(b"data")}
    stage_files(files, earlier, preserve_times=True)
    link = os.link

    def replace_first(*args: Any, **options: Any) -> None:
        (earlier / "same").unlink()
        (earlier / "same").write_bytes(b"evil")
        link(*args, **options)

    monkeypatch.setattr(os, "link", replace_first)
    _, linked = stage_files(files, target, link_dest=str(earlier), preserve_times=True)
    assert linked == set()
    assert files_in(target) == {b"same": b"data"}


def test_a_file_without_a_time_is_fetched(earlier: Path, target: Path) -> None:
    files = {b"same": file_of(b"data")}
    stage_files(files, earlier, preserve_times=True)
    timeless = {b"same": MemoryFile(b"data", mtime=None)}  # type: ignore[arg-type]
    timeless[b"also"] = timeless[b"same"]
    report, linked = stage_files(timeless, target, link_dest=str(earlier), preserve_times=True)
    assert linked == set()
    assert report.notes == (f"The peer sends no modification times, so that not every file was linked to {earlier}.",)


# Files that are not those of the manifest


@pytest.mark.parametrize("preserve_times", [False, True])
def test_a_file_that_was_changed_after_its_manifest_was_written_is_fetched(
    preserve_times: bool, earlier: Path, target: Path
) -> None:
    files = {b"changed": file_of(b"data"), b"same": file_of(b"data")}
    stage_files(files, earlier, manifest=True, preserve_times=preserve_times)
    change_in_place(earlier / "changed", b"evil")
    _, linked = stage_files(files, target, link_dest=str(earlier), preserve_times=preserve_times)
    assert linked == {"same"}
    assert files_in(target) == {b"changed": b"data", b"same": b"data"}


def test_a_file_that_a_killed_run_replaced_before_its_manifest_is_fetched(
    earlier: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Afterwards the peer has the old file again, with its old time."""
    old, new = {b"f": file_of(b"old")}, {b"f": file_of(b"new", YESTERDAY + 1)}
    stage_files(old, earlier, manifest=True)
    os.utime(earlier / "f", ns=(0, 0))
    write_manifest(earlier, old)
    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):

        def die(writer: ManifestWriter) -> None:
            raise KeyboardInterrupt

        patch.setattr(ManifestWriter, "publish", die)
        stage_files(new, earlier, manifest=True)
    assert (earlier / "f").read_bytes() == b"new"
    _, linked = stage_files(old, target, link_dest=str(earlier))
    assert linked == set()
    assert files_in(target) == {b"f": b"old"}


def test_a_file_that_a_stage_without_manifest_replaced_is_fetched(earlier: Path, target: Path) -> None:
    old = {b"f": file_of(b"old")}
    stage_files(old, earlier, manifest=True)
    os.utime(earlier / "f", ns=(0, 0))
    write_manifest(earlier, old)
    stage_files({b"f": file_of(b"new", YESTERDAY + 1)}, earlier)
    _, linked = stage_files(old, target, link_dest=str(earlier))
    assert linked == set()
    assert files_in(target) == {b"f": b"old"}


@pytest.mark.parametrize("preserve_times", [False, True])
def test_a_manifest_that_does_not_tell_the_times_of_staged_files_links_only_by_preserved_times(
    preserve_times: bool, earlier: Path, target: Path
) -> None:
    files = {b"same": file_of(b"data"), b"touched": file_of(b"data")}
    stage_files(files, earlier, preserve_times=True)
    os.utime(earlier / "touched", (0, YESTERDAY + 1))
    write_manifest(earlier, files, staged_mtime_ns=False)
    _, linked = stage_files(files, target, link_dest=str(earlier), preserve_times=preserve_times)
    assert linked == ({"same"} if preserve_times else set())


def test_a_file_of_which_the_two_parts_of_the_manifest_differ_is_fetched(earlier: Path, target: Path) -> None:
    """A run was killed between the two renames, and the file system has no finer times."""
    files = {b"f": file_of(b"data"), b"missing": file_of(b"data"), b"same": file_of(b"data")}
    stage_files(files, earlier, manifest=True)
    same = (earlier / "peerstage.sha256").read_bytes().splitlines(keepends=True)[-1]
    (earlier / "peerstage.sha256").write_bytes(format_checksum(b"f", "0" * 64) + same)
    _, linked = stage_files(files, target, link_dest=str(earlier))
    assert linked == {"same"}


def test_an_entry_that_a_later_stage_keeps_in_the_manifest_counts_as_before(earlier: Path, target: Path) -> None:
    files = {b"changed": file_of(b"data"), b"same": file_of(b"data")}
    stage_files(files, earlier, manifest=True)
    change_in_place(earlier / "changed", b"evil")
    stage_files({b"other": file_of(b"x")}, earlier, manifest=True)
    _, linked = stage_files(files, target, link_dest=str(earlier))
    assert linked == {"same"}


@pytest.mark.parametrize("permissions", [None, 0o600], ids=["link", "copy"])
def test_with_sha256_a_link_or_copy_is_hashed_and_one_that_differs_is_fetched(
    permissions: int | None, earlier: Path, target: Path
) -> None:
    """The digest in the manifest is that of what was staged, before the disk damaged it."""
    files = {b"same": file_of(b"same"), b"rotten": file_of(b"data")}
    sums = b"".join(format_checksum(name, hashlib.sha256(file.data).hexdigest()) for name, file in files.items())
    files[b"SUMS"] = file_of(sums)
    options: dict[str, Any] = {"manifest": True, "verify": "sha256", "checksums": "SUMS"}
    stage_files(files, earlier, **options)
    change_in_place(earlier / "rotten", b"rot!", keep_time=True)
    _, linked = stage_files(files, target, link_dest=str(earlier), permissions=permissions, **options)
    assert linked == {"same", "SUMS"}
    assert (target / "rotten").read_bytes() == b"data"


def test_a_manifest_with_more_files_than_the_limit_links_nothing(earlier: Path, target: Path) -> None:
    files = {b"%d" % number: file_of(b"data") for number in range(4)}
    stage_files(files, earlier, manifest=True)
    options, one = StageOptions(durable=False, link_dest=str(earlier)), {b"0": files[b"0"]}
    for limit, count in ((4, 1), (3, 0)):
        staging_target = DirectoryTarget(str(target), options=options, limits=Limits(entries=limit))
        report = stage(MemoryTransport({b"/c": one}), b"/c", staging_target)
        assert report.linked == count
        assert ["it has more than 3 files (Limits.entries)" in note for note in report.notes] == [True] * (1 - count)


def test_reading_a_manifest_can_be_cancelled(earlier: Path, target: Path) -> None:
    files = {b"same": file_of(b"data")}
    stage_files(files, earlier, manifest=True)
    watchdog = Watchdog(Limits())
    watchdog.cancel()
    staging_target = DirectoryTarget(str(target), options=StageOptions(link_dest=str(earlier)))
    with pytest.raises(Cancelled):
        stage(MemoryTransport({b"/c": files}), b"/c", staging_target, watchdog=watchdog)
    assert staging_target.notes == ()
    assert files_in(target) == {}


def test_a_manifest_takes_little_memory(earlier: Path, target: Path) -> None:
    """The bound on the number of files bounds the memory only if each takes a few hundred bytes."""
    count = 3000
    results = [
        FileResult(f"file-{number:020}", 1, 0o644, YESTERDAY + number, sha256="0" * 64) for number in range(count)
    ]
    with (earlier / "peerstage.json").open("wb") as file:
        write_report(file, StageReport("", "sftp", ""), results, (), (), lambda result: 1 << 60)
    (earlier / "peerstage.sha256").write_bytes(
        b"".join(format_checksum(result.name.encode(), "0" * 64) for result in results)
    )
    fd = os.open(earlier, os.O_RDONLY)
    tracemalloc.start()
    try:
        records = read_confirmed_results(
            fd, "", lambda found: True, lambda head: None, max_files=count, check=lambda: None
        )
        assert len(records) == count
        assert tracemalloc.get_traced_memory()[0] < 600 * count
    finally:
        tracemalloc.stop()
        os.close(fd)


# Directories that are not to be linked


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o1777])
def test_nothing_is_linked_to_a_directory_that_others_can_write_to(mode: int, earlier: Path, target: Path) -> None:
    files = {b"same": file_of(b"data")}
    stage_files(files, earlier, manifest=True, preserve_times=True)
    earlier.chmod(mode)
    report, linked = stage_files(files, target, link_dest=str(earlier), preserve_times=True)
    assert linked == set()
    assert [note.partition(": ")[2] for note in report.notes] == [
        "other users can write to it. Take their rights away (chmod go-w), or its owner's (chown)."
    ]


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("name", [".", "peerstage.json", "peerstage.sha256"])
def test_nothing_is_linked_by_what_belongs_to_another_user(name: str, earlier: Path, target: Path) -> None:
    files = {b"same": file_of(b"data")}
    stage_files(files, earlier, manifest=True)
    os.chown(earlier / name, 12345, 12345)
    report, linked = stage_files(files, target, link_dest=str(earlier))
    assert linked == set()
    assert len(report.notes) == 1
    os.chown(target, 12345, 12345)
    _, linked = stage_files(files, target, link_dest=str(earlier))
    assert linked == {"same"}, "the owner of the target is trusted"


def test_nothing_is_linked_by_a_manifest_that_others_can_write_to(earlier: Path, target: Path) -> None:
    files = {b"same": file_of(b"data")}
    stage_files(files, earlier, manifest=True)
    (earlier / "peerstage.json").chmod(0o620)
    report, linked = stage_files(files, target, link_dest=str(earlier))
    assert linked == set()
    assert "another user may have written it" in report.notes[0]


@pytest.mark.usefixtures("root")
def test_a_file_of_another_user_is_not_copied(earlier: Path, target: Path) -> None:
    """This process may be able to read what those who will read the copy may not."""
    files = {b"same": file_of(b"data")}
    stage_files(files, earlier, preserve_times=True)
    os.chown(earlier / "same", 12345, 12345)
    _, linked = stage_files(files, target, link_dest=str(earlier), preserve_times=True)
    assert linked == set()


@pytest.mark.parametrize("preserve_times", [False, True])
def test_nothing_is_linked_to_another_peers_day(preserve_times: bool, earlier: Path, target: Path) -> None:
    files = {"same": file_of(b"data")}
    first = memory_peer(files, name="first", stage=StageOptions(manifest=True, preserve_times=preserve_times))
    first.stagePeer(str(earlier))
    options = StageOptions(link_dest=str(earlier), preserve_times=preserve_times)
    for name, count in (("second", 0), ("first", 1)):
        peer = memory_peer(files, name=name, stage=options)
        peer.stagePeer(str(target))
        assert peer.last_report is not None
        assert peer.last_report.linked == count
        assert [note.partition(": ")[2] for note in peer.last_report.notes] == [
            "its manifest is that of another peer. Stage every peer into a directory of its own."
        ] * (1 - count)


def test_a_local_peer_does_not_link_to_its_own_collect_directory(collect: Path, target: Path, tmp_path: Path) -> None:
    """The backup would change with the live files."""
    (collect / "live").write_bytes(b"data")
    (tmp_path / "alias").symlink_to(collect)
    for path in (collect, tmp_path / "alias"):
        peer = LocalPeer("local", str(collect), stage=StageOptions(preserve_times=True, link_dest=str(path)))
        with pytest.raises(ValueError, match="is the collect directory itself"):
            peer.stagePeer(str(target))
    assert (collect / "live").stat().st_nlink == 1
    assert files_in(target) == {}


# Arguments


@pytest.mark.parametrize("options", [{"guarded": True}, {"rcpCommand": "/usr/bin/scp -q"}, {"transport": "rcp"}])
def test_a_transport_that_cannot_link_is_refused_before_connecting(options: dict[str, Any]) -> None:
    peer = RemotePeer("host.invalid", "/c", "/tmp", "backup", stage=StageOptions(link_dest="/x"), **options)
    with pytest.raises(ValueError, match=r"StageOptions\(link_dest=\.\.\.\) needs"):
        peer.validate()


@pytest.mark.parametrize("value", ["relative", "", 3, "a\0b"])
def test_a_directory_that_is_no_absolute_path_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="link_dest"):
        StageOptions(link_dest=value)


def test_a_local_peer_links_too(collect: Path, earlier: Path, target: Path) -> None:
    (collect / "same").write_bytes(b"data")
    options = StageOptions(durable=False, preserve_times=True, link_dest=str(earlier))
    peer = LocalPeer("local", str(collect), stage=options)
    assert peer.stagePeer(earlier) == 1
    assert peer.stagePeer(target) == 1
    assert inodes_of(target) == inodes_of(earlier)


# Any listing


LISTING = st.dictionaries(
    st.sampled_from([b"a", b"b", b"c\n", b"d"]),
    st.tuples(st.integers(0, 3), st.integers(1, 3), st.sampled_from([0o600, 0o644])),
)


@examples(25)
@given(days=st.lists(LISTING, min_size=2, max_size=4), preserve_times=st.booleans())
def test_any_days_are_staged_as_without_links(days: list[Any], preserve_times: bool) -> None:
    with tempfile.TemporaryDirectory() as root:
        previous = Path(root) / "none"
        for number, listing in enumerate(days):
            files = {
                name: file_of(random.Random(f"{name!r} {mtime}").randbytes(size), YESTERDAY + mtime, mode)
                for name, (size, mtime, mode) in listing.items()
            }
            day, plain = Path(root) / str(number), Path(root) / f"plain{number}"
            for directory, link_dest in ((day, str(previous)), (plain, None)):
                directory.mkdir()
                if files:
                    stage_files(files, directory, link_dest=link_dest, preserve_times=preserve_times)
            expected = {path.name: (path.read_bytes(), path.stat().st_mode) for path in plain.iterdir()}
            assert {path.name: (path.read_bytes(), path.stat().st_mode) for path in day.iterdir()} == expected
            write_manifest(day, files)
            previous = day

"""`DirectoryTarget`: partial files, publication, attributes and resumed files."""

from __future__ import annotations

import errno
import os
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from target_cases import (
    NOBODY,
    has_reliable_syncfs,
    memory_peer,
    memory_peer_of,
    owner_of,
    private_directory_of,
    run_in_child,
    stage_into,
)

from peerstage.errors import (
    ConnectionLost,
    EntryError,
    IncompleteStage,
    NothingToStage,
    ProtocolError,
    StageError,
    TargetError,
)
from peerstage.reasons import Reason
from peerstage.records import Entry, Ownership
from peerstage.stage_options import StageOptions
from peerstage.target import DirectoryTarget, directory, durability
from peerstage.testing.contract import files_in
from peerstage.testing.memory import MemoryFile, MemoryTransport
from support.children import run_in_fork
from support.incoming import admit_one

# Before the commit


def test_nothing_is_visible_before_the_commit_and_partial_files_are_private(target: Path) -> None:
    with DirectoryTarget(str(target)) as staging_target:
        incoming = admit_one(staging_target, Entry(b"name", 6, 0o644))
        incoming.write(0, [b"abc"])
        incoming.write(3, [b"def"])
        incoming.finish()
        private = private_directory_of(target)
        assert [path.name for path in target.iterdir()] == [private.name]
        assert len(private.name) == len(".peerstage-XXXXXXXX")
        assert stat.S_IMODE(private.stat().st_mode) == 0o700
        assert {stat.S_IMODE(path.stat().st_mode) for path in private.iterdir()} == {0o600}
        staging_target.commit()
    assert files_in(target) == {b"name": b"abcdef"}


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_partial_files_are_private_under_any_umask(target: Path, umask: int) -> None:
    modes: set[int] = set()

    def look(written: int) -> None:
        modes.update(stat.S_IMODE(path.stat().st_mode) for path in [private_directory_of(target)])
        modes.update(stat.S_IMODE(path.stat().st_mode) for path in private_directory_of(target).iterdir())

    with umask_of(umask):
        stage_into(target, memory_peer_of({b"a": b"x" * 100, b"b": b"y" * 100}, chunk_size=10, before_write=look))
    assert modes == {0o700, 0o600}


@pytest.mark.usefixtures("leaves_nothing")
@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "Too many open files"), MemoryError(), KeyboardInterrupt()])
@pytest.mark.parametrize("part", ["RunState", "ManifestWriter", "LinkSource", "Admission"])
def test_a_run_that_cannot_start_leaves_no_private_directory(
    target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, error: BaseException
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        assert private_directory_of(target).is_dir()
        raise error

    kept, earlier = tmp_path / "kept", tmp_path / "earlier"
    earlier.mkdir()
    options = StageOptions(manifest=True, link_dest=str(earlier), partial_dir=str(kept))
    monkeypatch.setattr(directory, part, fail)
    expected = TargetError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected), DirectoryTarget(str(target), options=options):
        pass
    assert list(target.iterdir()) == []
    monkeypatch.undo()
    stage_into(target, memory_peer(a=b"a"), options=options)
    assert (target / "a").read_bytes() == b"a"


def test_a_target_that_is_not_committed_publishes_nothing(target: Path) -> None:
    with DirectoryTarget(str(target)) as staging_target:
        memory_peer(a=b"a").pull(b"/c", staging_target)
        assert [file.error for file in staging_target.pop_results()] == [None]
    assert files_in(target) == {}


@pytest.mark.parametrize(
    "error",
    [
        KeyboardInterrupt,
        SystemExit,
        RuntimeError,
        StageError("cut", reason=Reason.LOCAL_FAILURE),
        ConnectionLost("lost"),
    ],
)
@pytest.mark.usefixtures("leaves_nothing")
def test_a_run_that_is_cut_off_publishes_nothing_and_leaves_nothing(target: Path, error: Any) -> None:
    (target / "a").write_bytes(b"old")

    def cut_off(written: int) -> None:
        if written > 300_000:
            raise error

    with pytest.raises(error if isinstance(error, type) else type(error)):
        stage_into(target, memory_peer_of({b"a": b"x" * 200_000, b"b": b"y" * 200_000}, before_write=cut_off))
    assert files_in(target) == {b"a": b"old"}


def test_an_error_names_the_peer(target: Path) -> None:
    def cut_off(written: int) -> None:
        raise StageError("cut off", reason=Reason.LOCAL_FAILURE)

    with pytest.raises(StageError, match=r"^peer: cut off$"):
        stage_into(target, memory_peer_of({b"a": b"a"}, before_write=cut_off))


def test_a_peer_without_files_leaves_the_target_as_it_was(target: Path) -> None:
    (target / "a").write_bytes(b"old")
    with pytest.raises(NothingToStage):
        stage_into(target, memory_peer())
    assert files_in(target) == {b"a": b"old"}


# Listed and received


def test_half_fetched_file_never_takes_its_final_name(target: Path) -> None:
    (target / "short").write_bytes(b"old")
    transport = MemoryTransport(
        {b"/c": {b"short": MemoryFile(b"x" * 10, listed_size=20), b"good": MemoryFile(b"good")}}
    )
    with pytest.raises(IncompleteStage, match="short"):
        stage_into(target, transport)
    assert files_in(target) == {b"good": b"good", b"short": b"old"}


def test_after_an_entry_fails_the_others_are_staged_and_the_error_reports_all(target: Path) -> None:
    files = {
        b"first": MemoryFile(b"first", mtime=1),
        b"unreadable": MemoryFile(
            b"x", mtime=2, error=EntryError("It cannot be read.", reason=Reason.ENTRY_UNREADABLE)
        ),
        b"short": MemoryFile(b"x", mtime=3, listed_size=2),
        b"pipe": MemoryFile(mode=stat.S_IFIFO | 0o644),
        b"last": MemoryFile(b"last one", mtime=4),
    }
    with pytest.raises(IncompleteStage) as raised:
        stage_into(target, MemoryTransport({b"/c": files}), permissions=0o640)
    assert files_in(target) == {b"first": b"first", b"last": b"last one"}
    report = raised.value.report
    assert report is not None
    assert (report.peer, report.transport, report.target) == ("peer", "memory", str(target))
    assert (report.count, report.bytes) == (2, 13)
    assert {(file.name, file.size, file.mode, file.mtime, file.error is None) for file in report.files} == {
        ("first", 5, 0o640, 1, True),
        ("unreadable", 1, None, 2, False),
        ("short", 2, None, 3, False),
        ("last", 8, 0o640, 4, True),
    }
    assert [refused.name for refused in report.refused] == ["pipe"]
    assert {failed.name for failed in report.failed} == {"unreadable", "short", "pipe"}
    assert all(failed.name in str(raised.value) for failed in report.failed)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_finished_with_a_gap_fails(target: Path) -> None:
    with DirectoryTarget(str(target)) as staging_target:
        gap = admit_one(staging_target, Entry(b"gap", 10))
        gap.write(0, [b"abc"])
        gap.write(5, [b"defgh"])
        assert list(gap.missing()) == [(3, 5)]
        gap.finish()
        assert gap.is_finished
        staging_target.commit()
    assert files_in(target) == {}
    assert next(staging_target.pop_results()).error == "8 of 10 bytes arrived. Stage again."


def test_bytes_that_arrive_twice_do_not_replace_missing_ones(target: Path) -> None:
    with DirectoryTarget(str(target)) as staging_target:
        incoming = admit_one(staging_target, Entry(b"a", 6))
        incoming.write(0, [b"abc"])
        incoming.write(0, [b"abc"])
        incoming.finish()
        staging_target.commit()
    assert files_in(target) == {}
    assert next(staging_target.pop_results()).error is not None


@pytest.mark.parametrize(("size", "offset", "data"), [(3, 1, b"abc"), (3, 3, b"a"), (0, 0, b"a"), (3, -1, b"abc")])
def test_more_bytes_than_listed_end_the_run(target: Path, size: int, offset: int, data: bytes) -> None:
    with pytest.raises(ProtocolError, match="announced"), DirectoryTarget(str(target)) as staging_target:
        admit_one(staging_target, Entry(b"a", size)).write(offset, [data])
    assert files_in(target) == {}


def test_a_file_with_another_size_on_the_disk_is_not_published(target: Path) -> None:
    with DirectoryTarget(str(target)) as staging_target:
        incoming = admit_one(staging_target, Entry(b"a", 6))
        incoming.write(0, [b"abcdef"])
        (path,) = [path for path in private_directory_of(target).iterdir() if path.name != "lock"]
        os.truncate(path, 7)
        incoming.finish()
        staging_target.commit()
    assert files_in(target) == {}
    assert next(staging_target.pop_results()).error == "7 of 6 bytes are on the disk. Stage again."


@pytest.mark.parametrize("name", [b"", b".", b"..", b"../a", b"a/b", b"/a", b"a\0b"])
def test_a_name_that_leads_out_of_the_target_ends_the_run(target: Path, name: bytes) -> None:
    with DirectoryTarget(str(target)) as staging_target:
        admit_one(staging_target, Entry(b"good", 0)).finish()
        with pytest.raises(ProtocolError):
            staging_target.admit([Entry(b"good too", 0), Entry(name, 0)])
    assert files_in(target) == {}
    assert os.listdir(target.parent) == [target.name]


def test_many_buffers_are_written_in_order(target: Path) -> None:
    pieces = [os.urandom(number % 5) for number in range(3000)]
    with DirectoryTarget(str(target)) as staging_target:
        incoming = admit_one(staging_target, Entry(b"a", sum(map(len, pieces))))
        incoming.write(0, pieces)
        incoming.finish()
        staging_target.commit()
    assert files_in(target) == {b"a": b"".join(pieces)}


def test_short_writes_are_continued(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite, pwritev = os.pwrite, os.pwritev

    def takes_three_bytes(fd: int, data: Any, offset: int) -> int:
        return pwrite(fd, memoryview(data)[:3], offset)

    def takes_the_first_buffer(fd: int, buffers: Any, offset: int) -> int:
        return pwritev(fd, buffers[:1], offset)

    monkeypatch.setattr(os, "pwrite", takes_three_bytes)
    monkeypatch.setattr(os, "pwritev", takes_the_first_buffer)
    with DirectoryTarget(str(target)) as staging_target:
        incoming = admit_one(staging_target, Entry(b"a", 18))
        incoming.write(0, [b"abcdefgh"])
        incoming.write(8, [b"ij", b"klmno", b"pqr"])
        incoming.finish()
        staging_target.commit()
    assert files_in(target) == {b"a": b"abcdefghijklmnopqr"}


def test_files_that_arrive_interleaved_and_backwards_are_staged(target: Path) -> None:
    content = {b"%d" % number: os.urandom(1000 + number) for number in range(20)}
    with DirectoryTarget(str(target)) as staging_target:
        incoming_files = staging_target.admit([Entry(name, len(data)) for name, data in content.items()])
        for at in range(1000, -1, -100):
            for incoming in incoming_files:
                incoming.write(at, [content[incoming.entry.name][at : at + 100]])
        for incoming in incoming_files:
            incoming.finish()
        staging_target.commit()
    assert files_in(target) == content


def test_three_hundred_interleaved_files_need_few_descriptors(target: Path) -> None:
    most: list[int] = []

    def stage_interleaved() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        with DirectoryTarget(str(target)) as staging_target:
            incoming_files = staging_target.admit([Entry(b"%d" % number, 9) for number in range(300)])
            for at in range(0, 9, 3):
                for incoming in incoming_files:
                    incoming.write(at, [b"abc"])
                most.append(len(os.listdir("/proc/self/fd")))
            for incoming in incoming_files:
                incoming.finish()
            staging_target.commit()
        assert max(most) < 64

    run_in_child(stage_interleaved)
    assert files_in(target) == {b"%d" % number: b"abcabcabc" for number in range(300)}


# Modes, owners, times


@contextmanager
def umask_of(umask: int) -> Iterator[None]:
    before = os.umask(umask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.parametrize(("umask", "expected"), [(0o000, 0o777), (0o022, 0o755), (0o077, 0o700)])
def test_the_umask_applies_and_set_id_bits_are_dropped(target: Path, umask: int, expected: int) -> None:
    with umask_of(umask):
        stage_into(target, MemoryTransport({b"/c": {b"a": MemoryFile(b"", stat.S_IFREG | 0o7777)}}))
    assert stat.S_IMODE((target / "a").stat().st_mode) == expected


@pytest.mark.parametrize("umask", [0o000, 0o077])
@pytest.mark.parametrize("permissions", [0o400, 0o644, 0o666, 0o000])
def test_requested_permissions_apply_under_any_umask(target: Path, umask: int, permissions: int) -> None:
    transport = MemoryTransport({b"/c": {b"a": MemoryFile(b"", stat.S_IFREG | 0o755), b"b": MemoryFile(b"")}})
    with umask_of(umask):
        report = stage_into(target, transport, permissions=permissions)
    assert [stat.S_IMODE((target / name).stat().st_mode) for name in ("a", "b")] == [permissions] * 2
    assert [file.mode for file in report.files] == [permissions] * 2


def test_the_mode_of_the_file_that_was_there_does_not_matter(target: Path) -> None:
    (target / "a").write_bytes(b"old")
    (target / "a").chmod(0o4777)
    stage_into(target, memory_peer(a=b"new"), permissions=0o640)
    assert stat.S_IMODE((target / "a").stat().st_mode) == 0o640


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_an_unknown_mode_becomes_0600(target: Path, umask: int) -> None:
    with umask_of(umask), DirectoryTarget(str(target)) as staging_target:
        admit_one(staging_target, Entry(b"a", 0)).finish()
        staging_target.commit()
    assert stat.S_IMODE((target / "a").stat().st_mode) == 0o600


def test_ownership_is_set_on_every_file_and_on_nothing_else(target: Path) -> None:
    (target / "other").write_bytes(b"other")
    (target / "a").symlink_to("other")
    before = owner_of(target), owner_of(target / "other")
    wanted = Ownership(12345, 12345) if os.geteuid() == 0 else Ownership(os.getuid(), os.getgid())
    stage_into(target, memory_peer(a=b"a", b=b"b"), ownership=wanted, permissions=0o640)
    assert [owner_of(target / name) for name in ("a", "b")] == [tuple(wanted)] * 2
    assert [stat.S_IMODE((target / name).stat().st_mode) for name in ("a", "b")] == [0o640] * 2
    assert (owner_of(target), owner_of(target / "other")) == before


def test_refused_ownership_publishes_nothing(public_path: Path) -> None:
    target = public_path / "target"
    target.mkdir()
    target.chmod(0o777)
    (target / "a").write_bytes(b"old")

    def refused() -> None:
        with pytest.raises(TargetError, match="run as root") as raised:
            stage_into(target, memory_peer(a=b"new", b=b"b"), ownership=Ownership(0, 0))
        assert raised.value.errno == errno.EPERM
        assert not raised.value.transient

    run_in_child(refused, user=NOBODY)
    assert files_in(target) == {b"a": b"old"}


def test_a_target_without_write_permission_is_refused(public_path: Path) -> None:
    target = public_path / "target"
    target.mkdir(mode=0o555)

    def refused() -> None:
        with pytest.raises(TargetError, match="write permission") as raised:
            stage_into(target, memory_peer(a=b"new"))
        assert raised.value.errno == errno.EACCES
        assert raised.value.peer == "peer"

    run_in_child(refused, user=NOBODY)
    assert files_in(target) == {}


@pytest.mark.parametrize("mtime", [0, 1_600_000_000, 2**32 - 1])
def test_times_are_preserved_to_the_second_on_request(target: Path, mtime: int) -> None:
    stage_into(
        target,
        MemoryTransport({b"/c": {b"a": MemoryFile(b"a", mtime=mtime)}}),
        options=StageOptions(preserve_times=True),
    )
    assert (target / "a").stat().st_mtime == mtime


def test_times_are_current_unless_requested_and_known(target: Path) -> None:
    stage_into(target, memory_peer(a=b"a"))
    with DirectoryTarget(str(target), options=StageOptions(preserve_times=True)) as staging_target:
        admit_one(staging_target, Entry(b"b", 0)).finish()
        staging_target.commit()
    assert all((target / name).stat().st_mtime > 1_600_000_000 for name in ("a", "b"))


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("count", [1, durability.MAX_FSYNCS, durability.MAX_FSYNCS + 1])
def test_data_is_synced_before_the_first_rename_and_the_directory_after_the_last(
    target: Path, monkeypatch: pytest.MonkeyPatch, durable: bool, count: int
) -> None:
    steps: list[str] = []
    fsync, syncfs, rename = os.fsync, durability.syncfs, os.rename

    def noting_fsync(fd: int) -> None:
        steps.append("directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else "data")
        fsync(fd)

    def noting_syncfs(fd: int) -> None:
        steps.append("all data")
        syncfs(fd)

    def noting_rename(*arguments: Any, **options: Any) -> None:
        steps.append("name")
        rename(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", noting_fsync)
        patch.setattr(durability, "syncfs", noting_syncfs)
        patch.setattr(os, "rename", noting_rename)
        files = {b"file%d" % number: b"x" * number for number in range(count)}
        stage_into(target, memory_peer_of(files), options=StageOptions(durable=durable))
    assert files_in(target) == files
    names = ["name"] * count
    if not durable:
        assert steps == names
    elif count > durability.MAX_FSYNCS and has_reliable_syncfs(target):
        assert steps == ["all data", *names, "directory"]
    else:
        assert steps == [*["data"] * count, *names, "directory"]


# Resumed files


class LosesTheConnection(MemoryTransport):
    """Loses the connection once, after the given number of bytes."""

    def __init__(self, files: dict[bytes, MemoryFile], after: int) -> None:
        self.pieces: list[int] = []
        self._after = after
        super().__init__({b"/c": files}, chunk_size=1000, before_write=self._cut)

    def _cut(self, written: int) -> None:
        if written >= self._after:
            self._after = 1 << 60
            raise ConnectionLost("It is gone.")
        self.pieces.append(written)


def test_a_second_pull_on_the_same_target_fetches_only_missing_ranges(target: Path) -> None:
    content = {name: os.urandom(5000) for name in (b"a", b"b", b"c")}
    transport = LosesTheConnection({name: MemoryFile(data, mtime=1) for name, data in content.items()}, after=7000)
    with DirectoryTarget(str(target)) as staging_target:
        with pytest.raises(ConnectionLost):
            transport.pull(b"/c", staging_target)
        transport.pull(b"/c", staging_target)
        assert staging_target.resumed_bytes == 5000, "all but the two pieces of b, which are compared"
        assert len(transport.pieces) == 15 + 2
        staging_target.commit()
        assert [(file.name, file.outcome) for file in staging_target.pop_results()] == [
            ("a", "resumed"), ("b", "staged"), ("c", "staged"),
        ]  # fmt: skip
    assert files_in(target) == content


def test_a_file_replaced_between_two_pulls_starts_over(target: Path) -> None:
    files = {name: MemoryFile(name * 5000, mtime=1) for name in (b"a", b"b", b"c")}
    transport = LosesTheConnection(files, after=7000)
    with DirectoryTarget(str(target)) as staging_target:
        with pytest.raises(ConnectionLost):
            transport.pull(b"/c", staging_target)
        transport.directories[b"/c"][b"a"] = MemoryFile(b"A" * 4000, mtime=1)
        transport.directories[b"/c"][b"b"] = MemoryFile(b"B" * 5000, mtime=2)
        transport.pull(b"/c", staging_target)
        assert staging_target.resumed_bytes == 0
        staging_target.commit()
    assert files_in(target) == {b"a": b"A" * 4000, b"b": b"B" * 5000, b"c": b"c" * 5000}


@pytest.mark.parametrize("changed", [Entry(b"a", 7, 0o644, 1), Entry(b"a", 6, 0o644, 2)])
def test_a_file_starts_over_if_its_size_or_time_changed(target: Path, changed: Entry) -> None:
    with DirectoryTarget(str(target)) as staging_target:
        admit_one(staging_target, Entry(b"a", 6, 0o644, 1)).write(0, [b"abc"])
        again = admit_one(staging_target, changed)
        assert list(again.missing()) == [(0, changed.size)]
        again.write(0, [b"z" * changed.size])
        again.finish()
        staging_target.commit()
    assert files_in(target) == {b"a": b"z" * changed.size}


def test_a_file_of_unknown_time_is_not_resumed_unless_it_was_complete(target: Path) -> None:
    with DirectoryTarget(str(target)) as staging_target:
        admit_one(staging_target, Entry(b"half", 6)).write(0, [b"abc"])
        whole = admit_one(staging_target, Entry(b"whole", 3))
        whole.write(0, [b"abc"])
        whole.finish()
        assert staging_target.admit([Entry(b"whole", 3)]) == []
        half = admit_one(staging_target, Entry(b"half", 6))
        assert list(half.missing()) == [(0, 6)]
        half.write(0, [b"ABCDEF"])
        half.finish()
        staging_target.commit()
    assert files_in(target) == {b"half": b"ABCDEF", b"whole": b"abc"}


def test_a_failed_file_stays_failed(target: Path) -> None:
    entry = Entry(b"a", 3, 0o644, 1)
    with DirectoryTarget(str(target)) as staging_target:
        incoming = admit_one(staging_target, entry)
        incoming.fail(EntryError("first", reason=Reason.VANISHED))
        assert staging_target.admit([entry]) == []
        incoming.fail(EntryError("second", reason=Reason.ENTRY_UNREADABLE))
        incoming.finish()
        staging_target.commit()
    assert files_in(target) == {}
    assert [file.error for file in staging_target.pop_results()] == ["first"]


def test_a_forked_child_that_leaves_the_block_removes_nothing_of_its_parent(target: Path) -> None:
    with DirectoryTarget(str(target)) as staging_target:
        incoming = admit_one(staging_target, Entry(b"a", 4))
        incoming.write(0, [b"half"[:2]])
        run_in_fork(lambda: staging_target.__exit__(None, None, None))
        incoming.write(2, [b"lf"])
        incoming.finish()
        staging_target.commit()
    assert files_in(target) == {b"a": b"half"}

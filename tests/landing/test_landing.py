"""What comes down, and what becomes visible of it."""

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
from hypothesis import given
from hypothesis import strategies as st
from landing_cases import NOBODY, ids_of, in_a_child, private_of, serving, serving_names, stage_into, syncs_all

from peerstage.errors import (
    ConnectionLost,
    EntryError,
    IncompleteStage,
    LandingError,
    NothingToStage,
    ProtocolError,
    StageError,
)
from peerstage.landing import DirectoryLanding, Ranges, durability
from peerstage.reasons import Reason
from peerstage.records import Entry, Ownership
from peerstage.testing.contract import landed
from peerstage.testing.memory import MemoryFile, MemoryTransport
from support.children import in_child

# Ranges


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20)), max_size=30), st.integers(0, 80))
def test_ranges_are_a_set_of_bytes(added: list[tuple[int, int]], size: int) -> None:
    ranges, model = Ranges(), set[int]()
    for start, length in added:
        new = set(range(start, start + length)) - model
        assert ranges.add(start, start + length) == len(new)
        model |= new
        missing = list(ranges.missing(size))
        assert {byte for low, high in missing for byte in range(low, high)} == set(range(size)) - model
        assert missing == sorted(missing)
        assert all(low < high <= size for low, high in missing)
        assert ranges.covers(size) == (model == set(range(size)))
        top = max(model, default=-1) + 1
        assert ranges.covers(top) == (model == set(range(top)))


@given(st.permutations(range(12)))
def test_ranges_that_came_in_any_order_are_one_in_the_end(order: list[int]) -> None:
    ranges = Ranges()
    assert [ranges.add(number * 10, number * 10 + 10) for number in order] == [10] * 12
    assert ranges.covers(120)
    assert list(ranges.missing(125)) == [(120, 125)]
    assert ranges.add(0, 120) == 0


# Before the commit


def test_nothing_is_visible_before_the_commit_and_what_comes_is_private(target: Path) -> None:
    with DirectoryLanding(str(target)) as landing:
        slot = landing.open(Entry(b"name", 6, 0o644))
        slot.write(0, [b"abc"])
        slot.write(3, [b"def"])
        slot.finish()
        private = private_of(target)
        assert [path.name for path in target.iterdir()] == [private.name]
        assert len(private.name) == len(".peerstage-XXXXXXXX")
        assert stat.S_IMODE(private.stat().st_mode) == 0o700
        assert {stat.S_IMODE(path.stat().st_mode) for path in private.iterdir()} == {0o600}
        landing.commit()
    assert landed(target) == {b"name": b"abcdef"}


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_what_comes_is_private_under_any_umask(target: Path, umask: int) -> None:
    modes: set[int] = set()

    def look(written: int) -> None:
        modes.update(stat.S_IMODE(path.stat().st_mode) for path in [private_of(target)])
        modes.update(stat.S_IMODE(path.stat().st_mode) for path in private_of(target).iterdir())

    with masked(umask):
        stage_into(target, serving_names({b"a": b"x" * 100, b"b": b"y" * 100}, piece=10, before_piece=look))
    assert modes == {0o700, 0o600}


def test_a_landing_that_is_not_committed_publishes_nothing(target: Path) -> None:
    with DirectoryLanding(str(target)) as landing:
        serving(a=b"a").pull(b"/c", landing)
        assert [file.error for file in landing.files()] == [None]
    assert landed(target) == {}


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
        stage_into(target, serving_names({b"a": b"x" * 200_000, b"b": b"y" * 200_000}, before_piece=cut_off))
    assert landed(target) == {b"a": b"old"}


def test_an_error_names_the_peer(target: Path) -> None:
    def cut_off(written: int) -> None:
        raise StageError("cut off", reason=Reason.LOCAL_FAILURE)

    with pytest.raises(StageError, match=r"^peer: cut off$"):
        stage_into(target, serving_names({b"a": b"a"}, before_piece=cut_off))


def test_a_peer_without_files_leaves_the_target_as_it_was(target: Path) -> None:
    (target / "a").write_bytes(b"old")
    with pytest.raises(NothingToStage):
        stage_into(target, serving())
    assert landed(target) == {b"a": b"old"}


# Promised and received


def test_half_fetched_file_never_takes_its_final_name(target: Path) -> None:
    (target / "short").write_bytes(b"old")
    transport = MemoryTransport({b"/c": {b"short": MemoryFile(b"x" * 10, promised=20), b"good": MemoryFile(b"good")}})
    with pytest.raises(IncompleteStage, match="short"):
        stage_into(target, transport)
    assert landed(target) == {b"good": b"good", b"short": b"old"}


def test_an_entry_that_fails_leaves_the_others_staged_and_the_error_tells_it_all(target: Path) -> None:
    files = {
        b"first": MemoryFile(b"first", mtime=1),
        b"unreadable": MemoryFile(
            b"x", mtime=2, error=EntryError("It can not be read.", reason=Reason.ENTRY_UNREADABLE)
        ),
        b"short": MemoryFile(b"x", mtime=3, promised=2),
        b"pipe": MemoryFile(mode=stat.S_IFIFO | 0o644),
        b"last": MemoryFile(b"last one", mtime=4),
    }
    with pytest.raises(IncompleteStage) as caught:
        stage_into(target, MemoryTransport({b"/c": files}), permissions=0o640)
    assert landed(target) == {b"first": b"first", b"last": b"last one"}
    report = caught.value.report
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
    assert all(failed.name in str(caught.value) for failed in report.failed)
    assert "\n" not in str(caught.value)


def test_a_slot_that_is_finished_with_a_gap_fails(target: Path) -> None:
    with DirectoryLanding(str(target)) as landing:
        gap = landing.open(Entry(b"gap", 10))
        gap.write(0, [b"abc"])
        gap.write(5, [b"defgh"])
        assert list(gap.missing()) == [(3, 5)]
        gap.finish()
        assert gap.is_finished
        landing.commit()
    assert landed(target) == {}
    assert next(landing.files()).error == "8 of 10 bytes arrived. Stage again once the peer is well."


def test_bytes_that_came_twice_do_not_stand_for_those_that_are_missing(target: Path) -> None:
    with DirectoryLanding(str(target)) as landing:
        slot = landing.open(Entry(b"a", 6))
        slot.write(0, [b"abc"])
        slot.write(0, [b"abc"])
        slot.finish()
        landing.commit()
    assert landed(target) == {}
    assert next(landing.files()).error is not None


@pytest.mark.parametrize(("size", "offset", "data"), [(3, 1, b"abc"), (3, 3, b"a"), (0, 0, b"a"), (3, -1, b"abc")])
def test_more_bytes_than_were_promised_end_the_run(target: Path, size: int, offset: int, data: bytes) -> None:
    with pytest.raises(ProtocolError, match="promised"), DirectoryLanding(str(target)) as landing:
        landing.open(Entry(b"a", size)).write(offset, [data])
    assert landed(target) == {}


def test_a_file_of_another_size_on_the_disk_than_arrived_is_not_published(target: Path) -> None:
    with DirectoryLanding(str(target)) as landing:
        slot = landing.open(Entry(b"a", 6))
        slot.write(0, [b"abcdef"])
        (place,) = [path for path in private_of(target).iterdir() if path.name != "lock"]
        os.truncate(place, 7)
        slot.finish()
        landing.commit()
    assert landed(target) == {}
    assert next(landing.files()).error == "7 of 6 bytes are on the disk. Stage again."


@pytest.mark.parametrize("name", [b"", b".", b"..", b"../a", b"a/b", b"/a", b"a\0b"])
def test_a_name_that_leads_out_of_the_target_ends_the_run(target: Path, name: bytes) -> None:
    with DirectoryLanding(str(target)) as landing:
        landing.open(Entry(b"good", 0)).finish()
        with pytest.raises(ProtocolError):
            landing.open(Entry(name, 0))
    assert landed(target) == {}
    assert os.listdir(target.parent) == [target.name]


def test_pieces_of_many_buffers_land_in_their_order(target: Path) -> None:
    pieces = [os.urandom(number % 5) for number in range(3000)]
    with DirectoryLanding(str(target)) as landing:
        slot = landing.open(Entry(b"a", sum(map(len, pieces))))
        slot.write(0, pieces)
        slot.finish()
        landing.commit()
    assert landed(target) == {b"a": b"".join(pieces)}


def test_a_disk_that_takes_less_than_it_was_given_gets_the_rest(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite, pwritev = os.pwrite, os.pwritev

    def takes_three_bytes(fd: int, data: Any, offset: int) -> int:
        return pwrite(fd, memoryview(data)[:3], offset)

    def takes_the_first_buffer(fd: int, buffers: Any, offset: int) -> int:
        return pwritev(fd, buffers[:1], offset)

    monkeypatch.setattr(os, "pwrite", takes_three_bytes)
    monkeypatch.setattr(os, "pwritev", takes_the_first_buffer)
    with DirectoryLanding(str(target)) as landing:
        slot = landing.open(Entry(b"a", 18))
        slot.write(0, [b"abcdefgh"])
        slot.write(8, [b"ij", b"klmno", b"pqr"])
        slot.finish()
        landing.commit()
    assert landed(target) == {b"a": b"abcdefghijklmnopqr"}


def test_files_that_come_interleaved_and_backwards_land(target: Path) -> None:
    content = {b"%d" % number: os.urandom(1000 + number) for number in range(20)}
    with DirectoryLanding(str(target)) as landing:
        slots = {name: landing.open(Entry(name, len(data))) for name, data in content.items()}
        for at in range(1000, -1, -100):
            for name, slot in slots.items():
                slot.write(at, [content[name][at : at + 100]])
        for slot in slots.values():
            slot.finish()
        landing.commit()
    assert landed(target) == content


def test_three_hundred_interleaved_files_need_few_descriptors(target: Path) -> None:
    most: list[int] = []

    def stage_interleaved() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        with DirectoryLanding(str(target)) as landing:
            slots = [landing.open(Entry(b"%d" % number, 9)) for number in range(300)]
            for at in range(0, 9, 3):
                for slot in slots:
                    slot.write(at, [b"abc"])
                most.append(len(os.listdir("/proc/self/fd")))
            for slot in slots:
                slot.finish()
            landing.commit()
        assert max(most) < 64

    in_a_child(stage_interleaved)
    assert landed(target) == {b"%d" % number: b"abcabcabc" for number in range(300)}


# Modes, owners, times


@contextmanager
def masked(umask: int) -> Iterator[None]:
    before = os.umask(umask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.parametrize(("umask", "expected"), [(0o000, 0o777), (0o022, 0o755), (0o077, 0o700)])
def test_the_umask_is_kept_and_set_id_bits_are_never_taken(target: Path, umask: int, expected: int) -> None:
    with masked(umask):
        stage_into(target, MemoryTransport({b"/c": {b"a": MemoryFile(b"", stat.S_IFREG | 0o7777)}}))
    assert stat.S_IMODE((target / "a").stat().st_mode) == expected


@pytest.mark.parametrize("umask", [0o000, 0o077])
@pytest.mark.parametrize("permissions", [0o400, 0o644, 0o666, 0o000])
def test_permissions_that_are_asked_for_are_given_whatever_the_umask(
    target: Path, umask: int, permissions: int
) -> None:
    transport = MemoryTransport({b"/c": {b"a": MemoryFile(b"", stat.S_IFREG | 0o755), b"b": MemoryFile(b"")}})
    with masked(umask):
        report = stage_into(target, transport, permissions=permissions)
    assert [stat.S_IMODE((target / name).stat().st_mode) for name in ("a", "b")] == [permissions] * 2
    assert [file.mode for file in report.files] == [permissions] * 2


def test_the_mode_of_the_file_that_was_there_does_not_matter(target: Path) -> None:
    (target / "a").write_bytes(b"old")
    (target / "a").chmod(0o4777)
    stage_into(target, serving(a=b"new"), permissions=0o640)
    assert stat.S_IMODE((target / "a").stat().st_mode) == 0o640


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_a_mode_that_the_peer_does_not_tell_is_0600(target: Path, umask: int) -> None:
    with masked(umask), DirectoryLanding(str(target)) as landing:
        landing.open(Entry(b"a", 0)).finish()
        landing.commit()
    assert stat.S_IMODE((target / "a").stat().st_mode) == 0o600


def test_ownership_is_given_to_every_file_and_to_nothing_else(target: Path) -> None:
    (target / "other").write_bytes(b"other")
    (target / "a").symlink_to("other")
    before = ids_of(target), ids_of(target / "other")
    wanted = Ownership(12345, 12345) if os.geteuid() == 0 else Ownership(os.getuid(), os.getgid())
    stage_into(target, serving(a=b"a", b=b"b"), ownership=wanted, permissions=0o640)
    assert [ids_of(target / name) for name in ("a", "b")] == [tuple(wanted)] * 2
    assert [stat.S_IMODE((target / name).stat().st_mode) for name in ("a", "b")] == [0o640] * 2
    assert (ids_of(target), ids_of(target / "other")) == before


def test_ownership_that_is_refused_publishes_nothing(public_path: Path) -> None:
    target = public_path / "target"
    target.mkdir()
    target.chmod(0o777)
    (target / "a").write_bytes(b"old")

    def refused() -> None:
        with pytest.raises(LandingError, match="leave ownership out") as caught:
            stage_into(target, serving(a=b"new", b=b"b"), ownership=Ownership(0, 0))
        assert caught.value.errno == errno.EPERM
        assert not caught.value.transient

    in_a_child(refused, user=NOBODY)
    assert landed(target) == {b"a": b"old"}


def test_a_target_that_this_user_may_not_write_to_is_refused(public_path: Path) -> None:
    target = public_path / "target"
    target.mkdir(mode=0o555)

    def refused() -> None:
        with pytest.raises(LandingError, match="right to write") as caught:
            stage_into(target, serving(a=b"new"))
        assert caught.value.errno == errno.EACCES
        assert caught.value.peer == "peer"

    in_a_child(refused, user=NOBODY)
    assert landed(target) == {}


@pytest.mark.parametrize("mtime", [0, 1_600_000_000, 2**32 - 1])
def test_times_are_kept_to_the_second_if_asked(target: Path, mtime: int) -> None:
    stage_into(target, MemoryTransport({b"/c": {b"a": MemoryFile(b"a", mtime=mtime)}}), preserve_times=True)
    assert (target / "a").stat().st_mtime == mtime


def test_times_are_those_of_the_staging_if_not_asked_or_not_known(target: Path) -> None:
    stage_into(target, serving(a=b"a"))
    with DirectoryLanding(str(target), preserve_times=True) as landing:
        landing.open(Entry(b"b", 0)).finish()
        landing.commit()
    assert all((target / name).stat().st_mtime > 1_600_000_000 for name in ("a", "b"))


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("count", [1, durability.FEW, durability.FEW + 1])
def test_the_data_is_on_the_disk_before_the_first_name_and_the_names_are_before_the_return(
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
        stage_into(target, serving_names(files), durable=durable)
    assert landed(target) == files
    names = ["name"] * count
    if not durable:
        assert steps == names
    elif count > durability.FEW and syncs_all(target):
        assert steps == ["all data", *names, "directory"]
    else:
        assert steps == [*["data"] * count, *names, "directory"]


# Going on


class LosesTheConnection(MemoryTransport):
    """Is cut off once, after so many bytes."""

    def __init__(self, files: dict[bytes, MemoryFile], after: int) -> None:
        self.pieces: list[int] = []
        self._after = after
        super().__init__({b"/c": files}, piece=1000, before_piece=self._cut)

    def _cut(self, written: int) -> None:
        if written >= self._after:
            self._after = 1 << 60
            raise ConnectionLost("It is gone.")
        self.pieces.append(written)


def test_a_second_pull_on_the_same_landing_fetches_only_what_is_missing(target: Path) -> None:
    content = {name: os.urandom(5000) for name in (b"a", b"b", b"c")}
    transport = LosesTheConnection({name: MemoryFile(data, mtime=1) for name, data in content.items()}, after=7000)
    with DirectoryLanding(str(target)) as landing:
        with pytest.raises(ConnectionLost):
            transport.pull(b"/c", landing)
        transport.pull(b"/c", landing)
        assert landing.resumed_bytes == 5000, "all but the two pieces of b, which are compared"
        assert len(transport.pieces) == 15 + 2
        landing.commit()
        assert [(file.name, file.outcome) for file in landing.files()] == [
            ("a", "resumed"), ("b", "staged"), ("c", "staged"),
        ]  # fmt: skip
    assert landed(target) == content


def test_a_file_that_another_one_has_replaced_meanwhile_starts_anew(target: Path) -> None:
    files = {name: MemoryFile(name * 5000, mtime=1) for name in (b"a", b"b", b"c")}
    transport = LosesTheConnection(files, after=7000)
    with DirectoryLanding(str(target)) as landing:
        with pytest.raises(ConnectionLost):
            transport.pull(b"/c", landing)
        transport.directories[b"/c"][b"a"] = MemoryFile(b"A" * 4000, mtime=1)
        transport.directories[b"/c"][b"b"] = MemoryFile(b"B" * 5000, mtime=2)
        transport.pull(b"/c", landing)
        assert landing.resumed_bytes == 0
        landing.commit()
    assert landed(target) == {b"a": b"A" * 4000, b"b": b"B" * 5000, b"c": b"c" * 5000}


@pytest.mark.parametrize("changed", [Entry(b"a", 7, 0o644, 1), Entry(b"a", 6, 0o644, 2)])
def test_a_slot_is_another_one_if_size_or_time_changed(target: Path, changed: Entry) -> None:
    with DirectoryLanding(str(target)) as landing:
        landing.open(Entry(b"a", 6, 0o644, 1)).write(0, [b"abc"])
        again = landing.open(changed)
        assert list(again.missing()) == [(0, changed.size)]
        again.write(0, [b"z" * changed.size])
        again.finish()
        landing.commit()
    assert landed(target) == {b"a": b"z" * changed.size}


def test_a_file_of_unknown_time_is_not_continued_unless_it_was_complete(target: Path) -> None:
    with DirectoryLanding(str(target)) as landing:
        landing.open(Entry(b"half", 6)).write(0, [b"abc"])
        whole = landing.open(Entry(b"whole", 3))
        whole.write(0, [b"abc"])
        whole.finish()
        assert landing.open(Entry(b"whole", 3)).is_finished
        half = landing.open(Entry(b"half", 6))
        assert list(half.missing()) == [(0, 6)]
        half.write(0, [b"ABCDEF"])
        half.finish()
        landing.commit()
    assert landed(target) == {b"half": b"ABCDEF", b"whole": b"abc"}


def test_a_slot_that_has_failed_stays_failed(target: Path) -> None:
    entry = Entry(b"a", 3, 0o644, 1)
    with DirectoryLanding(str(target)) as landing:
        landing.open(entry).fail(EntryError("first", reason=Reason.VANISHED))
        again = landing.open(entry)
        assert again.is_finished
        again.fail(EntryError("second", reason=Reason.ENTRY_UNREADABLE))
        again.finish()
        landing.commit()
    assert landed(target) == {}
    assert [file.error for file in landing.files()] == ["first"]


def test_a_forked_child_that_leaves_the_block_takes_nothing_of_its_parent_with_it(target: Path) -> None:
    with DirectoryLanding(str(target)) as landing:
        slot = landing.open(Entry(b"a", 4))
        slot.write(0, [b"half"[:2]])
        in_child(lambda: landing.__exit__(None, None, None))
        slot.write(2, [b"lf"])
        slot.finish()
        landing.commit()
    assert landed(target) == {b"a": b"half"}

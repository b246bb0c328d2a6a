"""Kept files: a run continues what a failed one has left, if it is still the peer's file."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import random
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerstage.errors import (
    Cancelled,
    ConnectionLost,
    IncompleteStage,
    LimitExceeded,
    NothingToStage,
    ProtocolError,
    StageError,
    TargetError,
)
from peerstage.reasons import Reason
from peerstage.records import LINKED, RESUMED, STAGED, Entry
from peerstage.staging import stage
from peerstage.target import DirectoryTarget, IncomingFile, Selection, Target, kept_files
from peerstage.target.kept_directory import MAX_AGE
from peerstage.target.kept_files import choose_samples
from peerstage.target.kept_record import MAX_RANGES, encode_record, read_record
from peerstage.target.ranges import Ranges
from peerstage.testing.contract import files_in
from peerstage.testing.memory import MemoryFile
from support.child_link import ChildLink
from support.examples import examples
from support.kept import COMPARED, MIN_BYTES, Peer, names_in, scaled_down, stage_from, target_with
from support.quick import quick_directory

SIZE = 20_000


@pytest.fixture(autouse=True, scope="module")
def _scaled_down() -> Iterator[None]:
    with scaled_down():
        yield


@pytest.fixture
def target(quick_target: Path) -> Path:
    path = quick_target / "target"
    path.mkdir()
    return path


@pytest.fixture
def partial_dir(quick_target: Path) -> Path:
    return quick_target / "partial"


def content(seed: object, size: int = SIZE) -> bytes:
    return random.Random(str(seed)).randbytes(size)


def version(seed: object = 1, *, size: int = SIZE, mtime: int = 1) -> MemoryFile:
    return MemoryFile(content(seed, size), mtime=mtime)


@contextlib.contextmanager
def ends_by(error: BaseException, target: Path, partial_dir: Path) -> Iterator[DirectoryTarget]:
    """Yield a target that is left by *error*."""
    with contextlib.suppress(type(error)), target_with(target, partial_dir) as staging_target:
        yield staging_target
        raise error


GONE = ConnectionLost("Gone.")


def fail(files: dict[bytes, MemoryFile], bytes_left: int, target: Path, partial_dir: Path, **options: Any) -> int:
    """Stage until the connection is lost; return the number of bytes that the peer sent."""
    peer = Peer(files, bytes_left)
    with pytest.raises(ConnectionLost):
        stage_from(peer, target, partial_dir, **options)
    assert files_in(target) == {}
    return peer.sent


# What is continued


def test_the_next_run_fetches_only_the_rest_and_what_it_compares(target: Path, partial_dir: Path) -> None:
    files = {b"big": version()}
    sent = fail(files, 12_000, target, partial_dir)
    assert stat.S_IMODE(partial_dir.stat().st_mode) == 0o700
    (kept,) = partial_dir.iterdir()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    peer = Peer(files)
    report = stage_from(peer, target, partial_dir)
    assert files_in(target) == {b"big": files[b"big"].data}
    assert peer.sent <= SIZE - sent + COMPARED + 20 * 100
    assert [result.outcome for result in report.files] == [RESUMED]
    assert sent - COMPARED <= report.resumed_bytes < sent
    assert names_in(partial_dir) == []


def test_a_complete_large_file_of_a_failed_run_is_not_fetched_again(target: Path, partial_dir: Path) -> None:
    files = {b"a": version("a"), b"b": version("b")}
    fail(files, SIZE + 100, target, partial_dir)
    assert len(names_in(partial_dir)) == 1  # of b, only 100 bytes had arrived
    peer = Peer(files)
    report = stage_from(peer, target, partial_dir)
    assert files_in(target) == {name: file.data for name, file in files.items()}
    assert peer.sent <= SIZE + COMPARED + 20 * 100
    assert {result.name: result.outcome for result in report.files} == {"a": RESUMED, "b": STAGED}


def test_a_file_that_fails_again_and_again_arrives_in_the_end(target: Path, partial_dir: Path) -> None:
    files = {b"big": version(size=100_000)}
    sent = 0
    for _ in range(9):
        sent += fail(files, 10_000 + COMPARED, target, partial_dir)
    peer = Peer(files)
    stage_from(peer, target, partial_dir)
    assert files_in(target) == {b"big": files[b"big"].data}
    assert sent + peer.sent < 100_000 + 10 * (COMPARED + 20 * 100)


@pytest.mark.parametrize(
    "error",
    [
        ConnectionLost("Gone."),
        Cancelled("Cancelled."),
        LimitExceeded("Too slow.", reason=Reason.TOO_SLOW),
        KeyboardInterrupt(),
        ValueError("raised by a callback"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_files_are_kept_when_a_run_ends_by(error: BaseException, target: Path, partial_dir: Path) -> None:
    with ends_by(error, target, partial_dir) as staging_target:
        Peer({b"big": version()}).pull(b"/c", staging_target)
    assert len(names_in(partial_dir)) == 1


@pytest.mark.parametrize(
    "error",
    [
        TargetError("Disk full.", path="/t", reason=Reason.NO_SPACE),
        ProtocolError("Nonsense."),
        StageError("The disk failed.", reason=Reason.LOCAL_IO_ERROR),
        OSError(errno.EIO, "Input/output error"),
        MemoryError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_nothing_is_kept_after(error: BaseException, target: Path, partial_dir: Path) -> None:
    with ends_by(error, target, partial_dir) as staging_target:
        Peer({b"big": version()}).pull(b"/c", staging_target)
    assert names_in(partial_dir) == []
    assert files_in(target) == {}


def test_nothing_is_kept_of_a_run_that_fails_to_write(
    target: Path, partial_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = os.pwrite

    def full(fd: int, data: Any, offset: int) -> int:
        if offset >= 5000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(TargetError):
        stage_from(Peer({b"big": version()}), target, partial_dir)
    assert names_in(partial_dir) == []


def test_a_disk_that_fails_while_files_are_kept_keeps_nothing_and_hides_no_error(
    target: Path, partial_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fails)
    fail({b"big": version()}, 12_000, target, partial_dir)
    assert names_in(partial_dir) == []


def test_ranges_that_ctrl_c_has_left_half_changed_are_not_kept(target: Path, partial_dir: Path) -> None:
    with ends_by(KeyboardInterrupt(), target, partial_dir) as staging_target:
        (file,) = staging_target.admit([Entry(b"big", SIZE, 0o644, 1)])
        file.write(0, [content(1)[:9000]])
        file._transfer.data._ranges._starts.insert(0, 0)
        file._transfer.data._ranges._ends[0] += 100
    assert names_in(partial_dir) == []
    assert files_in(target) == {}


def test_nothing_is_kept_without_a_modification_time(target: Path, partial_dir: Path) -> None:
    with ends_by(GONE, target, partial_dir) as staging_target:
        (file,) = staging_target.admit([Entry(b"big", SIZE, 0o644, None)])
        file.write(0, [content(1)[:-1]])
    assert names_in(partial_dir) == []


def test_a_note_says_once_that_nothing_is_kept_without_modification_times(
    target: Path, partial_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    note = "The modification times of large files are unknown, so that these are neither continued nor kept in "
    note += f"{partial_dir}."
    with target_with(target, partial_dir) as staging_target:
        staging_target.admit([Entry(b"small", MIN_BYTES - 1, 0o644, None), Entry(b"timed", SIZE, 0o644, 1)])
        assert staging_target.notes == ()
        for name in (b"big", b"bigger"):
            staging_target.admit([Entry(name, MIN_BYTES, 0o644, None)])
        assert staging_target.notes == (note,)
    assert caplog.messages.count(f"peer: {note}") == 1


def test_what_is_kept_is_not_used_for_a_file_without_a_modification_time(target: Path, partial_dir: Path) -> None:
    fail({b"big": version(mtime=0)}, 12_000, target, partial_dir)
    with target_with(target, partial_dir) as staging_target:
        (file,) = staging_target.admit([Entry(b"big", SIZE, 0o644, None)])
        assert list(file.missing()) == [(0, SIZE)]
    assert len(names_in(partial_dir)) == 1


def test_small_files_are_not_kept(target: Path, partial_dir: Path) -> None:
    files = {b"%d" % number: version(number, size=MIN_BYTES - 1) for number in range(3)}
    fail(files, 2 * MIN_BYTES, target, partial_dir)
    assert names_in(partial_dir) == []


def test_files_that_were_ready_for_publication_are_kept_without_their_owner_and_mode(
    target: Path, partial_dir: Path
) -> None:
    files = {b"a": MemoryFile(content(1), mtime=1, mode=stat.S_IFREG | 0o444)}

    def late() -> None:
        checks.append(len(checks))
        if len(checks) == 2:  # the one before the first rename
            raise Cancelled("Cancelled.")

    checks: list[int] = []
    with ends_by(Cancelled("Cancelled."), target, partial_dir) as staging_target:
        Peer(files).pull(b"/c", staging_target)
        with contextlib.suppress(Cancelled):
            staging_target.commit(late)
    assert len(checks) == 2
    (kept,) = partial_dir.iterdir()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    report = stage_from(Peer(files), target, partial_dir)
    assert [result.outcome for result in report.files] == [RESUMED]
    assert files_in(target) == {b"a": files[b"a"].data}


def test_without_a_partial_dir_nothing_is_kept(target: Path) -> None:
    with pytest.raises(ConnectionLost):
        stage_from(Peer({b"big": version()}, 12_000), target, None)
    assert files_in(target) == {}


def test_a_run_asks_before_it_fetches_only_if_something_is_kept(target: Path, partial_dir: Path) -> None:
    with target_with(target, partial_dir) as staging_target:
        assert staging_target.selection is Selection.ALL
    fail({b"big": version()}, 12_000, target, partial_dir)
    with target_with(target, partial_dir, directory=b"/other") as staging_target:
        assert staging_target.selection is Selection.ALL
    with target_with(target, partial_dir) as staging_target:
        assert staging_target.selection is Selection.SOME


@pytest.mark.parametrize("is_allowed", [True, False])
def test_a_continued_file_has_the_group_of_a_new_one_or_starts_over(
    is_allowed: bool, target: Path, partial_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here fstat(2) tells another group for what is kept, which a process without root could not arrange."""
    fail({b"big": version()}, 12_000, target, partial_dir)
    (kept,) = partial_dir.iterdir()
    of_another_group = {kept.stat().st_ino}
    original = os.fstat

    def fstat(fd: int) -> os.stat_result:
        found = original(fd)
        if found.st_ino not in of_another_group:
            return found
        return os.stat_result((*found[:5], found.st_gid + 1, *found[6:10]))

    def fchown(fd: int, user: int, group: int) -> None:
        found = original(fd)
        assert (user, group) == (-1, found.st_gid)
        if not is_allowed:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        of_another_group.discard(found.st_ino)

    monkeypatch.setattr(os, "fstat", fstat)
    monkeypatch.setattr(os, "fchown", fchown)
    report = stage_from(Peer({b"big": version()}), target, partial_dir)
    assert [result.outcome for result in report.files] == [RESUMED if is_allowed else STAGED]
    assert bool(of_another_group) is not is_allowed
    assert files_in(target) == {b"big": content(1)}


@pytest.mark.usefixtures("root")
def test_a_file_that_is_continued_in_a_target_of_another_group_has_that_group(
    quick_target: Path, partial_dir: Path
) -> None:
    targets = {12345: quick_target / "first", 12346: quick_target / "second"}
    for group, path in targets.items():
        path.mkdir()
        os.chown(path, -1, group)
        path.chmod(0o2775)
    fail({b"big": version()}, 12_000, targets[12345], partial_dir)
    report = stage_from(Peer({b"big": version(), b"new": version(2)}), targets[12346], partial_dir)
    assert {result.name: result.outcome for result in report.files} == {"big": RESUMED, "new": STAGED}
    assert {path.stat().st_gid for path in targets[12346].iterdir()} == {12346}


# Another version


@pytest.mark.parametrize(
    "changed",
    [version(mtime=2), version(2), version(size=SIZE + 1), version(2, size=SIZE - 1, mtime=2)],
    ids=["another time", "another content", "longer", "everything"],
)
def test_a_file_that_has_changed_starts_over(changed: MemoryFile, target: Path, partial_dir: Path) -> None:
    fail({b"big": version()}, 12_000, target, partial_dir)
    peer = Peer({b"big": changed})
    report = stage_from(peer, target, partial_dir)
    assert files_in(target) == {b"big": changed.data}
    assert [result.outcome for result in report.files] == [STAGED]
    assert report.resumed_bytes == 0
    assert peer.sent < len(changed.data) + 3000
    assert names_in(partial_dir) == []


@pytest.mark.parametrize(("peer", "directory"), [("other", b"/c"), ("peer", b"/d"), ("peer/", b"c"), ("pee", b"r/c")])
def test_a_kept_file_belongs_to_one_peer_and_directory(
    peer: str, directory: bytes, target: Path, partial_dir: Path
) -> None:
    fail({b"big": version()}, 12_000, target, partial_dir)
    with target_with(target, partial_dir, peer=peer, directory=directory) as staging_target:
        (file,) = staging_target.admit([Entry(b"big", SIZE, 0o644, 1)])
        assert list(file.missing()) == [(0, SIZE)]
    assert len(names_in(partial_dir)) == 1


def test_a_file_that_differs_at_the_end_of_what_is_kept_always_starts_over(target: Path, partial_dir: Path) -> None:
    for at in (11_800, 11_900, 11_999):
        fail({b"big": version()}, 12_000, target, partial_dir)
        data = bytearray(content(1))
        data[at] ^= 1
        stage_from(Peer({b"big": MemoryFile(bytes(data), mtime=1)}), target, partial_dir)
        assert files_in(target) == {b"big": bytes(data)}
        (target / "big").unlink()


def test_a_change_is_detected_wherever_it_is_in_a_compared_block_and_only_there(
    target: Path, partial_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same size and time, this is what is guaranteed without a digest from the peer."""
    monkeypatch.setattr(kept_files, "_random", random.Random(5))
    kept = Ranges()
    kept.add(0, 12_000)
    compared = choose_samples(kept)
    monkeypatch.setattr(kept_files, "choose_samples", lambda ranges: compared)
    original, other = content(1), bytes(byte ^ 1 for byte in content(1))
    for start, end in [*compared, *list(compared.missing(12_000))[:3]]:
        fail({b"big": version()}, 12_000, target, partial_dir)
        data = original[:start] + other[start : start + 1] + original[start + 1 :]
        stage_from(Peer({b"big": MemoryFile(data, mtime=1)}), target, partial_dir)
        is_compared = compared.contains(start, end)
        assert files_in(target) == {b"big": data if is_compared else original}
        (target / "big").unlink()


def test_a_connection_that_is_lost_before_everything_is_compared_keeps_one_version(
    target: Path, partial_dir: Path
) -> None:
    """The new version overwrites what was missing of the old one, but is not mixed with it."""
    old, new = version(1), version(2)
    outcomes = set()
    for bytes_left in range(0, SIZE + 2000, 1900):
        fail({b"big": old}, 6_000, target, partial_dir)
        fails = Peer({b"big": new}, bytes_left)
        try:
            stage_from(fails, target, partial_dir)
        except ConnectionLost:
            report = stage_from(Peer({b"big": new}), target, partial_dir)
            outcomes.add(report.files[0].outcome)
        assert files_in(target) == {b"big": new.data}
        (target / "big").unlink()
    assert outcomes == {STAGED, RESUMED}


class Reordered(Peer):
    """Sends what is missing backwards, so that what is compared arrives last."""

    def _copy(self, directory: bytes, incoming: IncomingFile) -> None:
        file = self.directories[directory][incoming.entry.name]
        for ranges in (incoming.missing, incoming.missing):
            for start, end in reversed(list(ranges())):
                self._cut(self.sent)
                self.sent += end - start
                incoming.write(start, [file.data[start:end]])
        incoming.finish()


@pytest.mark.parametrize("size_kept", [4_000, 16_000])
def test_of_two_versions_that_cannot_be_told_apart_yet_the_larger_part_is_kept(
    size_kept: int, target: Path, partial_dir: Path
) -> None:
    old, new = version(1), version(2)
    fail({b"big": old}, size_kept, target, partial_dir)
    with ends_by(GONE, target, partial_dir) as staging_target:
        (file,) = staging_target.admit([Entry(b"big", SIZE, 0o644, 1)])
        file.write(size_kept, [new.data[size_kept:]])
    (kept,) = partial_dir.iterdir()
    with open(kept, "rb") as file:
        ranges = read_record(file.fileno(), Entry(b"big", SIZE, 0o644, 1), binding_of(kept))
    assert ranges is not None
    assert list(ranges) == ([(0, size_kept)] if size_kept > SIZE // 2 else [(size_kept, SIZE)])
    for last in (new, old):
        stage_from(Reordered({b"big": last}), target, partial_dir)
        assert files_in(target) == {b"big": last.data}


def test_a_digest_of_the_peer_detects_what_the_compared_blocks_do_not(
    target: Path, partial_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tail = Ranges()
    tail.add(11_800, 12_000)
    monkeypatch.setattr(kept_files, "choose_samples", lambda ranges: tail)
    fail({b"big": version()}, 12_000, target, partial_dir)
    data = content(1)[:500] + b"other" + content(1)[505:]
    sums = f"{hashlib.sha256(data).hexdigest()}  big\n".encode()
    files = {b"big": MemoryFile(data, mtime=1), b"SUMS": MemoryFile(sums, mtime=1)}
    report = stage_from(Peer(files), target, partial_dir, verify="sha256", checksums="SUMS")
    assert files_in(target) == {b"big": data, b"SUMS": sums}
    assert {file.outcome for file in report.files} == {STAGED}


def test_a_linked_file_that_starts_over_is_fetched_whole_although_a_part_is_kept(
    target: Path, partial_dir: Path, quick_target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tail = Ranges()
    tail.add(11_800, 12_000)
    monkeypatch.setattr(kept_files, "choose_samples", lambda ranges: tail)
    fail({b"big": version()}, 12_000, target, partial_dir)
    yesterday = quick_target / "yesterday"
    yesterday.mkdir()
    stage_from(Peer({b"big": version()}), yesterday, None, preserve_times=True)
    data = content(1)[:500] + b"other" + content(1)[505:]
    sums = f"{hashlib.sha256(data).hexdigest()}  big\n".encode()
    files = {b"big": MemoryFile(data, mtime=1), b"SUMS": MemoryFile(sums, mtime=1)}
    options = {"verify": "sha256", "checksums": "SUMS", "preserve_times": True, "link_dest": str(yesterday)}
    stage_from(Peer(files), target, partial_dir, **options)
    assert files_in(target) == {b"big": data, b"SUMS": sums}


def test_the_digest_of_a_continued_file_covers_what_was_kept(target: Path, partial_dir: Path) -> None:
    sums = f"{hashlib.sha256(content(1)).hexdigest()}  big\n".encode()
    files = {b"big": version(), b"SUMS": MemoryFile(sums, mtime=1)}
    fail(files, 12_000, target, partial_dir, verify="sha256", checksums="SUMS")
    peer = Peer(files)
    report = stage_from(peer, target, partial_dir, verify="sha256", checksums="SUMS")
    assert {file.name: file.outcome for file in report.files} == {"big": RESUMED, "SUMS": STAGED}
    assert {file.sha256 for file in report.files if file.name == "big"} == {hashlib.sha256(content(1)).hexdigest()}
    assert peer.sent < SIZE - 12_000 + COMPARED + 3000


# Links


def test_a_file_that_is_linked_to_an_earlier_day_is_never_kept_and_the_earlier_one_never_changed(
    target: Path, partial_dir: Path, quick_target: Path
) -> None:
    yesterday = quick_target / "yesterday"
    yesterday.mkdir()
    files = {b"a": version("a"), b"b": version("b"), b"c": version("c")}
    options: dict[str, Any] = {"preserve_times": True, "link_dest": str(yesterday)}
    stage_from(Peer({b"a": files[b"a"]}), yesterday, None, preserve_times=True)
    before = (yesterday / "a").stat()
    fail(files, SIZE + 5000, target, partial_dir, **options)
    assert len(names_in(partial_dir)) == 2
    assert files_in(yesterday) == {b"a": content("a")}
    found = (yesterday / "a").stat()
    assert (found.st_mode, found.st_size, found.st_nlink) == (before.st_mode, SIZE, 1)
    report = stage_from(Peer(files), target, partial_dir, **options)
    assert {file.name: file.outcome for file in report.files} == {"a": LINKED, "b": RESUMED, "c": RESUMED}
    assert files_in(target) == {name: file.data for name, file in files.items()}
    assert (yesterday / "a").stat().st_ino == (target / "a").stat().st_ino


# Records are not believed


def binding_of(kept: Path) -> str:
    return kept.read_bytes()[SIZE + 16 : SIZE + 48].hex()


def record_with(kept: Path, *ranges: tuple[int, int]) -> bytes:
    return encode_record(binding_of(kept), ranges)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "nothing": lambda kept: kept.write_bytes(b""),
    "no record": lambda kept: os.truncate(kept, SIZE),
    "half a record": lambda kept: os.truncate(kept, SIZE + 60),
    "one byte less": lambda kept: os.truncate(kept, kept.stat().st_size - 1),
    "one byte more": lambda kept: kept.write_bytes(kept.read_bytes() + b"\0"),
    "beyond the end": lambda kept: replace_record(kept, record_with(kept, (0, SIZE + 1))),
    "enormous": lambda kept: replace_record(kept, record_with(kept, (0, 2**64 - 1))),
    "empty": lambda kept: replace_record(kept, record_with(kept, (5, 5))),
    "backwards": lambda kept: replace_record(kept, record_with(kept, (500, 5))),
    "descending": lambda kept: replace_record(kept, record_with(kept, (9000, 9500), (0, 100))),
    "overlapping": lambda kept: replace_record(kept, record_with(kept, (0, 9500), (9000, 9900))),
    "adjacent": lambda kept: replace_record(kept, record_with(kept, (0, 9000), (9000, 9900))),
    "no ranges": lambda kept: replace_record(kept, record_with(kept)),
    "too many ranges": lambda kept: replace_record(
        kept, record_with(kept, *((at, at + 1) for at in range(0, 2 * MAX_RANGES + 2, 2)))
    ),
    "a wrong count": lambda kept: replace_record(kept, with_count(record_with(kept, (0, 9000)), 2)),
    "another binding": lambda kept: replace_record(kept, encode_record("ab" * 32, [(0, 9000)])),
}


def replace_record(kept: Path, record: bytes) -> None:
    kept.write_bytes(kept.read_bytes()[:SIZE] + record)


def with_count(record: bytes, count: int) -> bytes:
    body = record[:-36] + count.to_bytes(4, "big")
    return body + hashlib.sha256(body).digest()


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_record_is_removed_and_its_file_fetched_again(
    damage: Callable[[Path], object], target: Path, partial_dir: Path
) -> None:
    fail({b"big": version()}, 12_000, target, partial_dir)
    (kept,) = partial_dir.iterdir()
    damage(kept)
    report = stage_from(Peer({b"big": version()}), target, partial_dir)
    assert [result.outcome for result in report.files] == [STAGED]
    assert files_in(target) == {b"big": content(1)}
    assert names_in(partial_dir) == []


def test_a_record_with_any_byte_changed_is_invalid(target: Path, partial_dir: Path) -> None:
    fail({b"big": version()}, 12_000, target, partial_dir)
    (kept,) = partial_dir.iterdir()
    whole, binding, entry = kept.read_bytes(), binding_of(kept), Entry(b"big", SIZE, 0o644, 1)
    for at in range(SIZE, len(whole)):
        kept.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with open(kept, "rb") as file:
            assert read_record(file.fileno(), entry, binding) is None
    kept.write_bytes(whole)
    with open(kept, "rb") as file:
        assert read_record(file.fileno(), entry, binding) is not None


@given(st.binary(max_size=300))
@examples(30)
def test_any_bytes_in_the_place_of_a_record_are_no_record(record: bytes) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(bytes(100) + record)
        file.flush()
        assert read_record(file.fileno(), Entry(b"x", 100, None, 1), "00" * 32) is None


def make_symlink(kept: Path) -> None:
    (kept.parent.parent / "secret").write_bytes(kept.read_bytes())
    kept.unlink()
    kept.symlink_to("../secret")


def make_hard_link(kept: Path) -> None:
    os.link(kept, kept.parent.parent / "second")


def make_fifo(kept: Path) -> None:
    kept.unlink()
    os.mkfifo(kept)


@pytest.mark.parametrize("replace", [make_symlink, make_hard_link, make_fifo])
def test_anything_but_a_regular_file_with_one_link_is_not_continued(
    replace: Callable[[Path], None], target: Path, partial_dir: Path
) -> None:
    fail({b"big": version()}, 12_000, target, partial_dir)
    (kept,) = partial_dir.iterdir()
    replace(kept)
    others = {path: path.read_bytes() for path in (partial_dir.parent / "secret", partial_dir.parent / "second")
              if path.exists()}  # fmt: skip
    report = stage_from(Peer({b"big": version()}), target, partial_dir)
    assert [result.outcome for result in report.files] == [STAGED]
    assert files_in(target) == {b"big": content(1)}
    assert {path: path.read_bytes() for path in others} == others
    assert names_in(partial_dir) == []


def test_the_data_of_many_ranges_is_kept_as_far_as_the_record_has_room(target: Path, partial_dir: Path) -> None:
    entry, data = Entry(b"big", SIZE, 0o644, 1), content(1)
    with ends_by(GONE, target, partial_dir) as staging_target:
        (file,) = staging_target.admit([entry])
        for number, start in enumerate(range(0, SIZE, 200)):
            file.write(start, [data[start : start + 100 + number]])
    peer = Peer({b"big": version()})
    report = stage_from(peer, target, partial_dir)
    assert [result.outcome for result in report.files] == [RESUMED]
    assert files_in(target) == {b"big": data}


# The directory


def first_pull_is_never_reached(target: Path, partial_dir: Path, match: str) -> None:
    class Unreached(Peer):
        def pull(self, directory: bytes, target: Target) -> None:
            raise AssertionError("connected")

    with pytest.raises(TargetError, match=match) as caught:
        stage_from(Unreached({}), target, partial_dir)
    assert caught.value.reason is Reason.PARTIAL_DIR_UNUSABLE
    assert os.fsdecode(caught.value.path or "") == str(partial_dir)
    assert [path for path in target.iterdir() if not path.is_dir()] == []


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701, 0o600, 0o500])
def test_a_directory_with_another_mode_is_refused(mode: int, target: Path, partial_dir: Path) -> None:
    partial_dir.mkdir()
    partial_dir.chmod(mode)
    first_pull_is_never_reached(target, partial_dir, f"Its mode is {mode:04o}, and must be 0700. Run `chmod 700 ")


def test_a_directory_of_another_user_is_refused(
    target: Path, partial_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial_dir.mkdir(mode=0o700)
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    first_pull_is_never_reached(target, partial_dir, "It belongs to the user")


def test_a_symlink_a_file_and_a_directory_without_a_parent_are_refused(target: Path, partial_dir: Path) -> None:
    real = partial_dir.parent / "real"
    real.mkdir(mode=0o700)
    partial_dir.symlink_to(real)
    first_pull_is_never_reached(target, partial_dir, "It is a symlink, or not a directory")
    partial_dir.unlink()
    partial_dir.write_bytes(b"")
    first_pull_is_never_reached(target, partial_dir, "It is a symlink, or not a directory")
    first_pull_is_never_reached(target, partial_dir / "below", "cannot be used")
    first_pull_is_never_reached(target, real / "missing" / "below", "cannot be used: No such file")


@pytest.mark.parametrize("mode", [0o700, 0o755])
def test_the_target_is_refused_whatever_its_mode(mode: int, target: Path) -> None:
    target.chmod(mode)
    first_pull_is_never_reached(target, target, "It is the target, or in it")
    assert stat.S_IMODE(target.stat().st_mode) == mode


def test_a_directory_in_the_target_is_refused_and_not_created(target: Path, quick_target: Path) -> None:
    first_pull_is_never_reached(target, target / "partial", "It is the target, or in it")
    assert names_in(target) == []
    (target / "below" / "partial").mkdir(mode=0o700, parents=True)
    (quick_target / "link").symlink_to(target / "below")
    for path in (target / "below" / "partial", quick_target / "link" / "partial", quick_target / "link" / "missing"):
        first_pull_is_never_reached(target, path, "It is the target, or in it")
    assert names_in(target / "below") == ["partial"]


def test_another_file_system_is_refused(target: Path, partial_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def across(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "rename", across)
    first_pull_is_never_reached(target, partial_dir, "It is not on the target's file system")
    assert names_in(partial_dir) == []


def test_a_run_that_succeeds_leaves_nothing_in_the_directory(target: Path, partial_dir: Path) -> None:
    stage_from(Peer({b"big": version()}), target, partial_dir)
    assert names_in(partial_dir) == []


def test_old_files_are_removed_and_unknown_ones_left(target: Path, partial_dir: Path) -> None:
    now = time.time()
    ages = {"new": MAX_AGE - 60, "old": MAX_AGE + 60, "future": -2 * 86400}
    kept: dict[str, str] = {}
    for peer, age in ages.items():
        fail({b"big": version()}, 12_000, target, partial_dir, peer=peer)
        (kept[peer],) = set(names_in(partial_dir)) - set(kept.values())
        os.utime(partial_dir / kept[peer], (now - age, now - age))
    (partial_dir / f".partial-{'ab' * 16}-{'cd' * 16}").mkdir()
    unknown = ["README", ".partial-x", f"{kept['old']}.txt", f"x{kept['old']}"]
    for name in unknown:
        (partial_dir / name).write_bytes(b"")
        os.utime(partial_dir / name, (1, 1))
    stage_from(Peer({b"big": version()}), target, partial_dir)
    assert names_in(partial_dir) == sorted([*unknown, kept["new"], f".partial-{'ab' * 16}-{'cd' * 16}"])


def test_what_the_peer_no_longer_has_is_removed_after_a_complete_run(target: Path, partial_dir: Path) -> None:
    fail({b"big": version(), b"dump-1": version(2)}, 2 * SIZE - 100, target, partial_dir)
    fail({b"big": version(3)}, 12_000, target, partial_dir, peer="other")
    assert len(names_in(partial_dir)) == 3
    fail({b"big": version(), b"dump-2": version(5)}, 0, target, partial_dir)
    assert len(names_in(partial_dir)) == 3
    with pytest.raises(NothingToStage):
        stage_from(Peer({}), target, partial_dir)
    assert len(names_in(partial_dir)) == 3
    stage_from(Peer({b"big": version(), b"dump-2": version(5)}), target, partial_dir)
    assert len(names_in(partial_dir)) == 1
    peer = Peer({b"big": version(3)})
    stage_from(peer, target, partial_dir, peer="other")
    assert peer.sent < SIZE


def test_a_peer_that_fails_with_other_files_every_night_takes_the_space_of_one_night(
    target: Path, partial_dir: Path
) -> None:
    for night in range(3):
        fail({b"dump-%d" % night: version(night)}, 12_000, target, partial_dir)
        assert len(names_in(partial_dir)) == 1
    fail({b"dump-0": version(0), b"dump-2": version(2)}, 0, target, partial_dir)
    assert len(names_in(partial_dir)) == 1


class Statvfs:
    """An fstatvfs(2) that reports little space."""

    def __init__(self, free: int) -> None:
        self._found = {"f_bfree": free, "f_bavail": free, "f_frsize": 1, "f_files": 0, "f_ffree": 0, "f_favail": 0}

    def __call__(self, fd: int) -> Any:
        return type("Found", (), self._found)


def keep_three(target: Path, partial_dir: Path) -> list[str]:
    """Keep 50,000 bytes of each of three files of one peer; return the names of what is kept, the oldest first."""
    kept: list[str] = []
    for name in (b"older", b"old", b"big"):
        with ends_by(GONE, target, partial_dir) as staging_target:
            files = staging_target.admit([Entry(name, 60_000, 0o644, 1) for name in (b"older", b"old", b"big")])
            next(file for file in files if file.entry.name == name).write(0, [content(name, 50_000)])
        kept += set(names_in(partial_dir)) - set(kept)
    for age, found in enumerate(reversed(kept)):
        os.utime(partial_dir / found, (time.time() - 100 * age,) * 2)
    assert len(kept) == 3
    return kept


def test_a_stage_that_needs_their_space_removes_the_oldest_of_the_same_peer_first(
    target: Path, partial_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older, old, _ = keep_three(target, partial_dir)
    monkeypatch.setattr(os, "fstatvfs", Statvfs(30_000))  # 70,000 are missing
    with target_with(target, partial_dir) as staging_target:
        files = staging_target.admit([Entry(b"big", 60_000, 0o644, 1), Entry(b"new", 60_000, 0o644, 1)])
        assert [file.received_bytes for file in files] == [50_000, 0]
        assert names_in(partial_dir) == [old]
    assert older not in names_in(partial_dir)


def test_a_stage_that_needs_their_space_first_removes_what_other_peers_have_not_used_for_days(
    target: Path, partial_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: dict[str, str] = {}
    for peer, age in {"own": 4, "unused": 4, "older": 5, "recent": 2}.items():
        fail({b"big": version(size=200_000)}, 150_000, target, partial_dir, peer=peer)
        (kept[peer],) = set(names_in(partial_dir)) - set(kept.values())
        os.utime(partial_dir / kept[peer], (time.time() - age * 86400,) * 2)
    for removed, size in {"older": 100_000, "unused": 100_001, "own": 100_002}.items():
        monkeypatch.setattr(os, "fstatvfs", Statvfs(size - 1000))
        with target_with(target, partial_dir, peer="own") as staging_target:
            staging_target.admit([Entry(b"new", size, 0o644, 1)])
        del kept[removed]
        assert names_in(partial_dir) == sorted(kept.values())
    assert list(kept) == ["recent"]


def test_a_peer_that_announces_a_large_file_removes_no_recently_kept_file_of_another_peer(
    target: Path, partial_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail({b"big": version(size=200_000)}, 150_000, target, partial_dir, peer="good")
    before = {path.name: path.read_bytes() for path in partial_dir.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(os, "fstatvfs", Statvfs(100_000))
        with pytest.raises(TargetError, match=r"Free some space \(files of failed runs take \d+ bytes in /.*\), or"):
            stage_from(Peer({b"lie": MemoryFile(b"", mtime=1, listed_size=120_000)}), target, partial_dir)
    assert {path.name: path.read_bytes() for path in partial_dir.iterdir()} == before


def test_nothing_is_removed_or_lost_if_there_is_too_little_space_anyway(
    target: Path, partial_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for peer in ("peer", "other"):
        fail({b"big": version()}, 12_000, target, partial_dir, peer=peer)
    before = {path.name: path.read_bytes() for path in partial_dir.iterdir()}
    files = {b"big": version(), b"new": version("new", size=5_000_000)}
    with monkeypatch.context() as patch:
        patch.setattr(os, "fstatvfs", Statvfs(100))
        with pytest.raises(TargetError, match="are to be staged, but only 100 are free"):
            stage_from(Peer(files), target, partial_dir)
    assert {path.name: path.read_bytes() for path in partial_dir.iterdir()} == before
    peer = Peer({b"big": version()})
    stage_from(peer, target, partial_dir)
    assert peer.sent < SIZE


# Two runs


def test_a_kept_file_has_one_owner_at_a_time(target: Path, partial_dir: Path, quick_target: Path) -> None:
    fail({b"big": version()}, 12_000, target, partial_dir)
    second = quick_target / "second"
    second.mkdir()
    entry = Entry(b"big", SIZE, 0o644, 1)
    with target_with(target, partial_dir) as first, target_with(second, partial_dir) as other:
        (taken,), (fresh,) = first.admit([entry]), other.admit([entry])
        assert list(taken.missing()) != [(0, SIZE)]
        assert list(fresh.missing()) == [(0, SIZE)]
        for staging_target in (first, other):
            Peer({b"big": version()}).pull(b"/c", staging_target)
            staging_target.commit()
    assert files_in(target) == files_in(second) == {b"big": content(1)}


def test_of_two_runs_that_fail_one_leaves_a_file_that_can_be_continued(
    target: Path, partial_dir: Path, quick_target: Path
) -> None:
    second = quick_target / "second"
    second.mkdir()
    with ends_by(GONE, target, partial_dir) as first:
        with pytest.raises(ConnectionLost):
            Peer({b"big": version()}, 15_000).pull(b"/c", first)
        fail({b"big": version()}, 12_000, second, partial_dir)
    assert len(names_in(partial_dir)) == 1
    peer = Peer({b"big": version()})
    stage_from(peer, target, partial_dir)
    assert files_in(target) == {b"big": content(1)}
    assert peer.sent < 10_000


def test_a_forked_child_that_leaves_the_block_keeps_nothing(target: Path, partial_dir: Path) -> None:
    with ends_by(GONE, target, partial_dir) as staging_target:
        Peer({b"big": version()}).pull(b"/c", staging_target)
        if (pid := os.fork()) == 0:
            try:
                staging_target.__exit__(ConnectionLost, ConnectionLost("Gone."), None)
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        assert names_in(partial_dir) == []
    assert len(names_in(partial_dir)) == 1


# Crashes


def test_the_data_is_on_the_disk_before_it_gets_a_name_and_loses_the_name_before_it_changes(
    target: Path, partial_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a power failure at any instant leaves no record of data that is not there."""
    steps: list[str] = []

    def record(name: str, describe: Callable[..., str]) -> None:
        original = getattr(os, name)

        def recorded(*args: Any, **kwargs: Any) -> Any:
            steps.append(f"{name} {describe(*args)}")
            return original(*args, **kwargs)

        monkeypatch.setattr(os, name, recorded)

    def kind(fd: int, *args: object) -> str:
        return "directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file"

    for name in ("pwrite", "pwritev", "ftruncate", "fsync"):
        record(name, kind)
    record("rename", lambda old, new: "to keep" if str(new).startswith(".partial-") else "away")
    fail({b"big": version()}, 12_000, target, partial_dir)
    keeping = steps[steps.index("ftruncate file") :]
    assert keeping == ["ftruncate file", "pwrite file", "fsync file", "rename to keep", "fsync directory"]
    steps.clear()
    stage_from(Peer({b"big": version()}), target, partial_dir)
    taking = [step for step in steps if step != "rename to keep"]  # the test of the file system
    assert taking[:4] == ["rename away", "fsync directory", "ftruncate file", "pwrite file"]


# Any interruption


def mutated(data: bytes, seed: int) -> bytes:
    """Return other bytes of the same length, of which every block differs."""
    return bytes(byte ^ (1 + seed) for byte in data)


RUNS = st.lists(
    st.tuples(st.integers(0, 9000), st.integers(0, 3), st.sampled_from(["target", "child"]), st.booleans()), max_size=5
)


@given(st.lists(st.integers(0, 6000), min_size=1, max_size=3), RUNS, st.booleans())
@examples(30)
def test_after_any_interruptions_the_tree_is_that_of_an_undisturbed_run(
    sizes: Sequence[int], runs: Sequence[tuple[int, int, str, bool]], ends_through_child: bool
) -> None:
    """Each run may find the files replaced, with another time or with the same, and may be interrupted anywhere."""
    with quick_directory() as directory:
        target, partial_dir = directory / "target", directory / "partial"
        target.mkdir()
        base = [content(number, size) for number, size in enumerate(sizes)]
        files = {b"%d" % number: MemoryFile(data, mtime=1) for number, data in enumerate(base)}
        mtime = 1
        for bytes_left, change, through, same_time in runs:
            if change:
                mtime += not same_time
                files = {
                    b"%d" % number: MemoryFile(mutated(data, change + 4 * mtime), mtime=mtime)
                    for number, data in enumerate(base)
                }
            run_once(Peer(files, bytes_left), target, partial_dir, through == "child")
        assert run_once(Peer(files), target, partial_dir, ends_through_child)
        assert files_in(target) == {name: file.data for name, file in files.items()}
        assert names_in(partial_dir) == []


def run_once(peer: Peer, target: Path, partial_dir: Path, through_child: bool) -> bool:
    """Stage directly, or as an isolated child does; return whether the run was not interrupted."""
    try:
        with target_with(target, partial_dir) as staging_target:
            peer.pull(b"/c", ChildLink(staging_target).child_target if through_child else staging_target)
            staging_target.commit()
    except ConnectionLost:
        return False
    return True


def test_a_child_sends_only_the_rest_and_what_is_compared(target: Path, partial_dir: Path) -> None:
    fail({b"big": version()}, 12_000, target, partial_dir)
    with target_with(target, partial_dir) as staging_target:
        link = ChildLink(staging_target)
        Peer({b"big": version()}).pull(b"/c", link.child_target)
        staging_target.commit()
        (result,) = staging_target.pop_results()
    assert result.outcome == RESUMED
    assert link.sent_bytes <= SIZE - 12_000 + COMPARED
    assert files_in(target) == {b"big": content(1)}


def test_a_child_starts_over_if_the_parent_finds_another_version(target: Path, partial_dir: Path) -> None:
    fail({b"big": version()}, 12_000, target, partial_dir)
    with target_with(target, partial_dir) as staging_target:
        link = ChildLink(staging_target)
        Peer({b"big": version(2)}).pull(b"/c", link.child_target)
        staging_target.commit()
        (result,) = staging_target.pop_results()
    assert result.outcome == STAGED
    assert link.sent_bytes == SIZE
    assert files_in(target) == {b"big": content(2)}


def test_a_file_that_cannot_be_read_any_more_is_reported_and_the_rest_staged(target: Path, partial_dir: Path) -> None:
    files = {b"a": version("a"), b"b": version("b")}
    fail(files, SIZE + 12_000, target, partial_dir)
    error = StageError("Permission denied.", reason=Reason.PERMISSION_DENIED)
    with pytest.raises(IncompleteStage):
        stage(
            Peer({b"a": MemoryFile(content("a"), mtime=1, error=error), b"b": files[b"b"]}),
            b"/c",
            target_with(target, partial_dir),
        )
    assert files_in(target) == {b"b": content("b")}

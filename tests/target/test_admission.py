"""What a target admits: the last listing counts, whatever earlier connections have listed and left."""

from __future__ import annotations

import contextlib
import os
import random
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerstage.errors import ConnectionLost, EntryError, IncompleteStage, TargetError
from peerstage.reasons import Reason
from peerstage.records import Entry, Limits
from peerstage.stage_options import StageOptions
from peerstage.staging import stage
from peerstage.target import DirectoryTarget, Target
from peerstage.testing.contract import files_in
from peerstage.testing.memory import MemoryFile, MemoryTransport
from peerstage.transport.retry import Retry, RetryingTransport
from peerstage.watchdog import Watchdog
from support.child_link import ChildLink
from support.examples import examples
from support.incoming import DecliningTarget, admit_one

NOT_DURABLE = StageOptions(durable=False)
NAMES = (b"a", b"b", b"c", b"d")


def results_of(staging_target: DirectoryTarget) -> dict[str, Reason | None]:
    """Return the reason of each result by name."""
    results = [*staging_target.pop_results(), *staging_target.pop_refused()]
    assert len({result.name for result in results}) == len(results)
    return {result.name: result.reason for result in results}


class Loses(MemoryTransport):
    """Loses the connection after *bytes_left* bytes; None keeps it."""

    host_key = "SHA256:none"

    def __init__(self, files: dict[bytes, MemoryFile], bytes_left: int | None = None) -> None:
        super().__init__({b"/c": files}, chunk_size=100, before_write=self._cut)
        self._bytes_left = bytes_left

    def _cut(self, written: int) -> None:
        if self._bytes_left is not None and written >= self._bytes_left:
            raise ConnectionLost("It is gone.")


class SendsRecords(Loses):
    """Cannot list: each file is sent whole, one after the other, whether it is wanted or not."""

    def pull(self, directory: bytes, target: Target) -> None:
        written = 0
        for name, file in sorted(self.directories[directory].items()):
            if not stat.S_ISREG(file.mode):
                target.refuse(name, EntryError("It is not a file.", reason=Reason.NOT_A_FILE))
                continue
            admitted = target.admit([Entry(name, len(file.data), 0o644, file.mtime)])
            for at in range(0, len(file.data), 100):
                self._cut(written)
                written += 100
                for incoming in admitted:
                    incoming.write(at, [file.data[at : at + 100]])
            for incoming in admitted:
                incoming.finish()


# The last listing


def test_a_file_deleted_while_the_connection_was_lost_fails_and_the_rest_is_staged(target: Path) -> None:
    files = {name: MemoryFile(name * 500, mtime=1) for name in NAMES}
    connections = [Loses(dict(files), 700), Loses({name: files[name] for name in (b"a", b"c", b"d")})]
    with contextlib.closing(Watchdog(Limits())) as watchdog:
        transport = RetryingTransport(
            lambda: connections.pop(0), MemoryTransport.capabilities, Retry(delay=0.0), watchdog
        )
        with pytest.raises(IncompleteStage, match="b: The peer no longer lists it") as caught:
            stage(transport, b"/c", DirectoryTarget(str(target), options=NOT_DURABLE), watchdog=watchdog)
    assert files_in(target) == {name: files[name].data for name in (b"a", b"c", b"d")}
    assert caught.value.report is not None
    assert [(file.name, file.reason) for file in caught.value.report.failed] == [("b", Reason.VANISHED)]


def test_a_file_deleted_after_it_had_arrived_is_staged(target: Path) -> None:
    with DirectoryTarget(str(target), options=NOT_DURABLE) as staging_target:
        with pytest.raises(ConnectionLost):
            Loses({b"a": MemoryFile(b"a" * 500), b"b": MemoryFile(b"b" * 500)}, 700).pull(b"/c", staging_target)
        Loses({b"b": MemoryFile(b"new")}).pull(b"/c", staging_target)
        staging_target.commit()
        assert results_of(staging_target) == {"a": None, "b": None}
    assert files_in(target) == {b"a": b"a" * 500, b"b": b"new"}


def test_a_file_replaced_by_a_directory_is_reported_once(target: Path) -> None:
    with DirectoryTarget(str(target), options=NOT_DURABLE) as staging_target:
        with pytest.raises(ConnectionLost):
            Loses({b"a": MemoryFile(b"a" * 500)}, 300).pull(b"/c", staging_target)
        Loses({b"a": MemoryFile(mode=stat.S_IFDIR | 0o755)}).pull(b"/c", staging_target)
        staging_target.commit()
        assert results_of(staging_target) == {"a": Reason.NOT_A_FILE}
    assert files_in(target) == {}


def test_a_directory_replaced_by_a_file_is_staged(target: Path) -> None:
    with DirectoryTarget(str(target), options=NOT_DURABLE) as staging_target:
        Loses({b"a": MemoryFile(mode=stat.S_IFDIR | 0o755)}).pull(b"/c", staging_target)
        Loses({b"a": MemoryFile(b"data")}).pull(b"/c", staging_target)
        staging_target.commit()
        assert results_of(staging_target) == {"a": None}
    assert files_in(target) == {b"a": b"data"}


def test_a_file_that_was_replaced_by_a_directory_for_a_while_is_staged(target: Path) -> None:
    files = {name: MemoryFile(name * 500, mtime=1) for name in NAMES}
    with DirectoryTarget(str(target), options=NOT_DURABLE) as staging_target:
        with pytest.raises(ConnectionLost):
            Loses(files, 700).pull(b"/c", staging_target)
        with pytest.raises(ConnectionLost):
            Loses({b"b": MemoryFile(mode=stat.S_IFDIR | 0o755), b"a": files[b"a"], b"c": files[b"c"]}, 0).pull(
                b"/c", staging_target
            )
        Loses(files).pull(b"/c", staging_target)
        staging_target.commit()
        assert results_of(staging_target) == dict.fromkeys("abcd")
    assert files_in(target) == {name: file.data for name, file in files.items()}


def version(name: bytes, size: int, mtime: int) -> MemoryFile:
    """Return the only file with these attributes."""
    return MemoryFile(random.Random(f"{name!r} {size} {mtime}").randbytes(size), mtime=mtime)


#: What a peer has under a name: nothing, a directory, or a file of some size and time.
KINDS = st.none() | st.just(-1) | st.integers(0, 1500)
LISTINGS = st.dictionaries(st.sampled_from(NAMES), st.tuples(KINDS, st.integers(1, 2)))
CONNECTIONS = st.lists(st.tuples(LISTINGS, st.integers(0, 3000)), max_size=4)


def entries_of(listing: dict[bytes, tuple[int | None, int]]) -> dict[bytes, MemoryFile]:
    return {
        name: MemoryFile(mode=stat.S_IFDIR | 0o755) if size < 0 else version(name, size, mtime)
        for name, (size, mtime) in listing.items()
        if size is not None
    }


@given(
    CONNECTIONS, LISTINGS, st.sampled_from([Loses, SendsRecords]), st.sampled_from([DirectoryTarget, DecliningTarget]),
    st.booleans(),
)  # fmt: skip
@examples(30)
def test_after_any_interruptions_the_last_listing_is_staged_and_every_other_entry_complete_or_reported(
    lost: list[tuple[dict[bytes, Any], int]],
    last: dict[bytes, Any],
    kind: type[Loses],
    target_class: type[DirectoryTarget],
    through_child: bool,
) -> None:
    options: dict[str, Any] = {"declined": [b"d"]} if target_class is DecliningTarget else {}
    with tempfile.TemporaryDirectory() as directory:
        with target_class(directory, options=NOT_DURABLE, **options) as staging_target:
            link = ChildLink(staging_target, tries=len(lost) + 1)
            receiving = link.child_target if through_child else staging_target
            seen: dict[bytes, list[bytes]] = {name: [] for name in NAMES}
            for listing, bytes_left in lost:
                files = entries_of(listing)
                for name, file in files.items():
                    seen[name].append(file.data)
                try:
                    kind(files, bytes_left).pull(b"/c", receiving)
                except ConnectionLost:
                    continue
            expected = entries_of(last)
            kind(expected).pull(b"/c", receiving)
            assert link.max_unread <= 2
            staging_target.commit()
            run = staging_target._run
            assert (run.missing_bytes, run.uncreated_files, run._ranges) == (0, 0, 0)
            results = results_of_each(staging_target)
        published = files_in(Path(directory))
    for name, file in expected.items():
        text = os.fsdecode(name)
        if not stat.S_ISREG(file.mode):
            assert Reason.NOT_A_FILE in results[text]
        elif name not in options.get("declined", ()):
            assert published[name] == file.data
            assert results[text] == [None]
    for name, data in published.items():
        is_listed = name in expected and stat.S_ISREG(expected[name].mode)
        assert data in ([expected[name].data] if is_listed else seen[name])
    for text, reasons in results.items():
        if os.fsencode(text) not in expected:
            assert set(reasons) <= {None, Reason.VANISHED, Reason.NOT_A_FILE}
    assert b"d" not in published or not options


def results_of_each(staging_target: DirectoryTarget) -> dict[str, list[Reason | None]]:
    found: dict[str, list[Reason | None]] = {}
    for result in [*staging_target.pop_results(), *staging_target.pop_refused()]:
        found.setdefault(result.name, []).append(result.reason)
    return found


# Space


class Statvfs:
    """An fstatvfs(2) that reports little space."""

    def __init__(self, free: int, inodes: int = 1000) -> None:
        self._found = {"f_bfree": free, "f_bavail": free, "f_frsize": 1, "f_files": 1, "f_ffree": inodes,
                       "f_favail": inodes}  # fmt: skip

    def __call__(self, fd: int) -> Any:
        return type("Found", (), self._found)


@pytest.mark.parametrize("sizes", [[600, 600], [1000, 1], [500, 500, 1]])
def test_space_is_needed_for_all_that_is_missing_of_every_file_admitted_so_far(
    target: Path, monkeypatch: pytest.MonkeyPatch, sizes: list[int]
) -> None:
    monkeypatch.setattr(os, "fstatvfs", Statvfs(1000))
    entries = [Entry(b"%d" % number, size) for number, size in enumerate(sizes)]
    with DirectoryTarget(str(target)) as staging_target:
        for entry in entries[:-1]:
            staging_target.admit([entry])
        with pytest.raises(TargetError, match=f"{sum(sizes)} bytes are to be staged, but only 1000 are free"):
            staging_target.admit(entries[-1:])
    with DirectoryTarget(str(target)) as staging_target, pytest.raises(TargetError, match="are free"):
        staging_target.admit(entries)


def test_no_space_is_needed_for_what_has_arrived_failed_or_was_replaced(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fstatvfs", Statvfs(1000, 2))
    with DirectoryTarget(str(target)) as staging_target:
        arrived = admit_one(staging_target, Entry(b"arrived", 1000, mtime=1))
        arrived.write(0, [b"x" * 400])
        failed = admit_one(staging_target, Entry(b"failed", 400))
        failed.fail(EntryError("It cannot be read.", reason=Reason.ENTRY_UNREADABLE))
        admit_one(staging_target, Entry(b"replaced", 400, mtime=1))
        admit_one(staging_target, Entry(b"replaced", 300, mtime=2))
        (target / "taken").mkdir()
        assert staging_target.admit([Entry(b"taken", 5000)]) == []
        admit_one(staging_target, Entry(b"last", 100))
        with pytest.raises(TargetError, match="1001 bytes are to be staged"):
            staging_target.admit([Entry(b"more", 1)])
        staging_target.refuse(b"more", EntryError("It cannot be read.", reason=Reason.ENTRY_UNREADABLE))
        with pytest.raises(TargetError, match="3 files are to be staged, but only 2 inodes are free"):
            staging_target.admit([Entry(b"empty", 0)])


def test_a_file_that_a_command_left_on_this_file_system_needs_no_space(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fstatvfs", Statvfs(10))
    with DirectoryTarget(str(target)) as staging_target:
        (Path(staging_target.create_workspace()) / "a").write_bytes(b"x" * 100)
        assert staging_target.import_file(b"a") == 100
        staging_target.commit()
    assert files_in(target) == {b"a": b"x" * 100}


# Selections


@pytest.mark.parametrize("through_child", [False, True])
@pytest.mark.parametrize("kind", [Loses, SendsRecords])
def test_declined_files_are_not_staged(target: Path, kind: type[Loses], through_child: bool) -> None:
    files = {name: MemoryFile(name * 250, mtime=1) for name in NAMES}
    with DecliningTarget(str(target), declined=[b"b", b"d"], options=NOT_DURABLE) as staging_target:
        link = ChildLink(staging_target)
        kind(files).pull(b"/c", link.child_target if through_child else staging_target)
        assert link.sent_bytes == (500 if through_child else 0)
        staging_target.commit()
    assert files_in(target) == {name: files[name].data for name in (b"a", b"c")}


def test_answers_about_a_large_listing_are_waited_for_in_parts(target: Path) -> None:
    entries = [Entry(b"%05d" % number, number % 3) for number in range(5000)]
    declined: Sequence[bytes] = [entry.name for entry in entries[::7]]
    with DecliningTarget(str(target), declined=declined, options=NOT_DURABLE) as staging_target:
        link = ChildLink(staging_target)
        admitted = link.child_target.admit(entries)
        assert [file.entry for file in admitted] == [entry for at, entry in enumerate(entries) if at % 7]
        assert link.max_unread == 2
        assert len(link.questions) == 5

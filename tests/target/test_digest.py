"""Digests of files whose bytes arrive in any order: always those of the bytes on the disk, each byte hashed once."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from target_cases import memory_peer, memory_peer_of, private_directory_of, stage_into

from peerstage.errors import Cancelled, ConnectionLost, IncompleteStage, TargetError
from peerstage.reasons import Reason
from peerstage.records import Entry, Ownership
from peerstage.staging import stage
from peerstage.target import DirectoryTarget, digest, partial_file
from peerstage.target.partial_file import PartialFile
from peerstage.target.run_state import RunState
from peerstage.testing.contract import files_in
from peerstage.testing.memory import MemoryFile, MemoryTransport
from support.examples import examples

KIB = 1 << 10
MIB = 1 << 20


def target_for_digests(target: Path, **options: Any) -> DirectoryTarget:
    """Return a target whose files get digests, although nothing is done with them."""
    staging_target = DirectoryTarget(str(target), **options)
    staging_target.wants_digests = True
    return staging_target


@contextlib.contextmanager
def partial_file_of(size: int) -> Iterator[PartialFile]:
    """Yield a partial file of a run that wants digests."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK | os.X_OK) else None
    with tempfile.TemporaryDirectory(prefix="digest-test-", dir=memory) as directory:
        fd = os.open(directory, os.O_RDONLY)
        run = RunState(directory, fd, writeback=False, wants_digests=True)
        try:
            yield PartialFile(run, Entry(b"file", size, 0o644, 1), 0)
        finally:
            run.descriptors.close_all()
            os.close(fd)


def content_of(file: PartialFile) -> bytes:
    """Return what is on the disk."""
    fd = os.open(file.private_name, os.O_RDONLY, dir_fd=file._run.descriptors.dir_fd)
    with os.fdopen(fd, "rb") as stream:
        return stream.read()


def write(file: PartialFile, content: bytes, start: int, end: int, cut: int) -> None:
    """Write a part of *content* in two buffers, divided at *cut*."""
    part = content[start:end]
    file.write(start, [part[:cut], memoryview(part)[cut:]])


@pytest.fixture
def bytes_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The size of every read from the disk for a digest."""
    sizes: list[int] = []
    pread = os.pread

    def counting_pread(fd: int, length: int, offset: int) -> bytes:
        data = pread(fd, length, offset)
        sizes.append(len(data))
        return data

    monkeypatch.setattr(digest.os, "pread", counting_pread)
    return sizes


SIZES = st.integers(0, 4000)
#: Writes of one of two versions, from one position to another (in eighths of the size), in two buffers; None is another
#: connection. The first version is more likely, so that what is written twice is often equal.
WRITES = st.lists(
    st.none() | st.tuples(st.sampled_from([0, 0, 0, 1]), st.integers(0, 8), st.integers(0, 8), st.integers(0, 4000)),
    max_size=12,
)


@examples(30)
@given(SIZES, WRITES, st.integers(0, 99), st.booleans())
def test_the_digest_is_that_of_the_bytes_on_the_disk_whatever_was_written_in_whatever_order(
    size: int, writes: list[Any], seed: int, at_commit: bool
) -> None:
    chance = random.Random(seed)
    versions = [chance.randbytes(size), chance.randbytes(size)]
    chunk, max_read_back = digest._CHUNK, partial_file._MAX_READ_BACK
    digest._CHUNK, partial_file._MAX_READ_BACK = 300, 0 if at_commit else max_read_back
    try:
        with partial_file_of(size) as file:
            for one in writes:
                if one is None:
                    file.resume()
                    continue
                version, start, end, cut = one
                write(file, versions[version], size * start // 8, size * end // 8, cut)
            while missing := file.missing():
                for start, end in chance.sample(missing, len(missing)):
                    for at in range(start, end, 700):
                        write(file, versions[1], at, min(end, at + 700), chance.randint(0, 700))
            file.finish()
            file.complete_digest(lambda: None)
            assert file.is_ready
            assert file.sha256 == hashlib.sha256(content_of(file)).digest()
    finally:
        digest._CHUNK, partial_file._MAX_READ_BACK = chunk, max_read_back


def test_data_that_arrives_in_order_is_not_read_back(bytes_read: list[int]) -> None:
    content = random.Random(1).randbytes(3 * MIB)
    with partial_file_of(len(content)) as file:
        for start in range(0, len(content), 256 * KIB):
            write(file, content, start, start + 256 * KIB, 100)
        file.finish()
        assert file.sha256 == hashlib.sha256(content).digest()
    assert bytes_read == []


def test_only_what_arrived_ahead_is_read_back_and_only_once(bytes_read: list[int]) -> None:
    content = random.Random(2).randbytes(8 * MIB)
    with partial_file_of(len(content)) as file:
        for start in range(MIB, 3 * MIB, 64 * KIB):
            write(file, content, start, start + 64 * KIB, 0)
        write(file, content, 0, MIB, 0)
        for start in range(3 * MIB, 8 * MIB, 64 * KIB):
            write(file, content, start, start + 64 * KIB, 0)
        file.finish()
        assert file.sha256 == hashlib.sha256(content).digest()
    assert sum(bytes_read) <= 2 * MIB + MIB, "what arrives while the digest catches up is read back, too"


def test_an_overlap_after_a_reconnect_costs_no_second_pass(bytes_read: list[int]) -> None:
    content = random.Random(3).randbytes(6 * MIB)
    with partial_file_of(len(content)) as file:
        write(file, content, 0, 4 * MIB, 0)
        for _ in range(5):
            file.resume()
            for start, end in file.missing():
                if start < 4 * MIB:
                    write(file, content, start, min(end, 4 * MIB), 7)
        write(file, content, 4 * MIB, 6 * MIB, 0)
        file.finish()
        assert file.sha256 == hashlib.sha256(content).digest()
    assert 0 < sum(bytes_read) < 64 * KIB


def test_what_is_far_behind_at_the_end_is_read_at_the_commit(target: Path, bytes_read: list[int]) -> None:
    content = random.Random(4).randbytes(12 * MIB)
    with target_for_digests(target) as staging_target:
        (file,) = staging_target.admit([Entry(b"a", len(content), 0o644, 1)])
        file.write(4096, [content[4096:]])
        file.write(0, [content[:4096]])
        file.finish()
        assert sum(bytes_read) < MIB
        staging_target.commit()
        (result,) = staging_target.pop_results()
    assert result.sha256 == hashlib.sha256(content).hexdigest()
    assert sum(bytes_read) == len(content) - 4096


# In a run


def test_the_report_has_the_digest_of_every_file(target: Path) -> None:
    files = {b"empty": b"", b"small": b"x", b"large": random.Random(5).randbytes(3 * MIB)}
    report = stage(memory_peer_of(files), b"/c", target_for_digests(target))
    assert {file.name.encode(): file.sha256 for file in report.files} == {
        name: hashlib.sha256(data).hexdigest() for name, data in files.items()
    }


def test_without_a_wish_for_digests_there_are_none(target: Path, bytes_read: list[int]) -> None:
    assert [file.sha256 for file in stage_into(target, memory_peer(a=b"a")).files] == [None]
    assert bytes_read == []


def test_a_file_that_failed_has_no_digest(target: Path) -> None:
    peer = MemoryTransport({b"/c": {b"a": MemoryFile(b"12345", listed_size=6), b"b": MemoryFile(b"b")}})
    with pytest.raises(IncompleteStage) as failed:
        stage(peer, b"/c", target_for_digests(target))
    assert failed.value.report is not None
    assert {file.name: file.sha256 is None for file in failed.value.report.files} == {"a": True, "b": False}


@pytest.mark.parametrize("replaced", [False, True])
def test_a_file_that_is_resumed_has_the_digest_of_the_version_that_is_staged(target: Path, replaced: bool) -> None:
    old, new = random.Random(6).randbytes(2 * MIB), random.Random(7).randbytes(2 * MIB)

    def cut_off(written: int) -> None:
        if written >= MIB:
            raise ConnectionLost("lost")

    with target_for_digests(target) as staging_target:
        with pytest.raises(ConnectionLost):
            memory_peer_of({b"a": old}, before_write=cut_off).pull(b"/c", staging_target)
        content = new if replaced else old
        memory_peer_of({b"a": content}).pull(b"/c", staging_target)
        staging_target.commit()
        (result,) = staging_target.pop_results()
    assert files_in(target) == {b"a": content}
    assert result.sha256 == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("content", [b"", b"content", bytes(3 * MIB)])
def test_a_file_from_a_workspace_is_read_for_its_digest(target: Path, content: bytes) -> None:
    with target_for_digests(target) as staging_target:
        Path(staging_target.create_workspace(), "a").write_bytes(content)
        staging_target.import_file(b"a")
        staging_target.commit()
        (result,) = staging_target.pop_results()
    assert result.sha256 == hashlib.sha256(content).hexdigest()


@pytest.mark.usefixtures("root")
def test_a_file_that_is_copied_from_a_workspace_has_a_digest(target: Path, bytes_read: list[int]) -> None:
    with target_for_digests(target, ownership=Ownership(0, 0)) as staging_target:
        fd = staging_target.create_workspace_for(Ownership(65534, 65534))
        path = f"/proc/self/fd/{fd}/a"
        Path(path).write_bytes(b"content")
        os.chown(path, 65534, 65534)
        staging_target.import_file(b"a")
        staging_target.commit()
        (result,) = staging_target.pop_results()
    assert result.sha256 == hashlib.sha256(b"content").hexdigest()
    assert bytes_read == []


def test_a_run_that_is_cancelled_while_a_file_is_read_back_reads_no_further(
    target: Path, bytes_read: list[int]
) -> None:
    calls: list[None] = []

    def check() -> None:
        calls.append(None)
        if len(calls) == 2:
            raise Cancelled("cancelled")

    with target_for_digests(target) as staging_target:
        Path(staging_target.create_workspace(), "a").write_bytes(bytes(4 * MIB))
        staging_target.import_file(b"a")
        with pytest.raises(Cancelled):
            staging_target.commit(check)
    assert bytes_read == [MIB]
    assert files_in(target) == {}


def test_a_disk_that_cannot_be_read_back_ends_the_run_and_publishes_nothing(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing_pread(fd: int, length: int, offset: int) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def stage_out_of_order(staging_target: DirectoryTarget) -> None:
        (file,) = staging_target.admit([Entry(b"a", 2, 0o644, 1)])
        file.write(1, [b"b"])
        file.write(0, [b"a"])

    def import_one(staging_target: DirectoryTarget) -> None:
        Path(staging_target.create_workspace(), "a").write_bytes(b"a")
        staging_target.import_file(b"a")
        staging_target.commit()

    actions: list[Callable[[DirectoryTarget], None]] = [stage_out_of_order, import_one]
    monkeypatch.setattr(digest.os, "pread", failing_pread)
    for action in actions:
        with target_for_digests(target) as staging_target:
            with pytest.raises(TargetError) as failed:
                action(staging_target)
            assert failed.value.reason is Reason.LOCAL_IO_ERROR
        assert files_in(target) == {}


def test_a_file_that_another_process_truncates_before_it_is_read_back_fails_alone(target: Path) -> None:
    with target_for_digests(target) as staging_target:
        workspace = Path(staging_target.create_workspace())
        for name in ("a", "b"):
            (workspace / name).write_bytes(b"content")
            staging_target.import_file(name.encode())
        os.truncate(private_directory_of(target) / "0", 3)
        staging_target.commit()
        results = {result.name: result for result in staging_target.pop_results()}
    assert results["a"].reason is Reason.INCOMPLETE_FILE
    assert files_in(target) == {b"b": b"content"}

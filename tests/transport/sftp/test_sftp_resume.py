"""Connections that are lost at any byte: the next one requests the missing ranges, and nothing else."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections import deque
from pathlib import Path

import pytest

from peerstage.errors import ConnectionLost
from peerstage.isolation.protocol.frames import Admit, AskMissing
from peerstage.records import Entry, Limits, Progress
from peerstage.stage_options import StageOptions
from peerstage.target import DirectoryTarget
from peerstage.target.base import Target
from peerstage.target.received_data import SAMPLE_BYTES
from peerstage.testing.contract import files_in
from peerstage.transport.base import Transport
from peerstage.transport.capabilities import SFTP
from peerstage.transport.progress import ProgressTransport
from peerstage.transport.retry import Retry, RetryingTransport
from peerstage.transport.sftp import wire
from peerstage.transport.sftp.client import SFTPClient
from peerstage.watchdog import Watchdog
from support.child_link import ChildLink
from support.examples import spread
from support.incoming import admit_one
from support.sftp_server import ClosesChannel, DropsConnectionAfter, FakeSFTPServer, Node, RecordingTarget, transport_to

rng = random.Random(0)
FILES = {b"%d" % size: Node(rng.randbytes(size)) for size in (0, 1, 100, 1023, 1024, 1025, 5000)}
DATA = {name: node.data for name, node in FILES.items()}
SIZE = sum(node.size for node in FILES.values())


class DropsConnectionOnSend(FakeSFTPServer):
    """Loses the connection when it receives a batch of requests after *batches_left* others."""

    batches_left = 0

    def send(self, data: bytes) -> None:
        if self.batches_left <= 0:
            raise ConnectionLost("The connection was lost: the peer closed it.")
        self.batches_left -= 1
        super().send(data)


def dropping_after(
    bytes_left: int, files: dict[bytes, Node] = FILES, *, max_read_length: int = 1024
) -> DropsConnectionAfter:
    server = DropsConnectionAfter(dict(files), max_read_length=max_read_length)
    server.bytes_left = bytes_left
    return server


def loses_connection(server: FakeSFTPServer, staging_target: Target) -> bool:
    """Pull from *server*; return whether the connection was lost before the end."""
    try:
        transport_to(server).pull(b"/c", staging_target)
    except ConnectionLost as exc:
        assert exc.transient
        return True
    return False


def conversation_bytes() -> int:
    """Return how many bytes a server sends for `FILES`."""
    server = dropping_after(1 << 30)
    assert not loses_connection(server, RecordingTarget())
    return (1 << 30) - server.bytes_left


def test_the_next_connection_requests_only_the_missing_ranges() -> None:
    for bytes_left in spread(range(conversation_bytes()), 300):
        recording_target = RecordingTarget()
        assert loses_connection(dropping_after(bytes_left), recording_target)
        before = recording_target.received
        missing = {name: set(file.missing()) for name, file in recording_target.files.items()}
        again = FakeSFTPServer(dict(FILES), max_read_length=1 << 17)
        assert not loses_connection(again, recording_target)
        assert {name: file.data for name, file in recording_target.files.items()} == DATA
        assert all(file.finished for file in recording_target.files.values())
        assert sum(length for _, _, length in again.reads) == SIZE - before
        resumed = {range_ for ranges in missing.values() for range_ in ranges}
        new = {(0, node.size) for name, node in FILES.items() if name not in missing}
        assert {(start, start + length) for _, start, length in again.reads} <= resumed | new
        assert again.handles == {}


def test_files_on_disk_are_complete_after_the_next_connection(tmp_path: Path) -> None:
    for bytes_left in spread(range(conversation_bytes()), 40):
        target = tmp_path / str(bytes_left)
        target.mkdir()
        with DirectoryTarget(str(target), options=StageOptions(durable=False)) as staging_target:
            assert loses_connection(dropping_after(bytes_left), staging_target)
            assert {name for name in files_in(target) if not name.startswith(b".")} == set()
            assert not loses_connection(FakeSFTPServer(dict(FILES), max_read_length=1024), staging_target)
            staging_target.commit()
        assert files_in(target) == DATA


def test_a_connection_that_is_lost_while_sending_is_resumed_too() -> None:
    recording_target = RecordingTarget()
    for batches_left in range(200):
        server = DropsConnectionOnSend(dict(FILES), max_read_length=1024)
        server.batches_left = batches_left
        if not loses_connection(server, recording_target):
            break
    else:
        raise AssertionError("The files never became complete.")
    assert batches_left > 3
    assert {name: file.data for name, file in recording_target.files.items()} == DATA


def test_repeatedly_lost_connections_complete_the_file() -> None:
    files = {b"big": Node(random.Random(1).randbytes(60_000))}
    recording_target = RecordingTarget()
    received = [0]
    while loses_connection(dropping_after(8000, files), recording_target):
        received.append(recording_target.received)
        assert received[-1] > received[-2], "every connection makes progress"
    assert recording_target.files[b"big"].data == files[b"big"].data


def test_a_run_that_never_reconnects_leaves_nothing_behind(target: Path) -> None:
    (target / "old").write_bytes(b"old")
    for bytes_left in range(0, conversation_bytes(), 499):
        with DirectoryTarget(str(target), options=StageOptions(durable=False)) as staging_target:
            assert loses_connection(dropping_after(bytes_left), staging_target)
        assert files_in(target) == {b"old": b"old"}


@pytest.mark.parametrize(
    "changes", [{"mtime": 5}, {"data": b"shorter"}, {"data": b"n" * 30_000}, {"data": b"n" * 20_000, "mtime": 9}]
)
def test_a_file_that_changed_between_connections_starts_over(target: Path, changes: dict[str, object]) -> None:
    old = Node(b"o" * 20_000)
    new = dataclasses.replace(old, **changes)  # type: ignore[arg-type]
    with DirectoryTarget(str(target), options=StageOptions(durable=False)) as staging_target:
        assert loses_connection(dropping_after(12_000, {b"a": old}), staging_target)
        server = FakeSFTPServer({b"a": new})
        transport_to(server).pull(b"/c", staging_target)
        staging_target.commit()
    assert sum(length for _, _, length in server.reads) == new.size
    assert files_in(target) == {b"a": new.data}


class ReordersAndDrops(DropsConnectionAfter):
    """Replies in any order, so that many ranges arrive, and loses the connection."""

    def arrange(self, replies: list[bytes]) -> list[bytes]:
        rng.shuffle(replies)
        return replies


def versions(size: int) -> tuple[Node, Node]:
    """Return two versions of a file with equal attributes."""
    return Node(random.Random(size).randbytes(size)), Node(random.Random(size + 1).randbytes(size))


def stage_over(servers: list[FakeSFTPServer], target: Path) -> int:
    """Stage over one connection after the other, all but the last lost; return the bytes requested from the last."""
    with DirectoryTarget(str(target), options=StageOptions(durable=False)) as staging_target:
        for server in servers[:-1]:
            assert loses_connection(server, staging_target)
        assert not loses_connection(servers[-1], staging_target)
        staging_target.commit()
    return sum(length for _, _, length in servers[-1].reads)


@pytest.mark.parametrize("server_class", [DropsConnectionAfter, ReordersAndDrops])
def test_two_versions_with_equal_attributes_are_never_mixed(
    tmp_path: Path, server_class: type[DropsConnectionAfter]
) -> None:
    old, new = versions(300_000)
    small_old, small_new = versions(700)
    for bytes_left in spread(range(1000, 280_000), 12):
        target = tmp_path / str(bytes_left)
        target.mkdir()
        first = server_class({b"big": old, b"small": small_old}, max_read_length=1024)
        first.bytes_left = bytes_left
        stage_over([first, FakeSFTPServer({b"big": new, b"small": small_new}, max_read_length=1024)], target)
        staged = files_in(target)
        assert staged[b"big"] == new.data
        assert staged[b"small"] in (small_old.data, small_new.data), "a complete file may be the old version"


def test_a_file_that_was_replaced_twice_has_the_last_version(target: Path) -> None:
    old, new = versions(300_000)
    connections = [
        dropping_after(100_000, {b"big": old}),
        dropping_after(60_000, {b"big": new}),
        dropping_after(60_000, {b"big": old}),
    ]
    requested = stage_over([*connections, FakeSFTPServer({b"big": new}, max_read_length=1024)], target)
    assert files_in(target) == {b"big": new.data}
    assert requested == new.size


@pytest.mark.parametrize("at", [0, 400_000, 1_100_000, 2_300_000, -1])
def test_a_change_in_any_compared_sample_starts_the_file_over(target: Path, at: int) -> None:
    """Samples lie at the start, at every doubling, and at the end of the received data."""
    old = Node(random.Random(7).randbytes(4_000_000))
    first = dropping_after(3_000_000, {b"big": old}, max_read_length=8192)
    with DirectoryTarget(str(target), options=StageOptions(durable=False)) as staging_target:
        assert loses_connection(first, staging_target)
        kept = staging_target.received_bytes
        changed = bytearray(old.data)
        admit_one(staging_target, Entry(b"big", old.size, 0o644, old.mtime))
        blocks = sorted(staging_target._files[b"big"]._transfer.data._samples)  # type: ignore[union-attr]
        start, block = min(blocks, key=lambda one: abs(one[0] - (at if at >= 0 else kept)))
        changed[start + len(block) // 2] ^= 1
        server = FakeSFTPServer({b"big": Node(bytes(changed))}, max_read_length=8192)
        assert not loses_connection(server, staging_target)
        staging_target.commit()
    assert files_in(target) == {b"big": bytes(changed)}


def test_of_an_unchanged_file_only_a_few_samples_are_fetched_again(target: Path) -> None:
    old = Node(random.Random(7).randbytes(6_000_000))
    first = dropping_after(5_000_000, {b"big": old}, max_read_length=8192)
    with DirectoryTarget(str(target), options=StageOptions(durable=False)) as staging_target:
        assert loses_connection(first, staging_target)
        missing = old.size - staging_target.received_bytes
        server = FakeSFTPServer({b"big": old}, max_read_length=8192)
        assert not loses_connection(server, staging_target)
        staging_target.commit()
        requested = sum(length for _, _, length in server.reads)
        assert missing < requested <= missing + 8 * SAMPLE_BYTES
        assert staging_target.resumed_bytes == old.size - requested
    assert files_in(target) == {b"big": old.data}


def test_a_file_that_changes_while_it_is_refetched_fails_alone(target: Path) -> None:
    class ChangesLate(FakeSFTPServer):
        """Reports another modification time at the last FSTAT."""

        def fstat(self, request_id: int, handle: bytes, rest: bytes) -> list[bytes]:
            if self.requests[wire.FXP_FSTAT] > 2:
                self.files[b"big"].mtime += 1
            return super().fstat(request_id, handle, rest)

    old, new = versions(300_000)
    with DirectoryTarget(str(target), options=StageOptions(durable=False)) as staging_target:
        assert loses_connection(dropping_after(100_000, {b"big": old}), staging_target)
        assert not loses_connection(ChangesLate({b"big": new}, max_read_length=1024), staging_target)
        staging_target.commit()
        assert [file.error for file in staging_target.pop_results()] == [
            "It was modified while it was staged. Let the peer finish collecting first: it must write its indicator "
            "last."
        ]
    assert files_in(target) == {}


def test_through_an_isolated_child_a_replaced_file_is_detected_and_the_new_version_written(target: Path) -> None:
    old, new = versions(300_000)
    with DirectoryTarget(str(target), options=StageOptions(durable=False)) as staging_target:
        link = ChildLink(staging_target, tries=4)
        for _ in range(3):
            assert loses_connection(dropping_after(60_000, {b"big": old, b"also": old}), link.child_target)
        server = FakeSFTPServer({b"big": new, b"also": new}, max_read_length=1024)
        assert not loses_connection(server, link.child_target)
        staging_target.commit()
    found = files_in(target)
    assert found[b"big"] == new.data
    assert found[b"also"] in (old.data, new.data)


def test_through_an_isolated_child_only_missing_ranges_and_a_few_samples_are_fetched_again(target: Path) -> None:
    old = Node(random.Random(7).randbytes(600_000))
    with DirectoryTarget(str(target), options=StageOptions(durable=False)) as staging_target:
        link = ChildLink(staging_target, tries=2)
        assert loses_connection(dropping_after(500_000, {b"big": old}), link.child_target)
        assert link.questions == [], "a new listing is fetched without waiting for an answer"
        missing = old.size - staging_target.received_bytes
        server = FakeSFTPServer({b"big": old}, max_read_length=1024)
        assert not loses_connection(server, link.child_target)
        staging_target.commit()
        assert [type(question) for question in link.questions] == [Admit, AskMissing]
    requested = sum(length for _, _, length in server.reads)
    assert missing < requested <= missing + 8 * SAMPLE_BYTES
    assert files_in(target) == {b"big": old.data}


def test_complete_files_are_not_opened_again() -> None:
    recording_target = RecordingTarget()
    assert not loses_connection(FakeSFTPServer(dict(FILES)), recording_target)
    again = FakeSFTPServer(dict(FILES))
    assert not loses_connection(again, recording_target)
    assert again.opened == 1, "only the directory"
    assert again.reads == []


def test_part_of_a_packet_is_not_written() -> None:
    class ClosesWithinPacket(ClosesChannel):
        """Sends all but the last byte of its data, and closes the channel."""

        def next_chunk(self, replies: deque[bytes]) -> bytes:
            chunk = super().next_chunk(replies)
            if len(chunk) < 900:
                return chunk
            replies.clear()
            return chunk[:-1]

    recording_target = RecordingTarget()
    assert loses_connection(ClosesWithinPacket({b"a": Node(b"a" * 1000)}), recording_target)
    assert recording_target.received == 0


def test_every_connection_starts_with_another_request_id() -> None:
    request_ids = {SFTPClient(FakeSFTPServer(), Watchdog(Limits()))._request_id for _ in range(8)}
    assert len(request_ids) > 6


def test_a_byte_kept_over_two_lost_connections_counts_once_as_resumed(target: Path) -> None:
    file = {b"a": Node(b"a" * 20_000)}
    with DirectoryTarget(str(target), options=StageOptions(durable=False)) as staging_target:
        assert loses_connection(dropping_after(6000, file), staging_target)
        assert loses_connection(dropping_after(6000, file), staging_target)
        assert staging_target.resumed_bytes > 0
        server = FakeSFTPServer(file)
        assert not loses_connection(server, staging_target)
        assert staging_target.resumed_bytes == 20_000 - sum(length for _, _, length in server.reads)
        staging_target.commit()


def test_a_file_that_starts_over_is_not_resumed(target: Path) -> None:
    with DirectoryTarget(str(target), options=StageOptions(durable=False)) as staging_target:
        assert loses_connection(dropping_after(6000, {b"a": Node(b"o" * 20_000)}), staging_target)
        assert loses_connection(dropping_after(6000, {b"a": Node(b"o" * 20_000)}), staging_target)
        assert staging_target.resumed_bytes > 0
        assert not loses_connection(FakeSFTPServer({b"a": Node(b"n" * 20_000, mtime=9)}), staging_target)
        assert staging_target.resumed_bytes == 0
        staging_target.commit()


def test_progress_never_exceeds_the_actual_bytes() -> None:
    reports: list[Progress] = []
    bytes_left = iter([9000, 9000, 9000, 1 << 30])
    watchdog = Watchdog(Limits())

    def connect() -> Transport:
        transport = transport_to(dropping_after(next(bytes_left), {b"a": Node(b"a" * 20_000)}))
        transport.host_key = "SHA256:none"
        return transport

    stack = ProgressTransport(
        RetryingTransport(connect, SFTP, Retry(delay=0.0), watchdog), reports.append, clock=itertools.count().__next__
    )
    stack.pull(b"/c", RecordingTarget())
    watchdog.close()
    assert [report.bytes_done for report in reports] == sorted(report.bytes_done for report in reports)
    assert (reports[-1].files_done, reports[-1].bytes_done) == (1, 20_000)

"""Connections that are lost at every byte: the next one asks for what is missing, and for nothing else."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections import deque
from pathlib import Path

import pytest

from peerstage.errors import ConnectionLost
from peerstage.isolation.frames import FrameParser
from peerstage.isolation.receive import Receiver
from peerstage.isolation.upward import Upward, UpwardLanding
from peerstage.landing import DirectoryLanding
from peerstage.landing.arrived import BLOCK
from peerstage.landing.base import Landing
from peerstage.records import Entry, Limits, Progress
from peerstage.session.watchdog import Watchdog
from peerstage.testing.contract import landed
from peerstage.transport.base import Transport
from peerstage.transport.capabilities import SFTP
from peerstage.transport.observe import Observing
from peerstage.transport.retry import Retry, Retrying
from peerstage.transport.sftp import wire
from peerstage.transport.sftp.client import SFTPClient
from support.sftp_server import DiesAfter, HangsUp, Node, RecordingLanding, Server, transport_to

chance = random.Random(0)
FILES = {b"%d" % size: Node(chance.randbytes(size)) for size in (0, 1, 100, 1023, 1024, 1025, 5000)}
DATA = {name: node.data for name, node in FILES.items()}
SIZE = sum(node.size for node in FILES.values())


class DiesWhenAsked(Server):
    """Is gone when the client sends its batch of that number."""

    left = 0

    def send(self, data: bytes) -> None:
        if self.left <= 0:
            raise ConnectionLost("The connection was lost: the peer closed it.")
        self.left -= 1
        super().send(data)


def dying(left: int, files: dict[bytes, Node] = FILES) -> DiesAfter:
    server = DiesAfter(dict(files), read_bytes=1024)
    server.left = left
    return server


def loses(server: Server, landing: Landing) -> bool:
    """Whether the connection is lost before everything is there."""
    try:
        transport_to(server).pull(b"/c", landing)
    except ConnectionLost as exc:
        assert exc.transient
        return True
    return False


def whole_conversation() -> int:
    server = dying(1 << 30)
    assert not loses(server, RecordingLanding())
    return (1 << 30) - server.left


def test_wherever_the_stream_ends_the_next_connection_asks_for_the_missing_ranges_alone() -> None:
    for left in range(0, whole_conversation(), 13):
        landing = RecordingLanding()
        assert loses(dying(left), landing)
        before = landing.received
        missing = {name: set(slot.missing()) for name, slot in landing.slots.items()}
        again = Server(dict(FILES), read_bytes=1 << 17)
        assert not loses(again, landing)
        assert {name: slot.data for name, slot in landing.slots.items()} == DATA
        assert all(slot.finished for slot in landing.slots.values())
        assert sum(length for _, _, length in again.asked) == SIZE - before
        begun = {range_ for ranges in missing.values() for range_ in ranges}
        new = {(0, node.size) for name, node in FILES.items() if name not in missing}
        assert {(start, start + length) for _, start, length in again.asked} <= begun | new
        assert again.handles == {}


def test_wherever_the_stream_ends_the_files_on_disk_are_whole_after_the_next_connection(tmp_path: Path) -> None:
    for left in range(0, whole_conversation(), 211):
        target = tmp_path / str(left)
        target.mkdir()
        with DirectoryLanding(str(target), durable=False) as landing:
            assert loses(dying(left), landing)
            assert {name for name in landed(target) if not name.startswith(b".")} == set()
            assert not loses(Server(dict(FILES), read_bytes=1024), landing)
            landing.commit()
        assert landed(target) == DATA


def test_a_connection_that_is_lost_while_sending_is_continued_too() -> None:
    landing = RecordingLanding()
    for left in range(200):
        server = DiesWhenAsked(dict(FILES), read_bytes=1024)
        server.left = left
        if not loses(server, landing):
            break
    else:
        raise AssertionError("It never came to an end.")
    assert left > 3
    assert {name: slot.data for name, slot in landing.slots.items()} == DATA


def test_a_connection_that_is_lost_time_and_again_gets_there() -> None:
    files = {b"big": Node(random.Random(1).randbytes(60_000))}
    landing = RecordingLanding()
    received = [0]
    while loses(dying(8000, files), landing):
        received.append(landing.received)
        assert received[-1] > received[-2], "every connection brings something"
    assert landing.slots[b"big"].data == files[b"big"].data


def test_a_run_that_is_lost_for_good_leaves_nothing(target: Path) -> None:
    (target / "old").write_bytes(b"old")
    for left in range(0, whole_conversation(), 499):
        with DirectoryLanding(str(target), durable=False) as landing:
            assert loses(dying(left), landing)
        assert landed(target) == {b"old": b"old"}


@pytest.mark.parametrize(
    "changes", [{"mtime": 5}, {"data": b"shorter"}, {"data": b"n" * 30_000}, {"data": b"n" * 20_000, "mtime": 9}]
)
def test_a_file_that_changed_between_two_connections_starts_anew(target: Path, changes: dict[str, object]) -> None:
    old = Node(b"o" * 20_000)
    new = dataclasses.replace(old, **changes)  # type: ignore[arg-type]
    with DirectoryLanding(str(target), durable=False) as landing:
        assert loses(dying(12_000, {b"a": old}), landing)
        server = Server({b"a": new})
        transport_to(server).pull(b"/c", landing)
        landing.commit()
    assert sum(length for _, _, length in server.asked) == new.size
    assert landed(target) == {b"a": new.data}


class DiesInTurn(DiesAfter):
    """Answers in any order, so that what has arrived lies in many ranges, and dies."""

    def arrange(self, replies: list[bytes]) -> list[bytes]:
        chance.shuffle(replies)
        return replies


def versions(size: int) -> tuple[Node, Node]:
    """Two versions of a file that look the same in every listing."""
    return Node(random.Random(size).randbytes(size)), Node(random.Random(size + 1).randbytes(size))


def stage_over(servers: list[Server], target: Path) -> int:
    """Stage over one connection after the other, all but the last of which are lost; return the bytes asked of that."""
    with DirectoryLanding(str(target), durable=False) as landing:
        for server in servers[:-1]:
            assert loses(server, landing)
        assert not loses(servers[-1], landing)
        landing.commit()
    return sum(length for _, _, length in servers[-1].asked)


@pytest.mark.parametrize("dies", [DiesAfter, DiesInTurn])
def test_a_file_that_was_replaced_by_one_that_looks_the_same_is_never_a_mixture(
    tmp_path: Path, dies: type[DiesAfter]
) -> None:
    old, new = versions(300_000)
    small_old, small_new = versions(700)
    for left in range(1000, 280_000, 9973):
        target = tmp_path / str(left)
        target.mkdir()
        first = dies({b"big": old, b"small": small_old}, read_bytes=1024)
        first.left = left
        stage_over([first, Server({b"big": new, b"small": small_new}, read_bytes=1024)], target)
        found = landed(target)
        assert found[b"big"] == new.data
        assert found[b"small"] in (small_old.data, small_new.data), "what was complete may be the old one, as a whole"


def test_a_file_that_was_replaced_twice_is_the_last_version(target: Path) -> None:
    old, new = versions(300_000)
    connections = [dying(100_000, {b"big": old}), dying(60_000, {b"big": new}), dying(60_000, {b"big": old})]
    asked = stage_over([*connections, Server({b"big": new}, read_bytes=1024)], target)
    assert landed(target) == {b"big": new.data}
    assert asked == new.size


@pytest.mark.parametrize("at", [0, 400_000, 1_100_000, 2_300_000, -1])
def test_a_change_in_any_block_that_is_compared_starts_the_file_anew(target: Path, at: int) -> None:
    """At the start, at every doubling, and at the end of what had arrived."""
    old = Node(random.Random(7).randbytes(4_000_000))
    first = dying(3_000_000, {b"big": old})
    with DirectoryLanding(str(target), durable=False) as landing:
        assert loses(first, landing)
        kept = landing.received
        changed = bytearray(old.data)
        landing.open(Entry(b"big", old.size, 0o644, old.mtime))
        blocks = sorted(landing._slots[b"big"]._arriving.arrived._blocks)  # type: ignore[union-attr]
        start, block = min(blocks, key=lambda one: abs(one[0] - (at if at >= 0 else kept)))
        changed[start + len(block) // 2] ^= 1
        server = Server({b"big": Node(bytes(changed))}, read_bytes=1024)
        assert not loses(server, landing)
        landing.commit()
    assert landed(target) == {b"big": bytes(changed)}


def test_a_file_that_is_still_the_same_is_fetched_again_in_a_few_blocks_alone(target: Path) -> None:
    old = Node(random.Random(7).randbytes(6_000_000))
    first = dying(5_000_000, {b"big": old})
    with DirectoryLanding(str(target), durable=False) as landing:
        assert loses(first, landing)
        missing = old.size - landing.received
        server = Server({b"big": old}, read_bytes=1024)
        assert not loses(server, landing)
        landing.commit()
        asked = sum(length for _, _, length in server.asked)
        assert missing < asked <= missing + 8 * BLOCK
        assert landing.resumed_bytes == old.size - asked
    assert landed(target) == {b"big": old.data}


def test_a_file_that_changes_again_while_it_is_fetched_again_fails_alone(target: Path) -> None:
    class ChangesLate(Server):
        """Tells another time at the last FSTAT."""

        def fstat(self, number: int, handle: bytes, rest: bytes) -> list[bytes]:
            if self.kinds[wire.FSTAT] > 2:
                self.files[b"big"].mtime += 1
            return super().fstat(number, handle, rest)

    old, new = versions(300_000)
    with DirectoryLanding(str(target), durable=False) as landing:
        assert loses(dying(100_000, {b"big": old}), landing)
        assert not loses(ChangesLate({b"big": new}, read_bytes=1024), landing)
        landing.commit()
        assert [file.error for file in landing.files()] == [
            "It was modified while it was staged. Let the peer finish collecting first: it must write its indicator "
            "last."
        ]
    assert landed(target) == {}


def test_a_replaced_file_is_noticed_by_a_child_too_and_its_parent_writes_the_new_one(target: Path) -> None:
    old, new = versions(300_000)
    frames = target.parent / "frames"
    with open(frames, "wb") as file:
        upward = Upward(file.fileno())
        landing = UpwardLanding(upward)
        for _ in range(3):
            assert loses(dying(60_000, {b"big": old, b"also": old}), landing)
        assert not loses(Server({b"big": new, b"also": new}, read_bytes=1024), landing)
        upward.flush()
    with DirectoryLanding(str(target), durable=False) as real:
        receiver = Receiver(real, Limits(), tries=4)
        for record in FrameParser().feed(memoryview(frames.read_bytes())):
            receiver.take(record)
        real.commit()
    found = landed(target)
    assert found[b"big"] == new.data
    assert found[b"also"] in (old.data, new.data)


def test_what_is_complete_is_not_opened_again() -> None:
    landing = RecordingLanding()
    assert not loses(Server(dict(FILES)), landing)
    again = Server(dict(FILES))
    assert not loses(again, landing)
    assert again.opened == 1, "the directory"
    assert again.asked == []


def test_a_packet_of_which_the_half_has_come_counts_for_nothing() -> None:
    class EndsInAPacket(HangsUp):
        """Sends all but the last byte of its data, and closes."""

        def cut(self, out: deque[bytes]) -> bytes:
            whole = super().cut(out)
            if len(whole) < 900:
                return whole
            out.clear()
            return whole[:-1]

    landing = RecordingLanding()
    assert loses(EndsInAPacket({b"a": Node(b"a" * 1000)}), landing)
    assert landing.received == 0


def test_numbers_of_requests_differ_from_one_connection_to_the_next() -> None:
    numbers = {SFTPClient(Server(), Limits(), Watchdog(Limits()))._number for _ in range(8)}
    assert len(numbers) > 6


def test_a_byte_that_survives_two_lost_connections_counts_once_as_resumed(target: Path) -> None:
    file = {b"a": Node(b"a" * 20_000)}
    with DirectoryLanding(str(target), durable=False) as landing:
        assert loses(dying(6000, file), landing)
        assert loses(dying(6000, file), landing)
        assert landing.resumed_bytes > 0
        server = Server(file)
        assert not loses(server, landing)
        assert landing.resumed_bytes == 20_000 - sum(length for _, _, length in server.asked)
        landing.commit()


def test_a_file_that_starts_anew_was_not_resumed(target: Path) -> None:
    with DirectoryLanding(str(target), durable=False) as landing:
        assert loses(dying(6000, {b"a": Node(b"o" * 20_000)}), landing)
        assert loses(dying(6000, {b"a": Node(b"o" * 20_000)}), landing)
        assert landing.resumed_bytes > 0
        assert not loses(Server({b"a": Node(b"n" * 20_000, mtime=9)}), landing)
        assert landing.resumed_bytes == 0
        landing.commit()


def test_progress_never_tells_of_more_bytes_than_there_are() -> None:
    told: list[Progress] = []
    rest = iter([9000, 9000, 9000, 1 << 30])
    watchdog = Watchdog(Limits())

    def connect() -> Transport:
        transport = transport_to(dying(next(rest), {b"a": Node(b"a" * 20_000)}))
        transport.host_key = "SHA256:none"
        return transport

    stack = Observing(
        Retrying(connect, SFTP, Retry(delay=0.0), watchdog), told.append, clock=itertools.count().__next__
    )
    stack.pull(b"/c", RecordingLanding())
    watchdog.close()
    assert [one.bytes_done for one in told] == sorted(one.bytes_done for one in told)
    assert (told[-1].files_done, told[-1].bytes_done) == (1, 20_000)

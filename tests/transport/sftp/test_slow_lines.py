"""SFTP over slow lines: whatever is at least as fast as `Limits.min_rate` is enough, with the default limits.

The line is simulated: its clock moves on by the time that each answer takes.
"""

from __future__ import annotations

import pytest

from peerstage.errors import LimitExceeded
from peerstage.records import Limits
from peerstage.session.stream import Chunk
from peerstage.session.watchdog import Watchdog
from peerstage.transport.sftp import wire
from peerstage.transport.sftp.client import SFTPClient
from peerstage.transport.sftp.fetch import Fetch
from peerstage.transport.sftp.listing import list_directory
from peerstage.transport.sftp.window import Window
from support.sftp_server import Node, RecordingLanding, Server

KB = 1000
MB = 1000 * KB


class Clock:
    """Time that passes when it is told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class SlowLine(Server):
    """Answers in order, as OpenSSH does, over a line of *rate* bytes a second.

    Attributes:
        slower_after: Seconds after which the line has to be shared.
        share: What is left of the rate then.
        longest: The longest time in seconds that an answer has taken.
        peak: The most bytes that were asked for and had not arrived yet.
    """

    rate = 20.0 * KB
    slower_after = float("inf")
    share = 1.0
    longest = 0.0
    peak = 0
    clock: Clock
    watchdog: Watchdog
    _asked = 0

    def read(self, number: int, handle: bytes, rest: bytes) -> list[bytes]:
        replies = super().read(number, handle, rest)
        self._asked += sum(map(len, replies))
        self.peak = max(self.peak, self._asked)
        return replies

    def receive(self) -> Chunk:
        chunk = super().receive()
        rate = self.rate * (self.share if self.clock.now > self.slower_after else 1.0)
        took = len(chunk) / rate
        self._asked -= len(chunk) if chunk[4] == wire.DATA else 0
        self.longest = max(self.longest, took)
        self.watchdog.begin_wait()
        self.clock.now += took
        self.watchdog.end_wait()
        return chunk


def fetch_over(server: SlowLine, limits: Limits) -> RecordingLanding:
    """Fetch everything, over one connection; return what came."""
    server.clock = clock = Clock()
    server.watchdog = watchdog = Watchdog(limits, clock=clock)
    client = SFTPClient(server, limits, watchdog)
    client.start()
    landing = RecordingLanding()
    entries = list_directory(client, b"/c", limits).entries
    Fetch(client, b"/c", landing, limits, Window(limits, clock)).run(entries)
    assert {name: slot.data for name, slot in landing.slots.items()} == {
        name: node.data for name, node in server.files.items()
    }
    assert server.longest < limits.stall_timeout / 2
    return landing


def line(files: dict[bytes, Node], rate: float) -> SlowLine:
    server = SlowLine(files, most_handles=1024, read_bytes=261_120)
    server.rate = rate
    return server


@pytest.mark.parametrize(
    ("rate", "size"), [(Limits().min_rate, 4 * MB), (20 * KB, 6 * MB), (60 * KB, 14 * MB), (1.25 * MB / 20, 8 * MB)]
)
def test_a_large_file_needs_one_connection(rate: float, size: int) -> None:
    limits = Limits()
    server = line({b"big": Node(bytes(size))}, rate)
    fetch_over(server, limits)
    assert server.peak < rate * limits.reply_timeout / 2, "no more than arrives in good time"


def test_many_small_files_need_one_connection() -> None:
    fetch_over(line({b"%04d" % number: Node(b"x" * 4096) for number in range(500)}, 20 * KB), Limits())


def test_files_of_any_size_need_one_connection_where_answers_are_expected_sooner() -> None:
    limits = Limits(reply_timeout=10, stall_timeout=10)
    files = {b"big": Node(bytes(3 * MB)), **{b"%04d" % number: Node(b"x" * 4096) for number in range(300)}}
    fetch_over(line(files, 20 * KB), limits)


def test_a_line_that_others_begin_to_use_is_no_reason_to_reconnect() -> None:
    server = line({b"big": Node(bytes(24 * MB))}, 1.25 * MB)
    server.slower_after, server.share = 10.0, 1 / 20
    fetch_over(server, Limits())


def test_a_fast_line_is_filled() -> None:
    server = line({b"big": Node(bytes(24 * MB))}, 100 * MB)
    fetch_over(server, Limits())
    assert server.peak > 3.5 * MB


def test_an_answer_that_is_withheld_is_missed_on_a_slow_line_too() -> None:
    class Withholds(SlowLine):
        """Never answers the fourth READ."""

        def read(self, number: int, handle: bytes, rest: bytes) -> list[bytes]:
            replies = super().read(number, handle, rest)
            return [] if self.kinds[wire.READ] == 4 else replies

    server = Withholds({b"big": Node(bytes(14 * MB))}, most_handles=1024, read_bytes=261_120)
    server.rate = 60 * KB
    with pytest.raises(LimitExceeded, match=r"Limits\.reply_timeout"):
        fetch_over(server, Limits())
    assert server.clock.now < 100

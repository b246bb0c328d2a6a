"""SFTP over slow lines: with the default limits, `Limits.min_rate` is fast enough for a single connection.

The line is simulated: its clock advances by the transmission time of each reply.
"""

from __future__ import annotations

import pytest

from peerstage.errors import LimitExceeded
from peerstage.records import Limits
from peerstage.ssh.stream import Chunk
from peerstage.transport.sftp import wire
from peerstage.transport.sftp.client import SFTPClient
from peerstage.transport.sftp.fetch import Fetcher
from peerstage.transport.sftp.listing import list_directory
from peerstage.transport.sftp.window import Window
from peerstage.watchdog import Watchdog
from support.clock import Clock
from support.sftp_server import FakeSFTPServer, Node, RecordingTarget

KB = 1000
MB = 1000 * KB


class SlowLine(FakeSFTPServer):
    """Replies in order, as OpenSSH does, over a line of *rate* bytes per second.

    Attributes:
        shared_after: Seconds until other users share the line.
        share: The share of the rate that remains then.
        longest_reply: The longest time in seconds that a reply has taken.
        peak_in_flight: The most bytes that were in flight.
    """

    rate = 20.0 * KB
    shared_after = float("inf")
    share = 1.0
    longest_reply = 0.0
    peak_in_flight = 0
    clock: Clock
    watchdog: Watchdog
    _in_flight = 0

    def read(self, request_id: int, handle: bytes, rest: bytes) -> list[bytes]:
        replies = super().read(request_id, handle, rest)
        self._in_flight += sum(map(len, replies))
        self.peak_in_flight = max(self.peak_in_flight, self._in_flight)
        return replies

    def receive(self) -> Chunk:
        chunk = super().receive()
        rate = self.rate * (self.share if self.clock.now > self.shared_after else 1.0)
        seconds = len(chunk) / rate
        self._in_flight -= len(chunk) if chunk[4] == wire.FXP_DATA else 0
        self.longest_reply = max(self.longest_reply, seconds)
        self.watchdog.begin_wait()
        self.clock.now += seconds
        self.watchdog.end_wait()
        return chunk


def fetch_over(server: SlowLine, limits: Limits) -> RecordingTarget:
    """Fetch every file over one connection, and compare them."""
    server.clock = clock = Clock()
    server.watchdog = watchdog = Watchdog(limits, clock=clock)
    client = SFTPClient(server, watchdog)
    client.negotiate()
    target = RecordingTarget()
    entries = list_directory(client, b"/c").entries
    Fetcher(client, b"/c", Window(limits, clock)).run(target.admit(entries))
    assert {name: file.data for name, file in target.files.items()} == {
        name: node.data for name, node in server.files.items()
    }
    assert server.longest_reply < limits.stall_timeout / 2
    return target


def server_at(files: dict[bytes, Node], rate: float) -> SlowLine:
    server = SlowLine(files, max_handles=1024, max_read_length=261_120)
    server.rate = rate
    return server


@pytest.mark.parametrize(
    ("rate", "size"), [(Limits().min_rate, 4 * MB), (20 * KB, 6 * MB), (60 * KB, 14 * MB), (1.25 * MB / 20, 8 * MB)]
)
def test_a_large_file_needs_one_connection(rate: float, size: int) -> None:
    limits = Limits()
    server = server_at({b"big": Node(bytes(size))}, rate)
    fetch_over(server, limits)
    assert server.peak_in_flight < rate * limits.reply_timeout / 2, "no more than arrives in time"


def test_many_small_files_need_one_connection() -> None:
    fetch_over(server_at({b"%04d" % number: Node(b"x" * 4096) for number in range(500)}, 20 * KB), Limits())


def test_files_of_any_size_need_one_connection_with_shorter_timeouts() -> None:
    limits = Limits(reply_timeout=10, stall_timeout=10)
    files = {b"big": Node(bytes(3 * MB)), **{b"%04d" % number: Node(b"x" * 4096) for number in range(300)}}
    fetch_over(server_at(files, 20 * KB), limits)


def test_a_line_that_becomes_shared_needs_one_connection() -> None:
    server = server_at({b"big": Node(bytes(24 * MB))}, 1.25 * MB)
    server.shared_after, server.share = 10.0, 1 / 20
    fetch_over(server, Limits())


def test_a_fast_line_is_filled() -> None:
    server = server_at({b"big": Node(bytes(24 * MB))}, 100 * MB)
    fetch_over(server, Limits())
    assert server.peak_in_flight > 3.5 * MB


def test_a_withheld_reply_is_detected_on_a_slow_line_too() -> None:
    class Withholds(SlowLine):
        """Never replies to the fourth READ."""

        def read(self, request_id: int, handle: bytes, rest: bytes) -> list[bytes]:
            replies = super().read(request_id, handle, rest)
            return [] if self.requests[wire.FXP_READ] == 4 else replies

    server = Withholds({b"big": Node(bytes(14 * MB))}, max_handles=1024, max_read_length=261_120)
    server.rate = 60 * KB
    with pytest.raises(LimitExceeded, match=r"Limits\.reply_timeout"):
        fetch_over(server, Limits())
    assert server.clock.now < 100

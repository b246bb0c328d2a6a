"""SFTP with a bandwidth limit, to a peer that could send a thousand times as fast, in simulated time."""

from __future__ import annotations

from collections import deque

import pytest

from peerstage.rates import BandwidthLimit
from peerstage.records import Limits
from peerstage.ssh.stream import Chunk
from peerstage.transport.sftp.client import SFTPClient
from peerstage.transport.sftp.fetch import Fetcher
from peerstage.transport.sftp.listing import list_directory
from peerstage.transport.sftp.window import Window
from peerstage.watchdog import Watchdog
from support.clock import Clock
from support.sftp_server import FakeSFTPServer, Node, RecordingTarget

KIB = 1024
#: Each is exceeded many times over if waits for the bandwidth limit count.
LIMITS = Limits(reply_timeout=8, stall_timeout=8, deadline=8)


class VirtualWatchdog(Watchdog):
    """A watchdog that sleeps by setting its clock ahead."""

    def __init__(self, clock: Clock, bwlimit: int) -> None:
        super().__init__(LIMITS, clock=clock, bandwidth=BandwidthLimit(bwlimit, clock))
        self.clock = clock

    def sleep(self, seconds: float) -> None:
        self.clock.now += seconds
        if (failure := self._exceeded_limit()) is not None:
            raise failure


class DistantServer(FakeSFTPServer):
    """Replies after a round trip, as fast as the client reads.

    Attributes:
        watchdog: The client's.
        round_trip: In seconds.
        received: When each reply was received, and its length.
        peak_ahead: The most bytes of replies that were under way.
    """

    watchdog: VirtualWatchdog
    round_trip = 0.0
    peak_ahead = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.arrivals: deque[float] = deque()
        self.received: list[tuple[float, int]] = []

    def arrange(self, replies: list[bytes]) -> list[bytes]:
        self.arrivals.extend([self.watchdog.clock.now + self.round_trip] * len(replies))
        self.peak_ahead = max(self.peak_ahead, sum(map(len, (*self._replies, *replies))))
        return replies

    def receive(self) -> Chunk:
        clock = self.watchdog.clock
        self.watchdog.begin_wait()
        clock.now = max(clock.now, self.arrivals.popleft())
        self.watchdog.end_wait()
        chunk = super().receive()
        self.received.append((clock.now, len(chunk)))
        self.watchdog.throttle(len(chunk))
        return chunk


def fetch_from(server: DistantServer, bwlimit: int) -> RecordingTarget:
    server.watchdog = watchdog = VirtualWatchdog(Clock(), bwlimit)
    watchdog._started = 0.0
    client = SFTPClient(server, watchdog)
    client.negotiate()
    target = RecordingTarget()
    watchdog.extend_deadline_by(lambda: target.received)
    files = target.admit(list_directory(client, b"/c").entries)
    window = Window(LIMITS, watchdog.clock, bandwidth=client.bandwidth) if server.round_trip else None
    Fetcher(client, b"/c", window).run(files)
    assert target.contents == {name: node.data for name, node in server.files.items()}
    return target


@pytest.mark.parametrize("bwlimit", [KIB, 20 * KIB, 2_000_000])
@pytest.mark.parametrize("round_trip", [0.0, 0.1, 0.4])
def test_a_large_file_arrives_at_the_limit_smoothly_and_little_is_under_way(bwlimit: int, round_trip: float) -> None:
    server = DistantServer({b"big": Node(bytes(20 * bwlimit))}, max_handles=1024, max_read_length=261_120)
    server.round_trip = round_trip
    fetch_from(server, bwlimit)
    assert server.peak_ahead <= bwlimit * 1.1, "one second, and the headers of the replies"
    data = [(at, size) for at, size in server.received if size > 400]
    start, end = data[0][0], data[-1][0]
    assert sum(size for _, size in data[:-1]) / (end - start) == pytest.approx(bwlimit, rel=0.05)
    for second in range(1, 18):
        received = sum(size for at, size in data if second <= at - start < second + 1)
        assert 0.5 * bwlimit <= received < 1.1 * bwlimit, second


def test_many_small_files_arrive_at_the_limit() -> None:
    files = {b"%04d" % number: Node(b"x" * 4096) for number in range(300)}
    server = DistantServer(files, max_handles=1024, max_read_length=261_120)
    fetch_from(server, 64 * KIB)
    sent = sum(size for _, size in server.received)
    assert server.watchdog.clock.now == pytest.approx(sent / (64 * KIB), rel=0.05)

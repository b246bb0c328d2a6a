"""The limits on what a peer may use: bytes, handles, names, memory and time."""

from __future__ import annotations

import itertools
import stat
import struct
import time
import tracemalloc
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from peerstage.errors import ChangedFile, EntryError, IncompleteFile, IncompleteStage, LimitExceeded, ProtocolError
from peerstage.records import Limits
from peerstage.ssh.stream import Chunk
from peerstage.stage_options import StageOptions
from peerstage.staging import stage
from peerstage.target import DirectoryTarget
from peerstage.testing.contract import files_in
from peerstage.transport import stability
from peerstage.transport.sftp import wire
from peerstage.transport.sftp.client import SFTPClient
from peerstage.transport.sftp.fetch import Fetcher
from peerstage.transport.sftp.listing import Listing, list_directory
from peerstage.transport.sftp.window import SendMark, Window
from peerstage.watchdog import Watchdog
from support.clock import Clock
from support.limits import ShortGrace
from support.quick import quick_directory
from support.sftp_server import (
    MTIME,
    FakeSFTPServer,
    Node,
    RecordingTarget,
    ReorderingServer,
    StopsReplying,
    pack_attributes,
    pack_packet,
    pack_string,
    stage_from,
    transport_to,
)

MIB = 1 << 20
GOOD = {b"good": Node(b"good"), b"other": Node(b"o" * 9000)}


@contextmanager
def memory_limit(max_bytes: int) -> Iterator[None]:
    """Fail if the block allocates more than *max_bytes* at any time."""
    tracemalloc.start(1)
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < max_bytes
    finally:
        tracemalloc.stop()


def client_to(server: FakeSFTPServer, limits: Limits | None = None) -> SFTPClient:
    client = SFTPClient(server, Watchdog(limits or Limits()))
    client.negotiate()
    return client


# Listings.


class ListsMany(FakeSFTPServer):
    """Lists *count* entries without storing them.

    Attributes:
        count: The number of entries; None for an endless listing.
        length: The bytes of each name.
        size: The size of each entry; None for different ones.
        mode: The mode of each entry.
    """

    count: int | None = None
    length = 6
    size: int | None = None
    mode = stat.S_IFREG | 0o644

    def opendir(self, request_id: int, path: bytes, rest: bytes) -> list[bytes]:
        self.indexes = itertools.count() if self.count is None else iter(range(self.count))
        return self.new_handle(request_id, "directory")

    def readdir(self, request_id: int, handle: bytes, rest: bytes) -> list[bytes]:
        entries = [
            pack_string((b"%06d" % index).ljust(self.length, b"\xff"))
            + pack_string(b"")
            + struct.pack(">IQIIIII", 0xF, index if self.size is None else self.size, 0, 0, self.mode, 0, index)
            for index in itertools.islice(self.indexes, 100)
        ]
        if not entries:
            return self.status(request_id, wire.FX_EOF)
        return [pack_packet(wire.FXP_NAME, request_id, struct.pack(">I", len(entries)) + b"".join(entries))]

    def stat(self, request_id: int, path: bytes, rest: bytes) -> list[bytes]:
        return self.status(request_id, wire.FX_FAILURE, b"%d" % request_id + b"\xff" * 2000)


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("mode", [stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755, stat.S_IFLNK | 0o777])
@pytest.mark.parametrize(("longest", "length"), [(39_000, 255), (120_000, 6)])
def test_the_longest_listing_fits_in_64_mib(mode: int, longest: int, length: int) -> None:
    server = ListsMany()
    server.count, server.length, server.mode = 3000, length, mode
    client = client_to(server)
    with memory_limit(64 * MIB * 3000 // longest):
        listing = list_directory(client, b"/c")
    assert len(listing.entries) + len(listing.refused) == 3000
    assert server.handles == {}


@pytest.mark.parametrize("length", [6, 255])
def test_an_endless_listing_is_cut_off_within_the_memory_limit(target: Path, length: int) -> None:
    server = ListsMany()
    server.length = length
    part = Limits(entries=Limits().entries // 30, listing_bytes=Limits().listing_bytes // 30)
    with (
        memory_limit(64 * MIB // 30),
        pytest.raises(LimitExceeded, match=r"Limits\.(entries|listing_bytes)") as caught,
    ):
        stage_from(server, target, part)
    assert str(caught.value).startswith("peer /c: ")
    assert files_in(target) == {}


class RefusesEveryOpen(ListsMany):
    """Fails every OPEN with a long message of its own."""

    def open(self, request_id: int, path: bytes, rest: bytes) -> list[bytes]:
        return self.status(request_id, 5, b"%d" % request_id + b"\xff" * 2000)


class ServesEveryFile(ListsMany):
    """Serves one byte of every file without recording requests."""

    size = 1

    def open(self, request_id: int, path: bytes, rest: bytes) -> list[bytes]:
        return self.new_handle(request_id, Node(b"x"))

    def fstat(self, request_id: int, handle: bytes, rest: bytes) -> list[bytes]:
        return [pack_packet(wire.FXP_ATTRS, request_id, struct.pack(">IQ", 1, 1))]

    def read(self, request_id: int, handle: bytes, rest: bytes) -> list[bytes]:
        return [pack_packet(wire.FXP_DATA, request_id, pack_string(b"x"))]


class ChangesEveryFile(ServesEveryFile):
    """Has other sizes in every listing, and serves no file as large."""

    def opendir(self, request_id: int, path: bytes, rest: bytes) -> list[bytes]:
        self.size = 1 + self.requests[wire.FXP_OPENDIR]
        return super().opendir(request_id, path, rest)


class RenamesEveryFile(ServesEveryFile):
    """Has other names in every listing."""

    def opendir(self, request_id: int, path: bytes, rest: bytes) -> list[bytes]:
        replies = super().opendir(request_id, path, rest)
        first = self.requests[wire.FXP_OPENDIR] * 100_000
        self.indexes = iter(range(first, first + (self.count or 0)))
        return replies


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("server_class", [RefusesEveryOpen, ServesEveryFile, ChangesEveryFile, RenamesEveryFile])
@pytest.mark.parametrize(("count", "length"), [(1_900, 60), (650, 255)])
def test_staging_the_longest_listing_takes_at_most_64_mib(
    server_class: type[ListsMany], count: int, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stability, "_MAX_APPEARED", stability._MAX_APPEARED // 60)
    part = Limits(entries=Limits().entries // 60, listing_bytes=Limits().listing_bytes // 60)
    server = server_class()
    server.count, server.length = count, length
    fixed = 9 * MIB // 8  # as many reasons and replies are kept for a part as for the whole
    with quick_directory() as target, memory_limit((64 * MIB - fixed) // 60 + fixed):
        if server_class in (ServesEveryFile, RenamesEveryFile):
            assert stage_from(server, target, part).count == count
        else:
            with pytest.raises(IncompleteStage, match=r"could not be opened|It changed while") as caught:
                stage_from(server, target, part)
            assert caught.value.report is not None
            assert len(caught.value.report.failed) == count


@pytest.mark.parametrize("name", [b"\xff" * 249, "\U0001f480".encode() + b"a" * 245])
def test_names_that_decode_to_more_memory_exceed_the_limit_sooner(target: Path, name: bytes) -> None:
    class ListsNames(ListsMany):
        def readdir(self, request_id: int, handle: bytes, rest: bytes) -> list[bytes]:
            full = b"%06d" % next(self.indexes) + name
            return [
                pack_packet(
                    wire.FXP_NAME,
                    request_id,
                    struct.pack(">I", 1) + pack_string(full) + pack_string(b"") + pack_attributes(Node()),
                )
            ]

    with pytest.raises(LimitExceeded, match=r"Limits\.listing_bytes"):
        stage_from(server := ListsNames(), target, Limits(listing_bytes=MIB))
    assert server.requests[wire.FXP_READDIR] * len(name) < MIB // 2


@pytest.mark.parametrize(
    ("limits", "limit"),
    [
        (Limits(entries=Limits().entries // 20), "entries"),
        (Limits(entries=2000), "entries"),
        (Limits(listing_bytes=MIB), "listing_bytes"),
        (Limits(name_bytes=5), "name_bytes"),
        (Limits(path_bytes=1), "path_bytes"),
        (Limits(path_bytes=8, entries=10**9, listing_bytes=64 * 1024), "listing_bytes"),
    ],
)
def test_an_exceeded_limit_of_a_listing_is_named(target: Path, limits: Limits, limit: str) -> None:
    with pytest.raises(LimitExceeded, match=rf"Limits\.{limit}\)"):
        stage_from(ListsMany(), target, limits)
    assert files_in(target) == {}


@pytest.mark.parametrize("mode", [stat.S_IFREG | 0o644, stat.S_IFLNK | 0o777])
def test_a_path_that_is_too_long_is_never_sent(target: Path, mode: int) -> None:
    server = FakeSFTPServer({b"n" * 50: Node(mode=mode)})
    with pytest.raises(LimitExceeded, match=r"The path has 53 bytes, more than 52 \(Limits\.path_bytes\)"):
        stage_from(server, target, Limits(path_bytes=52))
    assert not server.requests[wire.FXP_OPEN]
    assert not server.requests[wire.FXP_STAT]
    with pytest.raises(LimitExceeded, match="path_bytes"):
        transport_to(server, Limits(path_bytes=52)).stat(b"/c/" + b"n" * 50)
    with pytest.raises(LimitExceeded, match="path_bytes"):
        transport_to(server, Limits(path_bytes=52)).touch(b"/c/" + b"n" * 50)


def test_the_maximum_number_of_entries_is_staged_and_one_more_is_an_error(target: Path) -> None:
    files = {b"%d" % number: Node(b"x") for number in range(20)}
    assert stage_from(FakeSFTPServer(files), target, Limits(entries=20)).count == 20
    with pytest.raises(LimitExceeded):
        stage_from(FakeSFTPServer({**files, b"one more": Node()}), target, Limits(entries=20))


def test_endless_dot_entries_exceed_the_byte_limit(target: Path) -> None:
    class ListsDots(FakeSFTPServer):
        """Lists the directory itself, forever."""

        def readdir(self, request_id: int, handle: bytes, rest: bytes) -> list[bytes]:
            dot = pack_string(b".") + pack_string(b"l" * 5000) + pack_attributes(Node())
            return [pack_packet(wire.FXP_NAME, request_id, struct.pack(">I", 1) + dot)]

    with pytest.raises(LimitExceeded, match="listing_bytes"):
        stage_from(ListsDots(dict(GOOD)), target, Limits(listing_bytes=MIB))
    assert files_in(target) == {}


def test_a_name_that_the_local_file_system_refuses_fails_alone(target: Path) -> None:
    with pytest.raises(IncompleteStage, match="refuses the name"):
        stage_from(FakeSFTPServer({**GOOD, b"n" * 300: Node(b"x")}), target, Limits(name_bytes=1000))
    assert files_in(target) == {name: node.data for name, node in GOOD.items()}


def test_the_directory_is_listed_once_before_and_once_after_the_transfer(target: Path) -> None:
    server = FakeSFTPServer({b"%03d" % number: Node(b"x") for number in range(500)})
    stage_from(server, target)
    full = -(-502 // 7)
    assert server.requests[wire.FXP_OPENDIR] == 2
    assert 2 * full < server.requests[wire.FXP_READDIR] <= 2 * (full + 4), "those in flight at the end"
    assert not server.requests[wire.FXP_STAT] + server.requests[wire.FXP_LSTAT]


# Packets.


@pytest.mark.parametrize("max_bytes", [1, 1100, 1500, 16 * 1024, 40_000, 263_168])
@pytest.mark.parametrize("max_handles", [None, 100])
def test_replies_to_reads_fit_the_packet_limit(target: Path, max_bytes: int, max_handles: int | None) -> None:
    files = {b"a": Node(bytes(range(256)) * 2000)}
    server = FakeSFTPServer(files, max_handles=max_handles, max_read_length=2**63)
    if max_bytes < 1024:
        with pytest.raises(ProtocolError):
            stage_from(server, target, Limits(packet_bytes=max_bytes))
        assert files_in(target) == {}
        return
    stage_from(server, target, Limits(packet_bytes=max_bytes))
    assert files_in(target) == {b"a": files[b"a"].data}
    assert max(length for _, _, length in server.reads) <= max(1024, max_bytes - 1024)


@pytest.mark.parametrize("packet_type", [wire.FXP_NAME, wire.FXP_ATTRS, wire.FXP_DATA, wire.FXP_STATUS])
@pytest.mark.parametrize("earlier", [0, 1])
def test_a_packet_above_the_limit_is_rejected_by_its_head(target: Path, packet_type: int, earlier: int) -> None:
    class SendsLongPackets(FakeSFTPServer):
        """Announces a packet of one byte too many, first or after another reply, and never sends it."""

        def next_chunk(self, replies: deque[bytes]) -> bytes:
            stream = b"".join(replies)
            replies.clear()
            return stream

        def opendir(self, request_id: int, path: bytes, rest: bytes) -> list[bytes]:
            head = struct.pack(">IBI", Limits().packet_bytes + 1, packet_type, request_id + earlier)
            return [*super().opendir(request_id, path, rest)[:earlier], head]

    with pytest.raises(ProtocolError, match="5 to 263168 are allowed"):
        stage_from(SendsLongPackets(dict(GOOD)), target)
    assert files_in(target) == {}


# Handles, and bytes in flight.


@pytest.mark.parametrize(
    ("max_handles", "max_open"), [(None, 16), (1, 1), (2, 2), (92, 92), (-7, 1), (-8, 64), (2**64 - 9, 512)]
)
def test_at_most_as_many_handles_are_open_as_the_server_allows(max_handles: int | None, max_open: int) -> None:
    files = {b"%04d" % number: Node(b"x" * (number % 7)) for number in range(700)}
    server = ReorderingServer(files, max_handles=max_handles, max_read_length=4096)
    recording_target = RecordingTarget()
    transport_to(server).pull(b"/c", recording_target)
    assert server.peak_handles <= max_open
    assert server.peak_handles > max_open // 2, "and they are used"
    assert {name: slot.data for name, slot in recording_target.files.items()} == {
        n: node.data for n, node in files.items()
    }
    assert server.handles == {}


@pytest.mark.parametrize(("max_read_length", "expected"), [(2**64 - 1, 256 * 1024), (0, 32 * 1024), (1, 1024)])
def test_reads_are_as_long_as_the_server_allows_within_limits(
    target: Path, max_read_length: int, expected: int
) -> None:
    server = FakeSFTPServer({b"a": Node(bytes(3 * MIB))}, max_read_length=max_read_length)
    stage_from(server, target)
    assert max(length for _, _, length in server.reads) == expected


class RepliesInBatches(FakeSFTPServer):
    """Holds the replies to one type of request until *batch* of them have arrived, or all *total*."""

    held_type = wire.FXP_OPEN
    batch = 100
    total = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.arrived = 0
        self.held: list[bytes] = []

    def answer(self, request: bytes) -> list[bytes]:
        replies = super().answer(request)
        if request[0] != self.held_type:
            return replies
        self.arrived += 1
        self.held += replies
        if len(self.held) < self.batch and self.arrived < self.total:
            return []
        replies, self.held = self.held, []
        return replies


def test_a_hundred_files_are_opened_at_once(target: Path) -> None:
    server = RepliesInBatches({b"%04d" % number: Node(b"x" * 10) for number in range(950)}, max_handles=200)
    server.total = 950
    assert stage_from(server, target).count == 950


def test_reads_of_many_files_are_in_flight_at_once(target: Path) -> None:
    server = RepliesInBatches({b"%04d" % number: Node(b"x" * 10) for number in range(950)}, max_handles=200)
    server.held_type, server.total, server.batch = wire.FXP_READ, 950, 90
    assert stage_from(server, target).count == 950


def test_reads_of_one_large_file_are_in_flight_at_once(target: Path) -> None:
    server = RepliesInBatches({b"a": Node(bytes(20 * MIB))}, max_read_length=256 * 1024)
    server.held_type, server.total, server.batch = wire.FXP_READ, 80, 16
    fast = Limits(min_rate=MIB)  # a wide window before the first measurement
    assert stage_from(server, target, fast).count == 1


def test_requests_are_sent_in_batches(target: Path) -> None:
    server = FakeSFTPServer({b"%04d" % number: Node(b"x" * 10) for number in range(900)}, max_handles=400)
    stage_from(server, target)
    assert (
        server.requests[wire.FXP_OPEN] == server.requests[wire.FXP_CLOSE] - 2 == server.requests[wire.FXP_FSTAT] == 900
    )
    assert server.sends * 8 < sum(server.requests.values())


class MaximalWindow(Window):
    """Has its maximal size all the time."""

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits)
        self.size = limits.in_flight_bytes

    def record_reply(self, size: int, sent: SendMark) -> None:
        pass


class CountsInFlight(ReorderingServer):
    """Counts the bytes of data that were requested and not sent yet."""

    in_flight = 0
    peak_in_flight = 0

    def data(self, request_id: int, node: Node, offset: int, length: int) -> list[bytes]:
        self.in_flight += length
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
        return [pack_packet(wire.FXP_DATA, request_id, pack_string(node.data[offset : offset + length]))]

    def next_chunk(self, replies: deque[bytes]) -> bytes:
        chunk = super().next_chunk(replies)
        if chunk[4] == wire.FXP_DATA:
            self.in_flight -= len(chunk) - 13
        return chunk


@pytest.mark.parametrize("limits", [Limits(), Limits(in_flight_bytes=MIB)], ids=["24 MiB", "1 MiB"])
@pytest.mark.parametrize("sizes", [[80 * MIB], [3 * MIB] * 30, [100_000] * 700])
def test_a_maximal_window_keeps_its_limit_in_flight_and_at_most_one_read_more(sizes: list[int], limits: Limits) -> None:
    server = CountsInFlight({b"%03d" % at: Node(bytes(size)) for at, size in enumerate(sizes)}, 400, 256 * 1024)
    client = client_to(server)

    class DiscardingTarget(RecordingTarget):
        """Keeps no data."""

        def admit(self, entries):  # type: ignore[no-untyped-def]
            files = super().admit(entries)
            for file in files:
                file.pieces = type("Discard", (), {"append": lambda self, piece: None})()
            return files

    recording_target = DiscardingTarget()
    listing = list_directory(client, b"/c")
    Fetcher(client, b"/c", MaximalWindow(limits)).run(recording_target.admit(listing.entries))
    assert all(file.finished for file in recording_target.files.values())
    assert limits.in_flight_bytes // 3 < server.peak_in_flight < limits.in_flight_bytes + client.max_read_length
    assert server.in_flight == 0


@pytest.mark.parametrize("size", [2**60, 2**63, 2**64 - 1])
@pytest.mark.parametrize(("repeats", "error"), [(True, IncompleteFile), (False, ChangedFile)])
def test_a_file_shorter_than_its_huge_size_fails_alone_and_takes_no_memory(
    size: int, repeats: bool, error: type[EntryError]
) -> None:
    huge = struct.pack(">IQIIIII", 0xF, size, 0, 0, stat.S_IFREG | 0o644, 0, MTIME)

    class ListsHugeFile(FakeSFTPServer):
        """Lists a file of *size* bytes, and serves ten; FSTAT may repeat the size."""

        def listing(self) -> list[tuple[bytes, bytes]]:
            return [(b"huge", huge), *super().listing()]

        def node_of(self, path: bytes) -> Node | None:
            return node if path == b"/c/huge" else super().node_of(path)

        def fstat(self, request_id: int, handle: bytes, rest: bytes) -> list[bytes]:
            if repeats and self.handles[handle] is node:
                return [pack_packet(wire.FXP_ATTRS, request_id, huge)]
            return super().fstat(request_id, handle, rest)

    node = Node(b"t" * 10)

    server, recording_target = ListsHugeFile(dict(GOOD)), RecordingTarget()
    recording_target.verifies_stability = True
    with memory_limit(MIB):
        transport_to(server).pull(b"/c", recording_target)
    assert type(recording_target.files[b"huge"].error) is error
    assert {name: file.data for name, file in recording_target.files.items() if file.finished} == {
        name: node.data for name, node in GOOD.items()
    }
    assert server.handles == {}


# Time.


class WithholdsOneReply(FakeSFTPServer):
    """Never replies to the second request of one type, and takes a second for every other reply."""

    withheld_type = wire.FXP_READ
    watchdog: Watchdog
    clock: Clock

    def answer(self, request: bytes) -> list[bytes]:
        replies = super().answer(request)
        return [] if request[0] == self.withheld_type and self.requests[request[0]] == 2 else replies

    def receive(self) -> Chunk:
        self.watchdog.begin_wait()
        self.clock.now += 1.0
        self.watchdog.end_wait()
        return super().receive()


@pytest.mark.parametrize("withheld_type", [wire.FXP_OPEN, wire.FXP_FSTAT, wire.FXP_READ, wire.FXP_CLOSE])
def test_a_withheld_reply_ends_the_run_while_others_arrive(target: Path, withheld_type: int) -> None:
    limits, clock = Limits(reply_timeout=60), Clock()
    watchdog = Watchdog(limits, clock=clock)
    server = WithholdsOneReply({b"%04d" % number: Node(b"x") for number in range(400)}, max_handles=20)
    server.withheld_type, server.watchdog, server.clock = withheld_type, watchdog, clock
    with pytest.raises(LimitExceeded, match=r"unanswered for 60 s \(Limits\.reply_timeout\)") as caught:
        stage(
            transport_to(server, limits, watchdog),
            b"/c",
            DirectoryTarget(str(target), peer="peer", options=StageOptions(durable=False)),
        )
    assert caught.value.transient
    assert 60 <= clock.now < 400
    assert files_in(target) == {}


@pytest.mark.parametrize(
    "request_type", [wire.FXP_INIT, wire.FXP_EXTENDED, wire.FXP_OPENDIR, wire.FXP_READDIR, wire.FXP_OPEN, wire.FXP_READ]
)
def test_a_silent_server_ends_the_run(target: Path, request_type: int, leaves_nothing: None) -> None:
    class Silent(StopsReplying):
        """Does not reply to one type of request, for which the client waits."""

        def answer(self, request: bytes) -> list[bytes]:
            return [] if request[0] == request_type else super().answer(request)

    limits = Limits(stall_timeout=0.05)
    watchdog = Watchdog(limits)
    server = Silent(dict(GOOD))
    server.watchdog = watchdog
    staging_target = DirectoryTarget(str(target), peer="peer", options=StageOptions(durable=False))
    try:
        with pytest.raises(LimitExceeded, match=r"Limits\.stall_timeout"), watchdog.operation():
            stage(transport_to(server, limits, watchdog), b"/c", staging_target)
    finally:
        watchdog.close()
    assert files_in(target) == {}


class SendsSlowly(FakeSFTPServer):
    """Lists a file of a pebibyte, and serves it byte by byte."""

    watchdog: Watchdog

    def listing(self) -> list[tuple[bytes, bytes]]:
        huge = struct.pack(">IQIIIII", 0xF, 2**50, 0, 0, stat.S_IFREG | 0o644, 0, MTIME)
        return [(b"huge", huge)]

    def node_of(self, path: bytes) -> Node | None:
        return Node()

    def fstat(self, request_id: int, handle: bytes, rest: bytes) -> list[bytes]:
        return [pack_packet(wire.FXP_ATTRS, request_id, self.listing()[0][1])]

    def data(self, request_id: int, node: Node, offset: int, length: int) -> list[bytes]:
        return [pack_packet(wire.FXP_DATA, request_id, pack_string(b"x"))]

    def receive(self) -> Chunk:
        self.watchdog.begin_wait()
        time.sleep(0.01)
        self.watchdog.end_wait()
        self.watchdog.raise_if_failed()
        return super().receive()


@pytest.mark.usefixtures("patience")
def test_an_announced_size_does_not_extend_the_deadline(leaves_nothing: None) -> None:
    limits = ShortGrace()
    server = SendsSlowly()
    server.watchdog = watchdog = Watchdog(limits)
    started = time.monotonic()
    with pytest.raises(LimitExceeded, match=r"min_rate"), watchdog.operation():
        transport_to(server, limits, watchdog).pull(b"/c", RecordingTarget())
    watchdog.close()
    assert time.monotonic() - started < 8


def test_the_listing_of_an_empty_directory_is_empty() -> None:
    assert list_directory(client_to(FakeSFTPServer()), b"/c") == Listing()

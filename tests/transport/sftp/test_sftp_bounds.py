"""What is taken of a peer at most: bytes, handles, names, memory, and patience (TRUST, invariants d and e)."""

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
from peerstage.session.stream import Chunk
from peerstage.session.watchdog import Watchdog
from peerstage.staging import stage
from peerstage.testing.contract import landed
from peerstage.transport.sftp import wire
from peerstage.transport.sftp.client import SFTPClient
from peerstage.transport.sftp.fetch import Fetch
from peerstage.transport.sftp.listing import Listing, list_directory
from peerstage.transport.sftp.window import CEILING, Mark, Window
from support.sftp_server import (
    MTIME,
    AnyOrder,
    FallsSilent,
    Node,
    RecordingLanding,
    Server,
    attributes,
    packet,
    stage_from,
    string,
    transport_to,
)

MIB = 1 << 20
GOOD = {b"good": Node(b"good"), b"other": Node(b"o" * 9000)}


@contextmanager
def little_memory(most: int = 64 * MIB) -> Iterator[None]:
    """Fails if more than *most* bytes are held at any one time."""
    tracemalloc.start(1)
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


def client_of(server: Server, limits: Limits | None = None) -> SFTPClient:
    limits = limits or Limits()
    client = SFTPClient(server, limits, Watchdog(limits))
    client.start()
    return client


# Listings.


class ListsMany(Server):
    """Has as many entries as it is told, none of which takes memory here.

    Attributes:
        count: How many; None for no end.
        length: Bytes of a name.
        size: Of every entry; None for one of its own.
        mode: Of every entry.
    """

    count: int | None = None
    length = 6
    size: int | None = None
    mode = stat.S_IFREG | 0o644

    def opendir(self, number: int, path: bytes, rest: bytes) -> list[bytes]:
        self.numbers = itertools.count() if self.count is None else iter(range(self.count))
        return self.new_handle(number, "directory")

    def readdir(self, number: int, handle: bytes, rest: bytes) -> list[bytes]:
        some = [
            string((b"%06d" % one).ljust(self.length, b"\xff"))
            + string(b"")
            + struct.pack(">IQIIIII", 0xF, one if self.size is None else self.size, 0, 0, self.mode, 0, one)
            for one in itertools.islice(self.numbers, 100)
        ]
        if not some:
            return self.status(number, wire.FX_EOF)
        return [packet(wire.NAME, number, struct.pack(">I", len(some)) + b"".join(some))]

    def stat(self, number: int, path: bytes, rest: bytes) -> list[bytes]:
        return self.status(number, wire.FX_FAILURE, b"%d" % number + b"\xff" * 2000)


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("mode", [stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755, stat.S_IFLNK | 0o777])
@pytest.mark.parametrize(("longest", "length"), [(39_000, 255), (120_000, 6)])
def test_an_entry_takes_so_little_memory_that_the_longest_listing_fits(mode: int, longest: int, length: int) -> None:
    server = ListsMany()
    server.count, server.length, server.mode = 3000, length, mode
    client = client_of(server)
    with little_memory(64 * MIB * 3000 // longest):
        listing = list_directory(client, b"/c", Limits())
    assert len(listing.entries) + len(listing.refused) == 3000
    assert server.handles == {}


@pytest.mark.parametrize("length", [6, 255])
def test_an_endless_listing_takes_little_memory(target: Path, length: int) -> None:
    server = ListsMany()
    server.length = length
    tenth = Limits(entries=Limits().entries // 10, listing_bytes=Limits().listing_bytes // 10)
    with (
        little_memory(64 * MIB // 10),
        pytest.raises(LimitExceeded, match=r"Limits\.(entries|listing_bytes)") as caught,
    ):
        stage_from(server, target, tenth)
    assert str(caught.value).startswith("peer /c: ")
    assert landed(target) == {}


class RefusesEach(ListsMany):
    """Opens nothing, and has long words of its own about every file."""

    def open(self, number: int, path: bytes, rest: bytes) -> list[bytes]:
        return self.status(number, 5, b"%d" % number + b"\xff" * 2000)


class HasEach(ListsMany):
    """Has one byte in every file, and keeps no record of who asked for it."""

    size = 1

    def open(self, number: int, path: bytes, rest: bytes) -> list[bytes]:
        return self.new_handle(number, Node(b"x"))

    def fstat(self, number: int, handle: bytes, rest: bytes) -> list[bytes]:
        return [packet(wire.ATTRS, number, struct.pack(">IQ", 1, 1))]

    def read(self, number: int, handle: bytes, rest: bytes) -> list[bytes]:
        return [packet(wire.DATA, number, string(b"x"))]


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("kind", [RefusesEach, HasEach])
@pytest.mark.parametrize(("count", "length"), [(3_800, 60), (1_300, 255)])
def test_a_whole_stage_of_the_longest_listing_takes_little_memory(
    target: Path, kind: type[ListsMany], count: int, length: int
) -> None:
    part = Limits(entries=Limits().entries // 30, listing_bytes=Limits().listing_bytes // 30)
    server = kind()
    server.count, server.length = count, length
    reasons = MIB // 2  # as many are kept of a part as of all
    with little_memory((64 * MIB - reasons) // 30 + reasons):
        if kind is HasEach:
            assert stage_from(server, target, part).count == count
        else:
            with pytest.raises(IncompleteStage, match="could not be opened") as caught:
                stage_from(server, target, part)
            assert caught.value.report is not None
            assert len(caught.value.report.failed) == count


@pytest.mark.parametrize("name", [b"\xff" * 249, "\U0001f480".encode() + b"a" * 245])
def test_names_that_take_more_memory_than_bytes_pass_the_bound_sooner(target: Path, name: bytes) -> None:
    class ListsNames(ListsMany):
        def readdir(self, number: int, handle: bytes, rest: bytes) -> list[bytes]:
            one = b"%06d" % next(self.numbers) + name
            return [packet(wire.NAME, number, struct.pack(">I", 1) + string(one) + string(b"") + attributes(Node()))]

    with pytest.raises(LimitExceeded, match=r"Limits\.listing_bytes"):
        stage_from(server := ListsNames(), target, Limits(listing_bytes=MIB))
    assert server.kinds[wire.READDIR] * len(name) < MIB // 2


@pytest.mark.parametrize(
    ("limits", "bound"),
    [
        (Limits(), "entries"),
        (Limits(entries=2000), "entries"),
        (Limits(listing_bytes=MIB), "listing_bytes"),
        (Limits(name_bytes=5), "name_bytes"),
        (Limits(path_bytes=1), "path_bytes"),
        (Limits(path_bytes=8, entries=10**9, listing_bytes=64 * 1024), "listing_bytes"),
    ],
)
def test_each_bound_of_a_listing_is_named_when_it_is_passed(target: Path, limits: Limits, bound: str) -> None:
    with pytest.raises(LimitExceeded, match=rf"Limits\.{bound}\)"):
        stage_from(ListsMany(), target, limits)
    assert landed(target) == {}


@pytest.mark.parametrize("mode", [stat.S_IFREG | 0o644, stat.S_IFLNK | 0o777])
def test_a_path_that_is_too_long_is_never_sent(target: Path, mode: int) -> None:
    server = Server({b"n" * 50: Node(mode=mode)})
    with pytest.raises(LimitExceeded, match=r"A path of 53 bytes \(Limits\.path_bytes\)"):
        stage_from(server, target, Limits(path_bytes=52))
    assert not server.kinds[wire.OPEN]
    assert not server.kinds[wire.STAT]
    with pytest.raises(LimitExceeded, match="path_bytes"):
        transport_to(server, Limits(path_bytes=52)).exists(b"/c/" + b"n" * 50)
    with pytest.raises(LimitExceeded, match="path_bytes"):
        transport_to(server, Limits(path_bytes=52)).touch(b"/c/" + b"n" * 50)


def test_as_many_entries_as_are_allowed_are_staged_and_one_more_is_too_many(target: Path) -> None:
    files = {b"%d" % number: Node(b"x") for number in range(20)}
    assert stage_from(Server(files), target, Limits(entries=20)).count == 20
    with pytest.raises(LimitExceeded):
        stage_from(Server({**files, b"one more": Node()}), target, Limits(entries=20))


def test_dots_without_end_pass_the_bound_of_bytes(target: Path) -> None:
    class ListsDots(Server):
        """Lists the directory itself, for ever."""

        def readdir(self, number: int, handle: bytes, rest: bytes) -> list[bytes]:
            one = string(b".") + string(b"l" * 5000) + attributes(Node())
            return [packet(wire.NAME, number, struct.pack(">I", 1) + one)]

    with pytest.raises(LimitExceeded, match="listing_bytes"):
        stage_from(ListsDots(dict(GOOD)), target, Limits(listing_bytes=MIB))
    assert landed(target) == {}


def test_a_name_that_only_the_local_file_system_refuses_is_that_entrys_error(target: Path) -> None:
    with pytest.raises(IncompleteStage, match="refuses the name"):
        stage_from(Server({**GOOD, b"n" * 300: Node(b"x")}), target, Limits(name_bytes=1000))
    assert landed(target) == {name: node.data for name, node in GOOD.items()}


def test_one_listing_is_made_and_read_to_its_end_once(target: Path) -> None:
    server = Server({b"%03d" % number: Node(b"x") for number in range(500)})
    stage_from(server, target)
    full = -(-502 // 7)
    assert server.kinds[wire.OPENDIR] == 1
    assert full < server.kinds[wire.READDIR] <= full + 4, "as many behind its end as were sent ahead"
    assert not server.kinds[wire.STAT] + server.kinds[wire.LSTAT]


# Packets.


@pytest.mark.parametrize("most", [1, 1100, 1500, 16 * 1024, 40_000, 263_168])
@pytest.mark.parametrize("told", [None, 100])
def test_reads_are_so_small_that_their_replies_fit_the_bound_of_a_packet(
    target: Path, most: int, told: int | None
) -> None:
    files = {b"a": Node(bytes(range(256)) * 2000)}
    server = Server(files, most_handles=told, read_bytes=2**63)
    if most < 1024:
        with pytest.raises(ProtocolError):
            stage_from(server, target, Limits(packet_bytes=most))
        assert landed(target) == {}
        return
    stage_from(server, target, Limits(packet_bytes=most))
    assert landed(target) == {b"a": files[b"a"].data}
    assert max(length for _, _, length in server.asked) <= max(1024, most - 1024)


@pytest.mark.parametrize("kind", [wire.NAME, wire.ATTRS, wire.DATA, wire.STATUS])
@pytest.mark.parametrize("others", [0, 1])
def test_a_packet_above_the_bound_is_refused_before_it_is_read(target: Path, kind: int, others: int) -> None:
    class SendsLongPackets(Server):
        """Announces a packet of one byte too many, behind another or not, and never sends it."""

        def cut(self, out: deque[bytes]) -> bytes:
            whole = b"".join(out)
            out.clear()
            return whole

        def opendir(self, number: int, path: bytes, rest: bytes) -> list[bytes]:
            head = struct.pack(">IBI", Limits().packet_bytes + 1, kind, number + others)
            return [*super().opendir(number, path, rest)[:others], head]

    with pytest.raises(ProtocolError, match="at most 263168 are taken"):
        stage_from(SendsLongPackets(dict(GOOD)), target)
    assert landed(target) == {}


# Handles, and bytes in flight.


@pytest.mark.parametrize(("told", "most"), [(None, 16), (1, 1), (2, 2), (92, 92), (-7, 1), (-8, 64), (2**64 - 9, 512)])
def test_no_more_handles_are_open_than_the_server_has(told: int | None, most: int) -> None:
    files = {b"%04d" % number: Node(b"x" * (number % 7)) for number in range(700)}
    server = AnyOrder(files, most_handles=told, read_bytes=4096)
    landing = RecordingLanding()
    transport_to(server).pull(b"/c", landing)
    assert server.peak <= most
    assert server.peak > most // 2, "and they are made use of"
    assert {name: slot.data for name, slot in landing.slots.items()} == {n: node.data for n, node in files.items()}
    assert server.handles == {}


@pytest.mark.parametrize(("read_bytes", "largest"), [(2**64 - 1, 256 * 1024), (0, 32 * 1024), (1, 1024)])
def test_reads_are_as_large_as_the_server_says_within_reason(target: Path, read_bytes: int, largest: int) -> None:
    server = Server({b"a": Node(bytes(3 * MIB))}, read_bytes=read_bytes)
    stage_from(server, target)
    assert max(length for _, _, length in server.asked) == largest


class AnswersInDozens(Server):
    """Answers requests of one type only when so many of them are waiting, or none is left to come."""

    waits_for = wire.OPEN
    dozen = 100
    total = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.came = 0
        self.held: list[bytes] = []

    def answer(self, request: bytes) -> list[bytes]:
        replies = super().answer(request)
        if request[0] != self.waits_for:
            return replies
        self.came += 1
        self.held += replies
        if len(self.held) < self.dozen and self.came < self.total:
            return []
        replies, self.held = self.held, []
        return replies


def test_a_hundred_files_are_opened_at_once(target: Path) -> None:
    server = AnswersInDozens({b"%04d" % number: Node(b"x" * 10) for number in range(950)}, most_handles=200)
    server.total = 950
    assert stage_from(server, target).count == 950


def test_reads_of_many_files_wait_for_their_replies_together(target: Path) -> None:
    server = AnswersInDozens({b"%04d" % number: Node(b"x" * 10) for number in range(950)}, most_handles=200)
    server.waits_for, server.total, server.dozen = wire.READ, 950, 90
    assert stage_from(server, target).count == 950


def test_reads_of_one_large_file_wait_for_their_replies_together(target: Path) -> None:
    server = AnswersInDozens({b"a": Node(bytes(20 * MIB))}, read_bytes=256 * 1024)
    server.waits_for, server.total, server.dozen = wire.READ, 80, 16
    fast = Limits(min_rate=MIB)  # so that the window is wide before anything was measured
    assert stage_from(server, target, fast).count == 1


def test_requests_travel_in_batches(target: Path) -> None:
    server = Server({b"%04d" % number: Node(b"x" * 10) for number in range(2000)}, most_handles=400)
    stage_from(server, target)
    assert server.kinds[wire.OPEN] == server.kinds[wire.CLOSE] - 1 == server.kinds[wire.FSTAT] == 2000
    assert server.sends * 8 < sum(server.kinds.values())


class FullWindow(Window):
    """Is always as large as it can be."""

    def __init__(self) -> None:
        super().__init__(Limits())
        self.size = CEILING

    def arrived(self, size: int, asked: Mark) -> None:
        pass


class CountsInFlight(AnyOrder):
    """Counts the bytes of data that were asked for and not sent yet."""

    in_flight = 0
    peak_in_flight = 0

    def data(self, number: int, node: Node, offset: int, length: int) -> list[bytes]:
        self.in_flight += length
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
        return [packet(wire.DATA, number, string(node.data[offset : offset + length]))]

    def cut(self, out: deque[bytes]) -> bytes:
        chunk = super().cut(out)
        if chunk[4] == wire.DATA:
            self.in_flight -= len(chunk) - 13
        return chunk


@pytest.mark.parametrize("sizes", [[80 * MIB], [3 * MIB] * 30, [100_000] * 700])
def test_with_the_window_wide_open_24_mib_are_in_flight_and_little_more(sizes: list[int]) -> None:
    server = CountsInFlight({b"%03d" % at: Node(bytes(size)) for at, size in enumerate(sizes)}, 400, 256 * 1024)
    client = client_of(server)

    class Forgetful(RecordingLanding):
        """Keeps no data."""

        def open(self, entry):  # type: ignore[no-untyped-def]
            slot = super().open(entry)
            slot.pieces = type("Nowhere", (), {"append": lambda self, piece: None})()
            return slot

    landing = Forgetful()
    listing = list_directory(client, b"/c", Limits())
    Fetch(client, b"/c", landing, Limits(), FullWindow()).run(listing.entries)
    assert all(slot.finished for slot in landing.slots.values())
    assert CEILING // 3 < server.peak_in_flight < CEILING + client.read_bytes
    assert server.in_flight == 0


@pytest.mark.parametrize("size", [2**60, 2**63, 2**64 - 1])
@pytest.mark.parametrize(("insists", "error"), [(True, IncompleteFile), (False, ChangedFile)])
def test_a_file_that_promises_everything_and_ends_fails_alone_and_costs_nothing(
    size: int, insists: bool, error: type[EntryError]
) -> None:
    told = struct.pack(">IQIIIII", 0xF, size, 0, 0, stat.S_IFREG | 0o644, 0, MTIME)

    class Boasts(Server):
        """Promises more than any disk holds, and gives ten bytes of it."""

        def listing(self) -> list[tuple[bytes, bytes]]:
            return [(b"boast", told), *super().listing()]

        def node_of(self, path: bytes) -> Node | None:
            return boast if path == b"/c/boast" else super().node_of(path)

        def fstat(self, number: int, handle: bytes, rest: bytes) -> list[bytes]:
            if insists and self.handles[handle] is boast:
                return [packet(wire.ATTRS, number, told)]
            return super().fstat(number, handle, rest)

    boast = Node(b"t" * 10)

    server, landing = Boasts(dict(GOOD)), RecordingLanding()
    with little_memory(MIB):
        transport_to(server).pull(b"/c", landing)
    assert type(landing.slots[b"boast"].error) is error
    assert {name: slot.data for name, slot in landing.slots.items() if slot.finished} == {
        name: node.data for name, node in GOOD.items()
    }
    assert server.handles == {}


# Patience.


class Clock:
    """Time that passes when it is told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class WithholdsOneReply(Server):
    """Never answers the second request of one type, and takes a second for everything else."""

    withholds = wire.READ
    watchdog: Watchdog
    clock: Clock

    def answer(self, request: bytes) -> list[bytes]:
        replies = super().answer(request)
        return [] if request[0] == self.withholds and self.kinds[request[0]] == 2 else replies

    def receive(self) -> Chunk:
        self.watchdog.begin_wait()
        self.clock.now += 1.0
        self.watchdog.end_wait()
        return super().receive()


@pytest.mark.parametrize("withholds", [wire.OPEN, wire.FSTAT, wire.READ, wire.CLOSE])
def test_a_reply_that_is_withheld_ends_the_run_while_others_still_come(target: Path, withholds: int) -> None:
    limits, clock = Limits(reply_timeout=60), Clock()
    watchdog = Watchdog(limits, clock=clock)
    server = WithholdsOneReply({b"%04d" % number: Node(b"x") for number in range(400)}, most_handles=20)
    server.withholds, server.watchdog, server.clock = withholds, watchdog, clock
    with pytest.raises(LimitExceeded, match=r"unanswered for 60 s \(Limits\.reply_timeout\)") as caught:
        stage(transport_to(server, limits, watchdog), b"/c", str(target), peer="peer", durable=False)
    assert caught.value.transient
    assert 60 <= clock.now < 400
    assert landed(target) == {}


@pytest.mark.parametrize("kind", [wire.INIT, wire.EXTENDED, wire.OPENDIR, wire.READDIR, wire.OPEN, wire.READ])
def test_silence_ends_the_run_whatever_was_asked_for(target: Path, kind: int, leaves_nothing: None) -> None:
    class Silent(FallsSilent):
        """Does not answer one type of request, and then there is nothing else to answer."""

        def answer(self, request: bytes) -> list[bytes]:
            return [] if request[0] == kind else super().answer(request)

    limits = Limits(stall_timeout=0.05)
    watchdog = Watchdog(limits)
    server = Silent(dict(GOOD))
    server.watchdog = watchdog
    try:
        with pytest.raises(LimitExceeded, match=r"Limits\.stall_timeout"), watchdog.operation():
            stage(transport_to(server, limits, watchdog), b"/c", str(target), peer="peer", durable=False)
    finally:
        watchdog.close()
    assert landed(target) == {}


class HardlyAnyGrace(Limits):
    """Grants half a second in the place of ten minutes."""

    grace = 0.5


class Drips(Server):
    """Promises a petabyte, and gives a byte of it at a time."""

    watchdog: Watchdog

    def listing(self) -> list[tuple[bytes, bytes]]:
        told = struct.pack(">IQIIIII", 0xF, 2**50, 0, 0, stat.S_IFREG | 0o644, 0, MTIME)
        return [(b"boast", told)]

    def node_of(self, path: bytes) -> Node | None:
        return Node()

    def fstat(self, number: int, handle: bytes, rest: bytes) -> list[bytes]:
        return [packet(wire.ATTRS, number, self.listing()[0][1])]

    def data(self, number: int, node: Node, offset: int, length: int) -> list[bytes]:
        return [packet(wire.DATA, number, string(b"x"))]

    def receive(self) -> Chunk:
        self.watchdog.begin_wait()
        time.sleep(0.01)
        self.watchdog.end_wait()
        self.watchdog.check()
        return super().receive()


@pytest.mark.usefixtures("patience")
def test_a_promise_does_not_prolong_the_run(leaves_nothing: None) -> None:
    limits = HardlyAnyGrace()
    server = Drips()
    server.watchdog = watchdog = Watchdog(limits)
    started = time.monotonic()
    with pytest.raises(LimitExceeded, match=r"min_rate"), watchdog.operation():
        transport_to(server, limits, watchdog).pull(b"/c", RecordingLanding())
    watchdog.close()
    assert time.monotonic() - started < 8


def test_listing_of_nothing_is_empty() -> None:
    assert list_directory(client_of(Server()), b"/c", Limits()) == Listing([], [])

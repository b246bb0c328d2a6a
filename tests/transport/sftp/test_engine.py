"""The SFTP engine against servers that stay within the rules, however odd: every byte equal, or the entry failed."""

from __future__ import annotations

import random
import stat
import tempfile
from collections import deque
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peerstage.errors import ConnectionLost, IncompleteStage
from peerstage.landing import DirectoryLanding
from peerstage.landing.arrived import BLOCK
from peerstage.reasons import Reason
from peerstage.records import Limits
from peerstage.testing.contract import landed
from peerstage.transport.sftp import wire
from peerstage.transport.sftp.window import CEILING, LOCAL, Mark, Window
from support.sftp_server import AnyOrder, DiesAfter, Erratic, Node, Server, stage_from, transport_to

sizes = st.one_of(st.integers(0, 300), st.sampled_from([4095, 4096, 4097, 8192, 12289]), st.integers(0, 40_000))
directories = st.dictionaries(
    st.binary(min_size=1, max_size=20).filter(lambda name: not name.startswith(b".") and not set(name) & set(b"/\0")),
    sizes,
    min_size=1,
    max_size=25,
)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    directory=directories,
    seed=st.integers(0, 2**32),
    reorders=st.booleans(),
    shortens=st.booleans(),
    cuts=st.booleans(),
    handles=st.sampled_from([None, 1, 2, 5, 100]),
)
def test_reordered_short_and_cut_replies_make_the_same_files(
    directory: dict[bytes, int], seed: int, reorders: bool, shortens: bool, cuts: bool, handles: int | None
) -> None:
    chance = random.Random(seed)
    files = {name: Node(chance.randbytes(size)) for name, size in directory.items()}
    server = Erratic(files, most_handles=handles)
    server.chance, server.reorders, server.shortens, server.cuts = chance, reorders, shortens, cuts
    with tempfile.TemporaryDirectory() as target:
        report = stage_from(server, Path(target))
        assert landed(Path(target)) == {name: node.data for name, node in files.items()}
    assert report.count == len(files)
    assert server.handles == {}
    assert server.peak <= (handles or 16)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    directory=st.dictionaries(
        st.integers(0, 30).map(b"%d".__mod__),
        st.tuples(st.sampled_from([0, 1 << 15, 261_120, 1 << 18, 522_240, 1 << 20]), st.integers(-2, 2)).map(
            lambda parts: min(1 << 20, max(0, sum(parts)))
        ),
        min_size=1,
        max_size=4,
    ),
    seed=st.integers(0, 2**32),
    shortens=st.booleans(),
    told=st.sampled_from([None, 1, 100]),
    read_bytes=st.sampled_from([1 << 15, 261_120, 1 << 18, 1 << 32]),
)
def test_sizes_around_those_of_reads_arrive_whole_whatever_is_answered_first(
    directory: dict[bytes, int], seed: int, shortens: bool, told: int | None, read_bytes: int
) -> None:
    chance = random.Random(seed)
    files = {name: Node(chance.randbytes(size)) for name, size in directory.items()}
    server = AnyOrder(files, most_handles=told, read_bytes=read_bytes)
    server.chance, server.shortens = chance, shortens
    with tempfile.TemporaryDirectory() as target:
        assert stage_from(server, Path(target)).count == len(files)
        assert landed(Path(target)) == {name: node.data for name, node in files.items()}
    assert server.handles == {}


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(directory=directories, seed=st.integers(0, 2**32), faults=st.data())
def test_failing_and_ending_reads_fail_their_file_and_no_other(
    directory: dict[bytes, int], seed: int, faults: st.DataObject
) -> None:
    chance = random.Random(seed)
    files = {name: Node(chance.randbytes(size)) for name, size in directory.items()}
    kinds = {name: faults.draw(st.sampled_from(["good", "fails", "ends", "empty"])) for name in files}

    class Faulty(Erratic):
        """Some files fail, end early or give empty data in their middle."""

        def data(self, number: int, node: Node, offset: int, length: int) -> list[bytes]:
            kind = next(kinds[name] for name, one in files.items() if one is node)
            if kind != "good" and offset + length > node.size // 2:
                if kind == "empty":
                    return [wire.request(wire.DATA, number, b"\0\0\0\0")]
                return self.status(number, wire.FX_FAILURE if kind == "fails" else wire.FX_EOF)
            return super().data(number, node, offset, length)

    server = Faulty(files, most_handles=3)
    server.chance = chance
    good = {name: node.data for name, node in files.items() if kinds[name] == "good" or not node.data}
    with tempfile.TemporaryDirectory() as target:
        try:
            report = stage_from(server, Path(target))
        except IncompleteStage as exc:
            assert exc.report is not None
            report = exc.report
        assert landed(Path(target)) == good
    assert report.count == len(good)
    assert not [node for node in server.handles.values() if node != "directory"], "every handle is closed"


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(directory=directories, seed=st.integers(0, 2**32), dies=st.lists(st.integers(0, 60_000), max_size=4))
def test_after_a_lost_connection_only_what_is_missing_is_asked_for_and_a_few_blocks_to_compare(
    directory: dict[bytes, int], seed: int, dies: list[int]
) -> None:
    chance = random.Random(seed)
    files = {name: Node(chance.randbytes(size)) for name, size in directory.items()}
    with tempfile.TemporaryDirectory() as target, DirectoryLanding(target, durable=False) as landing:
        for left in dies:
            dying = DiesAfter(files)
            dying.left = left
            try:
                transport_to(dying).pull(b"/c", landing)
            except ConnectionLost:
                continue
        here = landing.received
        begun = sum(not slot.is_finished for slot in landing._slots.values())
        last = Server(files)
        transport_to(last).pull(b"/c", landing)
        asked = sum(length for _, _, length in last.asked)
        assert asked == sum(node.size for node in files.values()) - landing.resumed_bytes
        assert 0 <= here - landing.resumed_bytes <= 8 * BLOCK * begun
        landing.commit()
        assert {name: data for name, data in landed(Path(target)).items() if not name.startswith(b".peer")} == {
            name: node.data for name, node in files.items()
        }


def test_one_listing_and_many_files_in_flight_with_few_sends(target: Path) -> None:
    files = {b"%04d" % number: Node(b"x" * 100) for number in range(1000)}
    server = Server(files, most_handles=400)
    stage_from(server, target)
    assert server.listings == 1
    assert 200 < server.peak <= 401
    assert server.sends < 600


def test_without_the_limits_extension_reads_are_32_kib_and_handles_16(target: Path) -> None:
    server = Server({b"%d" % number: Node(b"x" * 100_000) for number in range(40)}, most_handles=None)
    stage_from(server, target)
    assert max(length for _, _, length in server.asked) == 32768
    assert server.peak <= 17


def test_never_more_than_24_mib_are_in_flight(target: Path) -> None:
    class Counting(Server):
        """Counts what was asked for and not received yet."""

        in_flight = peak_in_flight = 0

        def read(self, number: int, handle: bytes, rest: bytes) -> list[bytes]:
            self.in_flight += self.read_bytes
            self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
            return super().read(number, handle, rest)

        def receive(self) -> Any:
            chunk = super().receive()
            if len(chunk) > 1000:
                self.in_flight -= self.read_bytes
            return chunk

    server = Counting({b"big": Node(bytes(64 << 20))}, read_bytes=261120)
    stage_from(server, target)
    assert LOCAL // 2 < server.peak_in_flight <= CEILING + 261120


def test_opens_that_are_refused_while_others_are_open_are_tried_again(target: Path) -> None:
    class FewDescriptors(Server):
        """Says that it has many handles, and fails beyond ten."""

        def open(self, number: int, path: bytes, rest: bytes) -> list[bytes]:
            if len(self.handles) > 10:
                return self.status(number, wire.FX_FAILURE)
            return super().open(number, path, rest)

    files = {b"%03d" % number: Node(b"x" * number) for number in range(300)}
    assert stage_from(FewDescriptors(files), target).count == 300
    assert landed(target) == {name: node.data for name, node in files.items()}


def test_a_file_that_never_opens_fails_alone(target: Path) -> None:
    class Stubborn(Server):
        """One file is never opened."""

        def open(self, number: int, path: bytes, rest: bytes) -> list[bytes]:
            return self.status(number, wire.FX_FAILURE) if path == b"/c/bad" else super().open(number, path, rest)

    with pytest.raises(IncompleteStage, match="bad: It could not be opened") as caught:
        stage_from(Stubborn({b"bad": Node(b"b"), **{b"%d" % n: Node(b"g") for n in range(50)}}), target)
    assert len(landed(target)) == 50
    assert caught.value.report is not None
    assert [one.reason for one in caught.value.report.failed] == [Reason.ENTRY_UNREADABLE]


def test_links_are_followed_and_what_they_lead_to_is_judged(target: Path) -> None:
    link = stat.S_IFLNK | 0o777
    files = {
        b"to-file": Node(mode=link, leads_to=Node(b"content")),
        b"dangling": Node(mode=link),
        b"to-directory": Node(mode=link, leads_to=Node(mode=stat.S_IFDIR | 0o755)),
    }
    with pytest.raises(IncompleteStage) as caught:
        stage_from(Server(files), target)
    assert caught.value.report is not None
    assert {one.name: one.reason for one in caught.value.report.refused} == {
        "dangling": Reason.VANISHED,
        "to-directory": Reason.NOT_A_FILE,
    }
    assert landed(target) == {b"to-file": b"content"}


def test_the_window_follows_the_line_up_and_down() -> None:
    now = [100.0]
    window = Window(Limits(), clock=lambda: now[0])

    def keep_asking(size: int, times: int, *, round_trip: float = 0.05) -> None:
        """Have five requests of *size* in flight, always, for so many answers."""
        asked: deque[Mark] = deque()
        for _ in range(times):
            if len(asked) == 5:
                window.arrived(size, asked.popleft())
            asked.append(window.mark())
            now[0] += round_trip / 5

    keep_asking(2 << 20, 100)
    assert window.size > 15 << 20
    keep_asking(1 << 18, 100)
    assert window.size == LOCAL
    keep_asking(1 << 17, 20, round_trip=40)
    assert window.size == pytest.approx((1 << 17) * 5 / 40 * 15, abs=20_000)

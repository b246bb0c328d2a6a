"""The pipelined download from odd servers that keep to the protocol: every byte is equal, or the entry fails."""

from __future__ import annotations

import random
import stat
import tempfile
from collections import deque
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from peerstage.errors import ConnectionLost, IncompleteStage
from peerstage.reasons import Reason
from peerstage.records import Limits
from peerstage.stage_options import StageOptions
from peerstage.target import DirectoryTarget
from peerstage.target.received_data import SAMPLE_BYTES
from peerstage.testing.contract import files_in
from peerstage.transport.sftp import wire
from peerstage.transport.sftp.window import LOCAL_WINDOW, SendMark, Window
from support.examples import examples
from support.sftp_server import (
    DropsConnectionAfter,
    ErraticServer,
    FakeSFTPServer,
    Node,
    ReorderingServer,
    stage_from,
    transport_to,
)

sizes = st.one_of(st.integers(0, 300), st.sampled_from([4095, 4096, 4097, 8192, 12289]), st.integers(0, 40_000))
directories = st.dictionaries(
    st.binary(min_size=1, max_size=20).filter(lambda name: not name.startswith(b".") and not set(name) & set(b"/\0")),
    sizes,
    min_size=1,
    max_size=25,
)


@examples(40, suppress_health_check=list(HealthCheck))
@given(
    directory=directories,
    seed=st.integers(0, 2**32),
    reorders=st.booleans(),
    shortens=st.booleans(),
    splits=st.booleans(),
    handles=st.sampled_from([None, 1, 2, 5, 100]),
)
def test_reordered_short_and_split_replies_make_the_same_files(
    directory: dict[bytes, int], seed: int, reorders: bool, shortens: bool, splits: bool, handles: int | None
) -> None:
    rng = random.Random(seed)
    files = {name: Node(rng.randbytes(size)) for name, size in directory.items()}
    server = ErraticServer(files, max_handles=handles)
    server.random, server.reorders, server.shortens, server.splits = rng, reorders, shortens, splits
    with tempfile.TemporaryDirectory() as target:
        report = stage_from(server, Path(target))
        assert files_in(Path(target)) == {name: node.data for name, node in files.items()}
    assert report.count == len(files)
    assert server.handles == {}
    assert server.peak_handles <= (handles or 16)


@examples(25, suppress_health_check=list(HealthCheck))
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
    handles=st.sampled_from([None, 1, 100]),
    max_read_length=st.sampled_from([1 << 15, 261_120, 1 << 18, 1 << 32]),
)
def test_files_of_about_a_multiple_of_the_read_length_arrive_in_any_order_of_replies(
    directory: dict[bytes, int], seed: int, shortens: bool, handles: int | None, max_read_length: int
) -> None:
    rng = random.Random(seed)
    files = {name: Node(rng.randbytes(size)) for name, size in directory.items()}
    server = ReorderingServer(files, max_handles=handles, max_read_length=max_read_length)
    server.random, server.shortens = rng, shortens
    with tempfile.TemporaryDirectory() as target:
        assert stage_from(server, Path(target)).count == len(files)
        assert files_in(Path(target)) == {name: node.data for name, node in files.items()}
    assert server.handles == {}


@examples(40, suppress_health_check=list(HealthCheck))
@given(directory=directories, seed=st.integers(0, 2**32), data=st.data())
def test_a_failed_or_truncated_read_fails_its_file_alone(
    directory: dict[bytes, int], seed: int, data: st.DataObject
) -> None:
    rng = random.Random(seed)
    files = {name: Node(rng.randbytes(size)) for name, size in directory.items()}
    kinds = {name: data.draw(st.sampled_from(["good", "fails", "ends", "empty"])) for name in files}

    class Faulty(ErraticServer):
        """Fails, ends or sends empty data in the middle of some files."""

        def data(self, request_id: int, node: Node, offset: int, length: int) -> list[bytes]:
            kind = next(kinds[name] for name, file in files.items() if file is node)
            if kind != "good" and offset + length > node.size // 2:
                if kind == "empty":
                    return [wire.pack_request(wire.FXP_DATA, request_id, b"\0\0\0\0")]
                return self.status(request_id, wire.FX_FAILURE if kind == "fails" else wire.FX_EOF)
            return super().data(request_id, node, offset, length)

    server = Faulty(files, max_handles=3)
    server.random = rng
    good = {name: node.data for name, node in files.items() if kinds[name] == "good" or not node.data}
    with tempfile.TemporaryDirectory() as target:
        try:
            report = stage_from(server, Path(target))
        except IncompleteStage as exc:
            assert exc.report is not None
            report = exc.report
        assert files_in(Path(target)) == good
    assert report.count == len(good)
    assert not [node for node in server.handles.values() if node != "directory"], "every handle is closed"


@examples(25, suppress_health_check=list(HealthCheck))
@given(directory=directories, seed=st.integers(0, 2**32), losses=st.lists(st.integers(0, 60_000), max_size=4))
def test_after_a_lost_connection_only_missing_ranges_and_a_few_samples_are_requested(
    directory: dict[bytes, int], seed: int, losses: list[int]
) -> None:
    rng = random.Random(seed)
    files = {name: Node(rng.randbytes(size)) for name, size in directory.items()}
    with (
        tempfile.TemporaryDirectory() as target,
        DirectoryTarget(target, options=StageOptions(durable=False)) as staging_target,
    ):
        for bytes_left in losses:
            server = DropsConnectionAfter(files)
            server.bytes_left = bytes_left
            try:
                transport_to(server).pull(b"/c", staging_target)
            except ConnectionLost:
                continue
        received = staging_target.received_bytes
        begun = sum(not slot.is_finished for slot in staging_target._files.values())
        last = FakeSFTPServer(files)
        transport_to(last).pull(b"/c", staging_target)
        requested = sum(length for _, _, length in last.reads)
        assert requested == sum(node.size for node in files.values()) - staging_target.resumed_bytes
        assert 0 <= received - staging_target.resumed_bytes <= 8 * SAMPLE_BYTES * begun
        staging_target.commit()
        assert {name: data for name, data in files_in(Path(target)).items() if not name.startswith(b".peer")} == {
            name: node.data for name, node in files.items()
        }


def test_many_files_are_in_flight_with_two_listings_and_few_sends(target: Path) -> None:
    files = {b"%04d" % number: Node(b"x" * 100) for number in range(1000)}
    server = FakeSFTPServer(files, max_handles=400)
    stage_from(server, target)
    assert server.listings == 2
    assert 200 < server.peak_handles <= 401
    assert server.sends < 600


def test_without_the_limits_extension_reads_are_32_kib_and_handles_16(target: Path) -> None:
    server = FakeSFTPServer({b"%d" % number: Node(b"x" * 100_000) for number in range(40)}, max_handles=None)
    stage_from(server, target)
    assert max(length for _, _, length in server.reads) == 32768
    assert server.peak_handles <= 17


def test_at_most_24_mib_are_in_flight(target: Path) -> None:
    class Counting(FakeSFTPServer):
        """Counts the bytes that were requested and not received yet."""

        in_flight = peak_in_flight = 0

        def read(self, request_id: int, handle: bytes, rest: bytes) -> list[bytes]:
            self.in_flight += self.max_read_length
            self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
            return super().read(request_id, handle, rest)

        def receive(self) -> Any:
            chunk = super().receive()
            if len(chunk) > 1000:
                self.in_flight -= self.max_read_length
            return chunk

    server = Counting({b"big": Node(bytes(64 << 20))}, max_read_length=261120)
    stage_from(server, target)
    assert LOCAL_WINDOW // 2 < server.peak_in_flight <= Limits().in_flight_bytes + 261120


def test_an_open_that_fails_while_other_files_are_open_is_retried(target: Path) -> None:
    class FewDescriptors(FakeSFTPServer):
        """Reports many handles, and fails beyond ten."""

        def open(self, request_id: int, path: bytes, rest: bytes) -> list[bytes]:
            if len(self.handles) > 10:
                return self.status(request_id, wire.FX_FAILURE)
            return super().open(request_id, path, rest)

    files = {b"%03d" % number: Node(b"x" * number) for number in range(300)}
    assert stage_from(FewDescriptors(files), target).count == 300
    assert files_in(target) == {name: node.data for name, node in files.items()}


def test_a_file_that_never_opens_fails_alone(target: Path) -> None:
    class NeverOpensOne(FakeSFTPServer):
        """Never opens one file."""

        def open(self, request_id: int, path: bytes, rest: bytes) -> list[bytes]:
            return (
                self.status(request_id, wire.FX_FAILURE) if path == b"/c/bad" else super().open(request_id, path, rest)
            )

    with pytest.raises(IncompleteStage, match="bad: It could not be opened") as caught:
        stage_from(NeverOpensOne({b"bad": Node(b"b"), **{b"%d" % n: Node(b"g") for n in range(50)}}), target)
    assert len(files_in(target)) == 50
    assert caught.value.report is not None
    assert [file.reason for file in caught.value.report.failed] == [Reason.ENTRY_UNREADABLE]


def test_symlinks_are_followed_and_their_targets_are_classified(target: Path) -> None:
    link = stat.S_IFLNK | 0o777
    files = {
        b"to-file": Node(mode=link, leads_to=Node(b"content")),
        b"dangling": Node(mode=link),
        b"to-directory": Node(mode=link, leads_to=Node(mode=stat.S_IFDIR | 0o755)),
    }
    with pytest.raises(IncompleteStage) as caught:
        stage_from(FakeSFTPServer(files), target)
    assert caught.value.report is not None
    assert {file.name: file.reason for file in caught.value.report.refused} == {
        "dangling": Reason.VANISHED,
        "to-directory": Reason.NOT_A_FILE,
    }
    assert files_in(target) == {b"to-file": b"content"}


@pytest.mark.parametrize("max_bytes", [64 << 10, 1 << 20, 100 << 20])
def test_the_window_of_a_long_line_ends_at_its_limit(max_bytes: int) -> None:
    now = [100.0]
    window = Window(Limits(in_flight_bytes=max_bytes), clock=lambda: now[0])
    sizes = [window.size]
    for _ in range(100):
        sent = window.mark_send()
        now[0] += 0.5
        window.record_reply(1 << 30, sent)
        sizes.append(window.size)
    assert max(sizes) == max_bytes


def test_the_window_follows_the_line_up_and_down() -> None:
    now = [100.0]
    window = Window(Limits(), clock=lambda: now[0])

    def exchange(size: int, replies: int, *, round_trip: float = 0.05) -> None:
        """Keep five requests of *size* bytes in flight."""
        sent: deque[SendMark] = deque()
        for _ in range(replies):
            if len(sent) == 5:
                window.record_reply(size, sent.popleft())
            sent.append(window.mark_send())
            now[0] += round_trip / 5

    exchange(2 << 20, 100)
    assert window.size > 15 << 20
    exchange(1 << 18, 100)
    assert window.size == LOCAL_WINDOW
    exchange(1 << 17, 20, round_trip=40)
    assert window.size == pytest.approx((1 << 17) * 5 / 40 * 15, abs=20_000)

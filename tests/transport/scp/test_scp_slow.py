"""How long an ``scp`` on a peer may take: by the bytes that are kept, not by the sizes that it promises."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from peerstage.errors import ConnectionLost, IncompleteStage, LimitExceeded
from peerstage.records import Capabilities, Limits, StageReport
from peerstage.session.stream import Chunk
from peerstage.session.watchdog import Watchdog
from peerstage.staging import stage
from peerstage.testing.contract import landed
from peerstage.transport.base import Transport
from peerstage.transport.retry import Retry, Retrying
from peerstage.transport.scp.transport import SCPTransport
from support.scp_server import COLLECT, Says, Shell, file, transport_to

pytestmark = pytest.mark.usefixtures("leaves_nothing")


class HardlyAnyGrace(Limits):
    """Grants half a second in the place of ten minutes."""

    grace = 0.5


class SaysSlowly(Says):
    """Pauses before each chunk, and notices when the connection is ended.

    Attributes:
        pause: Seconds.
    """

    pause = 0.01

    def __init__(self, watchdog: Watchdog, chunks: Iterable[bytes]) -> None:
        super().__init__(chunks)
        self._watchdog = watchdog

    def receive(self) -> Chunk:
        self._watchdog.begin_wait()
        time.sleep(self.pause)
        self._watchdog.end_wait()
        self._watchdog.check()
        return super().receive()


def stage_slowly(chunks: Iterable[bytes], target: Path, limits: Limits) -> StageReport:
    watchdog = Watchdog(limits)
    shell = Shell(lambda command: SaysSlowly(watchdog, chunks))
    transport = SCPTransport(shell, limits, watchdog)  # type: ignore[arg-type]
    stack = Retrying(lambda: transport, Capabilities("scp"), Retry(tries=1), watchdog)
    try:
        return stage(stack, COLLECT, str(target), peer="peer", durable=False)
    finally:
        watchdog.close()


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize(
    "record",
    [b"C0644 9000000000000000000 odd\\^Jname\n", b"C0644 1000000 name\n"],
    ids=["a file that is refused and may have any size", "a file that is wanted"],
)
def test_a_promise_does_not_prolong_the_run(target: Path, record: bytes) -> None:
    started = time.monotonic()
    with pytest.raises(LimitExceeded, match=r"Limits\.(deadline|min_rate)"):
        stage_slowly(itertools.chain([record], itertools.repeat(b"x", 1000)), target, HardlyAnyGrace())
    assert time.monotonic() - started < 8
    assert landed(target) == {}


@pytest.mark.usefixtures("patience")
def test_bytes_that_are_dropped_do_not_prolong_the_run(target: Path) -> None:
    chunks = itertools.chain([b"C0644 9000000000000000000 odd\\^Jname\n"], itertools.repeat(bytes(65536), 1000))
    with pytest.raises(LimitExceeded, match=r"Limits\.deadline"):
        stage_slowly(chunks, target, HardlyAnyGrace())


@pytest.mark.usefixtures("patience")
def test_a_file_that_comes_at_the_lowest_rate_has_all_the_time_that_it_needs(target: Path) -> None:
    limits = HardlyAnyGrace(min_rate=4000)
    chunks = [b"C0644 20000 name\n", *[bytes(100)] * 200, b"\0"]
    assert stage_slowly(chunks, target, limits).seconds > 2
    assert landed(target) == {b"name": bytes(20_000)}


@pytest.mark.usefixtures("patience")
def test_a_peer_that_is_fast_and_then_drips_is_ended(target: Path) -> None:
    chunks = itertools.chain([b"C0644 9000000 name\n", bytes(8_000_000)], itertools.repeat(b"x", 1000))
    with pytest.raises(LimitExceeded, match=r"Limits\.min_rate"):
        stage_slowly(chunks, target, HardlyAnyGrace())


def test_what_scp_sends_again_is_not_counted_as_resumed(target: Path) -> None:
    sent = [file(b"a", b"a" * 5000), file(b"b", b"b" * 5000), file(b"c", b"c" * 5000)]

    class LosesConnections(Says):
        """Is cut off in the middle."""

        def receive(self) -> Chunk:
            chunk = super().receive()
            if not chunk:
                raise ConnectionLost("It is gone.")
            return chunk

    conversations = iter([sent[:1], sent[:2], sent])

    def connect() -> Transport:
        chunks = next(conversations)
        transport = transport_to(Shell(lambda command: Says(chunks) if len(chunks) == 3 else LosesConnections(chunks)))
        transport.host_key = "SHA256:none"
        return transport

    watchdog = Watchdog(Limits())
    stack = Retrying(connect, Capabilities("scp"), Retry(delay=0.0), watchdog)
    report = stage(stack, COLLECT, str(target), peer="peer", durable=False)
    watchdog.close()
    assert (report.count, report.retries, report.resumed_bytes) == (3, 2, 0)
    assert {file.outcome for file in report.files} == {"staged"}


def test_a_refused_file_does_not_take_the_good_ones_with_it(target: Path) -> None:
    chunks = [file(b"good", b"good"), b"C0644 100000 odd\\^Jname\n", bytes(100_000), b"\0", file(b"more", b"more")]
    with pytest.raises(IncompleteStage):
        stage_slowly(chunks, target, HardlyAnyGrace())
    assert landed(target) == {b"good": b"good", b"more": b"more"}

"""The time limits of an ``scp`` on a peer: they move with the bytes that are kept, not with announced sizes."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from peerstage.errors import ConnectionLost, IncompleteStage, LimitExceeded
from peerstage.records import Capabilities, Limits, StageReport
from peerstage.ssh.stream import Chunk
from peerstage.stage_options import StageOptions
from peerstage.staging import stage
from peerstage.target import DirectoryTarget
from peerstage.testing.contract import files_in
from peerstage.transport.base import Transport
from peerstage.transport.retry import Retry, RetryingTransport
from peerstage.transport.scp.scp_transport import SCPTransport
from peerstage.watchdog import Watchdog
from support.limits import ShortGrace
from support.scp_server import COLLECT, ScriptedCommand, ScriptedSession, pack_file, transport_to

pytestmark = pytest.mark.usefixtures("leaves_nothing")


class SlowScriptedCommand(ScriptedCommand):
    """Pauses before each chunk, and raises when the watchdog has ended the connection."""

    def __init__(self, watchdog: Watchdog, chunks: Iterable[bytes]) -> None:
        super().__init__(chunks)
        self._watchdog = watchdog

    def receive(self) -> Chunk:
        self._watchdog.begin_wait()
        time.sleep(0.01)
        self._watchdog.end_wait()
        self._watchdog.raise_if_failed()
        return super().receive()


def stage_slowly(chunks: Iterable[bytes], target: Path, limits: Limits) -> StageReport:
    watchdog = Watchdog(limits)
    session = ScriptedSession(lambda command: SlowScriptedCommand(watchdog, chunks))
    transport = SCPTransport(session, watchdog)  # type: ignore[arg-type]
    stack = RetryingTransport(lambda: transport, Capabilities("scp"), Retry(tries=1), watchdog)
    try:
        return stage(stack, COLLECT, DirectoryTarget(str(target), peer="peer", options=StageOptions(durable=False)))
    finally:
        watchdog.close()


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize(
    "record",
    [b"C0644 9000000000000000000 odd\\^Jname\n", b"C0644 1000000 name\n"],
    ids=["a refused file of any size", "an accepted file"],
)
def test_an_announced_size_does_not_extend_the_deadline(target: Path, record: bytes) -> None:
    started = time.monotonic()
    with pytest.raises(LimitExceeded, match=r"Limits\.(deadline|min_rate)"):
        stage_slowly(itertools.chain([record], itertools.repeat(b"x", 1000)), target, ShortGrace())
    assert time.monotonic() - started < 8
    assert files_in(target) == {}


@pytest.mark.usefixtures("patience")
def test_dropped_bytes_do_not_extend_the_deadline(target: Path) -> None:
    chunks = itertools.chain([b"C0644 9000000000000000000 odd\\^Jname\n"], itertools.repeat(bytes(65536), 1000))
    with pytest.raises(LimitExceeded, match=r"Limits\.deadline"):
        stage_slowly(chunks, target, ShortGrace())


@pytest.mark.usefixtures("patience")
def test_a_file_at_the_minimum_rate_gets_the_time_it_needs(target: Path) -> None:
    limits = ShortGrace(min_rate=4000)
    chunks = [b"C0644 20000 name\n", *[bytes(100)] * 200, b"\0"]
    assert stage_slowly(chunks, target, limits).seconds > 2
    assert files_in(target) == {b"name": bytes(20_000)}


@pytest.mark.usefixtures("patience")
def test_a_peer_that_is_fast_at_first_and_then_drips_is_too_slow(target: Path) -> None:
    chunks = itertools.chain([b"C0644 9000000 name\n", bytes(8_000_000)], itertools.repeat(b"x", 1000))
    with pytest.raises(LimitExceeded, match=r"Limits\.min_rate"):
        stage_slowly(chunks, target, ShortGrace())


def test_bytes_that_scp_sends_again_do_not_count_as_resumed(target: Path) -> None:
    sent = [pack_file(b"a", b"a" * 5000), pack_file(b"b", b"b" * 5000), pack_file(b"c", b"c" * 5000)]

    class LosesConnections(ScriptedCommand):
        """Loses the connection at the end of its chunks."""

        def receive(self) -> Chunk:
            chunk = super().receive()
            if not chunk:
                raise ConnectionLost("The connection was lost.")
            return chunk

    conversations = iter([sent[:1], sent[:2], sent])

    def connect() -> Transport:
        chunks = next(conversations)
        transport = transport_to(
            ScriptedSession(lambda command: ScriptedCommand(chunks) if len(chunks) == 3 else LosesConnections(chunks))
        )
        transport.host_key = "SHA256:none"
        return transport

    watchdog = Watchdog(Limits())
    stack = RetryingTransport(connect, Capabilities("scp"), Retry(delay=0.0), watchdog)
    report = stage(stack, COLLECT, DirectoryTarget(str(target), peer="peer", options=StageOptions(durable=False)))
    watchdog.close()
    assert (report.count, report.retries, report.resumed_bytes) == (3, 2, 0)
    assert {file.outcome for file in report.files} == {"staged"}


def test_a_refused_file_fails_alone(target: Path) -> None:
    chunks = [
        pack_file(b"good", b"good"),
        b"C0644 100000 odd\\^Jname\n",
        bytes(100_000),
        b"\0",
        pack_file(b"more", b"more"),
    ]
    with pytest.raises(IncompleteStage):
        stage_slowly(chunks, target, ShortGrace())
    assert files_in(target) == {b"good": b"good", b"more": b"more"}

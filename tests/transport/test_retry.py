"""Lost connections: what is retried, how often, and what is final."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from peerstage.errors import Cancelled, ConnectError, ConnectionLost, LimitExceeded, StageError
from peerstage.reasons import Reason
from peerstage.records import Limits
from peerstage.stage_options import StageOptions
from peerstage.target import DirectoryTarget
from peerstage.target.base import Buffer, Target
from peerstage.testing.contract import files_in
from peerstage.testing.memory import MemoryFile, MemoryTransport
from peerstage.transport.base import Transport
from peerstage.transport.retry import Retry, RetryingTransport
from peerstage.watchdog import Watchdog
from support.limits import ShortGrace

pytestmark = pytest.mark.usefixtures("leaves_nothing")
#: Each takes several connections, which also fetch samples again.
FILES = {name: MemoryFile(name * 100_000, mtime=1) for name in (b"a", b"b", b"c")}


class Loses(MemoryTransport):
    """Loses each connection after the given number of bytes."""

    host_key = "SHA256:none"

    def __init__(self, files: dict[bytes, MemoryFile], after: int, piece: int = 1000) -> None:
        super().__init__({b"/c": files}, chunk_size=piece, before_write=self._cut)
        self._after = after

    def _cut(self, written: int) -> None:
        if written >= self._after:
            raise ConnectionLost("It is gone.")


class Rig:
    """A `RetryingTransport` over transports of one kind.

    Attributes:
        opened: Number of connections.
    """

    def __init__(self, connect: Callable[[], Transport], limits: Limits, **retry: float) -> None:
        self.opened = 0
        self.watchdog = Watchdog(limits)
        self._connect = connect
        how = Retry(**{"delay": 0.0, **retry})  # type: ignore[arg-type]
        self.stack = RetryingTransport(self._open, MemoryTransport.capabilities, how, self.watchdog)

    def _open(self) -> Transport:
        self.opened += 1
        self.watchdog.reset()
        return self._connect()

    def pull(self, staging_target: Target) -> None:
        try:
            self.stack.pull(b"/c", staging_target)
        finally:
            self.stack.close()
            self.watchdog.close()


@pytest.fixture
def staging_target(target: Path) -> Iterator[DirectoryTarget]:
    with DirectoryTarget(str(target), options=StageOptions(durable=False)) as staging_target:
        yield staging_target


def test_progress_restarts_the_count_of_tries(staging_target: DirectoryTarget, target: Path) -> None:
    rig = Rig(lambda: Loses(FILES, after=40_000), Limits(), tries=2)
    rig.pull(staging_target)
    staging_target.commit()
    assert {name: data for name, data in files_in(target).items() if not name.startswith(b".")} == {
        name: file.data for name, file in FILES.items()
    }
    assert rig.stack.retries == rig.opened - 1 >= 7


def test_without_progress_the_tries_are_limited(staging_target: DirectoryTarget) -> None:
    rig = Rig(lambda: Loses(FILES, after=0), Limits(), tries=3)
    with pytest.raises(ConnectionLost):
        rig.pull(staging_target)
    assert rig.opened == 3


def test_repeated_bytes_are_no_progress(staging_target: DirectoryTarget) -> None:
    restarts = {b"a": MemoryFile(b"a" * 5000, mtime=None)}  # type: ignore[arg-type]
    rig = Rig(lambda: Loses(restarts, after=3000), Limits(), tries=3)
    with pytest.raises(ConnectionLost):
        rig.pull(staging_target)
    assert rig.opened == 3


def test_one_try_means_no_retry_even_after_progress(staging_target: DirectoryTarget) -> None:
    rig = Rig(lambda: Loses(FILES, after=40_000), Limits(), tries=1)
    with pytest.raises(ConnectionLost):
        rig.pull(staging_target)
    assert rig.opened == 1


def test_progress_over_each_connection_does_not_postpone_the_deadline(staging_target: DirectoryTarget) -> None:
    endless = {b"a": MemoryFile(bytes(1 << 24), mtime=1)}

    def connect() -> Transport:
        time.sleep(0.01)
        return Loses(endless, after=20_000)

    rig = Rig(connect, ShortGrace(stall_timeout=0.2, min_rate=1 << 30))
    started = time.monotonic()
    with pytest.raises(LimitExceeded, match=r"Limits\.deadline"):
        rig.pull(staging_target)
    assert time.monotonic() - started < 10
    assert rig.opened > 3


@pytest.mark.parametrize("cause", ["deadline", "cancel"])
def test_a_deadline_or_cancellation_during_a_reconnect_is_final(staging_target: DirectoryTarget, cause: str) -> None:
    def connect() -> Transport:
        if rig.opened == 1:
            return Loses(FILES, after=1000)
        if cause == "cancel":
            rig.watchdog.cancel()
        with rig.watchdog.phase("complete the login", 60):
            until = time.monotonic() + 10
            while time.monotonic() < until:
                rig.watchdog.raise_if_failed()
                time.sleep(0.01)
        raise AssertionError("The watchdog did not end the login.")

    rig = Rig(connect, Limits(deadline=0.1), tries=5)
    expected: type[StageError] = Cancelled if cause == "cancel" else LimitExceeded
    with pytest.raises(expected) as raised:
        rig.pull(staging_target)
    assert not raised.value.transient
    assert rig.opened == 2


def test_a_login_timeout_is_retried_after_the_first_login(staging_target: DirectoryTarget) -> None:
    def connect() -> Transport:
        if rig.opened == 2:
            with rig.watchdog.phase("complete the login", 0.05):
                until = time.monotonic() + 10
                while time.monotonic() < until:
                    rig.watchdog.raise_if_failed()
                    time.sleep(0.01)
        return Loses(FILES, after=280_000)

    rig = Rig(connect, Limits(login_timeout=0.05), tries=3)
    rig.pull(staging_target)
    assert rig.opened == 3


def test_a_limit_that_one_connection_exceeded_does_not_end_the_next(
    staging_target: DirectoryTarget,
) -> None:
    """As where ssh_config has a ``Match exec``, which the watchdog ends, too."""

    def connect() -> Transport:
        return Loses(FILES, after=280_000)

    rig = Rig(connect, Limits(), tries=3)
    rig.watchdog.failure = LimitExceeded("Nothing useful came.", transient=True, reason=Reason.STALLED)
    begun: list[None] = []
    open_transport = rig._open

    def open_after_match_exec() -> Transport:
        rig.watchdog.raise_if_failed()
        begun.append(None)
        return open_transport()

    rig.stack._connect = open_after_match_exec
    rig.pull(staging_target)
    assert len(begun) == rig.opened == 2


def test_a_timeout_of_the_first_login_is_not_retried(staging_target: DirectoryTarget) -> None:
    def connect() -> Transport:
        with rig.watchdog.phase("complete the login", 0.05):
            until = time.monotonic() + 10
            while time.monotonic() < until:
                rig.watchdog.raise_if_failed()
                time.sleep(0.01)
        raise AssertionError("The watchdog did not end the login.")

    rig = Rig(connect, Limits(login_timeout=0.05), tries=3)
    with pytest.raises(LimitExceeded, match="complete the login"):
        rig.pull(staging_target)
    assert rig.opened == 1


@pytest.mark.parametrize(
    ("retry", "seconds"),
    [
        (Retry(), 30.0),
        (Retry(factor=2), 30.0),
        (Retry(factor=1e300), 30.0),
        (Retry(delay=0.0), 0.0),
        (Retry(factor=0.5), 0.0),
        (Retry(factor=1.0, delay=7.0), 7.0),
    ],
)
def test_pauses_are_bounded_for_any_number_of_tries(retry: Retry, seconds: float) -> None:
    assert retry.pause(1) == min(retry.delay, retry.max_delay)
    assert retry.pause(10**9) == pytest.approx(seconds)


@pytest.mark.parametrize(("jitter", "shortest"), [(0.25, 6.0), (1.0, 0.0), (1, 0.0)])
def test_jitter_shortens_pauses_at_random_and_never_prolongs_them(jitter: float, shortest: float) -> None:
    retry = Retry(delay=8.0, jitter=jitter)
    pauses = {retry.pause(1) for _ in range(200)}
    assert all(shortest <= pause <= 8.0 for pause in pauses)
    assert len(pauses) > 100, "peers that lost their connections together would come back together"


@pytest.mark.parametrize("jitter", [-0.1, 1.1, float("nan"), True, "0.5", None])
def test_jitter_is_a_share(jitter: object) -> None:
    with pytest.raises(ValueError, match=r"jitter must be a number from 0 to 1"):
        Retry(jitter=jitter)  # type: ignore[arg-type]


class LosesCommand(MemoryTransport):
    """Loses the connection when a command has been sent."""

    host_key = "SHA256:none"

    def execute(self, command: bytes, on_output: Callable[[Buffer], object]) -> int | None:
        raise ConnectionLost("It is gone.")


def test_no_advice_to_repeat_a_command_that_may_have_run() -> None:
    connections: list[Callable[[], Transport]] = [refuse_connection, lambda: LosesCommand({})]
    with contextlib.closing(Watchdog(Limits())) as watchdog:
        retry = Retry(connect=2, delay=0.0)
        stack = RetryingTransport(lambda: connections.pop(0)(), MemoryTransport.capabilities, retry, watchdog)
        with pytest.raises(ConnectionLost) as caught:
            stack.execute(b"true", lambda output: None)
    assert not connections
    assert caught.value.message == "It is gone."


def refuse_connection() -> Transport:
    raise ConnectError("It refuses the connection.", reason=Reason.CONNECTION_REFUSED)

"""Lost connections: what is tried again, how often, and what is final."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from peerstage.errors import Cancelled, ConnectionLost, LimitExceeded, StageError
from peerstage.landing import DirectoryLanding
from peerstage.landing.base import Landing
from peerstage.reasons import Reason
from peerstage.records import Limits
from peerstage.session.watchdog import Watchdog
from peerstage.testing.contract import landed
from peerstage.testing.memory import MemoryFile, MemoryTransport
from peerstage.transport.base import Transport
from peerstage.transport.retry import Retry, Retrying

pytestmark = pytest.mark.usefixtures("leaves_nothing")
#: Each takes several connections, which spend a part of what they bring on blocks to compare.
FILES = {name: MemoryFile(name * 100_000, mtime=1) for name in (b"a", b"b", b"c")}


class HardlyAnyGrace(Limits):
    """Grants half a second in the place of ten minutes."""

    grace = 0.5


class Loses(MemoryTransport):
    """Is cut off after so many bytes over each connection."""

    host_key = "SHA256:none"

    def __init__(self, files: dict[bytes, MemoryFile], after: int, piece: int = 1000) -> None:
        super().__init__({b"/c": files}, piece=piece, before_piece=self._cut)
        self._after = after

    def _cut(self, written: int) -> None:
        if written >= self._after:
            raise ConnectionLost("It is gone.")


class Rig:
    """A `Retrying` over transports of one kind.

    Attributes:
        opened: How many connections were made.
    """

    def __init__(self, connect: Callable[[], Transport], limits: Limits, **retry: float) -> None:
        self.opened = 0
        self.watchdog = Watchdog(limits)
        self._connect = connect
        how = Retry(**{"delay": 0.0, **retry})  # type: ignore[arg-type]
        self.stack = Retrying(self._open, MemoryTransport.capabilities, how, self.watchdog)

    def _open(self) -> Transport:
        self.opened += 1
        self.watchdog.renew()
        return self._connect()

    def pull(self, landing: Landing) -> None:
        try:
            self.stack.pull(b"/c", landing)
        finally:
            self.stack.close()
            self.watchdog.close()


@pytest.fixture
def landing(target: Path) -> Iterator[DirectoryLanding]:
    with DirectoryLanding(str(target), durable=False) as one:
        yield one


def test_tries_count_from_the_beginning_again_after_progress(landing: DirectoryLanding, target: Path) -> None:
    rig = Rig(lambda: Loses(FILES, after=40_000), Limits(), tries=2)
    rig.pull(landing)
    landing.commit()
    assert {name: data for name, data in landed(target).items() if not name.startswith(b".")} == {
        name: file.data for name, file in FILES.items()
    }
    assert rig.stack.retries == rig.opened - 1 >= 7


def test_without_progress_the_tries_are_few(landing: DirectoryLanding) -> None:
    rig = Rig(lambda: Loses(FILES, after=0), Limits(), tries=3)
    with pytest.raises(ConnectionLost):
        rig.pull(landing)
    assert rig.opened == 3


def test_bytes_that_come_again_are_no_progress(landing: DirectoryLanding) -> None:
    restarts = {b"a": MemoryFile(b"a" * 5000, mtime=None)}  # type: ignore[arg-type]
    rig = Rig(lambda: Loses(restarts, after=3000), Limits(), tries=3)
    with pytest.raises(ConnectionLost):
        rig.pull(landing)
    assert rig.opened == 3


def test_no_retry_means_no_retry_after_progress_either(landing: DirectoryLanding) -> None:
    rig = Rig(lambda: Loses(FILES, after=40_000), Limits(), tries=1)
    with pytest.raises(ConnectionLost):
        rig.pull(landing)
    assert rig.opened == 1


def test_progress_over_each_connection_does_not_put_the_deadline_off(landing: DirectoryLanding) -> None:
    endless = {b"a": MemoryFile(bytes(1 << 24), mtime=1)}

    def connect() -> Transport:
        time.sleep(0.01)
        return Loses(endless, after=20_000)

    rig = Rig(connect, HardlyAnyGrace(stall_timeout=0.2, min_rate=1 << 30))
    started = time.monotonic()
    with pytest.raises(LimitExceeded, match=r"Limits\.deadline"):
        rig.pull(landing)
    assert time.monotonic() - started < 10
    assert rig.opened > 3


@pytest.mark.parametrize("cause", ["deadline", "cancel"])
def test_what_ends_the_run_during_another_login_is_final(landing: DirectoryLanding, cause: str) -> None:
    def connect() -> Transport:
        if rig.opened == 1:
            return Loses(FILES, after=1000)
        if cause == "cancel":
            rig.watchdog.cancel()
        with rig.watchdog.phase("complete the login", 60):
            until = time.monotonic() + 10
            while time.monotonic() < until:
                rig.watchdog.check()
                time.sleep(0.01)
        raise AssertionError("Nobody ended the login.")

    rig = Rig(connect, Limits(deadline=0.3), tries=5)
    expected: type[StageError] = Cancelled if cause == "cancel" else LimitExceeded
    with pytest.raises(expected) as caught:
        rig.pull(landing)
    assert not caught.value.transient
    assert rig.opened == 2


def test_a_login_that_takes_too_long_is_tried_again_if_it_is_not_the_first(landing: DirectoryLanding) -> None:
    def connect() -> Transport:
        if rig.opened == 2:
            with rig.watchdog.phase("complete the login", 0.05):
                until = time.monotonic() + 10
                while time.monotonic() < until:
                    rig.watchdog.check()
                    time.sleep(0.01)
        return Loses(FILES, after=280_000)

    rig = Rig(connect, Limits(login_timeout=0.05), tries=3)
    rig.pull(landing)
    assert rig.opened == 3


def test_a_limit_that_one_connection_has_passed_does_not_end_the_next_before_it_begins(
    landing: DirectoryLanding,
) -> None:
    """As where ssh_config has a ``Match exec``, which the watchdog ends, too."""

    def connect() -> Transport:
        return Loses(FILES, after=280_000)

    rig = Rig(connect, Limits(), tries=3)
    rig.watchdog.failure = LimitExceeded("Nothing useful came.", transient=True, reason=Reason.STALLED)
    begun: list[None] = []
    open_transport = rig._open

    def open_after_match_exec() -> Transport:
        rig.watchdog.check()
        begun.append(None)
        return open_transport()

    rig.stack._open_transport = open_after_match_exec
    rig.pull(landing)
    assert len(begun) == rig.opened == 2


def test_a_first_login_that_takes_too_long_is_not_tried_again(landing: DirectoryLanding) -> None:
    def connect() -> Transport:
        with rig.watchdog.phase("complete the login", 0.05):
            until = time.monotonic() + 10
            while time.monotonic() < until:
                rig.watchdog.check()
                time.sleep(0.01)
        raise AssertionError("Nobody ended the login.")

    rig = Rig(connect, Limits(login_timeout=0.05), tries=3)
    with pytest.raises(LimitExceeded, match="complete the login"):
        rig.pull(landing)
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
    assert retry.pause(1) == min(retry.delay, retry.most)
    assert retry.pause(10**9) == pytest.approx(seconds)

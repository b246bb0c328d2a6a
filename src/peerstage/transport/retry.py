"""Retries of a lost connection, which resume the transfer, and of a first connection that fails."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from peerstage.documented import Documented
from peerstage.errors import ConnectError, LimitExceeded, RemoteError, StageError, format_log_line
from peerstage.peer_log import PeerLog
from peerstage.reasons import Reason
from peerstage.records import Capabilities, RemoteFile
from peerstage.target.base import Buffer, Target
from peerstage.transport.base import T, Transport
from peerstage.transport.counting import CountingTarget
from peerstage.watchdog import Watchdog

#: Why a first connection fails while the peer boots or the network comes up.
_TEMPORARY = frozenset(
    {Reason.RESOLVER_TIMEOUT, Reason.CONNECTION_REFUSED, Reason.CONNECT_TIMEOUT, Reason.HOST_UNREACHABLE}
    | {Reason.CLOSED_BEFORE_BANNER, Reason.BANNER_TIMEOUT, Reason.KEY_EXCHANGE_TIMEOUT}
    | {Reason.HOP_CANNOT_CONNECT, Reason.PROXY_COMMAND_FAILED}
)
#: Advice after the last attempt: before the first login, and after it.
_NOT_REACHED = "If the host takes longer to boot, increase Retry(connect=...) or --connect-retries."
_LOST = (
    "Check the network and the log of the peer's sshd, then run this again; Retry(tries=...) or --retries allows more."
)

_random = random.SystemRandom()


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry(metaclass=Documented):
    """How often connections are retried, and with what delays: the first one, and one lost after a login.

    The deadline of an operation covers all its attempts, and `cancel` ends them at once.

    Attributes:
        tries: Attempts at one operation after a login, the first included; 1 means no retry of a lost connection. The
            count restarts after an attempt that made progress, that is, left more bytes than ever on the target.
        connect: Attempts to connect, the first included, for peers that may be booting; 1, the default, means no retry.
            A connection is retried if it is refused, times out, finds no route, is closed before the server has
            identified itself, or if the name cannot be resolved at the moment; also through a jump host or a
            ProxyCommand. A rejected host key, login or configuration is never retried. ConnectionAttempts of
            ssh_config(5) counts within each attempt.
        delay: Seconds before the second attempt.
        factor: Factor of the delay from one attempt to the next.
        max_delay: Maximum delay in seconds.
        jitter: The share of each delay, from 0 to 1, that chance may take away, so that peers which lost their
            connections together do not come back together.
    """

    tries: int = 3
    connect: int = 1
    delay: float = 1.0
    factor: float = 2.0
    max_delay: float = 30.0
    jitter: float = 0.0

    def __post_init__(self) -> None:
        for name in ("tries", "connect"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"Retry: {name} must be an integer of at least 1, not {value!r}.")
        for name in ("delay", "factor", "max_delay"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
                raise ValueError(f"Retry: {name} must be a finite number of at least 0, not {value!r}.")
        if isinstance(self.jitter, bool) or not isinstance(self.jitter, (int, float)) or not 0 <= self.jitter <= 1:
            raise ValueError(f"Retry: jitter must be a number from 0 to 1, not {self.jitter!r}.")

    def pause(self, attempt: int) -> float:
        """Return the seconds to wait after *attempt* (1 is the first) has failed; with `jitter` a random number."""
        try:
            longest = min(self.max_delay, self.delay * float(self.factor) ** (attempt - 1))
        except OverflowError:  # the power is too large for a float
            longest = self.max_delay if self.delay else 0.0
        return longest * (1 - self.jitter * _random.random())


class RetryingTransport(Transport):
    """Connects when it is first used, and again after a transient error.

    The deadline of an operation covers all attempts: once it has passed, or the run is cancelled, nothing is retried.
    Only bytes that are kept extend it, so that a peer cannot prolong a run by sending little and then disconnecting.

    Args:
        connect: Returns a connected transport.
        capabilities: Capabilities of the transports that it returns, as far as known before the first.
        retry: Number of attempts, and delays.
        watchdog: Enforces the deadline of each operation.
        peer: The peer's name, for the log.
    """

    def __init__(
        self,
        connect: Callable[[], Transport],
        capabilities: Capabilities,
        retry: Retry,
        watchdog: Watchdog,
        *,
        peer: str = "",
    ) -> None:
        self._log = PeerLog("peerstage.transport", peer)
        self._expected = capabilities
        self._connect = connect
        self._retry = retry
        self._watchdog = watchdog
        self._transport: Transport | None = None

    @property
    def capabilities(self) -> Capabilities:  # type: ignore[override]
        return self._expected if self._transport is None else self._transport.capabilities

    def close(self) -> None:
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.close()

    def pull(self, directory: bytes, target: Target) -> None:
        counting = CountingTarget(target)

        def progress() -> int:
            return counting.high_water

        with self._watchdog.operation():
            self._watchdog.extend_deadline_by(progress)
            self._run(lambda transport: transport.pull(directory, counting), progress=progress)

    def stat(self, path: bytes) -> RemoteFile | None:
        return self._run(lambda transport: transport.stat(path))

    def touch(self, path: bytes) -> None:
        self._run(lambda transport: transport.touch(path))

    def execute(self, command: bytes, on_output: Callable[[Buffer], object]) -> int | None:
        """See `Transport.execute`. After a login it is attempted only once."""
        return self._run(lambda transport: transport.execute(command, on_output), tries=1)

    def _run(
        self, operation: Callable[[Transport], T], tries: int | None = None, progress: Callable[[], int] = lambda: 0
    ) -> T:
        with self._watchdog.operation():
            attempt, best, total, started = 1, progress(), 0, time.monotonic()
            while True:
                had_logged_in = self._has_logged_in
                total += 1
                try:
                    self._watchdog.raise_if_final()
                    return operation(self._connected_transport())
                except RemoteError:  # the peer has answered, so the connection works
                    raise
                except StageError as exc:
                    self.close()
                    self._watchdog.raise_if_final()
                    if (now := progress()) > best or (self._has_logged_in and not had_logged_in):
                        attempt, best = 1, now
                    attempts = (tries or self._retry.tries) if self._has_logged_in else self._retry.connect
                    if not (exc.transient if self._has_logged_in else exc.reason in _TEMPORARY):
                        raise
                    if attempt >= attempts:
                        if (tries is None) if self._has_logged_in else total > 1:  # a command is never repeated
                            advice = _LOST if self._has_logged_in else _NOT_REACHED
                            exc.message = f"{exc.message} {_describe_attempts(total, started)} {advice}"
                        raise
                    pause = self._retry.pause(attempt)
                    self._log.warning(
                        "%s Attempt %d of %d in %.3g s.", format_log_line(exc), attempt + 1, attempts, pause
                    )
                    self._sleep(pause, exc, total, started)
                    attempt += 1
                    if self._has_logged_in:
                        self.retries += 1
                except BaseException:
                    self.close()
                    raise

    @property
    def _has_logged_in(self) -> bool:
        """Whether there has been a login."""
        return self.host_key is not None

    def _sleep(self, seconds: float, error: StageError, total: int, started: float) -> None:
        """Wait before the next attempt; if the deadline passes, report *error*, of the last attempt, too."""
        try:
            self._watchdog.sleep(seconds)
        except LimitExceeded as exc:
            exc.message = f"{error.message} {_describe_attempts(total, started)} {exc.message}"
            raise

    def _connected_transport(self) -> Transport:
        if self._transport is None:
            self._watchdog.reset()  # a failure of the last connection must not end the next one
            try:
                self._transport = self._connect()
            except StageError as exc:
                if self._has_logged_in and isinstance(exc, ConnectError):  # the peer may be rebooting
                    exc.transient = True
                raise
            self.host_key = self._transport.host_key
        return self._transport


def _describe_attempts(total: int, started: float) -> str:
    return f"{total} attempt{'s' if total > 1 else ''} in {time.monotonic() - started:.0f} s."

"""After a lost connection: connect again, and continue where the work stopped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from peerstage.documented import Documented
from peerstage.errors import ConnectError, RemoteError, StageError, log_line
from peerstage.landing.base import Buffer, Landing
from peerstage.peer_log import PeerLog
from peerstage.records import Capabilities
from peerstage.session.watchdog import Watchdog
from peerstage.transport.base import Transport
from peerstage.transport.counting import CountingLanding
from peerstage.transport.wrapper import T, Wrapper


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry(metaclass=Documented):
    """How often and how patiently a lost connection is made anew, once a login has succeeded.

    Attributes:
        tries: Attempts at one operation, the first included; 1 is no retry. They count from the beginning again after
            an attempt that made progress: more of the files is there than ever before.
        delay: Seconds before the second attempt.
        factor: What the delay is multiplied by from one attempt to the next.
        most: Seconds that a delay is at most.
    """

    tries: int = 3
    delay: float = 1.0
    factor: float = 2.0
    most: float = 30.0

    def __post_init__(self) -> None:
        if isinstance(self.tries, bool) or not isinstance(self.tries, int) or self.tries < 1:
            raise ValueError(f"Retry: tries must be 1 or more, not {self.tries!r}.")
        for name in ("delay", "factor", "most"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
                raise ValueError(f"Retry: {name} must be a finite number, not {value!r}.")

    def pause(self, attempt: int) -> float:
        """Seconds to wait after *attempt* (1 is the first) has failed."""
        try:
            return min(self.most, self.delay * float(self.factor) ** (attempt - 1))
        except OverflowError:  # the factor's power, as a float
            return self.most if self.delay else 0.0


class Retrying(Wrapper):
    """Opens a transport when it is first needed, and another one when a transient error has ended that.

    The deadline of an operation holds for all attempts together: once it has passed, or the run is cancelled, nothing
    is tried again. It moves only with bytes that are kept, so that a peer cannot prolong a run by sending little and
    closing the connection. The first login is never tried again.

    Args:
        open_transport: Connects, and returns a transport.
        capabilities: Those of the transports that it returns, as far as that is known before one is open.
        retry: How often.
        watchdog: Bounds each operation.
        peer: The peer's name, for the log.
    """

    def __init__(
        self,
        open_transport: Callable[[], Transport],
        capabilities: Capabilities,
        retry: Retry,
        watchdog: Watchdog,
        *,
        peer: str = "",
    ) -> None:
        self._log = PeerLog("peerstage.transport", peer)
        self._expected = capabilities
        self._open_transport = open_transport
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

    def pull(self, directory: bytes, landing: Landing) -> None:
        """See `Transport.pull`."""
        counting = CountingLanding(landing)

        def kept() -> int:
            return counting.high_water

        with self._watchdog.operation():
            self._watchdog.count_kept(kept)
            self._attempt(lambda transport: transport.pull(directory, counting), progress=kept)

    def execute(self, command: bytes, said: Callable[[Buffer], object]) -> int | None:
        """See `Transport.execute`: one attempt, whatever the retry says."""
        return self._attempt(lambda transport: transport.execute(command, said), tries=1)

    def _attempt(
        self, operation: Callable[[Transport], T], tries: int | None = None, progress: Callable[[], int] = lambda: 0
    ) -> T:
        tries = tries or self._retry.tries
        with self._watchdog.operation():
            attempt, before = 1, progress()
            while True:
                try:
                    self._watchdog.check_final()
                    return operation(self._connected())
                except RemoteError:  # an answer: the connection is as good as before
                    raise
                except StageError as exc:
                    self.close()
                    self._watchdog.check_final()
                    if (now := progress()) > before:
                        attempt, before = 1, now
                    logged_in = self.host_key is not None
                    if not (logged_in and exc.transient) or attempt >= tries:
                        raise
                    pause = self._retry.pause(attempt)
                    self._log.warning("%s Attempt %d of %d in %g s.", log_line(exc), attempt + 1, tries, pause)
                    self._watchdog.sleep(pause)
                    attempt += 1
                    self.retries += 1
                except BaseException:
                    self.close()
                    raise

    def _connected(self) -> Transport:
        if self._transport is None:
            reconnecting = self.host_key is not None
            try:
                self._transport = self._open_transport()
            except StageError as exc:
                if reconnecting and isinstance(exc, ConnectError):  # the peer may just be coming back
                    exc.transient = True
                raise
            self.host_key = self._transport.host_key
        return self._transport

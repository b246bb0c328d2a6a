"""A lost connection is made anew, and the work goes on where it stopped."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from peerstage.errors import ConnectError, LimitExceeded, RemoteError, StageError, escape
from peerstage.landing.base import Buffer
from peerstage.records import Capabilities
from peerstage.session.watchdog import Watchdog
from peerstage.transport.base import Transport
from peerstage.transport.wrapper import T, Wrapper

log = logging.getLogger("peerstage.transport")

#: What a peer that is just coming back may say to a second login; the first one is not tried again.
_COMES_BACK = (ConnectError, LimitExceeded)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How often and how patiently a lost connection is made anew, once a login has succeeded.

    Attributes:
        tries: Attempts at one operation, the first included; 1 is no retry.
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
        return min(self.most, self.delay * self.factor ** (attempt - 1))


class Retrying(Wrapper):
    """Opens a transport when it is first needed, and another one when a transient error has ended that.

    The deadline of an operation holds for all attempts together. The first login is never tried again.

    Args:
        open_transport: Connects, and returns a transport.
        capabilities: Those of the transports that it returns, as far as that is known before one is open.
        retry: How often.
        watchdog: Bounds each operation.
    """

    def __init__(
        self,
        open_transport: Callable[[], Transport],
        capabilities: Capabilities,
        retry: Retry,
        watchdog: Watchdog,
    ) -> None:
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

    def execute(self, command: bytes, said: Callable[[Buffer], object]) -> int | None:
        """See `Transport.execute`: one attempt, whatever the retry says."""
        return self._attempt(lambda transport: transport.execute(command, said), tries=1)

    def _attempt(self, operation: Callable[[Transport], T], tries: int | None = None) -> T:
        tries = tries or self._retry.tries
        with self._watchdog.operation():
            attempt = 1
            while True:
                try:
                    self._watchdog.check_final()
                    return operation(self._connected())
                except RemoteError:  # an answer: the connection is as good as before
                    raise
                except StageError as exc:
                    self._watchdog.check_final()
                    logged_in = self.host_key is not None
                    if not (logged_in and exc.transient) or attempt >= tries:
                        self.close()
                        raise
                    self.close()
                    pause = self._retry.pause(attempt)
                    log.warning("%s Attempt %d of %d in %g s.", escape(str(exc)), attempt + 1, tries, pause)
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
                if reconnecting and isinstance(exc, _COMES_BACK):
                    exc.transient = True
                raise
            self.host_key = self._transport.host_key
        return self._transport

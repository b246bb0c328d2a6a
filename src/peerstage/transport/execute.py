"""Commands on a peer, on a channel of their own."""

from __future__ import annotations

from collections.abc import Callable

from peerstage.errors import Cancelled, ConnectionLost, LimitExceeded
from peerstage.landing.base import Buffer
from peerstage.records import Limits
from peerstage.session.session import Session
from peerstage.session.watchdog import Watchdog

_GOES_ON = "The command may still be running there."


def execute_over(
    session: Session, command: bytes, said: Callable[[Buffer], object], limits: Limits, watchdog: Watchdog
) -> int | None:
    """Run *command* on a channel of *session*. See `Transport.execute`."""
    session.require_same_process()
    with watchdog.patience(limits.seconds_for_command):
        stream = session.open_command(command, merged=True)
        try:
            stream.end()
            while chunk := stream.receive():
                said(chunk)
            return stream.wait()
        except (ConnectionLost, LimitExceeded, Cancelled) as exc:
            if not exc.message.endswith(_GOES_ON):
                exc.message = f"{exc.message} {_GOES_ON}"
            raise
        finally:
            stream.close()

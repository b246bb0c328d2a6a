"""An SFTP server that a command of the peer starts, with more rights than the login has (``elevate=``)."""

from __future__ import annotations

import os

from peerstage.errors import LimitExceeded, NoSFTP, ProtocolError, RemoteError, escape
from peerstage.reasons import Reason
from peerstage.records import Limits
from peerstage.session.session import Session
from peerstage.session.stream import Stream
from peerstage.session.watchdog import Watchdog
from peerstage.transport.sftp.client import SFTPClient

#: Characters of what the command says that are quoted, the last ones.
_QUOTED = 300
#: Seconds for what it has to say on stderr to come.
_LAST_WORDS = 0.3


def start_elevated(session: Session, command: str, limits: Limits, watchdog: Watchdog) -> SFTPClient:
    """Run *command* on the peer, and return a client of the SFTP server that it becomes.

    Args:
        session: Logged in.
        command: A command line, sent as it is.
        limits: Bounds; the first packet has to come within ``reply_timeout``.
        watchdog: The session's.

    Raises:
        RemoteError: It is refused, ends, or says something else than the first packet of SFTP; its words are quoted.
        LimitExceeded: It did not begin in time, as where it waits for a password; likewise.
        ConnectionLost, Cancelled: The connection ended, or was ended.
    """
    stream = session.open_command(os.fsencode(command))
    client = SFTPClient(stream, limits, watchdog)
    try:
        with watchdog.phase("start an SFTP server by the elevated command", limits.reply_timeout, Reason.REPLY_TIMEOUT):
            client.start()
    except (NoSFTP, ProtocolError) as exc:
        watchdog.sleep(_LAST_WORDS)
        raise RemoteError(
            _explain(command, "did not start an SFTP server", client, stream), reason=Reason.ELEVATION_FAILED
        ) from exc
    except LimitExceeded as exc:  # it is the watchdog's own, which others that wait will raise too
        exc.message = _explain(command, f"started no SFTP server within {limits.reply_timeout:g} s", client, stream)
        exc.transient = False
        exc.reason = Reason.ELEVATION_FAILED
        raise
    return client


def _explain(command: str, how: str, client: SFTPClient, stream: Stream) -> str:
    """Return one line on what came in the place of SFTP, and what to do about it."""
    said = [client.opening, stream.stderr.decode("utf-8", "backslashreplace").strip()]
    words = " and ".join(repr(one[-_QUOTED:]) for one in said if one)
    return (
        f"The elevated command {escape(command)!r} {how}, saying {words or 'nothing'}. It may ask nothing and print "
        "nothing: sudoers needs a line such as 'USER ALL=(root) NOPASSWD: /usr/lib/openssh/sftp-server', and sudo the "
        "option -n."
    )

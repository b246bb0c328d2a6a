"""Start the SFTP server by a command on the peer, with more rights than the login has (``elevate=``)."""

from __future__ import annotations

import os

from peerstage.errors import LimitExceeded, NoSFTP, ProtocolError, RemoteError
from peerstage.printable import escape
from peerstage.reasons import Reason
from peerstage.ssh.session import Session
from peerstage.ssh.stream import Stream
from peerstage.transport.sftp.client import SFTPClient
from peerstage.watchdog import Watchdog

#: Characters to quote from the end of the command's stdout and stderr, each.
_MAX_QUOTED = 300
#: Seconds to wait for the command's stderr, which may arrive after the negotiation has failed.
_STDERR_DELAY = 0.3


def start_elevated(session: Session, command: str, watchdog: Watchdog) -> SFTPClient:
    """Run *command* on the peer, and return a client of the SFTP server that it executes.

    Args:
        session: A session that is logged in.
        command: A command line, sent unchanged.
        watchdog: The session's watchdog; `Limits.reply_timeout` bounds the wait for the first packet.

    Raises:
        RemoteError: If the server refuses the command, or it exits or prints text; the message quotes its output.
        LimitExceeded: If the command does not start the server in time, for example because it prompts for
            a password; the message quotes its output too.
        ConnectionLost, Cancelled: If the connection ended.
    """
    stream = session.open_command(os.fsencode(command))
    client = SFTPClient(stream, watchdog)
    timeout = watchdog.limits.reply_timeout
    try:
        with watchdog.phase("start an SFTP server by the elevated command", timeout, Reason.REPLY_TIMEOUT):
            client.negotiate()
    except (NoSFTP, ProtocolError) as exc:
        watchdog.sleep(_STDERR_DELAY)
        raise RemoteError(
            _explain(command, "did not start an SFTP server", client, stream), reason=Reason.ELEVATION_FAILED
        ) from exc
    except LimitExceeded as exc:  # modified in place: every other wait raises this same object
        exc.message = _explain(command, f"started no SFTP server within {timeout:g} s", client, stream)
        exc.transient = False
        exc.reason = Reason.ELEVATION_FAILED
        raise
    return client


def _explain(command: str, failure: str, client: SFTPClient, stream: Stream) -> str:
    outputs = [client.reader.unexpected_text, stream.stderr.decode("utf-8", "backslashreplace").strip()]
    quoted = " and ".join(repr(output[-_MAX_QUOTED:]) for output in outputs if output)
    return (
        f"The elevated command {escape(command)!r} {failure} and printed {quoted or 'nothing'}. It must neither prompt "
        "nor print text: add a line such as 'USER ALL=(root) NOPASSWD: /usr/lib/openssh/sftp-server' to sudoers, and "
        "run sudo with -n."
    )

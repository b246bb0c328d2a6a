"""Create an empty remote file with the package ``scp``, over a `Stream`, so that the watchdog bounds every wait."""

from __future__ import annotations

import io
from typing import Any, cast

import scp

from peerstage.errors import ProtocolError, StageError
from peerstage.printable import escape
from peerstage.reasons import Reason
from peerstage.ssh.session import Session
from peerstage.ssh.stream import Stream
from peerstage.transport.scp import commands
from peerstage.transport.scp.message_reader import MessageReader
from peerstage.transport.scp.messages import SILENCE_LOGIN_SCRIPT
from peerstage.transport.scp.outcome import exit_error, quotable, refusal_error


def send_empty_file(session: Session, path: bytes, *, mode: int, max_message_bytes: int) -> None:
    """Create *path* on the peer as an empty file, or truncate it.

    Args:
        session: A session that is logged in.
        path: The remote path.
        mode: The permission bits; an scp program applies its umask to them.
        max_message_bytes: The length of the longest reply to accept.

    Raises:
        RemoteError: If the peer refuses.
        ProtocolError: If its reply is not SCP.
        ConnectionLost, LimitExceeded, Cancelled: If the run was cut off.
    """
    channel = _Channel(session, max_message_bytes)
    client = scp.SCPClient(cast(Any, channel), sanitize=commands.quote)
    try:
        client.putfo(io.BytesIO(), path, mode=f"{mode:04o}", size=0)
    except scp.SCPException as exc:
        if not channel.error_reply:
            channel.recv_exit_status()
        raise channel.failure(path) from exc
    finally:
        channel.close()
    if channel.wait_error is not None or channel.exit_status != 0:
        raise channel.failure(path)


class _Channel:
    """The parts of `paramiko.Transport` and `paramiko.Channel` that the package ``scp`` uses, over a `Stream`.

    Attributes:
        error_reply: The peer's SCP error reply; empty on success.
        exit_status: The exit status, once it is known.
        wait_error: An error caught in `recv_exit_status`, to be raised later: ``scp`` would hide it.
    """

    def __init__(self, session: Session, max_message_bytes: int) -> None:
        self._session = session
        self._max_message_bytes = max_message_bytes
        self._opened: Stream | None = None
        self._has_replied = False
        self.error_reply = b""
        self.exit_status: int | None = None
        self.wait_error: StageError | None = None
        self.closed = False

    def getpeername(self) -> None:
        """Ignored: it names the peer in progress callbacks."""

    def open_session(self) -> _Channel:
        return self

    def settimeout(self, timeout: float) -> None:
        """Ignored: the watchdog bounds every wait."""

    def exec_command(self, command: bytes) -> None:
        self._opened = self._session.open_command(command)
        self._reader = MessageReader(self._stream.receive, max_bytes=self._max_message_bytes)

    def sendall(self, data: bytes | str) -> None:
        self._stream.send(data if isinstance(data, bytes) else data.encode())

    def recv(self, nbytes: int) -> bytes:
        """Return exactly one reply; ``b""`` at the end."""
        reply = self._reader.read_status() or b""
        self._has_replied = self._has_replied or bool(reply)
        if reply != b"\0":
            self.error_reply = reply
        return reply

    def recv_stderr_ready(self) -> bool:
        return bool(self._stream.stderr)

    def recv_stderr(self, nbytes: int) -> bytes:
        return self._stream.stderr[:nbytes]

    def shutdown_write(self) -> None:
        self._stream.send_eof()

    def recv_exit_status(self) -> int | None:
        try:
            self.exit_status = self._stream.wait()
        except StageError as exc:
            self.wait_error = exc
        return self.exit_status

    def close(self) -> None:
        self.closed = True
        if self._opened is not None:
            self._opened.close()

    @property
    def _stream(self) -> Stream:
        if self._opened is None:
            raise ProtocolError("No command runs on this channel yet.")
        return self._opened

    def failure(self, path: bytes) -> StageError:
        """Return why the peer did not create the file."""
        if self.wait_error is not None:
            return self.wait_error
        if not self.error_reply:
            reason = Reason.COMMAND_FAILED if self._has_replied else Reason.COMMAND_REFUSED
            return exit_error(self._stream.stderr, self.exit_status, path, reason=reason)
        if self.error_reply[0] in (1, 2):
            return refusal_error(quotable(self.error_reply[1:]), path, is_write=True)
        return ProtocolError(
            f"The peer replied {escape(self.error_reply[:120])!r}, which is not SCP. {SILENCE_LOGIN_SCRIPT}",
            path=path,
            reason=Reason.TEXT_BEFORE_PROTOCOL,
        )

"""Sends an empty file by the package ``scp``, on a channel object of ours: every wait on it is watched."""

from __future__ import annotations

import io
from typing import Any, cast

import scp

from peerstage.errors import ProtocolError, RemoteError, StageError
from peerstage.reasons import Reason
from peerstage.session.session import Session
from peerstage.session.stream import Stream
from peerstage.transport.refusals import with_step
from peerstage.transport.scp import commands
from peerstage.transport.scp.reader import RecordReader
from peerstage.transport.scp.records import reason_of


def send_empty(session: Session, path: bytes, *, mode: int, longest: int) -> None:
    """Make *path* on the peer an empty file; one that is there is truncated.

    Args:
        session: Logged in.
        path: Where to.
        mode: The file's mode (octal); an scp program takes the umask from it.
        longest: The longest answer that is taken, in bytes.

    Raises:
        RemoteError: The peer refuses.
        ProtocolError: It answers what is no answer.
        ConnectionLost, LimitExceeded, Cancelled: The connection ended, took too long, or was ended.
    """
    channel = _Channel(session, longest)
    client = scp.SCPClient(cast(Any, _Opens(channel)), sanitize=commands.quote)
    try:
        client.putfo(io.BytesIO(), path, mode=f"{mode:04o}", size=0)
    except scp.SCPException as exc:
        if not channel.said:
            channel.recv_exit_status()
        raise channel.failure(path) from exc
    finally:
        channel.close()
    if channel.failed is not None:
        raise channel.failed
    if channel.status != 0:
        raise channel.failure(path)


class _Opens:
    """As much of a `paramiko.Transport` as the package uses."""

    def __init__(self, channel: _Channel) -> None:
        self._channel = channel

    def getpeername(self) -> None:
        """Nobody needs it."""

    def open_session(self) -> _Channel:
        return self._channel


class _Channel:
    """As much of a `paramiko.Channel` as the package uses, over a `Stream`.

    Attributes:
        said: What the peer answered, if it was not "all is well".
        status: The exit status, once it is known.
        failed: What went wrong while the package looked away.
    """

    def __init__(self, session: Session, longest: int) -> None:
        self._session = session
        self._longest = longest
        self._stream: Stream | None = None
        self.said = b""
        self._has_answered = False
        self.status: int | None = None
        self.failed: StageError | None = None
        self.closed = False

    def settimeout(self, timeout: float) -> None:
        """Ignored: the watchdog bounds every wait."""

    def exec_command(self, command: bytes) -> None:
        self._stream = self._session.open_command(command)
        self._reader = RecordReader(self._stream.receive, longest=self._longest)

    def sendall(self, data: bytes | str) -> None:
        self._opened.send(data if isinstance(data, bytes) else data.encode())

    def recv(self, nbytes: int) -> bytes:
        """Return one whole answer, and not more; ``b""`` at the end."""
        answer = self._reader.status() or b""
        self._has_answered = self._has_answered or bool(answer)
        if answer != b"\0":
            self.said = answer
        return answer

    def recv_stderr_ready(self) -> bool:
        return bool(self._opened.stderr)

    def recv_stderr(self, nbytes: int) -> bytes:
        return self._opened.stderr[:nbytes]

    def shutdown_write(self) -> None:
        self._opened.end()

    def recv_exit_status(self) -> int | None:
        try:
            self.status = self._opened.wait()
        except StageError as exc:
            self.failed = exc
        return self.status

    def close(self) -> None:
        self.closed = True
        if self._stream is not None:
            self._stream.close()

    @property
    def _opened(self) -> Stream:
        if self._stream is None:
            raise ProtocolError("Nothing was asked for on this channel yet.")
        return self._stream

    def failure(self, path: bytes) -> StageError:
        """Return why the peer did not take the file."""
        if self.failed is not None:
            return self.failed
        if self.said and self.said[0] not in (1, 2):
            return ProtocolError(
                f"The peer answers {self.said[:120]!r}, which is not SCP.",
                path=path,
                reason=Reason.TEXT_BEFORE_PROTOCOL,
            )
        if self.said:
            words = words_of(self.said[1:])
            reason = reason_of(words, writing=True)
            return RemoteError(with_step(f"The peer refuses: {words}.", reason, path), path=path, reason=reason)
        reason = Reason.COMMAND_FAILED if self._has_answered else Reason.COMMAND_REFUSED
        return refused(self._opened.stderr, self.status, path, reason=reason)


def words_of(said: bytes) -> str:
    """Return what a peer said so that it fits into a sentence."""
    return said.decode("utf-8", "backslashreplace").strip().rstrip(".")[:300]


def refused(stderr: bytes, status: int | None, path: bytes, *, reason: Reason = Reason.COMMAND_REFUSED) -> RemoteError:
    """Return what an ``scp`` on the peer that failed has said, as an error.

    Args:
        stderr: What it said there.
        status: Its exit status, None if it ended without one.
        path: What it was asked for.
        reason: Why it failed, if neither of these tells: one that says nothing in its protocol was probably not run.
    """
    words = words_of(stderr)
    if status == 127:
        return RemoteError(
            "The peer has no scp program. Install one there, or choose the transport sftp.",
            path=path,
            reason=Reason.NO_SCP,
        )
    if status == 126 and "list too long" in words:
        return RemoteError(
            "The names of all its files do not fit on one command line of the peer, which SCP needs. Give the peer an "
            "SFTP server, or let it collect into fewer files.",
            path=path,
            reason=Reason.COMMAND_TOO_LONG,
        )
    how = "ended without an exit status" if status is None else f"ended with status {status}"
    said = f", saying {words!r}" if words else ""
    return RemoteError(with_step(f"The peer's scp {how}{said}.", reason), path=path, reason=reason)

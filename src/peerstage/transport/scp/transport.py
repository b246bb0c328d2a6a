"""`SCPTransport`: a directory by the commands that the original ran on a peer."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import NoReturn

from peerstage.errors import (
    ConnectionLost,
    NothingToStage,
    ProtocolError,
    RemoteError,
    RemoteNotFound,
    StageError,
)
from peerstage.landing.base import Buffer, Landing
from peerstage.reasons import Reason
from peerstage.records import Limits
from peerstage.session.session import Session
from peerstage.session.stream import Stream
from peerstage.session.watchdog import Watchdog
from peerstage.transport import capabilities
from peerstage.transport.base import Transport
from peerstage.transport.execute import execute_over
from peerstage.transport.names import check_path
from peerstage.transport.refusals import NO_DIRECTORY, NO_DIRECTORY_BUT_A_FILE, parent, with_step
from peerstage.transport.scp import commands
from peerstage.transport.scp.reader import RecordReader
from peerstage.transport.scp.receive import ANY, Receiver
from peerstage.transport.scp.records import (
    NO_SUCH_FILE,
    NOT_REGULAR,
    Fatal,
    File,
    Times,
    Warn,
    blamed,
    longest_line,
    parse_record,
    reason_of,
)
from peerstage.transport.scp.send import refused, send_empty, words_of

#: What csh, zsh and fish say, and run nothing, when no name matches.
_NO_MATCH = (b"no match",)

#: Servers whose shell runs a real scp, which reads a stream of bytes. Others may have SCP built in: there one message
#: on the channel may count as one acknowledgement, and one command may inherit the options of an earlier one.
_RUNS_SCP = re.compile(r"SSH-[0-9.]+-(OpenSSH|dropbear)")


class SCPTransport(Transport):
    """The SCP protocol over one channel for each operation. Closes its session.

    Args:
        session: Logged in.
        limits: Bounds for what the peer may send.
        watchdog: The session's.
        guarded: Whether the peer's key is behind a forced command: then exactly the three commands of the original are
            sent, and none to find out why one of them failed (PARITY 22).
        times: Whether modification times are asked for.
        connect: Logs in once more. A server that may have SCP built in gets a connection for each command, as from
            scp itself; None has all commands share *session*.
    """

    capabilities = capabilities.SCP

    def __init__(
        self,
        session: Session,
        limits: Limits,
        watchdog: Watchdog,
        *,
        guarded: bool = False,
        times: bool = False,
        connect: Callable[[], Session] | None = None,
    ) -> None:
        self.host_key = session.fingerprint
        self._session = session
        self._limits = limits
        self._watchdog = watchdog
        self._guarded = guarded
        self._times = times
        self._connect = connect
        self._runs_scp = _RUNS_SCP.match(session.server) is not None
        self._used = False

    def pull(self, directory: bytes, landing: Landing) -> None:
        """See `Transport.pull`. The peer tells no sizes in advance, so that room is looked for file by file.

        Raises:
            NothingToStage: No name matches, which is not always told from a directory that may not be listed.
        """
        with self._run(commands.fetch_all(directory, times=self._times), directory) as stream:
            receiver = Receiver(
                stream, directory, landing, self._limits, self._watchdog, times=self._times, ahead=self._runs_scp
            )
            receiver.run()
            status = stream.wait()
            stderr = stream.stderr
        if status is None:
            raise ConnectionLost("The peer's scp ended without saying whether that was all.", path=directory)
        if receiver.unmatched is None and (receiver.files or receiver.warnings):
            if status not in (0, 1) or (status == 1 and not (receiver.warnings or receiver.skips)):
                raise refused(stderr, status, directory, reason=Reason.COMMAND_FAILED)
            if status == 0 and receiver.ends_with_warning:  # scp itself ends with status 1 after a warning
                receiver.refuse_any(
                    "The peer's server ended with this warning, and may not have sent the files behind that entry. "
                    "Move the entry away, or use SFTP."
                )
            return
        if receiver.unmatched is not None and not receiver.unmatched.endswith(NO_SUCH_FILE):
            raise _refused("The peer cannot read it", receiver.unmatched, directory)
        if receiver.unmatched is None and status == 0:
            return
        if receiver.unmatched is None and not any(words in stderr.lower() for words in _NO_MATCH):
            raise refused(stderr, status, directory)
        self._explain_no_match(directory)

    @property
    def opens_without_sending(self) -> bool:
        """Whether `pull` into a landing that wants no content has the peer open each file and send none."""
        return self._runs_scp

    def require_files(self, directory: bytes) -> None:
        """Send the command of `pull`, and end it at the first answer: no file is transferred.

        Raises:
            NothingToStage: If no name matches.
            RemoteError: If the peer gives up, or *directory* is not a directory that it can list.
        """
        record = self._first_record(directory, commands.fetch_all(directory))
        if isinstance(record, Fatal):
            raise RemoteError(f"The peer gives up: {record.text}.", path=directory, reason=reason_of(record.text))
        if isinstance(record, Warn) and blamed(record.text) == ANY:
            self._explain_no_match(directory)

    def _explain_no_match(self, directory: bytes) -> NoReturn:
        """Raise the reason why no name matches ``DIRECTORY/*``."""
        missing = ", or it is missing"
        if not self._guarded:
            try:
                self.require_directory(directory)
                missing = ""
            except RemoteError as exc:
                if exc.reason is not Reason.COMMAND_REFUSED:  # a forced command that lets only the original's pass
                    raise
        raise NothingToStage(
            f"There is no file to stage in it{missing}, or it may not be listed. Has the peer collected?",
            path=directory,
        )

    def exists(self, path: bytes) -> bool:
        record = self._first_record(path)
        if isinstance(record, File):
            if record.name != path.rpartition(b"/")[2]:
                raise ProtocolError("The peer sends another file than was asked for.", path=path)
            return True
        if record.text.endswith(NO_SUCH_FILE):
            if self._runs_scp and not self._guarded:  # elsewhere it costs a login, or is not allowed
                self.require_directory(parent(path))
            return False
        if record.text.endswith(NOT_REGULAR):
            return False
        raise _refused("The peer refuses", record.text, path)

    def touch(self, path: bytes) -> None:
        self._check(path)
        mode = 0o666 if self._runs_scp else 0o644  # mod_sftp takes a mode as it is, without its umask
        send_empty(self._session_for_command(), path, mode=mode, longest=longest_line(self._limits))

    def execute(self, command: bytes, said: Callable[[Buffer], object]) -> int | None:
        return execute_over(self._session, command, said, self._limits, self._watchdog)

    def remove(self, path: bytes) -> None:
        """Remove the file *path* by the peer's ``rm -f``; that it is not there is no error. Not for guarded peers.

        Raises:
            RemoteError: The login runs no such command, or it fails.
        """
        with self._run(commands.remove(path), path) as stream:
            stream.end()
            while stream.receive():
                pass
            status = stream.wait()
            if status != 0:
                raise RemoteError(
                    f"The peer's rm ended with status {status}: {words_of(stream.stderr)}.",
                    path=path,
                    reason=Reason.COMMAND_FAILED,
                )

    def close(self) -> None:
        self._session.close()

    def require_directory(self, directory: bytes) -> None:
        """Raise the `RemoteError` that keeps *directory* from being one: missing, a file, out of reach."""
        record = self._first_record(directory)
        if isinstance(record, File):
            raise RemoteError(NO_DIRECTORY_BUT_A_FILE, path=directory, reason=Reason.NOT_A_DIRECTORY)
        if record.text.endswith(NOT_REGULAR):
            return
        if record.text.endswith(NO_SUCH_FILE):
            raise RemoteNotFound(NO_DIRECTORY, path=directory)
        raise _refused("The peer refuses", record.text, directory)

    def _first_record(self, path: bytes, command: bytes | None = None) -> File | Warn | Fatal:
        """Return the first answer to *command*, or else to the one that sends *path*, and take no data.

        Its command is told to end, and waited for: dropbear confuses a channel that is opened while an earlier one is
        closed under a running command with that one.
        """
        with self._run(command or commands.fetch(path), path) as stream:
            stream.send(b"\0")
            line = RecordReader(stream.receive, longest=longest_line(self._limits)).line()
            if line is None:
                raise refused(stream.stderr, stream.wait(), path)
            stream.send(b"\2\n")
            stream.end()
            if not stream.receive():
                stream.wait()
        self._watchdog.beat()
        record = parse_record(line, self._limits)
        if isinstance(record, Times):
            raise ProtocolError("The peer sends a time that was not asked for.", path=path)
        return record

    @contextlib.contextmanager
    def _run(self, command: bytes, path: bytes) -> Iterator[Stream]:
        """Yield a stream to *command*, which is closed at the end."""
        self._check(path)
        self._session.require_same_process()
        stream = self._session_for_command().open_command(command)
        try:
            yield stream
        except StageError as exc:
            exc.path = exc.path or path
            raise
        finally:
            stream.close()

    def _session_for_command(self) -> Session:
        if self._used and self._connect is not None and not self._runs_scp:
            self._session.close()
            self._session = self._connect()
        self._used = True
        return self._session

    def _check(self, path: bytes) -> None:
        if self._guarded:
            commands.require_plain(path)
        check_path(path, self._limits)


def _refused(failed: str, text: str, path: bytes) -> RemoteError:
    """Return what the peer's scp says of *path*, in *text*, as an error."""
    reason = reason_of(text)
    return RemoteError(with_step(f"{failed}: {text.rstrip('.')}.", reason), path=path, reason=reason)

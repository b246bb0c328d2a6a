"""`SCPTransport`: transfers files with the commands that CedarBackup2 ran on a peer."""

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
from peerstage.paths import parent_directory
from peerstage.printable import describe_exit
from peerstage.reasons import Reason
from peerstage.records import RemoteFile
from peerstage.ssh.session import Session
from peerstage.ssh.stream import Stream
from peerstage.target.base import Buffer, Target
from peerstage.transport import capabilities
from peerstage.transport.base import Transport
from peerstage.transport.execute import execute_on_session
from peerstage.transport.names import check_path_length
from peerstage.transport.refusals import COLLECT_FIRST, NO_DIRECTORY, NO_DIRECTORY_BUT_A_FILE
from peerstage.transport.scp import commands
from peerstage.transport.scp.message_reader import MessageReader
from peerstage.transport.scp.messages import (
    NO_SUCH_FILE,
    NOT_REGULAR,
    FatalMessage,
    FileMessage,
    TimesMessage,
    WarningMessage,
    entry_in_warning,
    max_message_bytes,
    parse_message,
)
from peerstage.transport.scp.outcome import Verdict, exit_error, judge, quotable, refusal_error
from peerstage.transport.scp.send import send_empty_file
from peerstage.transport.scp.sink import GLOB, SCPSink
from peerstage.watchdog import Watchdog

#: Servers that run an scp program, which reads a stream of bytes. Others may have SCP built in: some count a whole SSH
#: packet as one acknowledgement, and apply the options of one command to the next.
_RUNS_SCP = re.compile(r"SSH-[0-9.]+-(OpenSSH|dropbear)")


class SCPTransport(Transport):
    """SCP, with a channel for each operation. It owns its session.

    Args:
        session: A session that is logged in.
        watchdog: The session's watchdog, with the limits of the transport.
        guarded: Whether a forced command guards the key. Then the transport sends exactly CedarBackup2's three
            commands, and none to find out why one of them failed.
        preserve_times: Whether to request modification times.
        connect: Logs in once more. A server that may have SCP built in gets a connection for each command, as scp
            itself would open it. If None, all commands share *session*.
    """

    capabilities = capabilities.SCP

    def __init__(
        self,
        session: Session,
        watchdog: Watchdog,
        *,
        guarded: bool = False,
        preserve_times: bool = False,
        connect: Callable[[], Session] | None = None,
    ) -> None:
        self.host_key = session.fingerprint
        self._session = session
        self._limits = watchdog.limits
        self._watchdog = watchdog
        self._guarded = guarded
        self._preserve_times = preserve_times
        self._connect = connect
        self._runs_scp = _RUNS_SCP.match(session.server) is not None
        self._has_run_command = False

    def pull(self, directory: bytes, target: Target) -> None:
        """See `Transport.pull`. SCP cannot list: free space is checked file by file.

        Raises:
            NothingToStage: If no name matches, which may also mean that the directory cannot be listed.
        """
        command = commands.fetch_directory_command(directory, preserve_times=self._preserve_times)
        with self._run(command, directory) as stream:
            sink = SCPSink(
                stream,
                directory,
                target,
                self._watchdog,
                expect_times=self._preserve_times,
                is_program=self._runs_scp,
            )
            sink.run()
            exit_status, stderr = stream.wait(), stream.stderr
        match judge(sink.received, exit_status, stderr):
            case Verdict.MAYBE_INCOMPLETE:
                sink.refuse_unnamed(
                    "The peer's scp ended with status 0 after this warning: files that follow the entry may be "
                    "missing. Move the entry away, or use SFTP."
                )
            case Verdict.FAILED:
                raise exit_error(stderr, exit_status, directory, reason=Reason.COMMAND_FAILED)
            case Verdict.REFUSED:
                raise exit_error(stderr, exit_status, directory, reason=Reason.COMMAND_REFUSED)
            case Verdict.UNREADABLE:
                raise refusal_error(sink.received.glob_warning or "", directory, failed="The peer cannot read it")
            case Verdict.NO_MATCH:
                self._raise_no_match(directory)
            case Verdict.CONNECTION_LOST:
                raise ConnectionLost("The peer's scp ended without an exit status.", path=directory)

    @property
    def can_skip_content(self) -> bool:
        """Whether the peer sends no content of files that a target declines."""
        return self._runs_scp

    def require_files(self, directory: bytes) -> None:
        """Start the command of `pull`, and end it at its first message: no file is transferred.

        Raises:
            NothingToStage: If no name matches.
            RemoteError: If the peer sends a fatal error, or *directory* is not a directory that it can list.
        """
        message = self._first_message(directory, commands.fetch_directory_command(directory))
        if isinstance(message, FatalMessage):
            raise refusal_error(message.text, directory, failed="The peer's scp aborted")
        if isinstance(message, WarningMessage) and entry_in_warning(message.text) == GLOB:
            self._raise_no_match(directory)

    def _raise_no_match(self, directory: bytes) -> NoReturn:
        """Raise the reason why no name matches ``DIRECTORY/*``."""
        or_missing = ", or is missing"
        if not self._guarded:
            try:
                self.require_directory(directory)
                or_missing = ""
            except RemoteError as exc:
                if exc.reason is not Reason.COMMAND_REFUSED:  # a forced command allows only CedarBackup2's commands
                    raise
        raise NothingToStage(
            f"It holds no files to stage{or_missing}, or cannot be listed. {COLLECT_FIRST}", path=directory
        )

    def stat(self, path: bytes) -> RemoteFile | None:
        message = self._first_message(path)
        if isinstance(message, FileMessage):
            if message.name != path.rpartition(b"/")[2]:
                raise ProtocolError("The peer sent a file other than the requested one.", path=path)
            return RemoteFile(message.size)
        if message.text.endswith(NO_SUCH_FILE):
            if self._runs_scp and not self._guarded:  # otherwise it costs a login, or is not allowed
                self.require_directory(parent_directory(path))
            return None
        if message.text.endswith(NOT_REGULAR):
            return None
        raise refusal_error(message.text, path)

    def touch(self, path: bytes) -> None:
        self._check_path(path)
        mode = 0o666 if self._runs_scp else 0o644  # mod_sftp applies no umask
        max_bytes = max_message_bytes(self._limits)
        send_empty_file(self._session_for_command(), path, mode=mode, max_message_bytes=max_bytes)

    def execute(self, command: bytes, on_output: Callable[[Buffer], object]) -> int | None:
        return execute_on_session(self._session, command, on_output, self._watchdog)

    def remove_file(self, path: bytes) -> None:
        """Remove the file *path*, if it exists, by ``rm -f``. A guarded peer allows no such command.

        Raises:
            RemoteError: If the peer does not run the command, or it fails.
        """
        with self._run(commands.remove_file_command(path), path) as stream:
            stream.send_eof()
            while stream.receive():
                pass
            status = stream.wait()
            if status != 0:
                outcome = describe_exit(status, quotable(stream.stderr))
                raise RemoteError(f"The peer's rm {outcome}.", path=path, reason=Reason.COMMAND_FAILED)

    def close(self) -> None:
        self._session.close()

    def require_directory(self, directory: bytes) -> None:
        """Raise `RemoteError` unless *directory* is a directory: if it is missing, a file, or out of reach."""
        message = self._first_message(directory)
        if isinstance(message, FileMessage):
            raise RemoteError(NO_DIRECTORY_BUT_A_FILE, path=directory, reason=Reason.NOT_A_DIRECTORY)
        if message.text.endswith(NOT_REGULAR):
            return
        if message.text.endswith(NO_SUCH_FILE):
            raise RemoteNotFound(NO_DIRECTORY, path=directory)
        raise refusal_error(message.text, directory)

    def _first_message(self, path: bytes, command: bytes | None = None) -> FileMessage | WarningMessage | FatalMessage:
        """Return the first message of *command*, by default ``scp -f`` for *path*. No file data is received.

        It tells the command to end, and waits for it: dropbear confuses a new channel with one that was closed while
        its command was running.
        """
        with self._run(command or commands.fetch_file_command(path), path) as stream:
            stream.send(b"\0")
            line = MessageReader(stream.receive, max_bytes=max_message_bytes(self._limits)).read_message()
            if line is None:
                raise exit_error(stream.stderr, stream.wait(), path)
            stream.send(b"\2\n")
            stream.send_eof()
            if not stream.receive():
                stream.wait()
        self._watchdog.reset_stall()
        message = parse_message(line, self._limits)
        if isinstance(message, TimesMessage):
            raise ProtocolError("The peer sent a modification time that was not requested.", path=path)
        return message

    @contextlib.contextmanager
    def _run(self, command: bytes, path: bytes) -> Iterator[Stream]:
        """Run *command*, which is about *path*; close its stream at the end."""
        self._check_path(path)
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
        if self._has_run_command and self._connect is not None and not self._runs_scp:
            self._session.close()
            self._session = self._connect()
        self._has_run_command = True
        return self._session

    def _check_path(self, path: bytes) -> None:
        if self._guarded:
            commands.require_unquoted(path)
        check_path_length(path, self._limits)

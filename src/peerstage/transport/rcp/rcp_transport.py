"""`RCPTransport`: files by an external command, whose exit status alone does not prove that they arrived."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence

from peerstage.errors import ConnectError, NotRegular, RemoteError, StageError, TargetError
from peerstage.paths import join_path
from peerstage.peer_log import PeerLog
from peerstage.printable import describe_exit, escape
from peerstage.reasons import Reason
from peerstage.records import RemoteFile
from peerstage.system_errors import reason_of
from peerstage.target.base import Buffer, Target, require_command_target
from peerstage.target.workspace import measure_workspace
from peerstage.transport import capabilities
from peerstage.transport.base import Transport
from peerstage.transport.names import ListedNames, is_hidden
from peerstage.transport.rcp.command_line import escape_blanks, remote_operand, reports_missing, unescape_output
from peerstage.transport.rcp.run_command import CompletedCommand, run_command
from peerstage.watchdog import Watchdog

#: The exit status of ssh, and of commands that pass it on, if the connection or the login failed.
_CONNECTION_FAILED = 255
_CONNECTION_ADVICE = (
    "Check that the peer is up, and that this command knows its host key and can log in without a password."
)
_MAX_QUOTED = 300


class RCPTransport(Transport):
    """An rcp-like command, run once for each operation, as in CedarBackup2.

    Args:
        argv: The command, split.
        rsh: An rsh-like command, split, for `execute`; empty for none.
        user: The login on the peer.
        host: The peer.
        working_directory: A local directory for temporary files, which `stat` and `touch` need.
        watchdog: Ends the command if a limit is exceeded.
    """

    capabilities = capabilities.RCP

    def __init__(
        self,
        argv: list[str],
        *,
        rsh: Sequence[str] = (),
        user: str,
        host: str,
        working_directory: str | None,
        watchdog: Watchdog,
    ) -> None:
        self._argv = argv
        self._rsh = rsh
        self._user = user
        self._host = host
        self._working_directory = working_directory
        self._limits = watchdog.limits
        self._watchdog = watchdog
        self._log = PeerLog("peerstage.transport.rcp", host)

    def pull(self, directory: bytes, target: Target) -> None:
        """See `Transport.pull`. Only exit status 0 publishes anything: after any other, files may be incomplete."""
        command_target = require_command_target(target)
        workspace = command_target.create_workspace()
        completed = self._copy(
            lambda remote: [remote, command_target.create_workspace()],
            join_path(directory, b"*"),
            path=directory,
            copied_bytes=lambda: measure_workspace(workspace, self._limits),
        )
        if completed.exit_status != 0:
            raise self._exit_error(completed, directory)
        names = ListedNames(directory, self._limits)
        with _map_os_errors(workspace), os.scandir(os.fsencode(workspace)) as entries:
            for entry in entries:
                names.add(entry.name)
        for name in sorted(names):  # listed first: readdir(3) may skip names of a directory that is being emptied
            if is_hidden(name):
                target.refuse(name, NotRegular("The command copied it, although it was not requested."))
            else:
                command_target.import_file(name)

    def stat(self, path: bytes) -> RemoteFile | None:
        with self._temporary_directory() as directory:
            name = os.fsdecode(path.rpartition(b"/")[2])
            copy = os.path.join(directory, name)
            # The command may expand a pattern: then it needs a directory to copy to, and the file keeps its own name.
            destination = directory if any(char in name for char in "*?[") else copy
            completed = self._copy(lambda remote: [remote, destination], path, path=path)
            if completed.exit_status == 0:
                with _map_os_errors(directory), contextlib.suppress(FileNotFoundError):
                    found = os.lstat(copy)
                    return RemoteFile(found.st_size) if stat.S_ISREG(found.st_mode) else None
                if destination == copy:
                    raise RemoteError(
                        "The command reported success, but copied nothing.", path=path, reason=Reason.COMMAND_FAILED
                    )
                return None
            if completed.exit_status != _CONNECTION_FAILED and reports_missing(completed.output, path):
                return None
            raise self._exit_error(completed, path)

    def touch(self, path: bytes) -> None:
        with self._temporary_directory() as temporary:
            directory, _, name = path.rpartition(b"/")
            empty = os.path.join(os.fsencode(temporary), name)
            with _map_os_errors(temporary), open(empty, "xb") as file:
                os.fchmod(file.fileno(), 0o666)
            # A command that takes an escaping backslash literally would make it part of the name. So copy to the
            # directory, unless that has a blank too: rsync would create another directory.
            destination = directory + b"/" if b" " in name and b" " not in directory else path
            completed = self._copy(lambda remote: [os.fsdecode(empty), remote], destination, path=path)
            if completed.exit_status != 0:
                raise self._exit_error(completed, path)

    def execute(self, command: bytes, on_output: Callable[[Buffer], object]) -> int | None:
        """See `Transport.execute`. Runs ``RSH USER@HOST COMMAND``; a limit kills it with its children.

        Raises:
            NotAvailable: If there is no rsh-like command, or it cannot be run.
            ConnectError: If it exits with the status for a failed connection.
        """
        if not self._rsh:
            return super().execute(command, on_output)
        argv = [*self._rsh, f"{self._user}@{self._host}", os.fsdecode(command)]
        watchdog = self._watchdog
        watchdog.reset()
        with watchdog.operation(), watchdog.command_deadline(self._limits.command_deadline):
            status = run_command(argv, watchdog=watchdog, log=self._log, on_output=on_output).exit_status
        if status == _CONNECTION_FAILED:
            raise ConnectError(
                f"The command {self._rsh[0]!r} ended with status {status}, which usually means that it could not "
                f"connect. {_CONNECTION_ADVICE}",
                reason=Reason.RCP_COMMAND_FAILED,
            )
        return status if status >= 0 else None

    def close(self) -> None:
        """Nothing is kept open."""

    def _copy(
        self,
        build_operands: Callable[[str], list[str]],
        remote_path: bytes,
        *,
        path: bytes,
        copied_bytes: Callable[[], int] = lambda: 0,
    ) -> CompletedCommand:
        """Run the command on *remote_path*, with its blanks escaped for the peer's shell.

        scp over SFTP and newer versions of rsync use no shell there, and report that the path with backslashes is
        missing. Then the path is passed unchanged.

        Args:
            build_operands: Returns the operands of the command, given the remote one.
            remote_path: The path on the peer.
            path: The path to name in errors.
            copied_bytes: See `run_command`.
        """
        escaped = escape_blanks(remote_path)
        up_to_first_blank = escaped.partition(b"\\ ")[0] + b"\\ "
        with self._watchdog.operation():
            completed = self._run(build_operands(self._operand(escaped)), path, copied_bytes)
            if (
                escaped != remote_path
                and completed.exit_status > 0
                and up_to_first_blank in unescape_output(completed.output)
            ):
                completed = self._run(build_operands(self._operand(remote_path)), path, copied_bytes)
            return completed

    def _operand(self, path: bytes) -> str:
        return remote_operand(self._user, self._host, path)

    def _run(self, operands: list[str], path: bytes, copied_bytes: Callable[[], int]) -> CompletedCommand:
        argv = [*self._argv, *operands]
        try:
            return run_command(argv, watchdog=self._watchdog, log=self._log, copied_bytes=copied_bytes)
        except StageError as exc:
            exc.path = exc.path or path
            raise

    @contextlib.contextmanager
    def _temporary_directory(self) -> Iterator[str]:
        if self._working_directory is None:
            raise ValueError("An rcp command needs workingDir for temporary files, and this peer has none.")
        with _map_os_errors(self._working_directory):
            directory = tempfile.TemporaryDirectory(prefix="peerstage-", dir=self._working_directory)
        try:
            yield directory.name
        finally:
            _remove(directory, self._log)

    def _exit_error(self, completed: CompletedCommand, path: bytes) -> StageError:
        status = completed.exit_status
        quoted = completed.output.decode("utf-8", "backslashreplace").strip().rstrip(".")[-_MAX_QUOTED:]
        message = f"The command {self._argv[0]!r} {describe_exit(status, quoted)}."
        if status == _CONNECTION_FAILED:
            return ConnectError(f"{message} {_CONNECTION_ADVICE}", path=path, reason=Reason.RCP_COMMAND_FAILED)
        return RemoteError(message, path=path, reason=Reason.COMMAND_FAILED)


@contextlib.contextmanager
def _map_os_errors(directory: str) -> Iterator[None]:
    """Raise an `OSError` of the block as a `TargetError` about the local *directory*."""
    try:
        yield
    except StageError:
        raise
    except OSError as exc:
        message = f"The working directory cannot be used: {exc.strerror or exc}."
        reason = reason_of(exc, Reason.WORKING_DIRECTORY_UNUSABLE)
        raise TargetError(message, path=directory, errno=exc.errno, reason=reason) from exc


def _remove(directory: tempfile.TemporaryDirectory[str], log: PeerLog) -> None:
    """Remove *directory* with its contents; try twice, then log the failure."""
    try:
        with contextlib.suppress(OSError):
            directory.cleanup()
            return
        directory.cleanup()
    except OSError as exc:
        log.warning("%s could not be removed: %s. Remove it.", escape(directory.name), exc.strerror)

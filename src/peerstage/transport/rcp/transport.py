"""`RcpTransport`: a directory by a foreign command, whose word is not taken for what arrived."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence

from peerstage.errors import ConnectError, LandingError, NotRegular, RemoteError, StageError, escape
from peerstage.landing.base import Buffer, Landing
from peerstage.peer_log import PeerLog
from peerstage.reasons import Reason
from peerstage.records import Limits
from peerstage.session.watchdog import Watchdog
from peerstage.system_errors import reason_of
from peerstage.transport import capabilities
from peerstage.transport.base import Transport, join
from peerstage.transport.names import Names
from peerstage.transport.rcp.command import escape_blanks, place_on, says_not_there, unescape
from peerstage.transport.rcp.process import Outcome, run

#: The status of ssh, and of what passes it on, when no connection came about or it was lost.
_NO_CONNECTION = 255


class RcpTransport(Transport):
    """An rcp-like command, run once for each operation, as the original did.

    Args:
        argv: The command, split.
        rsh: An rsh-like command, split, by which commands are run; empty for none.
        user: Who logs in on the peer.
        host: The peer.
        working_directory: A local directory for temporary files; only `exists` and `touch` need one.
        limits: Bounds for what the command says and brings.
        watchdog: Ends it.
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
        limits: Limits,
        watchdog: Watchdog,
    ) -> None:
        self._argv = argv
        self._rsh = rsh
        self._user = user
        self._host = host
        self._working_directory = working_directory
        self._limits = limits
        self._watchdog = watchdog
        self._log = PeerLog("peerstage.transport.rcp", host)

    def pull(self, directory: bytes, landing: Landing) -> None:
        """See `Transport.pull`. An exit status other than 0 publishes nothing: what is whole can not be told."""
        place = landing.workspace()
        outcome = self._copy(
            lambda source: [source, landing.workspace()],
            join(directory, b"*"),
            about=directory,
            progress=lambda: _size_of(place),
        )
        if outcome.status != 0:
            raise self._failure(outcome, directory)
        names = Names(directory, self._limits)
        with _local(place), os.scandir(os.fsencode(place)) as entries:
            for entry in entries:
                names.add(entry.name)
        for name in sorted(names):  # a directory that is emptied while it is read may hide some of its names
            if name.startswith(b"."):
                landing.refuse(name, NotRegular("The command brought it, and nobody asked for it."))
            else:
                landing.adopt(name)

    def exists(self, path: bytes) -> bool:
        with self._temporary() as place:
            name = os.fsdecode(path.rpartition(b"/")[2])
            arrived = os.path.join(place, name)
            # What the command may take for a pattern is copied to a directory: there it has its own name.
            target = place if any(char in name for char in "*?[") else arrived
            outcome = self._copy(lambda source: [source, target], path, about=path)
            if outcome.status == 0:
                with _local(place), contextlib.suppress(FileNotFoundError):
                    return stat.S_ISREG(os.lstat(arrived).st_mode)
                if target == arrived:
                    raise RemoteError(
                        "The command says that all is well, and brought nothing.",
                        path=path,
                        reason=Reason.COMMAND_FAILED,
                    )
                return False
            if outcome.status != _NO_CONNECTION and says_not_there(outcome.output, path):
                return False
            raise self._failure(outcome, path)

    def touch(self, path: bytes) -> None:
        with self._temporary() as place:
            directory, _, name = path.rpartition(b"/")
            empty = os.path.join(os.fsencode(place), name)
            with _local(place), open(empty, "xb") as file:
                os.fchmod(file.fileno(), 0o666)
            # A command that takes a backslash literally would make it a part of the name: let it take the file's own.
            # Only where the directory has no blank, else rsync would make another directory.
            place_there = directory + b"/" if b" " in name and b" " not in directory else path
            outcome = self._copy(lambda target: [os.fsdecode(empty), target], place_there, about=path)
            if outcome.status != 0:
                raise self._failure(outcome, path)

    def execute(self, command: bytes, said: Callable[[Buffer], object]) -> int | None:
        """See `Transport.execute`: ``RSH USER@HOST COMMAND``, killed with its children when it takes too long.

        Raises:
            NotAvailable: There is no rsh-like command, or it can not be run.
            ConnectError: It says that it did not get there.
        """
        if not self._rsh:
            return super().execute(command, said)
        argv = [*self._rsh, f"{self._user}@{self._host}", os.fsdecode(command)]
        self._watchdog.renew()
        with self._watchdog.operation(), self._watchdog.patience(self._limits.seconds_for_command):
            status = run(argv, limits=self._limits, watchdog=self._watchdog, log=self._log, said=said).status
        if status == _NO_CONNECTION:
            raise ConnectError(
                f"The command {self._rsh[0]!r} ended with status {status}, which mostly means that it did not get "
                "there. Is the peer up, and is its key known to that command?",
                reason=Reason.RCP_COMMAND_FAILED,
            )
        return status if status >= 0 else None

    def close(self) -> None:
        """Nothing is kept open."""

    def _copy(
        self,
        arguments: Callable[[str], list[str]],
        path: bytes,
        *,
        about: bytes,
        progress: Callable[[], int] = lambda: 0,
    ) -> Outcome:
        """Run the command with *path* on the peer among its *arguments*, blanks escaped for the peer's shell.

        scp over SFTP and newer versions of rsync have no shell there. They look for a path with a backslash in it, and
        say so; then they are given the path as it is.
        """
        escaped = escape_blanks(path)
        taken_literally = escaped.partition(b"\\ ")[0] + b"\\ "
        with self._watchdog.operation():
            outcome = self._run(arguments(place_on(self._user, self._host, escaped)), about, progress)
            if escaped != path and outcome.status > 0 and taken_literally in unescape(outcome.output):
                outcome = self._run(arguments(place_on(self._user, self._host, path)), about, progress)
            return outcome

    def _run(self, arguments: list[str], path: bytes, progress: Callable[[], int]) -> Outcome:
        """Run the command as one operation, under its own deadline; name *path* in what goes wrong."""
        argv = [*self._argv, *arguments]
        try:
            with self._watchdog.operation():
                return run(argv, limits=self._limits, watchdog=self._watchdog, log=self._log, progress=progress)
        except StageError as exc:
            exc.path = exc.path or path
            raise

    @contextlib.contextmanager
    def _temporary(self) -> Iterator[str]:
        if self._working_directory is None:
            raise ValueError("This peer has no working directory, and an rcp command needs one.")
        with _local(self._working_directory):
            directory = tempfile.TemporaryDirectory(prefix="peerstage-", dir=self._working_directory)
        try:
            yield directory.name
        finally:
            _remove(directory, self._log)

    def _failure(self, outcome: Outcome, path: bytes) -> StageError:
        words = outcome.output.decode("utf-8", "backslashreplace").strip().rstrip(".")[-300:]
        how = f"was killed by signal {-outcome.status}" if outcome.status < 0 else f"ended with status {outcome.status}"
        message = f"The command {self._argv[0]!r} {how}{f', saying {words!r}' if words else ''}."
        if outcome.status == _NO_CONNECTION:
            return ConnectError(
                f"{message} Is the peer up, and is its key known to that command?",
                path=path,
                reason=Reason.RCP_COMMAND_FAILED,
            )
        return RemoteError(message, path=path, reason=Reason.COMMAND_FAILED)


@contextlib.contextmanager
def _local(directory: str) -> Iterator[None]:
    """Raise what the system says of a local *directory* as a `LandingError`."""
    try:
        yield
    except StageError:
        raise
    except OSError as exc:
        message = f"The working directory can not be used: {exc.strerror or exc}."
        reason = reason_of(exc, Reason.WORKING_DIRECTORY_UNUSABLE)
        raise LandingError(message, path=directory, errno=exc.errno, reason=reason) from exc


def _remove(directory: tempfile.TemporaryDirectory[str], log: PeerLog) -> None:
    """Remove *directory* with all that a command has left there; try again if that fails, then log it."""
    try:
        with contextlib.suppress(OSError):
            directory.cleanup()
            return
        directory.cleanup()
    except OSError as exc:
        log.warning("%s could not be removed: %s. Remove it.", escape(directory.name), exc.strerror)


def _size_of(directory: str) -> int:
    """Return how many bytes the files in *directory* have."""
    size = 0
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                size += entry.stat(follow_symlinks=False).st_size
    return size

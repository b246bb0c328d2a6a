"""Create the daily directory below the staging directory, with a directory for each peer."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence

from peerstage.errors import StageError, TargetError
from peerstage.paths import STAGE_INDICATOR
from peerstage.printable import escape
from peerstage.records import Limits, Ownership
from peerstage.system_errors import target_reason_of
from peerstage.target.file_descriptors import open_directory
from peerstage.transport.local import LocalTransport
from peerstage.watchdog import Watchdog

log = logging.getLogger("peerstage.cback3")


class DailyDirectories:
    """The daily directory and one in it for each peer, created on entering the ``with`` block.

    Existing directories are left unchanged. Below the staging directory, no symlink is followed, and paths are relative
    to the open daily directory. Otherwise the backup user, who owns these directories, could make root write elsewhere.

    Args:
        staging_directory: The staging directory, created if it does not exist.
        day: The daily directory in it, such as ``2026/11/24``.
        names: The names of the peers.
        ownership: Owner and group of new directories; None leaves them to this process. If the day is new, they apply
            to the directories of its month and year, too.

    Raises:
        TargetError: If a directory cannot be created, or is not a directory.
    """

    def __init__(self, staging_directory: str, day: str, names: Sequence[str], ownership: Ownership | None) -> None:
        self._staging_directory = staging_directory
        self._components = day.split("/")
        self._names = names
        self._ownership = ownership
        self._path = os.path.join(staging_directory, day)
        self._fd = -1

    def __enter__(self) -> DailyDirectories:
        self._fd = self._create_daily_directory()
        try:
            for name in self._names:
                self._create_peer_directory(name)
        except BaseException:
            os.close(self._fd)
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        os.close(self._fd)

    @contextlib.contextmanager
    def peer_directory(self, name: str) -> Iterator[str]:
        """Yield a path of a peer's directory that stays valid if the directory is renamed.

        Raises:
            TargetError: If it is not a directory, or a link.
        """
        path = os.path.join(self._path, name)
        with _map_errors(path):
            fd = open_directory(name, dir_fd=self._fd)
        try:
            with _path_by_descriptor(fd, path) as anchored:
                yield anchored
        finally:
            os.close(fd)

    def write_indicator_file(self) -> None:
        """Write the master's own stage indicator: an empty file in the daily directory.

        Raises:
            TargetError: If it cannot be written, or is a link, which is not followed.
        """
        with _path_by_descriptor(self._fd, self._path) as anchored:
            indicator = os.fsencode(os.path.join(anchored, STAGE_INDICATOR))
            try:
                LocalTransport(Watchdog(Limits())).touch(indicator, ownership=self._ownership)
            except StageError as exc:
                raise TargetError(
                    f"The stage indicator cannot be written: {exc.message}",
                    path=os.path.join(self._path, STAGE_INDICATOR),
                    errno=exc.errno,
                    reason=exc.reason,
                ) from exc

    def _create_daily_directory(self) -> int:
        """Create the daily directory, and return its descriptor."""
        with contextlib.ExitStack() as opened:

            def keep(fd: int) -> int:
                opened.callback(os.close, fd)
                return fd

            with _map_errors(self._staging_directory):
                os.makedirs(self._staging_directory, exist_ok=True)
                levels = [(keep(open_directory(self._staging_directory, follow=True)), self._staging_directory)]
            is_new = False
            for component in self._components:
                path = os.path.join(levels[-1][1], component)
                with _map_errors(path):
                    fd, is_new = _open_or_create(component, levels[-1][0])
                levels.append((keep(fd), path))
            if not is_new:
                log.warning("Staging directory %s already exists.", escape(self._path))
            for fd, path in levels[1:] if is_new else ():
                self._change_owner(fd, path)
            with _map_errors(self._path):
                return os.dup(levels[-1][0])

    def _create_peer_directory(self, name: str) -> None:
        path = os.path.join(self._path, name)
        with _map_errors(path):
            fd, is_new = _open_or_create(name, self._fd)
        try:
            if is_new:
                self._change_owner(fd, path)
            else:
                log.warning("Staging directory %s already exists.", escape(path))
        finally:
            os.close(fd)

    def _change_owner(self, fd: int, path: str) -> None:
        """Change the owner of a directory; log a failure and continue, as cback3 does."""
        if self._ownership is None:
            return
        try:
            os.fchown(fd, *self._ownership)
        except OSError as exc:
            log.error("Cannot change the owner of %s: %s.", escape(path), exc.strerror)


def _open_or_create(name: str, dir_fd: int) -> tuple[int, bool]:
    """Return a descriptor of the directory *name*, and whether it is new."""
    is_new = True
    try:
        os.mkdir(name, dir_fd=dir_fd)
    except FileExistsError:
        is_new = False
    return open_directory(name, dir_fd=dir_fd), is_new


@contextlib.contextmanager
def _path_by_descriptor(fd: int, path: str) -> Iterator[str]:
    """Yield a path of the open directory *fd* itself, or *path* where /proc is missing; errors name *path*."""
    anchored = f"/proc/{os.getpid()}/fd/{fd}"
    if not os.path.isdir(anchored):
        yield path
        return
    try:
        yield anchored
    except StageError as exc:
        if exc.path is not None:
            exc.path = os.fsdecode(exc.path).replace(anchored, path)
        exc.message = exc.message.replace(anchored, path)
        raise


@contextlib.contextmanager
def _map_errors(path: str) -> Iterator[None]:
    """Map errors of the system for the directory *path* to `TargetError`."""
    try:
        yield
    except OSError as exc:
        raise TargetError(
            f"The staging directory cannot be used: {exc.strerror}.",
            path=path,
            errno=exc.errno,
            reason=target_reason_of(exc),
        ) from exc

"""The daily directory of a staging pool, ``STAGING/YYYY/MM/DD``, with a directory for each peer."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import NamedTuple

from peerstage.errors import StageError, TargetError
from peerstage.paths import STAGE_INDICATOR
from peerstage.printable import escape
from peerstage.records import Limits, Ownership
from peerstage.system_errors import target_errors
from peerstage.target.file_descriptors import close_quietly, closing, open_directory
from peerstage.transport.local import LocalTransport
from peerstage.watchdog import Watchdog


class OpenedDirectory(NamedTuple):
    """A directory that was opened, or created.

    Attributes:
        fd: Its descriptor.
        path: Its path, for messages.
        is_new: Whether it was created.
    """

    fd: int
    path: str
    is_new: bool


class DailyDirectories:
    """The daily directory, open in a ``with`` block, and the directories of peers in it.

    Below the staging directory, no symlink is followed, and paths are relative to open directories. Otherwise the
    backup user, who may own these directories, could make root write elsewhere. Several objects, also of several
    processes, may be used for one day at the same time.

    Args:
        staging_directory: The staging directory, which must exist; symlinks on the way to it are followed.
        day: The daily directory in it, such as ``2026/11/24``.
        ownership: Owner and group of new directories; None leaves them to this process. A directory that is empty and
            still this process's counts as new: a killed run may have left it.
        mode: Mode of new directories (0o777 at most); None is 0777 & ~umask.
        create: Whether missing directories are created.

    Attributes:
        path: The path of the daily directory, for messages.

    Raises:
        TargetError: If a directory cannot be created, or is not a directory; with the reason target-missing if it is
            missing. Raised on entering.
    """

    log = logging.getLogger("peerstage.fleet")

    def __init__(
        self,
        staging_directory: str,
        day: str,
        ownership: Ownership | None = None,
        *,
        mode: int | None = None,
        create: bool = True,
    ) -> None:
        self.path = os.path.join(staging_directory, day)
        self._staging_directory = staging_directory
        self._components = day.split("/")
        self._ownership = ownership
        self._mode = mode
        self._create = create
        self._fd = -1

    def __enter__(self) -> DailyDirectories:
        with contextlib.ExitStack() as opened:
            with map_errors(self._staging_directory):
                fd = open_directory(self._staging_directory, follow=True)
            opened.callback(close_quietly, fd)
            levels: list[OpenedDirectory] = []
            path = self._staging_directory
            for component in self._components:
                path = os.path.join(path, component)
                levels.append(self._open_or_create(component, fd, path))
                fd = levels[-1].fd
                opened.callback(close_quietly, fd)
            self._on_opened(levels)
            with map_errors(self.path):
                self._fd = os.dup(fd)
        return self

    def __exit__(self, *exc_info: object) -> None:
        close_quietly(self._fd)

    @contextlib.contextmanager
    def peer_directory(self, name: str) -> Iterator[str]:
        """Yield a path of a peer's directory that stays valid if the directory is renamed.

        Args:
            name: The name of the peer, which was validated. Its directory is created if it is missing.

        Raises:
            TargetError: If it cannot be created, or is a link or anything else but a directory.
        """
        found = self._open_or_create(name, self._fd, os.path.join(self.path, name))
        with closing(found.fd):
            if not found.is_new:
                self.log.debug("Staging directory %s already exists.", escape(found.path))
            with _path_by_descriptor(found.fd, found.path) as anchored:
                yield anchored

    def write_indicator_file(self) -> None:
        """Write the master's own stage indicator: an empty file in the daily directory.

        Raises:
            TargetError: If it cannot be written, or is a link, which is not followed.
        """
        with _path_by_descriptor(self._fd, self.path) as anchored:
            indicator = os.fsencode(os.path.join(anchored, STAGE_INDICATOR))
            try:
                LocalTransport(Watchdog(Limits())).touch(indicator, ownership=self._ownership)
            except StageError as exc:
                raise TargetError(
                    f"The stage indicator cannot be written: {exc.message}",
                    path=os.path.join(self.path, STAGE_INDICATOR),
                    errno=exc.errno,
                    reason=exc.reason,
                ) from exc

    def _on_opened(self, levels: list[OpenedDirectory]) -> None:
        """Called when the directories of year, month and day are open."""

    def _open_or_create(self, name: str, dir_fd: int, path: str) -> OpenedDirectory:
        is_new = False
        with map_errors(path):
            if self._create:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, 0o777 if self._mode is None else 0o700, dir_fd=dir_fd)
                    is_new = True
            fd = open_directory(name, dir_fd=dir_fd)
        try:
            if self._create:
                self._set_attributes(fd, path)
        except BaseException:
            close_quietly(fd)
            raise
        return OpenedDirectory(fd, path, is_new)

    def _set_attributes(self, fd: int, path: str) -> None:
        """Set mode and owner of a directory that is new.

        It is known as such by being empty and this process's, since another user with write access to its parent may
        have replaced the directory that mkdir(2) made.
        """
        if self._ownership is None and self._mode is None:
            return
        with map_errors(path):
            found = os.fstat(fd)
            with os.scandir(fd) as entries:
                if found.st_uid != os.geteuid() or any(entries):
                    return
            if self._mode is not None:
                os.fchmod(fd, self._mode | (found.st_mode & stat.S_ISGID))
        self._change_owner(fd, path)

    def _change_owner(self, fd: int, path: str) -> None:
        """Change the owner of a directory; log a failure and continue: a stage into it tells the same as an error."""
        if self._ownership is None:
            return
        try:
            os.fchown(fd, *self._ownership)
        except OSError as exc:
            self.log.error("Cannot change the owner of %s: %s.", escape(path), exc.strerror)


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


def map_errors(path: str) -> AbstractContextManager[None]:
    """Return a context manager that raises every `OSError` of its block as a `TargetError` about *path*."""
    return target_errors("The staging directory cannot be used", path)

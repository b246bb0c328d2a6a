"""The directories of a day below the staging directory, and whose they are."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from types import TracebackType

from peerstage.errors import LandingError, StageError, escape
from peerstage.landing.private import open_directory
from peerstage.peer.base import STAGE_INDICATOR
from peerstage.records import Limits, Ownership
from peerstage.session.watchdog import Watchdog
from peerstage.system_errors import target_reason_of
from peerstage.transport.local import LocalTransport

log = logging.getLogger("peerstage.cback3")


class Places:
    """The directory of a day, and one in it for each peer; made on entering.

    What is there already is left as it is. Below the staging directory no link is ever followed, and everything is
    reached from the day's open directory: these belong to the user that talks to the network, who else could have root
    work elsewhere.

    Args:
        staging: The staging directory; it is made if it is not there.
        day: Such as ``2026/11/24``.
        names: Of the peers.
        ownership: Whose the directories are to be; None leaves that to this process. If the day is new, month and year
            are given to them too.

    Raises:
        LandingError: One can not be made, or is no directory.
    """

    def __init__(self, staging: str, day: str, names: Sequence[str], ownership: Ownership | None) -> None:
        self._staging = staging
        self._parts = day.split("/")
        self._names = names
        self._ownership = ownership
        self._path = os.path.join(staging, day)
        self._fd = -1

    def __enter__(self) -> Places:
        self._fd = self._make_day()
        try:
            for name in self._names:
                self._make_place(name)
        except BaseException:
            os.close(self._fd)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.close(self._fd)

    @contextlib.contextmanager
    def of(self, peer: str) -> Iterator[str]:
        """Yield the path of a peer's directory, which means that very directory whatever becomes of its name.

        Raises:
            LandingError: It is none, or a link.
        """
        with _telling(os.path.join(self._path, peer)):
            fd = open_directory(peer, dir_fd=self._fd)
        try:
            with _named(fd, os.path.join(self._path, peer)) as path:
                yield path
        finally:
            os.close(fd)

    def write_indicator(self) -> None:
        """Write the master's own stage indicator: an empty file in the directory of the day.

        Raises:
            LandingError: It can not be written, or is a link, which is not followed.
        """
        with _named(self._fd, self._path) as path:
            place = os.fsencode(os.path.join(path, STAGE_INDICATOR))
            try:
                LocalTransport(Watchdog(Limits()), Limits()).touch(place, ownership=self._ownership)
            except StageError as exc:
                raise LandingError(
                    f"The stage indicator can not be written: {exc.message}",
                    path=os.path.join(self._path, STAGE_INDICATOR),
                    errno=exc.errno,
                    reason=exc.reason,
                ) from exc

    def _make_day(self) -> int:
        with contextlib.ExitStack() as opened:

            def opening(fd: int) -> int:
                opened.callback(os.close, fd)
                return fd

            with _telling(self._staging):
                os.makedirs(self._staging, exist_ok=True)
                descriptors = [opening(open_directory(self._staging, follow=True))]
            path, is_new = self._staging, False
            for part in self._parts:
                path = os.path.join(path, part)
                with _telling(path):
                    is_new = _make(part, descriptors[-1])
                    descriptors.append(opening(open_directory(part, dir_fd=descriptors[-1])))
            if not is_new:
                log.warning("The staging directory %s is there already.", escape(self._path))
            for fd in descriptors[1:] if is_new else ():
                self._give(fd, self._path)
            return os.dup(descriptors[-1])

    def _make_place(self, name: str) -> None:
        path = os.path.join(self._path, name)
        with _telling(path):
            is_new = _make(name, self._fd)
            fd = open_directory(name, dir_fd=self._fd)
        try:
            if is_new:
                self._give(fd, path)
            else:
                log.warning("The staging directory %s is there already.", escape(path))
        finally:
            os.close(fd)

    def _give(self, fd: int, path: str) -> None:
        """Give a directory to its owner; where that is refused it is logged, and no more, as cback3 does."""
        if self._ownership is None:
            return
        try:
            os.fchown(fd, *self._ownership)
        except OSError as exc:
            log.error("The ownership of %s can not be changed: %s.", escape(path), exc.strerror)


def _make(name: str, dir_fd: int) -> bool:
    """Make a directory; return whether it is new."""
    try:
        os.mkdir(name, dir_fd=dir_fd)
    except FileExistsError:
        return False
    return True


@contextlib.contextmanager
def _named(fd: int, path: str) -> Iterator[str]:
    """Yield a path that means the open directory itself; where the system has none, *path*. Errors tell of *path*."""
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
def _telling(path: str) -> Iterator[None]:
    """Raise what the system says of a directory in our words."""
    try:
        yield
    except OSError as exc:
        raise LandingError(
            f"The staging directory cannot be used: {exc.strerror}.",
            path=path,
            errno=exc.errno,
            reason=target_reason_of(exc),
        ) from exc

"""The directories of a day below the staging directory, and whose they are."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Sequence

from peerstage.errors import LandingError, StageError, escape
from peerstage.landing.private import open_directory
from peerstage.peer.base import STAGE_INDICATOR
from peerstage.records import Limits, Ownership
from peerstage.session.watchdog import Watchdog
from peerstage.transport.local import LocalTransport

log = logging.getLogger("peerstage.cback3")


def make_places(staging: str, day: str, names: Sequence[str], ownership: Ownership | None) -> dict[str, str]:
    """Make the directories of a day, one for each peer; return them by the peer's name.

    What is there already is left as it is. Below the staging directory no link is followed: whoever owns what was
    staged could have root work elsewhere.

    Args:
        staging: The staging directory; it is made if it is not there.
        day: Such as ``2026/11/24``.
        names: Of the peers.
        ownership: Whose they are to be; None leaves that to this process. If the day is new, month and year are given
            to them too.

    Raises:
        LandingError: One can not be made, or is no directory.
    """
    daily = os.path.join(staging, day)
    with contextlib.ExitStack() as opened:
        path = staging
        try:
            os.makedirs(staging, exist_ok=True)
            descriptors = [_keep(opened, open_directory(staging, follow=True))]
            made = []
            for part in day.split("/"):
                path = os.path.join(path, part)
                made.append(_make(part, descriptors[-1]))
                descriptors.append(_keep(opened, open_directory(part, dir_fd=descriptors[-1])))
            if made[-1]:
                for fd in descriptors[1:]:
                    _give(fd, ownership, daily)
            else:
                log.warning("The staging directory %s is there already.", escape(daily))
            for name in names:
                path = os.path.join(daily, name)
                is_new = _make(name, descriptors[-1])
                with contextlib.ExitStack() as own:
                    fd = _keep(own, open_directory(name, dir_fd=descriptors[-1]))
                    if is_new:
                        _give(fd, ownership, path)
                    else:
                        log.warning("The staging directory %s is there already.", escape(path))
        except OSError as exc:
            raise LandingError(
                f"The staging directory can not be made: {exc.strerror}.", path=path, errno=exc.errno
            ) from exc
    return {name: os.path.join(daily, name) for name in names}


def write_indicator(staging: str, day: str, ownership: Ownership | None) -> None:
    """Write the master's own stage indicator: an empty file in the directory of the day.

    Raises:
        LandingError: It can not be written, or is a link, which is not followed.
    """
    path = os.path.join(staging, day, STAGE_INDICATOR)
    try:
        LocalTransport(Watchdog(Limits()), Limits()).touch(os.fsencode(path), ownership=ownership)
    except StageError as exc:
        raise LandingError(f"The stage indicator can not be written: {exc.message}", path=path) from exc


def _make(name: str, dir_fd: int) -> bool:
    """Make a directory; return whether it is new."""
    try:
        os.mkdir(name, dir_fd=dir_fd)
    except FileExistsError:
        return False
    return True


def _give(fd: int, ownership: Ownership | None, path: str) -> None:
    """Give a directory to its owner; where that is refused it is logged, and no more, as cback3 does."""
    if ownership is None:
        return
    try:
        os.fchown(fd, *ownership)
    except OSError as exc:
        log.error("The ownership of %s can not be changed: %s.", escape(path), exc.strerror)


def _keep(stack: contextlib.ExitStack, fd: int) -> int:
    stack.callback(os.close, fd)
    return fd

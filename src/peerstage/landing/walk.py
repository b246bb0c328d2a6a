"""A walk over a tree of directories whose depth costs neither stack nor descriptors."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import NamedTuple

from peerstage.landing.private import close_quietly, open_directory

#: Directories inside one another that are entered; a staging directory has some five.
_MAX_DEPTH = 10_000


class _Level(NamedTuple):
    """A directory on the way from the top to where the walk is."""

    name: str
    identity: tuple[int, int]
    names: list[str]


def walk(top: str) -> Iterator[tuple[list[str], int, list[str]]]:
    """Yield each directory of the tree *top*, itself first; links are followed to *top* and nowhere else.

    Beside os.fwalk(), which recurses and holds a descriptor for each level, this holds two. It goes back up through
    ``..`` and compares device and inode, so that a directory that is moved during the walk leads it nowhere else.

    Yields:
        The names that lead from *top* to the directory, its descriptor, and the names of the directories in it. The
        descriptor is valid until the next step; a name that is removed from the last list is not entered.

    Raises:
        OSError: If *top* cannot be read. What cannot be read below it is left out.
    """
    root = open_directory(top, follow=True)
    fd = -1
    try:
        fd = os.dup(root)
        levels = [_Level("", _identity(fd), _directories(fd))]
        yield [], fd, levels[0].names
        while True:
            if not levels[-1].names:
                levels.pop()
                if not levels:
                    return
                below, fd = fd, -1
                fd = _ascend(below, levels, root)
                continue
            name = levels[-1].names.pop()
            try:
                inner = open_directory(name, dir_fd=fd)
            except OSError:  # gone, not readable, or a link by now
                continue
            close_quietly(fd)
            fd = inner
            levels.append(_Level(name, _identity(fd), []))
            if len(levels) <= _MAX_DEPTH:
                with contextlib.suppress(OSError):
                    levels[-1].names.extend(_directories(fd))
                yield [level.name for level in levels[1:]], fd, levels[-1].names
    finally:
        for left in (root, fd):
            if left >= 0:
                close_quietly(left)


def _ascend(fd: int, levels: list[_Level], root: int) -> int:
    """Close *fd* and return a descriptor of the last of *levels*; what was moved out of the tree is taken off them."""
    above = _open_if_same("..", fd, levels[-1].identity)
    close_quietly(fd)
    while above is None:
        above = _descend(levels, root)
        if above is None:
            levels.pop()
    return above


def _descend(levels: list[_Level], root: int) -> int | None:
    """Return a descriptor of the last of *levels*, reached by the names that lead there; None if they no longer do."""
    fd: int | None = os.dup(root)
    for level in levels[1:]:
        if fd is None:
            break
        above, fd = fd, _open_if_same(level.name, fd, level.identity)
        close_quietly(above)
    return fd


def _open_if_same(name: str, dir_fd: int, identity: tuple[int, int]) -> int | None:
    try:
        fd = open_directory(name, dir_fd=dir_fd)
    except OSError:
        return None
    with contextlib.suppress(OSError):
        if _identity(fd) == identity:
            return fd
    close_quietly(fd)
    return None


def _identity(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


def _directories(fd: int) -> list[str]:
    with os.scandir(fd) as entries:
        return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]

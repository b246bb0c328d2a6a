"""Walk over a directory tree, with two descriptors and no recursion at any depth."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import NamedTuple

from peerstage.target.file_descriptors import close_quietly, open_directory

#: Maximum depth; a staging directory has about five levels.
_MAX_DEPTH = 10_000


class _Level(NamedTuple):
    """A directory on the path from the top to the current one."""

    name: str
    identity: tuple[int, int]
    names: list[str]


def walk(top: str) -> Iterator[tuple[list[str], int, list[str]]]:
    """Yield each directory of the tree *top*, parents first; a symlink is followed only if it is *top* itself.

    Unlike os.fwalk(), this neither recurses nor holds a descriptor for each level. It returns to a parent through
    ``..`` and compares device and inode, so that a directory moved during the walk does not lead it elsewhere.

    Yields:
        The names from *top* to the directory, its descriptor, which is valid until the next step, and the names of its
        subdirectories. A name that the caller removes from this list is not entered.

    Raises:
        OSError: If *top* cannot be read. Subdirectories that cannot be read are skipped.
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
                child, fd = fd, -1
                fd = _ascend(child, levels, root)
                continue
            name = levels[-1].names.pop()
            try:
                inner = open_directory(name, dir_fd=fd)
            except OSError:  # removed, unreadable, or replaced by a symlink
                continue
            close_quietly(fd)
            fd = inner
            levels.append(_Level(name, _identity(fd), []))
            if len(levels) <= _MAX_DEPTH:
                with contextlib.suppress(OSError):
                    levels[-1].names.extend(_directories(fd))
                yield [level.name for level in levels[1:]], fd, levels[-1].names
    finally:
        for open_fd in (root, fd):
            close_quietly(open_fd)


def _ascend(fd: int, levels: list[_Level], root: int) -> int:
    """Close *fd*, drop levels that were moved out of the tree, and return a descriptor of the last remaining one."""
    parent = _open_if_same("..", fd, levels[-1].identity)
    close_quietly(fd)
    while parent is None:
        parent = _descend(levels, root)
        if parent is None:
            levels.pop()
    return parent


def _descend(levels: list[_Level], root: int) -> int | None:
    """Return a descriptor of the last of *levels*, opened from *root* by name; None if the path has changed."""
    fd: int | None = os.dup(root)
    for level in levels[1:]:
        if fd is None:
            break
        parent, fd = fd, _open_if_same(level.name, fd, level.identity)
        close_quietly(parent)
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

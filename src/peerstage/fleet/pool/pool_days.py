"""The daily directories of a staging pool, ``YYYY/MM/DD``, as they are on the disk."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

from peerstage.fleet.pool.run_id import is_day
from peerstage.target.file_descriptors import closing, open_directory

#: The names of years, months and days.
_NAMES = tuple(re.compile(pattern, re.ASCII) for pattern in (r"\d{4}", r"\d\d", r"\d\d"))
#: Daily directories of a pool: a century, in case another user fills it.
_MAX_DAYS = 36_600
_MOUNTS = "/proc/self/mountinfo"
_MAX_MOUNTS_BYTES = 16 << 20
_OCTAL = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True)
class PoolDays:
    """What a pool holds. All paths are relative to it.

    Attributes:
        days: The daily directories.
        links: Symlinks that have the name of a year, a month or a day. They are not followed.
        unreadable: Years and months that cannot be read, each with the error.
        empty: Years and months that hold nothing.
    """

    days: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    unreadable: dict[str, OSError] = field(default_factory=dict)
    empty: list[str] = field(default_factory=list)


def list_days(pool_fd: int) -> PoolDays:
    """Return the daily directories of a pool.

    Args:
        pool_fd: Descriptor of the pool.

    Raises:
        OSError: If the pool cannot be read, or holds more daily directories than a century has.
    """
    found = PoolDays()
    _list_level(pool_fd, (), found)
    return found


@contextlib.contextmanager
def open_month(pool_fd: int, day: str) -> Iterator[int]:
    """Yield a descriptor of the directory that holds the daily directory *day*. No symlink is followed.

    Raises:
        OSError: If it cannot be opened.
    """
    year, month, _ = day.split("/")
    with closing(open_directory(year, dir_fd=pool_fd)) as year_fd, closing(open_directory(month, dir_fd=year_fd)) as fd:
        yield fd


@contextlib.contextmanager
def open_day(pool_fd: int, day: str) -> Iterator[int]:
    """Yield a descriptor of the daily directory *day*. No symlink is followed.

    Raises:
        OSError: If it cannot be opened.
    """
    with open_month(pool_fd, day) as month_fd, closing(open_directory(day[-2:], dir_fd=month_fd)) as fd:
        yield fd


def remove_if_empty(pool_fd: int, path: str) -> None:
    """Remove the directory of a year or a month if it is empty; otherwise, and if that fails, leave it.

    Args:
        pool_fd: Descriptor of the pool.
        path: The directory, relative to the pool.
    """
    year, _, month = path.partition("/")
    with contextlib.suppress(OSError):
        if month:
            with closing(open_directory(year, dir_fd=pool_fd)) as year_fd:
                os.rmdir(month, dir_fd=year_fd)
        os.rmdir(year, dir_fd=pool_fd)


def mount_points_below(fd: int) -> list[str]:
    """Return the mount points below an open directory, relative to it; none where the system does not tell.

    Bind mounts of the same file system are among them, which st_dev does not show.

    Raises:
        OSError: If they cannot be read.
    """
    if not sys.platform.startswith("linux"):
        return []
    try:
        top = os.fsencode(os.path.join(os.readlink(f"/proc/self/fd/{fd}"), ""))
        with open(_MOUNTS, "rb") as file:
            lines = file.read(_MAX_MOUNTS_BYTES).splitlines()
    except FileNotFoundError:  # /proc is not mounted
        return []
    points = (_OCTAL.sub(lambda code: bytes([int(code[1], 8)]), line.split(b" ")[4]) for line in lines)
    return sorted({os.fsdecode(point.removeprefix(top)) for point in points if point.startswith(top) and point != top})


def _list_level(fd: int, parents: tuple[str, ...], found: PoolDays) -> None:
    """Add to *found* what the open directory of the pool, a year or a month holds."""
    level = len(parents)
    with os.scandir(fd) as entries:
        kinds = {
            entry.name: (entry.is_dir(follow_symlinks=False), entry.is_symlink())
            for entry in entries
            if _NAMES[level].fullmatch(entry.name)
        }
    if parents and not kinds and not os.listdir(fd):
        found.empty.append("/".join(parents))
    for name, (is_directory, is_link) in sorted(kinds.items()):
        path = "/".join((*parents, name))
        if is_link:
            found.links.append(path)
        elif is_directory and level < 2:
            try:
                with closing(open_directory(name, dir_fd=fd)) as inner:
                    _list_level(inner, (*parents, name), found)
            except OSError as exc:
                if exc.errno == errno.EFBIG:
                    raise
                found.unreadable[path] = exc
        elif is_directory and is_day(path):
            if len(found.days) >= _MAX_DAYS:
                raise OSError(errno.EFBIG, f"it holds more than {_MAX_DAYS} daily directories")
            found.days.append(path)

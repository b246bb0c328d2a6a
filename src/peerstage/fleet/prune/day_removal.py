"""Remove a daily directory. A kill at any instant leaves it whole in its place, or aside, for the next prune to finish.

It is first renamed into the pool's runs directory, where no other user can reach it by a path, and compared once more
with what was staged. Then only files that manifests name are removed, each by name in an open directory, and
directories only once they are empty. So whatever another user moves there at the same time is neither entered nor
removed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from peerstage.fleet.pool.pool_days import open_month
from peerstage.fleet.pool.runs_directory import RunsDirectory
from peerstage.fleet.prune.day_contents import Foreign, examine_day, is_stage_indicator, open_peer, staged_files
from peerstage.printable import escape
from peerstage.target.durability import sync_directory
from peerstage.target.file_descriptors import closing, open_directory
from peerstage.target.manifest import NAMES

log = logging.getLogger("peerstage.fleet")

_BLOCK = 512
_FILES_PER_CHECK = 1000
_ASIDE = re.compile(r"removed-(\d{4})-(\d\d)-(\d\d)", re.ASCII)
#: The manifest is removed last, so that an interrupted removal can still be compared with it.
_MANIFEST = frozenset(map(os.fsdecode, NAMES))


@dataclass
class Removal:
    """What a removal did.

    Attributes:
        path: Where the directory is.
        files: The number of files that were removed.
        bytes: The bytes that this freed: those of files that had no other link.
        failures: The number of files and directories that could not be removed.
        failure: The first of them, with the error, as a printable clause; None if everything was removed.
        error: That error; None if a foreign entry was in the way.
    """

    path: str
    files: int = 0
    bytes: int = 0
    failures: int = 0
    failure: str | None = None
    error: OSError | None = None

    def fail(self, path: str, error: OSError | Foreign) -> None:
        """Count what could not be removed."""
        if not self.failures:
            self.failure = str(error) if isinstance(error, Foreign) else f"{escape(path)}: {error.strerror}"
            self.error = None if isinstance(error, Foreign) else error
        self.failures += 1


def name_aside(day: str) -> str:
    """Return the name in the runs directory to which the daily directory *day* is renamed."""
    return f"removed-{day.replace('/', '-')}"


def list_aside(runs: RunsDirectory) -> list[str]:
    """Return the days whose removal was interrupted, or failed, the oldest first.

    Raises:
        TargetError: If the runs directory cannot be read.
    """
    with runs.errors("It cannot be listed"):
        names = os.listdir(runs.fd)
    return sorted("/".join(match.groups()) for match in map(_ASIDE.fullmatch, names) if match)


@contextlib.contextmanager
def open_aside(runs: RunsDirectory, day: str) -> Iterator[int]:
    """Yield a descriptor of a daily directory that was moved into the runs directory.

    Raises:
        OSError: If it cannot be opened.
    """
    with closing(open_directory(name_aside(day), dir_fd=runs.fd)) as fd:
        yield fd


def move_aside(
    pool_fd: int, day: str, runs: RunsDirectory, peers: Collection[str] | None, check: Callable[[], object]
) -> None:
    """Move a daily directory into the runs directory, if it holds nothing but what was staged.

    If this raises, the directory is in its place again. If another one has taken that place, the log tells where it is.

    Args:
        pool_fd: Descriptor of the pool.
        day: The daily directory.
        runs: The pool's runs directory.
        peers: The peers of the runs of that day.
        check: Called again and again; an exception that it raises is passed on.

    Raises:
        Foreign: If it holds anything else.
        OSError: If it cannot be moved or read.
    """
    name, aside = day.rpartition("/")[2], name_aside(day)
    with open_month(pool_fd, day) as month_fd:
        os.rename(name, aside, src_dir_fd=month_fd, dst_dir_fd=runs.fd)
        try:
            with open_aside(runs, day) as day_fd:
                examine_day(day_fd, peers, check)
            sync_directory(runs.fd)
            sync_directory(month_fd)
        except BaseException:
            try:
                os.rename(aside, name, src_dir_fd=runs.fd, dst_dir_fd=month_fd)
            except OSError as exc:
                path = escape(os.path.join(runs.path, aside))
                log.error("%s is kept, but cannot be moved back: %s. It is whole in %s.", day, exc.strerror, path)
            raise


def remove_aside(day: str, runs: RunsDirectory, check: Callable[[], object]) -> Removal:
    """Remove a daily directory that `move_aside` moved, or what an interrupted call left of it.

    What cannot be removed does not keep the rest.

    Args:
        day: The daily directory.
        runs: The pool's runs directory.
        check: Called again and again; an exception that it raises ends the removal and is passed on.
    """
    aside = name_aside(day)
    removal = Removal(os.path.join(runs.path, aside))
    try:
        with open_aside(runs, day) as day_fd:
            for name in sorted(os.listdir(day_fd)):
                try:
                    _remove_entry(name, day_fd, removal, check)
                except (Foreign, OSError) as exc:
                    removal.fail(name, exc.within(name) if isinstance(exc, Foreign) else exc)
        if not removal.failures:
            os.rmdir(aside, dir_fd=runs.fd)
    except OSError as exc:
        removal.fail(day, exc)
    return removal


def freed_bytes(status: os.stat_result) -> int:
    """Return how many bytes the disk gains when the last link to a file with that status is removed."""
    return status.st_blocks * _BLOCK


def _remove_entry(name: str, day_fd: int, removal: Removal, check: Callable[[], object]) -> None:
    """Remove the stage indicator, or the directory of a peer."""
    if is_stage_indicator(name, os.stat(name, dir_fd=day_fd, follow_symlinks=False)):
        _unlink(name, day_fd, removal)
        return
    failures = removal.failures
    with open_peer(name, day_fd) as peer_fd:
        files = [file for file, _ in staged_files(peer_fd, check)]
        for number, file in enumerate(sorted(files, key=_MANIFEST.__contains__)):
            if number % _FILES_PER_CHECK == 0:
                check()
            if file in _MANIFEST and removal.failures > failures:
                return
            try:
                _unlink(file, peer_fd, removal)
            except OSError as exc:
                removal.fail(f"{name}/{file}", exc)
    if removal.failures == failures:
        os.rmdir(name, dir_fd=day_fd)


def _unlink(name: str, dir_fd: int, removal: Removal) -> None:
    try:
        status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        os.unlink(name, dir_fd=dir_fd)
    except FileNotFoundError:  # removed by another process
        return
    removal.files += 1
    removal.bytes += freed_bytes(status) if status.st_nlink == 1 else 0

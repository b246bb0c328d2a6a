"""Compare a daily directory with what was staged into it. What no run staged is foreign.

The directories may belong to a backup user whom root does not trust. So each is opened relative to its parent, without
following symlinks; only the names in a peer's manifest count, and manifests are read within bounds. A backup user who
forges one makes root remove what that user could remove as well.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Collection, Iterator

from peerstage.errors import TargetError
from peerstage.fleet.prune.retention import Content
from peerstage.paths import STAGE_INDICATOR
from peerstage.printable import escape
from peerstage.reasons import Reason
from peerstage.target.checksum_file import MAX_LINES
from peerstage.target.file_descriptors import closing, open_directory
from peerstage.target.manifest import NAMES, read_confirmed_results
from peerstage.target.private_directory import is_private_directory
from peerstage.target.report_file import RecordedFile

_ENTRIES_PER_CHECK = 1000
_NO_MANIFEST = {
    Reason.NO_MANIFEST: "holds files, but no manifest",
    Reason.INVALID_MANIFEST: "has a damaged manifest",
}


class Foreign(Exception):
    """A daily directory holds something that no run staged.

    Attributes:
        path: Where, relative to the daily directory; "" for that itself.
        what: What is wrong with it, as a clause without a subject.
    """

    def __init__(self, path: str, what: str) -> None:
        super().__init__(f"{escape(path)} {what}")
        self.path = path
        self.what = what

    def within(self, directory: str) -> Foreign:
        """Return the same, relative to the parent of *directory*."""
        return Foreign(os.path.join(directory, self.path) if self.path else directory, self.what)


def examine_day(
    day_fd: int,
    peers: Collection[str] | None,
    check: Callable[[], object],
    on_file: Callable[[os.stat_result], object] = lambda status: None,
) -> None:
    """Check that a daily directory holds nothing but what runs staged, and the master's stage indicator.

    Args:
        day_fd: Descriptor of the daily directory.
        peers: The peers of the runs of that day; None accepts every directory with a manifest.
        check: Called again and again; an exception that it raises ends the comparison and is passed on.
        on_file: Called with the status of each file, those of manifests included.

    Raises:
        Foreign: If it holds anything else; for the first such entry.
        OSError: If it cannot be read.
    """
    device = os.fstat(day_fd).st_dev
    for entry in _entries(day_fd, check):
        status = entry.stat(follow_symlinks=False)
        if status.st_dev != device:
            raise Foreign(entry.name, "is on another file system")
        if is_stage_indicator(entry.name, status):
            on_file(status)
        elif peers is None or entry.name in peers:
            try:
                with open_peer(entry.name, day_fd) as peer_fd:
                    for _, file in staged_files(peer_fd, check):
                        on_file(file)
            except Foreign as exc:
                raise exc.within(entry.name) from None
        else:
            raise _foreign_entry(entry.name, day_fd, "was not made by a run")


def staged_files(peer_fd: int, check: Callable[[], object]) -> Iterator[tuple[str, os.stat_result]]:
    """Yield name and status of each file in the directory of a peer, those of the manifest included.

    Args:
        peer_fd: Descriptor of the directory.
        check: Called again and again; an exception that it raises ends the comparison and is passed on.

    Raises:
        Foreign: If it holds something that its manifest does not name, or a file that was changed since; possibly
            after some files.
        OSError: If it cannot be read.
    """
    device = os.fstat(peer_fd).st_dev
    manifest: dict[bytes, RecordedFile] | None = None
    for entry in _entries(peer_fd, check):
        name, status = os.fsencode(entry.name), entry.stat(follow_symlinks=False)
        if name not in NAMES:
            manifest = _read_manifest(peer_fd, check) if manifest is None else manifest
            if name not in manifest:
                raise _foreign_entry(entry.name, peer_fd, "is not in the manifest")
        if not stat.S_ISREG(status.st_mode):
            raise Foreign(entry.name, "is not a regular file")
        if status.st_dev != device:
            raise Foreign(entry.name, "is on another file system")
        if manifest is not None and name in manifest and not _is_unchanged(status, manifest[name]):
            raise Foreign(entry.name, "was changed after it was staged")
        yield entry.name, status


def content_of(day_fd: int, peer: str, check: Callable[[], object]) -> Content:
    """Return what the directory of *peer* holds of what its manifest names. Without a manifest, that is nothing.

    Args:
        day_fd: Descriptor of the daily directory.
        peer: The peer's name.
        check: Called again and again; an exception that it raises ends the comparison and is passed on.
    """
    try:
        with open_peer(peer, day_fd) as fd:
            try:
                manifest = _read_manifest(fd, check)
            except Foreign as exc:
                return Content(0, 0, exc.what == _NO_MANIFEST[Reason.NO_MANIFEST])
            sizes = [record.size for name, record in manifest.items() if _has_file(fd, name, record)]
            return Content(len(sizes), sum(sizes), len(sizes) == len(manifest))
    except (Foreign, OSError):
        return Content(0, 0, False)


def is_stage_indicator(name: str, status: os.stat_result) -> bool:
    """Return whether an entry of a daily directory is the master's stage indicator, an empty file."""
    return name == STAGE_INDICATOR and stat.S_ISREG(status.st_mode) and status.st_size == 0


@contextlib.contextmanager
def open_peer(name: str, day_fd: int) -> Iterator[int]:
    """Yield a descriptor of the directory *name* in a daily directory.

    Raises:
        Foreign: If it is not a directory; a symlink is not followed.
        OSError: If it cannot be opened.
    """
    try:
        fd = open_directory(name, dir_fd=day_fd)
    except OSError as exc:
        if exc.errno in (errno.ELOOP, errno.ENOTDIR):
            raise Foreign("", "is not a directory") from None
        raise
    with closing(fd):
        yield fd


def _entries(fd: int, check: Callable[[], object]) -> Iterator[os.DirEntry[str]]:
    with os.scandir(fd) as entries:
        for number, entry in enumerate(entries):
            if number % _ENTRIES_PER_CHECK == 0:
                check()
            yield entry


def _read_manifest(fd: int, check: Callable[[], object]) -> dict[bytes, RecordedFile]:
    try:
        return read_confirmed_results(fd, "", lambda status: True, lambda head: None, max_files=MAX_LINES, check=check)
    except TargetError as exc:
        what = _NO_MANIFEST.get(exc.reason) or f"has a manifest that cannot be read ({os.strerror(exc.errno or 0)})"
        raise Foreign("", what) from None


def _is_unchanged(status: os.stat_result, record: RecordedFile) -> bool:
    """Return whether a file has the size and time with which it was staged.

    In whole seconds: a pool that was moved by tar(1) or to another file system has lost the rest.
    """
    if not stat.S_ISREG(status.st_mode) or status.st_size != record.size:
        return False
    mtime_ns = record.staged_mtime_ns
    return mtime_ns is None or status.st_mtime_ns // 10**9 == mtime_ns // 10**9


def _has_file(dir_fd: int, name: bytes, record: RecordedFile) -> bool:
    with contextlib.suppress(OSError):
        return _is_unchanged(os.stat(name, dir_fd=dir_fd, follow_symlinks=False), record)
    return False


def _foreign_entry(name: str, dir_fd: int, what: str) -> Foreign:
    if is_private_directory(name, dir_fd):
        what = "belongs to a stage that is running or was killed; `peerstage sweep` removes it if it was killed"
    return Foreign(name, what)

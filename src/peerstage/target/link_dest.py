"""Link unchanged files to those of an earlier staging directory, instead of fetching them again.

A file is unchanged if its name, its size and the peer's modification time are. The earlier directory's manifest has the
peer's time, and if times are preserved, so has the file itself. The manifest counts only for a file that still has the
modification time with which it was staged: a run that was killed, or had no manifest, may have replaced it since.

Nothing there is changed: a file that would get another owner, mode or time than the earlier one is a copy of it, and so
is one that cannot be linked.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from peerstage.errors import TargetError
from peerstage.peer_log import PeerLog
from peerstage.printable import escape
from peerstage.reasons import Reason
from peerstage.records import MIB, Entry, Limits, Ownership
from peerstage.stage_options import StageOptions
from peerstage.target.attributes import StagedAttributes
from peerstage.target.file_descriptors import (
    CREATE_NEW,
    NO_FOLLOW,
    READ_WITHOUT_WAITING,
    close_quietly,
    closing,
    open_directory,
    readable_path,
)
from peerstage.target.manifest import read_confirmed_results
from peerstage.target.report_file import RecordedFile

_CHUNK = 4 * MIB

#: Errors of link(2) after which a copy may work: another file system, one without links, too many links, or a policy.
_COPY_INSTEAD = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS})
#: Whether link(2) can be told not to follow a symlink. Elsewhere the inode is compared afterwards, as it is here.
_MAY_FOLLOW = os.link not in os.supports_follow_symlinks


class Linked(NamedTuple):
    """A file that need not be fetched.

    Attributes:
        is_copy: Whether it is a copy of the earlier file rather than a link to it, so that it may be changed.
        is_due: Whether the copy is yet to be created.
        sha256: The digest of the earlier file as its manifest tells it; None if it does not.
    """

    is_copy: bool
    is_due: bool
    sha256: bytes | None


class _Earlier(NamedTuple):
    """An unchanged file, and its digest if the manifest tells it and counts."""

    fd: int
    found: os.stat_result
    has_peers_time: bool
    sha256: bytes | None


class _OtherPeerError(Exception):
    """The manifest is that of another peer."""


class LinkSource:
    """The files of an earlier staging directory, which is opened once, for the first file.

    Whatever is wrong with it, files are fetched.

    Args:
        options: `link_dest` is the directory; with `verify="sha256"` the digests in its manifest do not count.
        limits: `entries` is the maximum number of files in the manifest.
        target_fd: Descriptor of the target, whose owner is trusted to write to that directory, as are the owner of
            staged files and this process's user; anybody else is not.
        private_fd: Descriptor of the private directory, in which links and copies are created.
        attributes: The attributes that staged files get.
        peer: The peer's name, which the manifest must have; "" for any.
        on_work: Called with 0 from time to time while the manifest is read; an exception that it raises ends the run.

    Attributes:
        notes: Why no file can be linked, as sentences; empty if files can.
    """

    def __init__(
        self,
        options: StageOptions,
        limits: Limits,
        target_fd: int,
        private_fd: int,
        attributes: StagedAttributes,
        *,
        peer: str,
        on_work: Callable[[int], object],
    ) -> None:
        self.notes: tuple[str, ...] = ()
        self._directory = options.link_dest or ""
        self._path = readable_path(self._directory)
        self._private_fd = private_fd
        self._attributes = attributes
        self._owner = _owner_of_new_files(private_fd, attributes.ownership)
        self._trusted_owners = {0, os.geteuid(), os.fstat(target_fd).st_uid, self._owner[0]}
        self._peer = peer
        self._max_files = limits.entries
        self._on_work = on_work
        self._carries_digests = options.verify != "sha256"
        self._log = PeerLog("peerstage.target", peer)
        self._fd = -1
        self._records: dict[bytes, RecordedFile] = {}
        self._has_opened = False
        self._has_times = True

    def _open_once(self) -> None:
        if self._has_opened:
            return
        self._has_opened = True
        try:
            self._fd = open_directory(self._directory, follow=True)
        except OSError as exc:
            self._note(f"{self._path} cannot be opened ({exc.strerror}), so that no file was linked to it.")
            return
        if not self._is_trusted(os.fstat(self._fd)):
            self._decline("other users can write to it. Take their rights away (chmod go-w), or its owner's (chown)")
            return
        try:
            self._records = read_confirmed_results(
                self._fd,
                self._path,
                self._is_trusted,
                self._require_peer,
                max_files=self._max_files,
                check=lambda: self._on_work(0),
            )
        except _OtherPeerError:
            self._decline("its manifest is that of another peer. Stage every peer into a directory of its own")
        except TargetError as exc:
            if not self._attributes.preserve_times:
                self._note(f"{self._path} does not tell the times of its files, so that none was linked. {exc.message}")
            elif exc.reason is not Reason.NO_MANIFEST:
                self._note(f"{self._path}: {exc.message}")

    def _is_trusted(self, found: os.stat_result) -> bool:
        """Return whether only trusted users can have written a file or directory with these attributes."""
        return found.st_uid in self._trusted_owners and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)

    def _require_peer(self, head: dict[str, Any]) -> None:
        if self._peer and head.get("peer") != self._peer:
            raise _OtherPeerError

    def _decline(self, problem: str) -> None:
        self.close()
        self._note(f"Nothing was linked to {self._path}: {problem}.")

    def close(self) -> None:
        """Close the directory. May be called again."""
        fd, self._fd = self._fd, -1
        self._records = {}
        close_quietly(fd)

    def link(self, entry: Entry, private_name: str) -> Linked | None:
        """Create *private_name* as a link to the earlier file if it is unchanged, and if a link is possible.

        Returns:
            Whether it is a link, or is to be a copy that `copy` creates; None if the file is to be fetched.

        Raises:
            OSError: If the link cannot be created.
        """
        self._open_once()
        if entry.mtime is None and self._has_times and self._fd >= 0:
            self._has_times = False
            self._note(f"The peer sends no modification times, so that not every file was linked to {self._path}.")
        with self._open_unchanged(entry) as earlier:
            if earlier is None:
                return None
            found, sha256 = earlier.found, earlier.sha256
            attributes = (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode))
            is_as_wanted = attributes == (*self._owner, self._attributes.mode_of(entry))
            is_linked: bool | None = False
            if is_as_wanted and (earlier.has_peers_time or not self._attributes.preserve_times):
                is_linked = self._link(entry.name, private_name, found)
            if is_linked is None or not (is_linked or found.st_uid in self._trusted_owners):
                return None
        return Linked(not is_linked, not is_linked, sha256)

    def copy(self, entry: Entry, private_name: str, on_copied: Callable[[int], object]) -> bool:
        """Create *private_name* as a copy of the earlier file.

        Args:
            entry: A file for which `link` returned a copy.
            private_name: The name of the copy.
            on_copied: Called from time to time with the number of bytes copied since; an exception that it raises ends
                the run.

        Returns:
            Whether it was created; False if the earlier file has changed or cannot be read, and nothing was created.

        Raises:
            OSError: If the copy cannot be written.
        """
        with self._open_unchanged(entry) as earlier:
            if earlier is None or earlier.found.st_uid not in self._trusted_owners:
                return False
            return self._copy(earlier.fd, private_name, earlier.found, on_copied)

    @contextlib.contextmanager
    def _open_unchanged(self, entry: Entry) -> Iterator[_Earlier | None]:
        """Yield the earlier file; None if there is none, or if it is not the file of *entry*."""
        recorded = self._records.get(entry.name)
        if self._fd < 0 or entry.mtime is None or (recorded is None and not self._attributes.preserve_times):
            yield None
            return
        if recorded is not None and (recorded.size, recorded.mtime) != (entry.size, entry.mtime):
            yield None
            return
        with self._open_earlier(entry) as (fd, found):
            if found is None:
                yield None
                return
            has_peers_time = found.st_mtime_ns // 10**9 == entry.mtime
            sha256, is_unchanged = None, self._attributes.preserve_times and has_peers_time
            if recorded is not None and recorded.staged_mtime_ns is not None:
                is_unchanged = recorded.staged_mtime_ns == found.st_mtime_ns
                sha256 = recorded.sha256 if self._carries_digests else None
            yield _Earlier(fd, found, has_peers_time, sha256) if is_unchanged else None

    @contextlib.contextmanager
    def _open_earlier(self, entry: Entry) -> Iterator[tuple[int, os.stat_result | None]]:
        """Yield a descriptor of the earlier file and its attributes; -1 and None if it is not as *entry* needs it."""
        try:
            is_regular = stat.S_ISREG(os.stat(entry.name, dir_fd=self._fd, follow_symlinks=False).st_mode)
            fd = os.open(entry.name, READ_WITHOUT_WAITING | NO_FOLLOW, dir_fd=self._fd) if is_regular else -1
        except OSError:
            fd = -1
        if fd < 0:
            yield -1, None
            return
        with closing(fd):
            found = os.fstat(fd)
            yield fd, found if stat.S_ISREG(found.st_mode) and found.st_size == entry.size else None

    def _link(self, name: bytes, private_name: str, found: os.stat_result) -> bool | None:
        """Link *name* as *private_name*; return False if that is impossible, None if *name* is another file by now."""
        try:
            os.link(name, private_name, src_dir_fd=self._fd, dst_dir_fd=self._private_fd, follow_symlinks=_MAY_FOLLOW)
        except FileNotFoundError:
            return None
        except OSError as exc:
            if exc.errno in _COPY_INSTEAD:
                return False
            raise
        if os.path.samestat(os.stat(private_name, dir_fd=self._private_fd, follow_symlinks=False), found):
            return True
        os.unlink(private_name, dir_fd=self._private_fd)
        return None

    def _copy(self, fd: int, private_name: str, found: os.stat_result, on_copied: Callable[[int], object]) -> bool:
        """Copy *fd*; return False, with nothing left, if it cannot be read to its end, or changes."""
        is_complete = False
        copy = os.open(private_name, CREATE_NEW, 0o600, dir_fd=self._private_fd)
        try:
            is_complete = (
                _copy_bytes(fd, copy, found.st_size, on_copied) and os.fstat(fd).st_mtime_ns == found.st_mtime_ns
            )
        finally:
            os.close(copy)
            if not is_complete:
                os.unlink(private_name, dir_fd=self._private_fd)
        return is_complete

    def _note(self, text: str) -> None:
        self.notes = (*self.notes, escape(text))
        self._log.warning("%s", self.notes[-1])


def _owner_of_new_files(directory_fd: int, ownership: Ownership | None) -> tuple[int, int]:
    """Return owner and group that a new file in the directory gets, by *ownership* or by default."""
    directory = os.fstat(directory_fd)
    uid, gid = ownership or (-1, -1)
    inherited = directory.st_gid if directory.st_mode & stat.S_ISGID else os.getegid()
    return (os.geteuid() if uid == -1 else uid), (inherited if gid == -1 else gid)


def _copy_bytes(source: int, copy: int, size: int, on_copied: Callable[[int], object]) -> bool:
    """Copy *size* bytes; return False if *source* cannot be read, or ends before."""
    position = 0
    on_copied(0)
    while position < size:
        try:
            chunk = os.pread(source, min(_CHUNK, size - position), position)
        except OSError:
            return False
        if not chunk:
            return False
        view = memoryview(chunk)
        while view:
            view = view[os.write(copy, view) :]
        position += len(chunk)
        on_copied(len(chunk))
    return True

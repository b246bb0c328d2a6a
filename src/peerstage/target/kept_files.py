"""Kept files: the large files of a failed run, which a later run continues instead of fetching them again.

A run moves a kept file into its private directory before it uses it, so that each has one owner at a time. It moves
files here only as it ends in an orderly way, with their data synced before they get their names. So a killed run or a
power failure leaves nothing here whose data may be missing: what the run had taken over is in its private directory,
and is swept with it.

Nothing in a kept file is believed. The next run compares the last MiB and 16 random blocks of 64 KiB with the peer's
file; if any differs, it starts over. A peer that wants to deliver a mixture of two versions can do so: it sees which
blocks are compared. An honest peer whose file changed without another size or modification time is detected if the
change is in a compared block. Only a digest from the peer verifies the whole file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import stat
from collections.abc import Iterable, Sequence

from peerstage.errors import ProtocolError, StageError, TargetError
from peerstage.peer_log import PeerLog
from peerstage.printable import escape
from peerstage.reasons import Reason
from peerstage.records import KIB, MIB, Entry
from peerstage.system_errors import is_machine_wide
from peerstage.target import durability
from peerstage.target.file_descriptors import NO_FOLLOW, READ_WITHOUT_WAITING, closing
from peerstage.target.kept_directory import MAX_AGE, KeptDirectory, prefix_for
from peerstage.target.kept_record import MAX_RANGES, encode_record, hash_fields, read_record
from peerstage.target.partial_file import PartialFile
from peerstage.target.ranges import Ranges

#: Fewer bytes are not worth keeping: up to 2 MiB of them would be fetched again to be compared.
MIN_BYTES = 8 * MIB
#: Files that one run keeps or takes over, so that their ranges stay within the bounds of a run.
MAX_FILES = 512
#: What is compared: the end, and random blocks.
_TAIL = MIB
_BLOCK, _BLOCKS = 64 * KIB, 16

_random = random.SystemRandom()


class KeptFiles:
    """The kept files of one peer's directory, for one run.

    Args:
        path: The directory of kept files; see `KeptDirectory`.
        target_fd: Descriptor of the target.
        private_fd: Descriptor of the private directory.
        peer: The peer's name.
        directory: The peer's directory.
        log: The log.

    Attributes:
        notes: Why large files can be neither kept nor continued, as sentences; empty if they can.

    Raises:
        TargetError: If the directory cannot be used.
    """

    def __init__(
        self, path: str, *, target_fd: int, private_fd: int, peer: str, directory: bytes, log: PeerLog
    ) -> None:
        self._path = path
        self._private_fd = private_fd
        self._source = hash_fields(os.fsencode(peer), directory)
        self._log = log
        self._directory = KeptDirectory(path, target_fd=target_fd, private_fd=private_fd, log=log)
        try:
            self._candidates = self._directory.names_of(self._source)
        except BaseException:
            self._directory.close()
            raise
        self._unlisted = set(self._candidates)
        self._is_listed = False
        self._taken = 0
        self.notes: tuple[str, ...] = ()
        self._needs_sync = False

    @property
    def has_candidates(self) -> bool:
        """Whether there are files that were kept of this peer's directory."""
        return bool(self._candidates)

    def close(self) -> None:
        """Close the directory."""
        self._directory.close()

    def note_listed(self, entries: Sequence[Entry]) -> None:
        """Note which files the peer still has, and whether the times of large ones are unknown."""
        self._is_listed = self._is_listed or bool(entries)
        if not self.notes and any(entry.mtime is None and entry.size >= MIN_BYTES for entry in entries):
            text = "The modification times of large files are unknown, so that these are neither continued nor kept in"
            self.notes = (f"{text} {escape(self._path)}.",)
            self._log.warning("%s", self.notes[0])
        if self._unlisted:
            self._unlisted.difference_update(self._name_of(entry) for entry in entries)

    def take_over(self, file: PartialFile) -> None:
        """Continue *file*, which has not begun, with what is kept of it, if anything. Then call `sync`.

        A kept file of another version is removed.

        Raises:
            OSError: If the disk failed.
        """
        entry = file.entry
        if not self._candidates or entry.mtime is None or self._taken == MAX_FILES:
            return
        name = self._name_of(entry)
        if name not in self._candidates:
            return
        self._candidates.discard(name)
        try:
            os.rename(name, file.private_name, src_dir_fd=self._directory.fd, dst_dir_fd=self._private_fd)
        except FileNotFoundError:  # another run has taken it over
            return
        self._needs_sync = True
        ranges = self._read(file.private_name, entry)
        if ranges is None:
            os.unlink(file.private_name, dir_fd=self._private_fd)
            self._log.info("What was kept of %s is of another version, damaged, or of a group that this process cannot "
                           "change, and is removed.", escape(entry.name))  # fmt: skip
            return
        self._taken += 1
        file.take_over(ranges, choose_samples(ranges))
        self._log.info("%s: %d bytes are kept of it.", escape(entry.name), ranges.size)

    def sync(self) -> None:
        """Make sure that what was taken over has lost its name here, before its data changes.

        Otherwise a power failure could bring back the name, the record, and other data than it describes.

        Raises:
            OSError: If the disk failed.
        """
        if self._needs_sync:
            durability.sync_directory(self._directory.fd)
            self._needs_sync = False

    def make_space(self, needed: int) -> int:
        """See `KeptDirectory.make_space`."""
        return self._directory.make_space(needed, self._source)

    def describe_space(self) -> str:
        """Return how much space the kept files of all peers take, in parentheses; an empty string if none."""
        allocated = self._directory.allocated_bytes()
        return f" (files of failed runs take {allocated} bytes in {self._path})" if allocated else ""

    def remove_unlisted(self) -> None:
        """Remove what is kept of files that the peer no longer has. A peer without any file may have lost a disk."""
        for name in self._unlisted if self._is_listed else ():
            self._directory.unlink(name)

    def keep(self, files: Iterable[PartialFile], error: BaseException | None) -> None:
        """Keep the large files of a run that ends with *error*, after their descriptors are closed.

        Files that were taken over and not written to are put back, whatever the error. Failures are only logged.
        """
        unpublished = list(files)
        with contextlib.suppress(OSError):
            for file in unpublished:
                if file.is_untouched:
                    self._rename(file)
        if error is None or not _may_keep(error):
            return
        count = kept_bytes = 0
        try:
            large = [(ranges, file) for file in unpublished if (ranges := file.ranges_to_keep()).size >= MIN_BYTES]
            large.sort(key=lambda item: item[0].size, reverse=True)
            for ranges, file in large[:MAX_FILES]:
                if file.entry.mtime is not None:
                    self._write(file, ranges)
                    count += 1
                    kept_bytes += ranges.size
            if count:
                durability.sync_directory(self._directory.fd)
                self.remove_unlisted()  # so that a peer with other names every night does not fill the disk
        except OSError as exc:
            self._log.warning("Not every large file could be kept in %s: %s.", escape(self._path), exc.strerror)
        except ValueError:  # Ctrl-C has interrupted a change of the ranges
            self._log.warning("Not every large file could be kept in %s: it was interrupted.", escape(self._path))
        if count:
            self._log.info(
                "%d large files are kept in %s, %d bytes, for the next run within %d days.",
                count, escape(self._path), kept_bytes, MAX_AGE // 86400,
            )  # fmt: skip

    def _write(self, file: PartialFile, ranges: Ranges) -> None:
        longest = sorted(ranges, key=lambda pair: pair[0] - pair[1])[:MAX_RANGES]
        record = encode_record(self._binding(file.entry), sorted(longest))
        found = os.stat(file.private_name, dir_fd=self._private_fd, follow_symlinks=False)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            raise OSError(errno.EMLINK, "a file has several links")
        os.chmod(file.private_name, 0o600, dir_fd=self._private_fd)
        with closing(os.open(file.private_name, os.O_RDWR | NO_FOLLOW, dir_fd=self._private_fd)) as fd:
            if os.fstat(fd).st_uid != os.geteuid():
                os.fchown(fd, os.geteuid(), os.getegid())
            os.ftruncate(fd, file.entry.size)
            if os.pwrite(fd, record, file.entry.size) != len(record):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(fd)
        self._rename(file)

    def _rename(self, file: PartialFile) -> None:
        os.rename(
            file.private_name, self._name_of(file.entry), src_dir_fd=self._private_fd, dst_dir_fd=self._directory.fd
        )

    def _read(self, private_name: str, entry: Entry) -> Ranges | None:
        """Return what the kept file holds; None if it is not one of *entry*, or cannot get the group of a new file."""
        try:
            fd = os.open(private_name, READ_WITHOUT_WAITING | NO_FOLLOW, dir_fd=self._private_fd)
        except OSError as exc:
            if is_machine_wide(exc):
                raise
            return None
        with closing(fd):
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_nlink != 1:
                return None
            ranges = read_record(fd, entry, self._binding(entry))
            if ranges is not None and found.st_gid != self._directory.new_group and not self._set_group(fd):
                return None
            return ranges

    def _set_group(self, fd: int) -> bool:
        """Give a kept file the group that a new one gets in this target; return False if that is refused."""
        try:
            os.fchown(fd, -1, self._directory.new_group)
        except OSError as exc:
            if exc.errno not in (errno.EPERM, errno.EINVAL):
                raise
            return False
        return True

    def _name_of(self, entry: Entry) -> str:
        return prefix_for(self._source) + hash_fields(entry.name)[:32]

    def _binding(self, entry: Entry) -> str:
        return hash_fields(self._source.encode(), entry.name, b"%d" % entry.size, b"%d" % (entry.mtime or 0))


def choose_samples(ranges: Ranges) -> Ranges:
    """Return what to compare of *ranges*: the last MiB, and 16 random blocks."""
    samples = Ranges()
    missing = _TAIL
    for start, end in reversed(list(ranges)):
        samples.add(max(start, end - missing), end)
        missing -= min(missing, end - start)
        if not missing:
            break
    for position in (_random.randrange(ranges.size) for _ in range(_BLOCKS)):
        for start, end in ranges:
            if position < end - start:
                block = start + position // _BLOCK * _BLOCK
                samples.add(block, min(block + _BLOCK, end))
                break
            position -= end - start
    return samples


def _may_keep(error: BaseException) -> bool:
    """Return whether what was written before *error* is as the peer sent it, and the peer kept to the protocol."""
    if isinstance(error, StageError):
        return not isinstance(error, (TargetError, ProtocolError)) and error.reason is not Reason.LOCAL_IO_ERROR
    return not isinstance(error, (OSError, MemoryError))

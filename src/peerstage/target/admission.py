"""Admission: which files of a listing are fetched, and whether there is space for what is missing of them."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

from peerstage.errors import ChangedFile, EntryError, ProtocolError, TargetError
from peerstage.reasons import Reason
from peerstage.records import Entry, Limits
from peerstage.target.disk_errors import NAME_ERRORS, disk_error, disk_errors, name_error
from peerstage.target.kept_files import KeptFiles
from peerstage.target.link_dest import LinkSource
from peerstage.target.manifest import reserved_name_error
from peerstage.target.partial_file import PartialFile
from peerstage.target.run_state import RunState
from peerstage.target.select import Selector
from peerstage.target.size_limits import SizeLimits

_CHANGED = "The file in StageOptions(link_dest=...) changed before it was copied. Stage again."


class Admission:
    """Admits the files of one run.

    Args:
        run: State that the files of the run share.
        target_fd: Descriptor of the target.
        files: The files of the run by name, to which admitted ones are added.
        selector: Decides which files are wanted, and keeps the results of the others.
        limits: Limits on sizes and on free space.
        reserved: Names of the manifest, which no file may have.
        link_source: An earlier staging directory, from which unchanged files are taken; None without one.
        kept: The files that earlier runs have kept; None without a directory for them.
    """

    def __init__(
        self,
        run: RunState,
        target_fd: int,
        files: dict[bytes, PartialFile],
        selector: Selector,
        limits: Limits,
        reserved: Collection[bytes] = (),
        link_source: LinkSource | None = None,
        kept: KeptFiles | None = None,
    ) -> None:
        self._reserved = reserved
        self._run = run
        self._target_fd = target_fd
        self._files = files
        self._selector = selector
        self._free_bytes = limits.free_bytes
        self._sizes = SizeLimits(limits)
        self._link_source = link_source
        self._next_number = 0
        self._is_second_fetch = False
        self._kept = kept

    def admit(self, entries: Sequence[Entry], *, needs_space: bool = True) -> list[PartialFile]:
        """Return the files to fetch; see `Target.admit`.

        A file that is too large fails at once, and so does a name that belongs to a directory or the manifest, or that
        this file system cannot hold.

        Args:
            entries: Files that the peer has.
            needs_space: Whether their data is yet to be written. If not, they are on this file system already.
        """
        if self._kept is not None:
            self._kept.note_listed(entries)
        files = [file for file in self._admit_entries(entries) if not file.is_finished or file.is_copy_due]
        admitted = [file for file in files if not file.is_finished]
        if needs_space and files:
            with disk_errors(self._run.target):
                self._take_over_kept(admitted)
                self._require_space()
                if self._kept is not None:
                    self._kept.sync()
        return admitted

    def copy_due_files(self, on_copied: Callable[[int], object]) -> Iterator[tuple[PartialFile, EntryError]]:
        """Create every copy that is due; yield the files of which this is impossible. See `LinkSource.copy`."""
        if self._link_source is None:
            return
        for file in self._files.values():
            if file.is_copy_due and not file.copy(self._link_source, on_copied):
                yield file, ChangedFile(_CHANGED)

    def start_over(self, file: PartialFile) -> None:
        """Drop what *file* has, so that all of it is missing again."""
        file.discard()
        self._files[file.entry.name] = PartialFile(self._run, file.entry, file.number)
        self._is_second_fetch = True

    def _admit_entries(self, entries: Iterable[Entry]) -> Iterable[PartialFile]:
        """Yield the files for those of *entries* that are wanted; discard what was begun of the others."""
        for entry in entries:
            name = entry.name
            if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
                raise ProtocolError("A file cannot have this name.", path=name)
            if not self._selector.leaves_out(entry):
                yield self._admit_entry(entry)
            elif name in self._files:  # over an earlier connection, which listed another size
                self.discard(self._files[name])

    def _take_over_kept(self, files: Sequence[PartialFile]) -> None:
        if self._kept is not None and self._kept.has_candidates and not self._is_second_fetch:
            for file in files:
                if not file.has_begun:
                    self._kept.take_over(file)

    def _admit_entry(self, entry: Entry) -> PartialFile:
        """Return the file for *entry*: the one that was begun if the entry is unchanged, or a new one."""
        name = entry.name
        begun = self._files.get(name)
        if begun is not None:
            if begun.entry == entry and (begun.is_finished or entry.mtime is not None):
                if not (begun.is_finished and self._is_second_fetch):  # else no connection was lost
                    begun.resume()
                return begun
            self.discard(begun)
        self._sizes.add(entry)
        file = self._files[name] = PartialFile(self._run, entry, self._next_number)
        self._next_number += 1
        error = self._sizes.find_error(entry) or self._find_name_error(name)
        if error is not None:
            file.fail(error)
        elif self._link_source is not None:
            file.link(self._link_source)
        return file

    def discard(self, begun: PartialFile) -> None:
        """Remove a file that is in a listing no longer, or is another file there."""
        begun.discard()
        self._sizes.remove(begun.entry)
        del self._files[begun.entry.name]

    def _find_name_error(self, name: bytes) -> EntryError | None:
        """Return why a file with this name cannot be published, None if it can."""
        if name in self._reserved:
            return reserved_name_error()
        try:
            if stat.S_ISDIR(os.stat(name, dir_fd=self._target_fd, follow_symlinks=False).st_mode):
                return name_error(IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)))
        except FileNotFoundError:
            pass
        except OSError as exc:
            if exc.errno not in NAME_ERRORS:
                raise disk_error(exc, self._run.target) from exc
            return name_error(exc)
        return None

    def _require_space(self) -> None:
        """Raise `TargetError` unless the target's file system has space and inodes for all that is missing."""
        run = self._run
        found = os.fstatvfs(self._target_fd)
        is_root = os.geteuid() == 0
        free = (found.f_bfree if is_root else found.f_bavail) * found.f_frsize
        excess = run.missing_bytes - (free - self._free_bytes)
        if run.missing_bytes and excess > 0 and self._kept is not None:
            free += self._kept.make_space(excess)
        if run.missing_bytes and run.missing_bytes > free - self._free_bytes:
            kept = f", and {self._free_bytes} are to be left (Limits.free_bytes)" if self._free_bytes else ""
            message = f"{run.missing_bytes} bytes are to be staged, but only {free} are free{kept}. Free some space"
            message += "" if self._kept is None else self._kept.describe_space()
            raise _no_space(message, run.target, Reason.NO_SPACE)
        inodes = found.f_ffree if is_root else found.f_favail
        if found.f_files and run.uncreated_files > inodes:
            message = f"{run.uncreated_files} files are to be staged, but only {inodes} inodes are free. Remove files"
            raise _no_space(message, run.target, Reason.NO_INODES)


def _no_space(message: str, target: str, reason: Reason) -> TargetError:
    return TargetError(f"{message}, or choose another target.", path=target, errno=errno.ENOSPC, reason=reason)

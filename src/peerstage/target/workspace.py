"""The workspace: a directory inside the private one that an external command fills.

A command that ran as another user may still be running, or may have left its files open. So nothing is trusted that was
not checked through a descriptor (TOCTOU), and a file is imported in one of two ways:

1. If it will belong to that user in the end, it is moved, and checked after the move, where only root can replace it.
   A process that holds it open may still write to it, as the owner of a file may anyway.
2. If it will belong to another user, it is copied, since nobody can tell who holds it open. The published file is then
   one that never belonged to anybody else.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
from collections.abc import Callable

from peerstage.errors import ChangedFile, EntryError, IncompleteFile, NotRegular
from peerstage.records import MIB, Entry, Limits, Ownership
from peerstage.system_errors import entry_reason_of
from peerstage.target.admission import Admission
from peerstage.target.base import IncomingFile, read_errors_fail
from peerstage.target.file_descriptors import NO_FOLLOW, READ_WITHOUT_WAITING, close_quietly, closing, open_directory
from peerstage.target.private_directory import empty_directory
from peerstage.target.size_limits import check_total

NAME = "workspace"

_NOT_REGULAR = "It is not a regular file, or has several hard links; such entries of a command are not staged."
_CHUNK = 4 * MIB


class Workspace:
    """The directory that a command fills; it belongs to this process until `give_to`.

    Args:
        private_fd: Descriptor of the private directory.

    Attributes:
        fd: Its descriptor.

    Raises:
        OSError: If it cannot be created.
    """

    def __init__(self, private_fd: int) -> None:
        os.mkdir(NAME, 0o700, dir_fd=private_fd)
        self.fd = open_directory(NAME, dir_fd=private_fd)
        self._private_fd = private_fd
        self._owner = os.geteuid()
        self._moved = 0

    def clear(self) -> None:
        """Empty the workspace for another attempt."""
        self._owner = os.geteuid()
        empty_directory(self.fd)

    def give_to(self, owner: Ownership) -> None:
        """Change the owner. That user needs the descriptor, since the path leads through the private directory."""
        if owner.uid != os.geteuid():
            os.fchown(self.fd, *owner)
        self._owner = owner.uid

    def import_file(self, name: bytes, admission: Admission, owner: int | None, check: Callable[[], object]) -> int:
        """Import the file *name*, if *admission* admits it. See `CommandTarget.import_file`.

        Args:
            name: A plain name.
            admission: Decides whether the file is wanted.
            owner: The user that the file will belong to; None for this process's.
            check: Called from time to time; an exception that it raises ends the run.

        Raises:
            EntryError: If the file cannot be imported.
            OSError: If the disk failed.
        """
        moves = self._owner in (os.geteuid(), owner)
        directory, local_name = self.fd, name
        try:
            if moves:
                if stat.S_ISDIR(os.stat(name, dir_fd=self.fd, follow_symlinks=False).st_mode):
                    raise NotRegular(_NOT_REGULAR)  # rename(2) of one that its owner may not write to fails with EACCES
                self._moved += 1
                directory, local_name = self._private_fd, b"imported-%d" % self._moved
                os.rename(name, local_name, src_dir_fd=self.fd, dst_dir_fd=directory)
            fd = _open_regular(local_name, directory)
        except FileNotFoundError as exc:
            raise NotRegular(_NOT_REGULAR) from exc
        with closing(fd):
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1 or found.st_uid != self._owner:
                raise NotRegular(_NOT_REGULAR)
            entry = Entry(name, found.st_size, stat.S_IMODE(found.st_mode), int(found.st_mtime))
            for file in admission.admit([entry], needs_space=not moves):
                if moves:
                    file.import_file(local_name, directory)
                else:
                    _copy(fd, found, file, check)
        if not moves:
            with contextlib.suppress(OSError):  # else it is removed with the workspace
                os.unlink(name, dir_fd=directory)
        return found.st_size

    def close(self) -> None:
        """Close the descriptor; the directory is removed with the private one."""
        close_quietly(self.fd)


def measure_workspace(directory: int | str, limits: Limits) -> int:
    """Return the size in bytes of the files that a command has written; those beyond `Limits.entries` do not count.

    Raises:
        LimitExceeded: If they exceed `Limits.total_bytes`.
    """
    size = 0
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry in itertools.islice(entries, limits.entries):
            with contextlib.suppress(OSError):
                size += entry.stat(follow_symlinks=False).st_size
    check_total(size, limits)
    return size


def _open_regular(name: bytes, directory: int) -> int:
    """Return a descriptor of the regular file *name*; symlinks are not followed, and FIFOs and devices not opened.

    Raises:
        EntryError: If it is not a regular file or cannot be opened.
    """
    try:
        if stat.S_ISREG(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
            return os.open(name, READ_WITHOUT_WAITING | NO_FOLLOW, dir_fd=directory)
    except OSError as exc:
        raise EntryError(
            f"The file that the command left cannot be opened: {exc.strerror}.", reason=entry_reason_of(exc)
        ) from exc
    raise NotRegular(_NOT_REGULAR)


def _copy(fd: int, found: os.stat_result, file: IncomingFile, check: Callable[[], object]) -> None:
    """Copy the content of *fd* to *file*; fail the file if *fd* no longer has the attributes *found*."""
    size = found.st_size
    buffer = memoryview(bytearray(min(_CHUNK, max(1, size))))
    position = 0
    with read_errors_fail(file):
        while position < size and not file.is_finished:
            check()
            count = os.preadv(fd, [buffer[: size - position]], position)
            if not count:
                raise IncompleteFile(f"It ends at byte {position}, but had {size} bytes.")
            file.write(position, [buffer[:count]])
            position += count
        now = os.fstat(fd)
        if (now.st_size, now.st_mtime_ns, now.st_nlink) != (size, found.st_mtime_ns, found.st_nlink):
            raise ChangedFile("It changed while it was copied: a process of the command still writes to it.")
        file.finish()

"""`LocalTransport`: copies files from a directory of this machine."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator

from peerstage.errors import (
    ChangedFile,
    EntryError,
    IncompleteFile,
    NotRegular,
    RemoteError,
    RemoteNotFound,
    StageError,
)
from peerstage.paths import join_path, parent_directory
from peerstage.reasons import Reason
from peerstage.records import Capabilities, Entry, Ownership, RemoteFile, validate_permissions
from peerstage.system_errors import entry_reason_of, reason_of
from peerstage.target.base import CHANGED_ADVICE, IncomingFile, Target, ranges_to_fetch, read_errors_fail
from peerstage.target.file_descriptors import CREATE_NEW, NO_FOLLOW, READ_WITHOUT_WAITING, closing, open_directory
from peerstage.transport.base import Transport
from peerstage.transport.names import ListedNames, is_hidden
from peerstage.transport.refusals import not_regular
from peerstage.transport.stability import fetch_stable
from peerstage.watchdog import Watchdog

_CHUNK = 1024 * 1024
#: Attempts to remove a file that another process keeps creating.
_MAX_TRIES = 8


class LocalTransport(Transport):
    """Copies files from a directory of this machine.

    Args:
        watchdog: Checked between system calls for cancellation and the deadline. Copied bytes extend the deadline. Its
            limits bound the directory.
        include_hidden: Whether hidden files are copied too, as CedarBackup2's local peers copy them.
        follow_symlinks: Whether symlinks to regular files are followed; otherwise they are refused.
    """

    capabilities = Capabilities("local", can_resume=True)

    def __init__(self, watchdog: Watchdog, *, include_hidden: bool = False, follow_symlinks: bool = True) -> None:
        self._watchdog = watchdog
        self._include_hidden = include_hidden
        self._follow_symlinks = follow_symlinks
        self._copied = 0

    def pull(self, directory: bytes, target: Target) -> None:
        entries = list(self._list_files(directory, target.refuse))
        self._watchdog.extend_deadline_by(lambda: self._copied)
        fetch_stable(
            target,
            entries,
            fetch=lambda files: self._copy_all(directory, files),
            relist=lambda: self._list_files(directory, lambda name, error: None),
        )

    def stat(self, path: bytes) -> RemoteFile | None:
        try:
            found = os.stat(path, follow_symlinks=self._follow_symlinks)
        except FileNotFoundError as exc:
            directory = parent_directory(path)
            if not os.path.isdir(directory):
                raise RemoteNotFound(
                    "There is no such directory. Create it, or correct the path.", path=directory
                ) from exc
            return None
        except OSError as exc:
            raise _refusal(exc, path) from exc
        return RemoteFile(found.st_size, int(found.st_mtime)) if stat.S_ISREG(found.st_mode) else None

    def touch(self, path: bytes, *, ownership: Ownership | None = None, permissions: int | None = None) -> None:
        """Create *path* as a new, empty file; an existing regular file is replaced. See `Transport.touch`.

        An existing file is never opened. A user with write access to the directory could plant a hard link to a file of
        root, and remove it between open(2) and fstat(2), so that even a link count of 1 proves nothing (TOCTOU).
        Unlinking a name is harmless whatever it refers to.

        Args:
            path: An absolute path.
            ownership: Owner and group of the new file; None leaves them to this process.
            permissions: Its permission bits (0o777 at most); None is 0666 & ~umask.

        Raises:
            ValueError: If *permissions* is not an integer from 0 to 0o777.
            RemoteError: If it cannot be created, or the name belongs to anything but a regular file with one link,
                which is left unchanged. If owner or mode are refused, no file is left.
        """
        mode = validate_permissions(permissions)
        try:
            with closing(open_directory(parent_directory(path), follow=True)) as directory:
                name = path.rpartition(b"/")[2]
                fd = _create(name, directory, path)
                try:
                    if ownership is not None:
                        os.fchown(fd, *ownership)
                    if mode is not None:
                        os.fchmod(fd, mode)
                except OSError:
                    with contextlib.suppress(OSError):
                        os.unlink(name, dir_fd=directory)
                    raise
                finally:
                    os.close(fd)
        except RemoteError:
            raise
        except OSError as exc:
            is_owner = ownership is not None and exc.errno == errno.EPERM
            raise _refusal(exc, path, denied=Reason.OWNERSHIP_REFUSED if is_owner else Reason.WRITE_DENIED) from exc

    def close(self) -> None:
        pass

    def _list_files(self, directory: bytes, refuse: Callable[[bytes, StageError], object]) -> Iterator[Entry]:
        """Yield the files in *directory* by name, and pass the other entries to *refuse*."""
        for name in self._list(directory):
            self._watchdog.raise_if_failed()
            if is_hidden(name) and not self._include_hidden:
                continue
            try:
                found = os.stat(join_path(directory, name), follow_symlinks=self._follow_symlinks)
            except OSError as exc:
                message = f"Its attributes cannot be read: {exc.strerror}."
                refuse(name, NotRegular(message, path=name, reason=entry_reason_of(exc)))
                continue
            if stat.S_ISREG(found.st_mode):
                yield Entry(name, found.st_size, stat.S_IMODE(found.st_mode), int(found.st_mtime))
            else:
                refuse(name, not_regular(name))

    def _list(self, directory: bytes) -> list[bytes]:
        """Return the sorted names in *directory*, which are read one by one so that the limits apply."""
        names = ListedNames(directory, self._watchdog.limits)
        try:
            with os.scandir(directory) as found:
                for entry in found:
                    self._watchdog.raise_if_failed()
                    if entry.name not in names:  # readdir(3) may return a file twice if it is renamed in between
                        names.add(entry.name)
        except StageError:
            raise
        except OSError as exc:
            raise _refusal(exc, directory) from exc
        return sorted(names)

    def _copy_all(self, directory: bytes, files: Iterable[IncomingFile]) -> None:
        for file in files:
            self._copy(directory, file)

    def _copy(self, directory: bytes, file: IncomingFile) -> None:
        name = file.entry.name
        try:
            flags = READ_WITHOUT_WAITING if self._follow_symlinks else READ_WITHOUT_WAITING | NO_FOLLOW
            fd = os.open(join_path(directory, name), flags)
        except OSError as exc:
            message = f"It could not be opened: {exc.strerror}."
            file.fail(EntryError(message, path=name, reason=entry_reason_of(exc)))
            return
        with closing(fd), read_errors_fail(file):
            for start, chunk in self._read_missing(fd, file):
                file.write(start, [chunk])
                self._copied += len(chunk)
            file.finish()

    def _read_missing(self, fd: int, file: IncomingFile) -> Iterator[tuple[int, bytes]]:
        """Yield the missing parts of *file* from *fd*, each with its offset.

        Raises:
            EntryError: If *fd* is not the file that was listed.
            OSError: If it cannot be read.
        """
        entry = file.entry
        _require_unchanged(fd, entry)
        for start, end in ranges_to_fetch(file):
            while start < end:
                self._watchdog.raise_if_failed()
                chunk = os.pread(fd, min(_CHUNK, end - start), start)
                if not chunk:
                    raise IncompleteFile(f"It ends at byte {start}, but {entry.size} bytes were listed.")
                yield start, chunk
                start += len(chunk)
        _require_unchanged(fd, entry)


def _require_unchanged(fd: int, entry: Entry) -> None:
    """Raise `EntryError` unless *fd* is a regular file with the attributes of *entry*."""
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        raise not_regular(entry.name)
    if (found.st_size, int(found.st_mtime)) != (entry.size, entry.mtime):
        raise ChangedFile(f"It changed while it was staged. {CHANGED_ADVICE}")


def _create(name: bytes, directory: int, path: bytes) -> int:
    """Return a descriptor of a new file *name*, after removing a regular file of that name."""
    for _ in range(_MAX_TRIES):
        try:
            return os.open(name, CREATE_NEW, 0o666, dir_fd=directory)
        except FileExistsError:
            with contextlib.suppress(FileNotFoundError):
                found = os.stat(name, dir_fd=directory, follow_symlinks=False)
                message = ""
                if not stat.S_ISREG(found.st_mode):
                    message = "Something other than a regular file has this name. Remove it."
                elif found.st_nlink > 1:
                    message = "The file of this name has another hard link, so it is not replaced. Remove it."
                if message:
                    raise RemoteError(message, path=path, reason=Reason.WRITE_DENIED) from None
                os.unlink(name, dir_fd=directory)
    raise RemoteError("Another process keeps creating a file of this name.", path=path, reason=Reason.WRITE_DENIED)


def _refusal(exc: OSError, path: bytes, *, denied: Reason = Reason.PERMISSION_DENIED) -> RemoteError:
    """Return an error of the peer's directory; *denied* is the reason if permission is denied."""
    kind, reason = RemoteError, reason_of(exc)
    if exc.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        reason = denied
    elif exc.errno in (errno.ENOENT, errno.ENOTDIR):
        kind = RemoteNotFound
        reason = Reason.NOT_FOUND if exc.errno == errno.ENOENT else Reason.NOT_A_DIRECTORY
    return kind(f"{exc.strerror}.", path=path, errno=exc.errno, reason=reason)

"""`LocalTransport`: a directory of this machine, for peers that are not remote."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

from peerstage.errors import (
    ChangedFile,
    EntryError,
    IncompleteFile,
    NotRegular,
    RemoteError,
    RemoteNotFound,
    StageError,
)
from peerstage.landing.base import Landing, Slot, ranges_to_fetch
from peerstage.reasons import Reason
from peerstage.records import Capabilities, Entry, Limits, Ownership, permissions_of
from peerstage.session.watchdog import Watchdog
from peerstage.system_errors import entry_reason_of, reason_of
from peerstage.transport.base import Transport, join
from peerstage.transport.names import Names
from peerstage.transport.refusals import parent

_PIECE = 1024 * 1024
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_CLOEXEC", 0)
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
_DIRECTORY = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NOFOLLOW | getattr(os, "O_CLOEXEC", 0)
#: How often a name is cleared that somebody else keeps taking.
_MAX_TRIES = 8


class LocalTransport(Transport):
    """Copies files of a directory of this machine.

    Args:
        watchdog: Asked between any two system calls whether the run was cancelled or its deadline has passed. The
            deadline moves with the bytes that were copied.
        limits: Bounds for the directory.
        dotfiles: Whether names that begin with a dot are brought too (PARITY 25).
        links: Whether links to regular files are followed; else a link is an entry that can not be staged.
    """

    capabilities = Capabilities("local", resumes=True)

    def __init__(self, watchdog: Watchdog, limits: Limits, *, dotfiles: bool = False, links: bool = True) -> None:
        self._watchdog = watchdog
        self._limits = limits
        self._dotfiles = dotfiles
        self._links = links
        self._copied = 0

    def pull(self, directory: bytes, landing: Landing) -> None:
        entries: list[Entry] = []
        for name in self._list(directory):
            self._watchdog.check()
            if name.startswith(b".") and not self._dotfiles:
                continue
            try:
                found = os.stat(join(directory, name), follow_symlinks=self._links)
            except OSError as exc:
                landing.refuse(
                    name,
                    NotRegular(f"It can not be looked at: {exc.strerror}.", path=name, reason=entry_reason_of(exc)),
                )
                continue
            if stat.S_ISREG(found.st_mode):
                entries.append(Entry(name, found.st_size, stat.S_IMODE(found.st_mode), int(found.st_mtime)))
            else:
                landing.refuse(name, NotRegular("Only regular files are staged, and it is none.", path=name))
        landing.expect(len(entries), sum(entry.size for entry in entries))
        self._watchdog.count_kept(lambda: self._copied)
        for entry in entries:
            self._copy(directory, entry, landing)

    def exists(self, path: bytes) -> bool:
        try:
            return stat.S_ISREG(os.stat(path).st_mode)
        except FileNotFoundError as exc:
            directory = parent(path)
            if not os.path.isdir(directory):
                raise RemoteNotFound("It is not there. Create it, or correct its path.", path=directory) from exc
            return False
        except OSError as exc:
            raise _refusal(exc, path) from exc

    def touch(self, path: bytes, *, ownership: Ownership | None = None, permissions: int | None = None) -> None:
        """Make *path* a new, empty file; a regular file that is there is replaced. See `Transport.touch`.

        An existing file is never opened. Whoever may write to the directory could plant a hard link to a file of
        root's, and remove it between open(2) and fstat(2), so that even a link count of 1 proves nothing (TOCTOU); to
        unlink a name is harmless whatever it leads to.

        Args:
            path: An absolute path.
            ownership: Owner and group of the new file; None leaves them to this process.
            permissions: Its permission bits (0o777 at most); None is 0666 & ~umask.

        Raises:
            ValueError: If *permissions* is not an integer from 0 to 0o777.
            RemoteError: If it cannot be written, or something else than a regular file with one link has the name:
                that is left as it is. If owner or mode are refused, there is no file afterwards.
        """
        mode = permissions_of(permissions)
        parent, _, name = path.rpartition(b"/")
        try:
            directory = os.open(parent or b"/", _DIRECTORY)
            try:
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
            finally:
                os.close(directory)
        except RemoteError:
            raise
        except OSError as exc:
            is_owner = ownership is not None and exc.errno == errno.EPERM
            raise _refusal(exc, path, denied=Reason.OWNERSHIP_REFUSED if is_owner else Reason.WRITE_DENIED) from exc

    def close(self) -> None:
        pass

    def _list(self, directory: bytes) -> list[bytes]:
        """Return the names in *directory*, sorted; they are read one by one, as far as the limits allow."""
        names = Names(directory, self._limits)
        try:
            with os.scandir(directory) as found:
                for entry in found:
                    self._watchdog.check()
                    if entry.name not in names:  # one that is renamed while the directory is read may come twice
                        names.add(entry.name)
        except StageError:
            raise
        except OSError as exc:
            raise _refusal(exc, directory) from exc
        return sorted(names)

    def _copy(self, directory: bytes, entry: Entry, landing: Landing) -> None:
        slot = landing.open(entry)
        if slot.is_finished:
            return
        try:
            fd = os.open(join(directory, entry.name), _FLAGS if self._links else _FLAGS | _NOFOLLOW)
        except OSError as exc:
            slot.fail(
                EntryError(f"It could not be opened: {exc.strerror}.", path=entry.name, reason=entry_reason_of(exc))
            )
            return
        try:
            for start, piece in self._pieces(fd, entry, slot):
                slot.write(start, [piece])
                self._copied += len(piece)
            slot.finish()
        except EntryError as exc:
            slot.fail(exc)
        finally:
            with contextlib.suppress(OSError):  # nothing was written to it
                os.close(fd)

    def _pieces(self, fd: int, entry: Entry, slot: Slot) -> Iterator[tuple[int, bytes]]:
        """Yield what is missing of the open file *fd*, with its offset.

        Raises:
            EntryError: If it is not the file that was listed, or cannot be read.
        """
        _require_unchanged(fd, entry)
        for start, end in ranges_to_fetch(slot):
            while start < end:
                self._watchdog.check()
                piece = _read(fd, min(_PIECE, end - start), start)
                if not piece:
                    raise IncompleteFile(f"It ends at byte {start}, and {entry.size} were promised.")
                yield start, piece
                start += len(piece)
        _require_unchanged(fd, entry)


def _read(fd: int, size: int, offset: int) -> bytes:
    try:
        return os.pread(fd, size, offset)
    except OSError as exc:
        raise EntryError(f"It could not be read: {exc.strerror}.", reason=Reason.ENTRY_UNREADABLE) from exc


def _require_unchanged(fd: int, entry: Entry) -> None:
    """Raise `EntryError` unless *fd* is open on a regular file as *entry* describes it."""
    try:
        now = os.fstat(fd)
    except OSError as exc:
        raise EntryError(f"It could not be looked at: {exc.strerror}.", reason=Reason.ENTRY_UNREADABLE) from exc
    if not stat.S_ISREG(now.st_mode):
        raise NotRegular("What was opened is no regular file.", path=entry.name)
    if (now.st_size, int(now.st_mtime)) != (entry.size, entry.mtime):
        raise ChangedFile("It changed while it was staged. Let the peer finish collecting first.")


def _create(name: bytes, directory: int, path: bytes) -> int:
    """Return a descriptor of a new file *name*, in the place of the regular file that may have the name."""
    for _ in range(_MAX_TRIES):
        try:
            return os.open(name, _CREATE, 0o666, dir_fd=directory)
        except FileExistsError:
            with contextlib.suppress(FileNotFoundError):
                found = os.stat(name, dir_fd=directory, follow_symlinks=False)
                if not stat.S_ISREG(found.st_mode):
                    raise RemoteError(
                        "No regular file has this name. Remove it.", path=path, reason=Reason.WRITE_DENIED
                    ) from None
                if found.st_nlink > 1:
                    raise RemoteError(
                        "The file with this name is a hard link of another. Remove it.",
                        path=path,
                        reason=Reason.WRITE_DENIED,
                    ) from None
                os.unlink(name, dir_fd=directory)
    raise RemoteError("Another process keeps making a file with this name.", path=path, reason=Reason.WRITE_DENIED)


def _refusal(exc: OSError, path: bytes, *, denied: Reason = Reason.PERMISSION_DENIED) -> RemoteError:
    """Return what the system says about the peer's directory; *denied* is the reason of a denied permission."""
    if exc.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return RemoteError(f"{exc.strerror}.", path=path, errno=exc.errno, reason=denied)
    if exc.errno == errno.ENOENT:
        return RemoteNotFound(f"{exc.strerror}.", path=path, errno=exc.errno)
    if exc.errno == errno.ENOTDIR:
        return RemoteNotFound(f"{exc.strerror}.", path=path, errno=exc.errno, reason=Reason.NOT_A_DIRECTORY)
    return RemoteError(f"{exc.strerror}.", path=path, errno=exc.errno, reason=reason_of(exc))

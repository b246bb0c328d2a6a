"""`LocalTransport`: a directory of this machine, for peers that are not remote."""

from __future__ import annotations

import errno
import os
import stat

from peerstage.errors import (
    ChangedFile,
    EntryError,
    IncompleteFile,
    LimitExceeded,
    NotRegular,
    RemoteError,
    RemoteNotFound,
)
from peerstage.landing.base import Landing
from peerstage.records import Capabilities, Entry, Limits, Ownership
from peerstage.session.watchdog import Watchdog
from peerstage.transport.base import Transport, join

_PIECE = 1024 * 1024
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
_TOUCH = _FLAGS | _NOFOLLOW | os.O_WRONLY | os.O_CREAT | os.O_TRUNC


class LocalTransport(Transport):
    """Copies files of a directory of this machine.

    Args:
        watchdog: Asked between pieces whether the run was cancelled.
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

    def pull(self, directory: bytes, landing: Landing) -> None:
        entries: list[Entry] = []
        try:
            names = sorted(os.listdir(directory))
        except OSError as exc:
            raise _refusal(exc, directory) from exc
        if len(names) > self._limits.entries:
            raise LimitExceeded(f"More than {self._limits.entries} entries (Limits.entries).", path=directory)
        for name in names:
            if name.startswith(b".") and not self._dotfiles:
                continue
            try:
                found = os.stat(join(directory, name), follow_symlinks=self._links)
            except OSError as exc:
                landing.refuse(name, NotRegular(f"It can not be looked at: {exc.strerror}.", path=name))
                continue
            if stat.S_ISREG(found.st_mode):
                entries.append(Entry(name, found.st_size, stat.S_IMODE(found.st_mode), int(found.st_mtime)))
            else:
                landing.refuse(name, NotRegular("Only regular files are staged, and it is none.", path=name))
        landing.expect(len(entries), sum(entry.size for entry in entries))
        for entry in entries:
            self._copy(directory, entry, landing)

    def exists(self, path: bytes) -> bool:
        try:
            return stat.S_ISREG(os.stat(path).st_mode)
        except FileNotFoundError:
            return False
        except OSError as exc:
            raise _refusal(exc, path) from exc

    def touch(self, path: bytes, *, ownership: Ownership | None = None, permissions: int | None = None) -> None:
        """See `Transport.touch`. A link is refused: its owner may have planted it where root writes."""
        try:
            fd = os.open(path, _TOUCH, 0o666)
            try:
                if ownership is not None:
                    os.fchown(fd, *ownership)
                if permissions is not None:
                    os.fchmod(fd, permissions)
            finally:
                os.close(fd)
        except OSError as exc:
            raise _refusal(exc, path) from exc

    def close(self) -> None:
        pass

    def _copy(self, directory: bytes, entry: Entry, landing: Landing) -> None:
        slot = landing.open(entry)
        if slot.is_finished:
            return
        try:
            fd = os.open(join(directory, entry.name), _FLAGS if self._links else _FLAGS | _NOFOLLOW)
        except OSError as exc:
            slot.fail(EntryError(f"It could not be opened: {exc.strerror}.", path=entry.name))
            return
        try:
            for start, end in slot.missing():
                while start < end:
                    self._watchdog.check()
                    try:
                        piece = os.pread(fd, min(_PIECE, end - start), start)
                    except OSError as exc:
                        slot.fail(EntryError(f"It could not be read: {exc.strerror}.", path=entry.name))
                        return
                    if not piece:
                        slot.fail(IncompleteFile(f"It ends at byte {start}, and {entry.size} were promised."))
                        return
                    slot.write(start, [piece])
                    start += len(piece)
            now = os.fstat(fd)
            if not stat.S_ISREG(now.st_mode):
                slot.fail(NotRegular("What was opened is no regular file.", path=entry.name))
            elif (now.st_size, int(now.st_mtime)) != (entry.size, entry.mtime):
                slot.fail(ChangedFile("It changed while it was staged. Let the peer finish collecting first."))
            else:
                slot.finish()
        finally:
            os.close(fd)


def _refusal(exc: OSError, path: bytes) -> RemoteError:
    kind = RemoteNotFound if exc.errno in (errno.ENOENT, errno.ENOTDIR) else RemoteError
    return kind(f"{exc.strerror}.", path=path, errno=exc.errno)

"""Files that a foreign command has left in a workspace, taken while whoever ran it may still be there.

What another user's command has left is taken in one of two ways, and with neither is anything believed that is not
looked at through a descriptor:

1. If the file will be that user's in the end, it is moved. Who holds it open may write to it later, as its owner may
   anyhow. It is moved first and looked at then, where nobody but root can exchange it any more.
2. If it will be somebody else's, it is copied: no one can say who still holds it open, and what is published then has
   never been anybody else's.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
from collections.abc import Callable

from peerstage.errors import ChangedFile, EntryError, IncompleteFile, NotRegular
from peerstage.landing.base import Slot
from peerstage.reasons import Reason
from peerstage.records import MIB, Entry
from peerstage.system_errors import entry_reason_of

NO_FILE = "The command left no regular file of its own there; only such are staged."

_PIECE = 4 * MIB
_FLAGS = (
    os.O_RDONLY
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_NOCTTY", 0)
    | getattr(os, "O_CLOEXEC", 0)
)


def require_file_of(found: os.stat_result, uid: int) -> None:
    """Raise `NotRegular` unless this is a regular file of that user, with one name."""
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1 or found.st_uid != uid:
        raise NotRegular(NO_FILE)


def entry_of(name: bytes, found: os.stat_result) -> Entry:
    """Return what was found as an entry."""
    return Entry(name, found.st_size, stat.S_IMODE(found.st_mode), int(found.st_mtime))


def open_file(name: bytes | str, directory: int) -> int:
    """Return a descriptor of the regular file *name*; nothing is followed, and nothing else is opened.

    Raises:
        NotRegular: It is none.
        EntryError: It can not be opened.
    """
    try:
        if stat.S_ISREG(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
            return os.open(name, _FLAGS, dir_fd=directory)
    except OSError as exc:
        raise EntryError(
            f"What the command left there can not be opened: {exc.strerror}.", reason=entry_reason_of(exc)
        ) from exc
    raise NotRegular(NO_FILE)


def copy(fd: int, found: os.stat_result, slot: Slot, check: Callable[[], object]) -> None:
    """Copy what *fd* is open on into *slot*, as it was *found*; what changes meanwhile fails.

    Args:
        check: Called between pieces; what it raises ends the run.
    """
    size = found.st_size
    buffer = memoryview(bytearray(min(_PIECE, max(1, size))))
    at = 0
    while at < size and not slot.is_finished:
        check()
        try:
            count = os.preadv(fd, [buffer[: size - at]], at)
        except OSError as exc:
            slot.fail(EntryError(f"It could not be read: {exc.strerror}.", reason=Reason.ENTRY_UNREADABLE))
            return
        if not count:
            slot.fail(IncompleteFile(f"It ends at byte {at}, and had {size}."))
            return
        slot.write(at, [buffer[:count]])
        at += count
    try:
        now = os.fstat(fd)
    except OSError as exc:
        slot.fail(EntryError(f"It could not be looked at: {exc.strerror}.", reason=Reason.ENTRY_UNREADABLE))
        return
    if (now.st_size, now.st_mtime_ns, now.st_nlink) != (size, found.st_mtime_ns, found.st_nlink):
        slot.fail(ChangedFile("It changed while it was taken: something of the command still writes to it."))
    slot.finish()


def size_of(workspace: int, most: int) -> int:
    """Return how many bytes lie in the *workspace*, in so many entries at most."""
    size = 0
    with contextlib.suppress(OSError), os.scandir(workspace) as entries:
        for entry in itertools.islice(entries, most):
            with contextlib.suppress(OSError):
                size += entry.stat(follow_symlinks=False).st_size
    return size

"""Files that a command has left in the workspace of another user: taken by copying, while that user may still be there.

A rename would be cheaper, and wrong: whoever has the file open for writing could change it after it was published, and
no one can say that nobody has. So what is published is a file that was never anybody else's: each is opened once,
without following links; what was opened, and nothing that has its name a moment later, is looked at; and its bytes go
into a slot as if they had come over the network.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
from collections.abc import Callable

from peerstage.errors import ChangedFile, EntryError, IncompleteFile, NotRegular, StageError
from peerstage.landing.base import Landing
from peerstage.records import MIB, Entry, Limits

_PIECE = 4 * MIB
_FLAGS = (
    os.O_RDONLY
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_NOCTTY", 0)
    | getattr(os, "O_CLOEXEC", 0)
)
_NO_FILE = "The command left no regular file of its own there; only such are staged."


def take_file(landing: Landing, workspace: int, name: bytes, uid: int, check: Callable[[], object]) -> None:
    """Copy the file *name* into *landing*, and remove it from the *workspace*; what can not be taken is refused.

    Args:
        landing: Where to.
        workspace: Descriptor of the directory.
        name: A plain name.
        uid: Whose file it has to be.
        check: Called between pieces; what it raises ends the run.

    Raises:
        LandingError: The local side failed.
    """
    try:
        fd = _open(workspace, name)
    except StageError as exc:
        landing.refuse(name, exc)
        return
    try:
        found = os.fstat(fd)
        if not _is_file_of(found, uid):
            landing.refuse(name, NotRegular(_NO_FILE))
            return
        _copy(fd, found, landing, Entry(name, found.st_size, stat.S_IMODE(found.st_mode), int(found.st_mtime)), check)
    finally:
        os.close(fd)
    with contextlib.suppress(OSError):  # it goes with the directory, then
        os.unlink(name, dir_fd=workspace)


def size_of(workspace: int, limits: Limits) -> int:
    """Return how many bytes lie in the *workspace*."""
    size = 0
    with contextlib.suppress(OSError), os.scandir(workspace) as entries:
        for entry in itertools.islice(entries, limits.entries):
            with contextlib.suppress(OSError):
                size += entry.stat(follow_symlinks=False).st_size
    return size


def _open(workspace: int, name: bytes) -> int:
    try:
        if not stat.S_ISREG(os.stat(name, dir_fd=workspace, follow_symlinks=False).st_mode):
            raise NotRegular(_NO_FILE)  # opening some of what has a name has effects of its own
        return os.open(name, _FLAGS, dir_fd=workspace)
    except OSError as exc:
        if isinstance(exc, StageError):
            raise
        raise EntryError(f"What the command left there can not be opened: {exc.strerror}.") from exc


def _is_file_of(found: os.stat_result, uid: int) -> bool:
    return stat.S_ISREG(found.st_mode) and found.st_uid == uid and found.st_nlink == 1


def _copy(fd: int, found: os.stat_result, landing: Landing, entry: Entry, check: Callable[[], object]) -> None:
    slot = landing.open(entry)
    buffer = memoryview(bytearray(min(_PIECE, max(1, entry.size))))
    at = 0
    while at < entry.size and not slot.is_finished:
        check()
        try:
            count = os.preadv(fd, [buffer[: entry.size - at]], at)
        except OSError as exc:
            slot.fail(EntryError(f"It could not be read: {exc.strerror}."))
            return
        if not count:
            slot.fail(IncompleteFile(f"It ends at byte {at}, and had {entry.size}."))
            return
        slot.write(at, [buffer[:count]])
        at += count
    now = os.fstat(fd)
    if (now.st_size, now.st_mtime_ns, now.st_nlink) != (found.st_size, found.st_mtime_ns, found.st_nlink):
        slot.fail(ChangedFile("It changed while it was taken: something of the command still writes to it."))
    slot.finish()

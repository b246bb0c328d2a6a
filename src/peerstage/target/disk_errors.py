"""Errors of the local file system as `TargetError` (the whole run) or `EntryError` (one name), with advice."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from peerstage.errors import EntryError, StageError, TargetError
from peerstage.reasons import Reason
from peerstage.system_errors import target_reason_of

#: Errors of a system call that concern only the name it was given.
NAME_ERRORS = frozenset(
    {
        *(errno.EISDIR, errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL),
        errno.EBUSY,  # a mount point
        errno.EPERM,  # an immutable file, or another user's file in a sticky directory
    }
)

#: Fewer free inodes count as none: a failed run has removed some files by the time they are counted.
_FEW_INODES = 8
_UNCHANGED = "Files that were in the target before are unchanged."
_ADVICE = {
    errno.ENOSPC: f"Free some space in the target, then stage again. {_UNCHANGED}",
    errno.EDQUOT: f"Raise the quota or free some space, then stage again. {_UNCHANGED}",
    errno.EACCES: "Give this user write permission there, or choose another target.",
    errno.EROFS: "Mount the target read-write, or choose another one.",
    errno.EPERM: "Only root can give files to another user: run as root, or leave their owner unchanged. The target "
    "may also be immutable (lsattr).",
    errno.ENOENT: "The target was removed during the run. Create it, then stage again.",
    errno.EIO: f"The disk failed: check the kernel log. {_UNCHANGED}",
}


def disk_error(exc: OSError, target: str, *, published: int = 0, reason: Reason | None = None) -> TargetError:
    """Return *exc* as a `TargetError` with advice.

    Args:
        exc: An error of the local file system.
        target: Path of the target.
        published: Number of files that already have their final names.
        reason: The reason, if it does not follow from the error number.
    """
    reason = reason or target_reason_of(exc)
    if reason is Reason.NO_SPACE and _has_no_inodes(target):
        reason = Reason.NO_INODES
    advice = _ADVICE.get(exc.errno or 0, _UNCHANGED)
    if published:
        advice = f"{published} files had already been replaced, each completely; the others are unchanged. Stage again."
    return TargetError(f"{exc.strerror or exc}. {advice}", path=target, errno=exc.errno, reason=reason)


@contextlib.contextmanager
def disk_errors(target: str) -> Iterator[None]:
    """Raise every `OSError` of the block as `disk_error` does."""
    try:
        yield
    except StageError:
        raise
    except OSError as exc:
        raise disk_error(exc, target) from exc


def name_error(exc: OSError) -> EntryError:
    """Return one of `NAME_ERRORS` as the error of the entry with that name."""
    if exc.errno == errno.EISDIR:
        return EntryError(
            "A directory has this name in the target. Move it away, then stage again.", reason=Reason.NAME_TAKEN
        )
    return EntryError(
        f"The target's file system refuses the name: {exc.strerror}.", reason=Reason.NAME_NOT_REPRESENTABLE
    )


def _has_no_inodes(target: str) -> bool:
    """Return whether ENOSPC means that the file system has no free inodes."""
    try:
        found = os.statvfs(target)
    except OSError:
        return False
    return found.f_files > 0 and found.f_ffree < _FEW_INODES and found.f_bavail > 0

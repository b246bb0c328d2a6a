"""Owner, mode and time of staged files."""

from __future__ import annotations

import contextlib
import errno
import os

from peerstage.reasons import Reason
from peerstage.records import Entry, Ownership, validate_permissions
from peerstage.target.disk_errors import disk_error


class StagedAttributes:
    """The attributes that the files of one run get.

    Args:
        target: Path of the target, for messages.
        ownership: Owner and group of every file; None leaves them to the process.
        permissions: Permission bits of every file; None takes the peer's, & 0777 & ~umask, and 0600 where they are
            unknown.
        preserve_times: Whether files keep the peer's modification times.

    Attributes:
        ownership: As the argument.
        preserve_times: As the argument.

    Raises:
        ValueError: If *permissions* is not an integer from 0 to 0o777.
    """

    def __init__(
        self, target: str, *, ownership: Ownership | None, permissions: int | None, preserve_times: bool
    ) -> None:
        self._target = target
        self.ownership = ownership
        self._permissions = validate_permissions(permissions)
        self.preserve_times = preserve_times
        self._umask = current_umask()

    def mode_of(self, entry: Entry) -> int:
        """Return the permission bits of the file for *entry*."""
        if self._permissions is not None:
            return self._permissions
        return 0o600 if entry.mode is None else entry.mode & 0o777 & ~self._umask

    def set(self, fd: int, entry: Entry) -> None:
        """Set the attributes of the open file for *entry*.

        Raises:
            TargetError: If the owner cannot be changed.
            OSError: If the disk failed.
        """
        if self.ownership is not None:
            try:
                os.fchown(fd, *self.ownership)
            except OSError as exc:
                reason = Reason.OWNERSHIP_REFUSED if exc.errno in (errno.EPERM, errno.EINVAL) else None
                raise disk_error(exc, self._target, reason=reason) from exc
        os.fchmod(fd, self.mode_of(entry))
        if self.preserve_times and entry.mtime is not None:
            os.utime(fd, (entry.mtime, entry.mtime))


def current_umask() -> int:
    """Return the process's umask; where possible without setting it, which other threads would see."""
    with (
        contextlib.suppress(OSError, ValueError),
        open("/proc/self/status", encoding="ascii", errors="replace") as status,
    ):
        for line in status:
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    mask = os.umask(0o077)
    os.umask(mask)
    return mask

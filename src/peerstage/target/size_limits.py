"""Limits on the sizes of files, one by one and in all."""

from __future__ import annotations

from peerstage.errors import EntryError, LimitExceeded
from peerstage.reasons import Reason
from peerstage.records import Entry, Limits


def check_total(size: int, limits: Limits) -> None:
    """Raise `LimitExceeded` if the files of a stage have *size* bytes in all, and this is too much."""
    if size > limits.total_bytes:
        raise LimitExceeded(
            f"The files have more than {limits.total_bytes} bytes in all (Limits.total_bytes). Raise the limit, or "
            "leave files out with StageOptions(exclude=...).",
            reason=Reason.LIMIT_EXCEEDED,
            limit="total_bytes",
        )


class SizeLimits:
    """Bounds the sizes that a peer announces for the files of one stage; a file never gets more than it announced.

    Args:
        limits: `file_bytes` and `total_bytes` apply.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._total = 0

    def find_error(self, entry: Entry) -> EntryError | None:
        """Return why *entry* is too large, None if it is not."""
        if not self._is_too_large(entry):
            return None
        return EntryError(
            f"It has {entry.size} bytes, more than {self._limits.file_bytes} (Limits.file_bytes). Raise the limit, or "
            "leave such files out with StageOptions(max_size=...).",
            reason=Reason.FILE_TOO_LARGE,
        )

    def add(self, entry: Entry) -> None:
        """Count *entry*, unless it is too large by itself.

        Raises:
            LimitExceeded: If the files exceed `total_bytes`.
        """
        self._total += self._counted_bytes(entry)
        check_total(self._total, self._limits)

    def remove(self, entry: Entry) -> None:
        """Count *entry*, which was added, no longer."""
        self._total -= self._counted_bytes(entry)

    def _counted_bytes(self, entry: Entry) -> int:
        return 0 if self._is_too_large(entry) else entry.size

    def _is_too_large(self, entry: Entry) -> bool:
        limit = self._limits.file_bytes
        return limit is not None and entry.size > limit

"""`PruneReport`: which daily directories were removed, and why others were kept."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import Enum
from typing import Any

from peerstage.documented import Documented
from peerstage.errors import TargetError
from peerstage.fleet.results import SCHEMA
from peerstage.reasons import Reason


class Kind(str, Enum):
    """Why an old daily directory is kept."""

    NEEDED = "needed"  # a peer has no newer complete night, or no newer files
    FOREIGN = "foreign"  # it holds something that no run staged, or is a symlink
    LATEST = "latest"  # the link latest points to it
    UNKNOWN = "unknown"  # no record says that a run made it
    UNREADABLE = "unreadable"  # it cannot be compared with what was staged


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovedDay(metaclass=Documented):
    """A daily directory that was removed; in a dry run, one that would be.

    Attributes:
        day: The day, ``YYYY/MM/DD``.
        files: The number of files, with manifests and the stage indicator.
        bytes: The bytes that this frees: files with links in other days count with the last link.
        is_rest: Whether an earlier prune had begun with it and was interrupted.
    """

    day: str
    files: int
    bytes: int
    is_rest: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptDay(metaclass=Documented):
    """An old daily directory that is kept.

    Attributes:
        day: The day, or the year or month that is not entered, relative to the pool.
        kind: Why.
        why: The same as a printable clause.
        peers: The peers that need it; empty for other kinds.
    """

    day: str
    kind: Kind
    why: str
    peers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedDay(metaclass=Documented):
    """A daily directory that could not be removed, or not completely.

    Attributes:
        day: The day.
        path: Where its remains are. The next prune tries again.
        why: What could not be removed, and the error, as a printable clause.
        reason: The reason of the error.
        files: The number of files that were removed.
        bytes: The bytes that this freed.
    """

    day: str
    path: str
    why: str
    reason: Reason
    files: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneReport(metaclass=Documented):
    """The report of one `prune`. Each list begins with the oldest day.

    Attributes:
        staging: The staging pool.
        keep_days: The number of days to keep.
        dry_run: Whether nothing was removed.
        removed: The days that were removed; in a dry run, those that would be.
        kept: Old days that are kept.
        failed: Days that could not be removed.
        is_unfinished: Whether it was cancelled, or its time was over; the next prune continues.
        schema: The version of the JSON form.
    """

    staging: str
    keep_days: int
    dry_run: bool
    removed: tuple[RemovedDay, ...] = ()
    kept: tuple[KeptDay, ...] = ()
    failed: tuple[FailedDay, ...] = ()
    is_unfinished: bool = False
    schema: int = SCHEMA

    @property
    def bytes(self) -> int:
        """The bytes that were freed, or would be."""
        return sum(day.bytes for day in self.removed) + sum(day.bytes for day in self.failed)

    def failure(self) -> TargetError | None:
        """Return the error of the first day that could not be removed; None if there is no such day."""
        if not self.failed:
            return None
        first = self.failed[0]
        more = f" {len(self.failed) - 1} more days could not be removed." if len(self.failed) > 1 else ""
        message = f"{first.day} could not be removed: {first.why}.{more} Remove what is in the way, then prune again."
        return TargetError(message, path=first.path, reason=first.reason)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as values that `json` can encode."""
        return {**dataclasses.asdict(self), "bytes": self.bytes}

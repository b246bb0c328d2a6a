"""Which daily directories a prune removes, and why it keeps other old ones. Nothing is changed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from peerstage.errors import TargetError
from peerstage.fleet.day_contents import Foreign, content_of, examine_day
from peerstage.fleet.day_removal import freed_bytes, list_aside, name_aside
from peerstage.fleet.latest_link import NAME as LATEST
from peerstage.fleet.plan import FleetPlan
from peerstage.fleet.pool_days import PoolDays, list_days, mount_points_below, open_day
from peerstage.fleet.prune_report import KeptDay, Kind, RemovedDay
from peerstage.fleet.retention import Content, Needed, Nights, find_needed, nights_of, oldest_kept
from peerstage.fleet.run_id import day_of
from peerstage.fleet.run_records import RunRecords
from peerstage.fleet.runs_directory import RunsDirectory
from peerstage.printable import escape
from peerstage.reasons import Reason
from peerstage.target.file_descriptors import closing, open_directory

#: Peers that a sentence names.
_MAX_NAMED = 5


class Stopped(Exception):
    """The prune was cancelled, or its time is over."""


class TimeLimit:
    """Ends a prune that is cancelled or takes too long.

    Args:
        seconds: The seconds that it may take.
        is_cancelled: Returns whether it was cancelled.
    """

    def __init__(self, seconds: float, is_cancelled: Callable[[], bool] = lambda: False) -> None:
        self._end = time.monotonic() + seconds
        self._is_cancelled = is_cancelled

    def check(self) -> None:
        """Raise `Stopped` if the prune is to end."""
        if self._is_cancelled() or time.monotonic() > self._end:
            raise Stopped


@dataclass
class Decision:
    """What a prune does. Each list begins with the oldest day.

    Attributes:
        remove: The days to remove: first the rests of interrupted removals, then whole days.
        kept: Old days that are kept.
        peers: The peers of the runs of each whole day in *remove*.
        empty: Directories of years and months that hold nothing.
        is_unfinished: Whether some days were not looked at, because the time was over.
    """

    remove: list[RemovedDay] = field(default_factory=list)
    kept: list[KeptDay] = field(default_factory=list)
    peers: dict[str, Collection[str]] = field(default_factory=dict)
    empty: list[str] = field(default_factory=list)
    is_unfinished: bool = False


def decide(
    plan: FleetPlan, keep_days: int, runs: RunsDirectory, pool_fd: int, now: float, check: Callable[[], object]
) -> Decision:
    """Return what a prune does.

    Args:
        plan: The plan.
        keep_days: Its `keep_days`.
        runs: The pool's runs directory.
        pool_fd: Descriptor of the pool.
        now: The time, in seconds since the epoch.
        check: Called again and again; raises `Stopped` to end this, and what was decided so far is returned.

    Raises:
        TargetError: If there is a daily directory of a day in the future.
        OSError: If the pool cannot be read.
    """
    found, decision, freed = list_days(pool_fd), Decision(), _FreedBytes()
    nights = nights_of(RunRecords(runs).newest_first(frozenset(found.days)))
    today = day_of(now)
    _require_no_future_day(found.days, nights, today, plan.staging)
    decision.empty = [path for path in found.empty if not today.startswith(path)]
    boundary = oldest_kept(found.days, nights, keep_days)
    try:
        for day in list_aside(runs):
            _decide_on_rest(day, runs, decision, freed, check)
        if boundary is not None:
            _decide_on_old_days(found, boundary, _Pool(pool_fd, plan, nights, check), decision, freed)
    except Stopped:
        decision.is_unfinished = True
    decision.kept.sort(key=lambda kept: kept.day)
    return decision


def _decide_on_old_days(found: PoolDays, boundary: str, pool: _Pool, decision: Decision, freed: _FreedBytes) -> None:
    """Decide on the days before *boundary*, and on links and unreadable directories in their place."""
    for path in found.links:
        if path < boundary:
            decision.kept.append(KeptDay(day=path, kind=Kind.FOREIGN, why="it is a symlink"))
    for path, error in found.unreadable.items():
        if path < boundary:
            decision.kept.append(_unreadable(path, error))
    old = sorted(day for day in found.days if day < boundary)
    needed = find_needed(pool.nights, pool.nights, frozenset(old), pool.look)
    for day in old:
        kept = pool.find_reason_to_keep(day, needed.get(day), freed)
        if kept is not None:
            decision.kept.append(kept)
        else:
            decision.remove.append(RemovedDay(day=day, files=freed.files, bytes=freed.bytes))
            decision.peers[day] = pool.nights[day].keys()


def _decide_on_rest(
    day: str, runs: RunsDirectory, decision: Decision, freed: _FreedBytes, check: Callable[[], object]
) -> None:
    """Decide on a day that an earlier prune had moved into the runs directory."""
    freed.begin_day()
    aside = name_aside(day)
    try:
        with closing(open_directory(aside, dir_fd=runs.fd)) as day_fd:
            examine_day(day_fd, None, check, freed.add)
    except Foreign as exc:
        why = f"{exc}; it appeared during its removal, and is in {escape(os.path.join(runs.path, aside))}"
        decision.kept.append(KeptDay(day=day, kind=Kind.FOREIGN, why=why))
    except OSError as exc:
        decision.kept.append(_unreadable(day, exc))
    else:
        freed.end_day()
        decision.remove.append(RemovedDay(day=day, files=freed.files, bytes=freed.bytes, is_rest=True))


class _Pool:
    """The daily directories of a pool, looked at one by one.

    Attributes:
        nights: What the records say of them.
    """

    def __init__(self, pool_fd: int, plan: FleetPlan, nights: Nights, check: Callable[[], object]) -> None:
        self._pool_fd = pool_fd
        self.nights = nights
        self._check = check
        self._planned = frozenset(peer.name for peer in plan.peers)
        self._latest = _read_latest(pool_fd, plan.staging)
        self._mounts = mount_points_below(pool_fd)

    def look(self, day: str, peer: str) -> Content:
        """Return what the directory of *peer* holds."""
        self._check()
        try:
            with open_day(self._pool_fd, day) as day_fd:
                return content_of(day_fd, peer, self._check)
        except OSError:
            return Content(0, 0, False)

    def find_reason_to_keep(self, day: str, needed: Needed | None, freed: _FreedBytes) -> KeptDay | None:
        """Return why an old day is kept; None if it is to be removed, which *freed* then takes into account."""
        self._check()
        if day not in self.nights:
            return KeptDay(day=day, kind=Kind.UNKNOWN, why="no record says that a run made it")
        if needed is not None:
            return self._needed(day, needed)
        if _is_within(self._latest, day):
            return KeptDay(day=day, kind=Kind.LATEST, why=f"the link {LATEST} points to it")
        mount = next((point for point in self._mounts if _is_within(point, day) or _is_within(day, point)), None)
        if mount is not None:
            return KeptDay(day=day, kind=Kind.FOREIGN, why=f"{escape(mount)} is a mount point")
        freed.begin_day()
        try:
            with open_day(self._pool_fd, day) as day_fd:
                examine_day(day_fd, self.nights[day].keys(), self._check, freed.add)
        except Foreign as exc:
            return KeptDay(day=day, kind=Kind.FOREIGN, why=str(exc))
        except OSError as exc:
            return _unreadable(day, exc)
        freed.end_day()
        return None

    def _needed(self, day: str, needed: Needed) -> KeptDay:
        parts = {"the last complete night": needed.complete, "the last files": needed.newest}
        why = ", and ".join(f"{what} of {self._join(peers)}" for what, peers in parts.items() if peers)
        return KeptDay(day=day, kind=Kind.NEEDED, why=why, peers=(*needed.complete, *needed.newest))

    def _join(self, peers: list[str]) -> str:
        names = [f"{escape(peer)}{'' if peer in self._planned else ' (not in the plan)'}" for peer in peers]
        more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
        return ", ".join(names[:_MAX_NAMED]) + more


class _FreedBytes:
    """Counts files and the bytes that their removal frees: those of files whose last link is removed.

    Attributes:
        files: The number of files of the day.
        bytes: The bytes that its removal frees, after the days before it.
    """

    def __init__(self) -> None:
        self.files = self.bytes = 0
        self._links: dict[int, int] = {}
        self._links_of_day: dict[int, int] = {}

    def begin_day(self) -> None:
        """Begin to count a day; what was counted since the last `end_day` is not removed."""
        self.files = self.bytes = 0
        self._links_of_day = {}

    def add(self, status: os.stat_result) -> None:
        """Count a file of the day."""
        self.files += 1
        links = 1
        if status.st_nlink > 1:
            self._links_of_day[status.st_ino] = self._links_of_day.get(status.st_ino, 0) + 1
            links = self._links_of_day[status.st_ino] + self._links.get(status.st_ino, 0)
        if links == status.st_nlink:
            self.bytes += freed_bytes(status)

    def end_day(self) -> None:
        """Count the links of the day as removed."""
        for inode, count in self._links_of_day.items():
            self._links[inode] = self._links.get(inode, 0) + count


def _require_no_future_day(days: Iterable[str], nights: Nights, today: str, staging: str) -> None:
    future = max((day for day in days if day > today and day in nights), default=None)
    if future is not None:
        raise TargetError(
            f"Nothing is removed: a run made the daily directory {future}, and by the clock of this machine today is "
            f"{today}. Correct the clock; if it was wrong during that run, rename that directory to the right day.",
            path=os.path.join(staging, future),
            reason=Reason.DAY_IN_FUTURE,
        )


def _read_latest(pool_fd: int, staging: str) -> str:
    """Return what ``latest`` points to, relative to the pool; "" if there is no such link."""
    try:
        target = os.readlink(LATEST, dir_fd=pool_fd)
    except OSError:
        return ""
    return os.path.relpath(os.path.join(staging, target), staging)


def _is_within(path: str, directory: str) -> bool:
    return path == directory or path.startswith(f"{directory}/")


def _unreadable(day: str, exc: OSError) -> KeptDay:
    return KeptDay(day=day, kind=Kind.UNREADABLE, why=f"it cannot be read: {exc.strerror}")

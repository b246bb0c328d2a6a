"""Which daily directories a prune removes, and why it keeps other old ones. Nothing is changed."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from peerstage.errors import TargetError
from peerstage.fleet.plan import FleetPlan
from peerstage.fleet.pool.latest_link import NAME as LATEST
from peerstage.fleet.pool.pool_days import PoolDays, list_days, mount_points_below, open_day
from peerstage.fleet.pool.run_id import day_of
from peerstage.fleet.pool.run_records import RunRecords
from peerstage.fleet.pool.runs_directory import RunsDirectory
from peerstage.fleet.prune.day_contents import Foreign, content_of, examine_day
from peerstage.fleet.prune.day_removal import freed_bytes, list_aside, name_aside, open_aside
from peerstage.fleet.prune.report import KeptDay, Kind, RemovedDay
from peerstage.fleet.prune.retention import Content, Needed, Nights, find_needed, nights_of, oldest_kept
from peerstage.printable import escape, join_first
from peerstage.reasons import Reason

#: Peers that a sentence names.
_MAX_NAMED = 5


class Stopped(Exception):
    """The prune was cancelled, or its time is over."""


def time_limit(seconds: float, is_cancelled: Callable[[], bool] = lambda: False) -> Callable[[], None]:
    """Return a function that raises `Stopped` once *seconds* are over, or *is_cancelled* returns True."""
    end = time.monotonic() + seconds

    def check() -> None:
        if is_cancelled() or time.monotonic() > end:
            raise Stopped

    return check


@dataclass
class Decision:
    """What a prune does. Days to remove begin with the oldest.

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
    found = list_days(pool_fd)
    nights = nights_of(RunRecords(runs).newest_first(frozenset(found.days)))
    today = day_of(now)
    _require_no_future_day(found.days, nights, today, plan.staging)
    decision = Decision(empty=[path for path in found.empty if not today.startswith(path)])
    boundary = oldest_kept(found.days, nights, keep_days)
    decider = _Decider(decision, plan, runs, pool_fd, nights, check)
    try:
        for day in list_aside(runs):
            decider.decide_on_rest(day)
        if boundary is not None:
            decider.decide_on_old_days(found, boundary)
    except Stopped:
        decision.is_unfinished = True
    return decision


class _Decider:
    """Decides on one day after the other."""

    def __init__(
        self,
        decision: Decision,
        plan: FleetPlan,
        runs: RunsDirectory,
        pool_fd: int,
        nights: Nights,
        check: Callable[[], object],
    ) -> None:
        self._decision = decision
        self._runs = runs
        self._pool_fd = pool_fd
        self._nights = nights
        self._check = check
        self._planned = frozenset(peer.name for peer in plan.peers)
        self._latest = _read_latest(pool_fd, plan.staging)
        self._mounts = mount_points_below(pool_fd)
        self._freed = _FreedBytes()

    def decide_on_rest(self, day: str) -> None:
        """Decide on a day that an earlier prune had moved into the runs directory."""
        path = escape(os.path.join(self._runs.path, name_aside(day)))
        where = f"; it appeared during its removal, and is in {path}"
        if self._is_ours(day, open_aside(self._runs, day), None, where):
            self._remove(day, is_rest=True)

    def decide_on_old_days(self, found: PoolDays, boundary: str) -> None:
        """Decide on the days before *boundary*, and on links and unreadable directories in their place."""
        for path in found.links:
            if path < boundary:
                self._keep(path, Kind.FOREIGN, "it is a symlink")
        for path, error in found.unreadable.items():
            if path < boundary:
                self._keep_unreadable(path, error)
        old = sorted(day for day in found.days if day < boundary)
        needed = find_needed(self._nights, self._nights, frozenset(old), self._look)
        for day in old:
            self._check()
            mount = next((point for point in self._mounts if _is_within(point, day) or _is_within(day, point)), None)
            if day not in self._nights:
                self._keep(day, Kind.UNKNOWN, "no record says that a run made it")
            elif day in needed:
                self._keep_needed(day, needed[day])
            elif _is_within(self._latest, day):
                self._keep(day, Kind.LATEST, f"the link {LATEST} points to it")
            elif mount is not None:
                self._keep(day, Kind.FOREIGN, f"{escape(mount)} is a mount point")
            elif self._is_ours(day, open_day(self._pool_fd, day), self._nights[day].keys()):
                self._remove(day)
                self._decision.peers[day] = self._nights[day].keys()

    def _look(self, day: str, peer: str) -> Content:
        """Return what the directory of *peer* holds."""
        self._check()
        try:
            with open_day(self._pool_fd, day) as day_fd:
                return content_of(day_fd, peer, self._check)
        except OSError:
            return Content(0, 0, False)

    def _is_ours(
        self, day: str, opened: AbstractContextManager[int], peers: Collection[str] | None, where: str = ""
    ) -> bool:
        """Return whether a day holds nothing but what was staged; otherwise keep it."""
        self._freed.begin_day()
        try:
            with opened as day_fd:
                examine_day(day_fd, peers, self._check, self._freed.add)
        except Foreign as exc:
            self._keep(day, Kind.FOREIGN, f"{exc}{where}")
        except OSError as exc:
            self._keep_unreadable(day, exc)
        else:
            return True
        return False

    def _remove(self, day: str, *, is_rest: bool = False) -> None:
        freed = self._freed
        freed.end_day()
        self._decision.remove.append(RemovedDay(day=day, files=freed.files, bytes=freed.bytes, is_rest=is_rest))

    def _keep(self, day: str, kind: Kind, why: str, peers: Sequence[str] = ()) -> None:
        self._decision.kept.append(KeptDay(day=day, kind=kind, why=why, peers=tuple(peers)))

    def _keep_unreadable(self, day: str, exc: OSError) -> None:
        self._keep(day, Kind.UNREADABLE, f"it cannot be read: {exc.strerror}")

    def _keep_needed(self, day: str, needed: Needed) -> None:
        parts = {"the last complete night": needed.complete, "the last files": needed.newest}
        why = ", and ".join(f"{what} of {self._join(peers)}" for what, peers in parts.items() if peers)
        self._keep(day, Kind.NEEDED, why, (*needed.complete, *needed.newest))

    def _join(self, peers: list[str]) -> str:
        names = [f"{escape(peer)}{'' if peer in self._planned else ' (not in the plan)'}" for peer in peers]
        return join_first(names, _MAX_NAMED)


class _FreedBytes:
    """Counts files and the bytes that their removal frees: those of files whose last link is removed.

    Attributes:
        files: The number of files of the day.
        bytes: The bytes that its removal frees, after the days before it.
    """

    def __init__(self) -> None:
        self.files = self.bytes = 0
        self._links: Counter[int] = Counter()
        self._links_of_day: Counter[int] = Counter()

    def begin_day(self) -> None:
        """Begin to count a day; what was counted since the last `end_day` is not removed."""
        self.files = self.bytes = 0
        self._links_of_day = Counter()

    def add(self, status: os.stat_result) -> None:
        """Count a file of the day."""
        self.files += 1
        links = 1
        if status.st_nlink > 1:
            self._links_of_day[status.st_ino] += 1
            links = self._links_of_day[status.st_ino] + self._links[status.st_ino]
        if links == status.st_nlink:
            self.bytes += freed_bytes(status)

    def end_day(self) -> None:
        """Count the links of the day as removed."""
        self._links.update(self._links_of_day)


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

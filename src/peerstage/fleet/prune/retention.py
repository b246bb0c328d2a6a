"""Which daily directories are old, and which of those a peer still needs. Nothing here touches the disk.

Days are counted by their number, not by the calendar: only a day on which at least one peer was staged completely
counts. So nothing becomes old because time passes, or because the master, the network or all peers were down.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple, TypeAlias

from peerstage.fleet.results import FleetReport, Verdict


class PeerNight(NamedTuple):
    """What the records of one day say of one peer.

    Attributes:
        is_complete: Whether a run staged it completely, and flagged nothing.
        files: The number of files that its directory has at least.
    """

    is_complete: bool
    files: int


#: The peers of each day that has a record.
Nights: TypeAlias = Mapping[str, Mapping[str, PeerNight]]


class Content(NamedTuple):
    """What a peer's directory really holds.

    Attributes:
        files: The number of files in it that are as its manifest says.
        bytes: Their bytes.
        is_whole: Whether no file of its manifest is missing or changed.
    """

    files: int
    bytes: int
    is_whole: bool


class Needed(NamedTuple):
    """The peers for which an old day is kept.

    Attributes:
        complete: Those of which it is the last complete night.
        newest: Those of which it has the newest files, although it is not their last complete night.
    """

    complete: list[str]
    newest: list[str]


def nights_of(reports: Iterable[FleetReport]) -> Nights:
    """Return what the reports of runs say of the peers of each day."""
    nights: dict[str, dict[str, PeerNight]] = {}
    for report in reports:
        peers = nights.setdefault(report.day, {})
        for result in report.results:
            before = peers.get(result.peer, PeerNight(False, 0))
            is_complete = result.verdict is Verdict.STAGED and not result.flags
            files = 0 if result.report is None else result.report.files
            peers[sys.intern(result.peer)] = PeerNight(before.is_complete or is_complete, max(before.files, files))
    return nights


def oldest_kept(days: Iterable[str], nights: Nights, keep_days: int) -> str | None:
    """Return the oldest of the newest *keep_days* days that count; the days before it are old. None if there are fewer.

    A day counts if at least one peer was staged completely.

    Args:
        days: The daily directories, ``YYYY/MM/DD``.
        nights: What the records say of them.
        keep_days: The number of days to keep, from 1.
    """
    complete = (day for day in days if any(night.is_complete for night in nights.get(day, {}).values()))
    kept = sorted(complete, reverse=True)[:keep_days]
    return kept[-1] if len(kept) == keep_days else None


def find_needed(
    days: Iterable[str], nights: Nights, old: Collection[str], look: Callable[[str, str], Content]
) -> dict[str, Needed]:
    """Return the *old* days that some peer needs: those with its last complete night, and with its newest files.

    A night only counts if its files are still there, so a directory that was emptied replaces no older night. Files
    count even if the records tell of none: one of several records of that day may be damaged.

    Args:
        days: All daily directories.
        nights: What the records say of them.
        old: The old ones of them.
        look: Returns what the directory of a peer in a daily directory holds. It is only called where it matters.
    """
    newest_first = sorted(days, reverse=True)
    needed: dict[str, Needed] = {}
    for peer in sorted({peer for day in old for peer in nights.get(day, {})}):
        complete = newest = None
        for day in newest_first:
            night = nights.get(day, {}).get(peer)
            if night is None or not (newest is None or (complete is None and night.is_complete)):
                continue
            content = look(day, peer)
            if newest is None and content.bytes:
                newest = day
            if complete is None and night.is_complete and content.is_whole and content.files >= night.files:
                complete = day
            if complete is not None and newest is not None:
                break
        if complete is not None and complete in old:
            needed.setdefault(complete, Needed([], [])).complete.append(peer)
        if newest is not None and newest in old and newest != complete:
            needed.setdefault(newest, Needed([], [])).newest.append(peer)
    return needed

"""Find files that change while they are transferred, by listing their directory again at the end."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import math
import operator
from collections.abc import Callable, Iterable

from peerstage.errors import ProtocolError
from peerstage.records import RACY_SECONDS, Entry
from peerstage.target.base import IncomingFile, ListingChanges, Target

#: Listings after the first: one that finds the files that changed, and one after these were fetched again.
_MAX_RELISTINGS = 2
#: Files that appeared which are kept in memory.
_MAX_APPEARED = 10_000

_NAME = operator.attrgetter("name")


def fetch_stable(
    target: Target,
    entries: list[Entry],
    *,
    fetch: Callable[[Iterable[IncomingFile]], object],
    relist: Callable[[], Iterable[Entry]],
) -> None:
    """Fetch what *target* admits of *entries*; if it verifies their stability, list and compare them again.

    Args:
        target: The target of the files.
        entries: The first listing. It is emptied, since there may be many files.
        fetch: Finishes or fails each of the files.
        relist: Lists the directory again.
    """
    fetch(target.admit(entries))
    if not target.verifies_stability or not entries:
        return
    comparison = _Comparison(entries)
    entries.clear()
    for _ in range(_MAX_RELISTINGS):
        changed = target.recheck(comparison.find_changes(relist()))
        if not changed:
            return
        comparison.expect_only(file.entry.name for file in changed)
        fetch(changed)


class _Comparison:
    """Compares listings of a directory with the previous one; in little memory, since it may have many files."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._known = sorted(entries, key=_NAME)
        self._is_expected = bytearray(b"\1" * len(self._known))
        self._appeared: set[bytes] = set()

    def expect_only(self, names: Iterable[bytes]) -> None:
        """Compare only files with these *names*, which are known, from now on."""
        self._is_expected = bytearray(len(self._known))
        for name in names:
            self._is_expected[bisect.bisect_left(self._known, name, key=_NAME)] = True

    def find_changes(self, entries: Iterable[Entry]) -> ListingChanges:
        """Compare *entries* with what is known, and keep what is new of them.

        Raises:
            ProtocolError: If a name comes twice.
        """
        changed, appeared, known = [], [], self._known
        is_missing = bytearray(b"\1" * len(known))
        for entry in entries:
            index = bisect.bisect_left(known, entry.name, key=_NAME)
            if index == len(known) or known[index].name != entry.name:
                if len(self._appeared) < _MAX_APPEARED and entry.name not in self._appeared:
                    self._appeared.add(entry.name)
                    appeared.append(entry)
                continue
            if not is_missing[index]:
                raise ProtocolError("The peer listed this name twice.", path=entry.name)
            is_missing[index] = False
            if self._is_expected[index] and _differ(known[index], entry):
                known[index] = dataclasses.replace(entry, name=known[index].name)  # one copy of each name
                changed.append(known[index])
        vanished = itertools.compress(
            itertools.compress(known, is_missing), itertools.compress(self._is_expected, is_missing)
        )
        return ListingChanges(changed, list(vanished), appeared)


def find_racy_time(entries: Iterable[Entry]) -> float:
    """Return the modification time from which files of a listing are racy: see `RACY_SECONDS`."""
    return max((entry.mtime for entry in entries if entry.mtime is not None), default=math.inf) - RACY_SECONDS


def _differ(one: Entry, other: Entry) -> bool:
    return one.size != other.size or (None not in (one.mtime, other.mtime) and one.mtime != other.mtime)

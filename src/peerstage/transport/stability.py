"""Find files that change while they are transferred, by listing their directory again at the end."""

from __future__ import annotations

import bisect
import itertools
import math
import operator
from collections.abc import Callable, Collection, Iterable, Sequence

from peerstage.errors import ProtocolError
from peerstage.records import RACY_SECONDS, Entry
from peerstage.target.base import IncomingFile, ListingChanges, Target

#: Listings after the first: one that finds the files that changed, and one after these were fetched again.
_MAX_RELISTINGS = 2

_NAME = operator.attrgetter("name")


def fetch_stable(
    target: Target,
    entries: Sequence[Entry],
    *,
    fetch: Callable[[Sequence[IncomingFile]], object],
    relist: Callable[[], Iterable[Entry]],
) -> None:
    """Fetch what *target* admits of *entries*; if it verifies their stability, list and compare them again.

    Args:
        target: The target of the files.
        entries: The first listing.
        fetch: Finishes or fails each of the files.
        relist: Lists the directory again.
    """
    fetch(target.admit(entries))
    if not target.verifies_stability or not entries:
        return
    comparison = _Comparison(entries)
    for _ in range(_MAX_RELISTINGS):
        changed = target.recheck(comparison.find_changes(relist()))
        if not changed:
            return
        fetch(changed)
        comparison.expect_only(file.entry.name for file in changed)


class _Comparison:
    """Compares listings of a directory with the previous one; in little memory, since it may have many files."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._known = sorted(entries, key=_NAME)
        self._appeared: set[bytes] = set()
        self._only: Collection[bytes] | None = None

    def expect_only(self, names: Iterable[bytes]) -> None:
        """Compare only files with these *names* from now on."""
        self._only = frozenset(names)

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
                if entry.name not in self._appeared:
                    self._appeared.add(entry.name)
                    appeared.append(entry)
                continue
            if not is_missing[index]:
                raise ProtocolError("The peer listed this name twice.", path=entry.name)
            is_missing[index] = False
            if _differ(known[index], entry) and self._is_expected(entry):
                changed.append(entry)
                known[index] = entry
        vanished = list(filter(self._is_expected, itertools.compress(known, is_missing)))
        return ListingChanges(changed, vanished, appeared)

    def _is_expected(self, entry: Entry) -> bool:
        return self._only is None or entry.name in self._only


def find_racy_time(entries: Iterable[Entry]) -> float:
    """Return the modification time from which files of a listing are racy: see `RACY_SECONDS`."""
    return max((entry.mtime for entry in entries if entry.mtime is not None), default=math.inf) - RACY_SECONDS


def _differ(one: Entry, other: Entry) -> bool:
    return one.size != other.size or (None not in (one.mtime, other.mtime) and one.mtime != other.mtime)

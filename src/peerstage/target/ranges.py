"""Sets of byte ranges."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator


class Ranges:
    """The byte ranges of one file that have arrived: disjoint, sorted, merged."""

    __slots__ = ("_ends", "_starts")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._starts, self._ends, strict=True)

    @property
    def prefix_end(self) -> int:
        """Number of bytes from 0 on that are in the set without a gap."""
        return self._ends[0] if self._starts and not self._starts[0] else 0

    @property
    def size(self) -> int:
        """Number of bytes in the set."""
        return sum(self._ends) - sum(self._starts)

    def contains(self, start: int, end: int) -> bool:
        """Return whether all bytes from *start* up to *end* are in the set."""
        index = bisect_right(self._starts, start) - 1
        return start >= end or (index >= 0 and self._ends[index] >= end)

    def overlaps(self, start: int, end: int) -> bool:
        """Return whether any byte from *start* up to *end* is in the set."""
        index = bisect_right(self._ends, start)
        return start < end and index < len(self._starts) and self._starts[index] < end

    def add(self, start: int, end: int) -> int:
        """Add the bytes from *start* up to *end*; return how many of them are new."""
        starts, ends = self._starts, self._ends
        if start >= end:
            return 0
        if not ends:
            starts.append(start)
            ends.append(end)
            return end - start
        if ends[-1] == start:  # the common case: most replies come in order
            ends[-1] = end
            return end - start
        low = bisect_right(ends, start - 1)
        high = bisect_right(starts, end)
        covered = sum(min(e, end) - max(s, start) for s, e in zip(starts[low:high], ends[low:high], strict=True))
        if low < high:
            starts[low:high], ends[low:high] = [min(start, starts[low])], [max(end, ends[high - 1])]
        else:
            starts.insert(low, start)
            ends.insert(low, end)
        return end - start - covered

    def missing(self, size: int) -> Iterator[tuple[int, int]]:
        """Yield the ranges below *size* that are not in the set, as (start, end)."""
        position = 0
        for start, end in self:
            if start >= size:
                break
            if position < start:
                yield position, start
            position = end
        if position < size:
            yield position, size

    def without(self, other: Ranges) -> Ranges:
        """Return the bytes of this set that *other* does not have."""
        rest = Ranges()
        gaps = [*other.missing(self._ends[-1])] if self._ends else []
        for start, end in self:
            index = bisect_right(gaps, (start, start)) - 1
            for gap_start, gap_end in gaps[max(0, index) :]:
                if gap_start >= end:
                    break
                rest.add(max(start, gap_start), min(end, gap_end))
        return rest

    def covers(self, size: int) -> bool:
        """Return whether the set is exactly the bytes below *size*."""
        return self._starts == [0] and self._ends == [size] if size else not self._ends

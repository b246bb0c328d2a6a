"""Received data of one file, verified across connections so that a resumed file does not mix two versions.

SFTP version 3 has times in whole seconds, so a file that was replaced between two connections may have the same name,
size, mode and time. Therefore samples of the received bytes are kept in memory, fetched again over the next connection,
and compared. If any differs, everything from earlier connections is dropped.

Samples are the end of the first range that arrived, of the latest, and of the ranges at 1, 2, 4, 8 ... MiB. A replaced
file with the same attributes that differs only elsewhere, such as a database file with a few changed pages, is not
detected. Of what an earlier run has kept, there are other samples, on the disk (see `kept_files`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from peerstage.records import KIB, MIB
from peerstage.target.base import Buffer
from peerstage.target.ranges import Ranges

#: Bytes of one sample: short, since 4,096 files may be in flight, and many samples detect more than a long one.
SAMPLE_BYTES = 2 * KIB
#: Samples of one file: the first one, and the latest others.
_MAX_SAMPLES = 8
_NOTHING = Ranges()


class ReceivedData:
    """The ranges of one file that have arrived, and samples to compare.

    Args:
        size: Size of the whole file in bytes.

    Attributes:
        received_bytes: Bytes that have arrived and are kept.
    """

    __slots__ = (
        *("_confirmed", "_kept_samples", "_last_sample", "_next_sample", "_ranges", "_samples", "_size"),
        "received_bytes",
    )

    def __init__(self, size: int) -> None:
        self.received_bytes = 0
        self._size = size
        self._ranges = Ranges()
        self._confirmed: Ranges | None = None  # what arrived over this connection, if there was an earlier one
        self._samples: list[tuple[int, bytes]] = []
        self._last_sample: tuple[int, bytes] | None = None
        self._next_sample = 0
        self._kept_samples = _NOTHING

    @property
    def range_count(self) -> int:
        """Number of disjoint ranges, each of which takes memory."""
        return len(self._ranges) + (0 if self._confirmed is None else len(self._confirmed))

    @property
    def prefix_end(self) -> int:
        """Number of bytes at the start of the file that have arrived without a gap."""
        return self._ranges.prefix_end

    @property
    def is_complete(self) -> bool:
        """Whether every byte has arrived, and all samples of earlier connections are confirmed."""
        return self._ranges.covers(self._size) and not any(self._unconfirmed())

    @property
    def consistent_ranges(self) -> Ranges:
        """What has arrived of one version of the file.

        While samples are unconfirmed, what came over this connection may be of another version than what came before;
        then it is the larger of the two.
        """
        if self._confirmed is None or not any(self._unconfirmed()):
            return self._ranges
        earlier = self._ranges.without(self._confirmed)
        return max(earlier, self._confirmed, key=lambda ranges: ranges.size)

    def take_over(self, ranges: Ranges, samples: Ranges) -> None:
        """Begin with *ranges* that an earlier run has kept.

        Args:
            ranges: What was kept.
            samples: Parts of it. When they arrive again, the caller compares them with the disk; see `samples_within`.
        """
        self._ranges, self._kept_samples, self._confirmed = ranges, samples, Ranges()
        self.received_bytes = ranges.size

    def samples_within(self, offset: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the parts of the kept samples within a range that has arrived, to be compared before it is written.

        If one differs, the caller calls `drop_earlier`.
        """
        for low, high in self._kept_samples:
            if low < end and offset < high:
                yield max(low, offset), min(high, end)

    def resume(self) -> None:
        """Start another connection; data of earlier ones has to be confirmed."""
        if self._last_sample is not None:
            samples = [*self._samples, self._last_sample]
            self._samples = samples[:1] + samples[1:][1 - _MAX_SAMPLES :]
            self._last_sample = None
        self._confirmed = Ranges() if len(self._ranges) else None

    def missing(self) -> Iterator[tuple[int, int]]:
        """Yield the ranges to fetch: those that have not arrived, and samples to compare."""
        if self._confirmed is None:
            yield from self._ranges.missing(self._size)
            return
        wanted = Ranges()
        for start, end in (*self._ranges.missing(self._size), *self._unconfirmed()):
            wanted.add(start, end)
        yield from wanted

    def add(self, offset: int, buffers: Sequence[Buffer], length: int) -> None:
        """Record that *buffers*, *length* bytes in all, have arrived at *offset*."""
        if self._confirmed is not None:
            if any(_differs(offset, buffers, length, *sample) for sample in self._samples):
                self.drop_earlier()
            else:
                self._confirmed.add(offset, offset + length)
        self.received_bytes += self._ranges.add(offset, offset + length)
        if length and not self.is_complete:
            self._keep_sample(offset + length, buffers)

    def _unconfirmed(self) -> Iterator[tuple[int, int]]:
        """Yield the ranges of samples from earlier connections that have not been compared yet."""
        if self._confirmed is not None:
            for start, sample in self._samples:
                if not self._confirmed.contains(start, start + len(sample)):
                    yield start, start + len(sample)
            for start, end in self._kept_samples:
                if not self._confirmed.contains(start, end):
                    yield start, end

    def drop_earlier(self) -> None:
        """Drop the data of earlier connections: it belongs to another version of the file."""
        self._ranges, self._confirmed = self._confirmed or Ranges(), None
        self.received_bytes = self._ranges.size
        self._samples, self._last_sample, self._next_sample = [], None, 0
        self._kept_samples = _NOTHING

    def _keep_sample(self, end: int, buffers: Sequence[Buffer]) -> None:
        sample = _tail(buffers)
        self._last_sample = (end - len(sample), sample)
        if self.received_bytes >= self._next_sample:
            self._samples = (self._samples[:1] + self._samples[1:][2 - _MAX_SAMPLES :]) + [self._last_sample]
            self._next_sample = max(MIB, 2 * self.received_bytes)


def _tail(buffers: Sequence[Buffer]) -> bytes:
    """Return a copy of the last `SAMPLE_BYTES` bytes of *buffers*, or of all of them."""
    parts: list[Buffer] = []
    remaining = SAMPLE_BYTES
    for buffer in reversed(buffers):
        if not remaining:
            break
        part = memoryview(buffer)[-remaining:]
        parts.append(part)
        remaining -= len(part)
    return b"".join(reversed(parts))


def _differs(offset: int, buffers: Sequence[Buffer], length: int, start: int, sample: bytes) -> bool:
    """Return whether *buffers*, at *offset*, differ from *sample*, at *start*, where they overlap."""
    if not (start < offset + length and offset < start + len(sample)):
        return False
    for buffer in buffers:
        low, high = max(offset, start), min(offset + len(buffer), start + len(sample))
        if low < high and memoryview(buffer)[low - offset : high - offset] != sample[low - start : high - start]:
            return True
        offset += len(buffer)
    return False

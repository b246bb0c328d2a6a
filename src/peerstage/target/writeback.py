"""Early write-back: dirty pages are written while more data arrives, so that the sync at the end is short.

sync_file_range(2) blocks while the device's queue is full, so a thread of its own calls it, and the thread that drains
the channel never waits. All of this is a hint: if the thread falls behind, has no descriptors or cannot be started, the
sync at the end writes the data.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Callable, Iterable

from peerstage.records import KIB, MIB
from peerstage.target.file_descriptors import close_quietly

#: Dirty bytes of a run, in any number of files, that start a write-back.
DIRTY_BYTES = 8 * MIB
#: Smaller files are left to the sync at the end: their cost is metadata, and a request for each costs more than it
#: saves (5,000 files of 4 KiB took as long or longer with it).
SMALLEST = 16 * KIB
#: Batches that wait for the thread; further ones are dropped.
_MAX_BATCHES = 2


class EarlyWriteback:
    """Starts write-back of the files of one run, in a thread that is started with the first batch.

    Args:
        max_files: Maximum number of descriptors in a batch; there are at most three batches.
        start: Starts write-back of a descriptor's file; may block. None disables early write-back.
    """

    def __init__(self, max_files: int, start: Callable[[int], object] | None) -> None:
        self._max_files = max_files
        self._start = start
        self._dirty_bytes = 0
        self._batch: list[int] = []
        self._batches: queue.Queue[list[int] | None] = queue.Queue(_MAX_BATCHES)
        self._thread: threading.Thread | None = None

    def add_written(self, fd: int, count: int) -> None:
        """Account for *count* bytes that were written to *fd*."""
        self._dirty_bytes += count
        if self._start is not None and self._dirty_bytes >= DIRTY_BYTES:
            self._add(fd)
            self._queue_batch()

    def add_complete(self, fd: int, size: int) -> None:
        """Add the complete file of *size* bytes, before *fd* is closed."""
        if self._start is not None and size >= SMALLEST:
            self._add(fd)
            if len(self._batch) >= self._max_files:
                self._queue_batch()

    def close(self) -> None:
        """End the thread and wait for it, as long as its current request blocks."""
        _close_all(self._batch)
        self._batch = []
        thread, self._thread = self._thread, None
        if thread is not None:
            with contextlib.suppress(queue.Empty):
                while True:
                    _close_all(self._batches.get_nowait() or ())
            self._batches.put_nowait(None)
            thread.join()

    def _add(self, fd: int) -> None:
        with contextlib.suppress(OSError):
            self._batch.append(os.dup(fd))

    def _queue_batch(self) -> None:
        batch, self._batch, self._dirty_bytes = self._batch, [], 0
        try:
            self._batches.put_nowait(batch)
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="peerstage-writeback", daemon=True)
                thread.start()
                self._thread = thread
        except queue.Full:
            _close_all(batch)
        except RuntimeError:  # no thread can be started
            _close_all(self._batches.get_nowait() or ())

    def _run(self) -> None:
        while (batch := self._batches.get()) is not None:
            for fd in batch:
                if self._start is not None:
                    self._start(fd)
                close_quietly(fd)


def _close_all(descriptors: Iterable[int]) -> None:
    for fd in descriptors:
        close_quietly(fd)

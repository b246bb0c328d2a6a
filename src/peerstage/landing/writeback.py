"""Early write-back: dirty pages go to the disk while more of the run arrives, so that the sync at the end is short.

sync_file_range(2) blocks while the device's queue is full. It is called in a thread of its own, so that the thread that
drains the channel never waits for it. All of this is a hint: where the thread is behind, has no descriptors, or cannot
be started, the data is left to the sync at the end.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Callable, Iterable

from peerstage.landing.private import close_quietly
from peerstage.records import KIB, MIB

#: Bytes of a run, in however many files, that are dirty when write-back is started.
DIRTY_BYTES = 8 * MIB
#: Files that are smaller are left to the sync at the end: there the metadata costs, and a request for each of them more
#: than it saves (5,000 files of 4 KiB took as long or longer with it).
SMALLEST = 16 * KIB
#: Batches that wait for the thread; a further one is dropped.
_MAX_BATCHES = 2


class EarlyWriteback:
    """Starts write-back of what one run writes. The thread is started with the first batch.

    Args:
        max_files: Descriptors to keep in one batch; there are three batches at most.
        start: Starts write-back of the file that a descriptor is open on; it may block.
    """

    def __init__(self, max_files: int, start: Callable[[int], object]) -> None:
        self._max_files = max_files
        self._start = start
        self._dirty = 0
        self._kept: list[int] = []
        self._batches: queue.Queue[list[int] | None] = queue.Queue(_MAX_BATCHES)
        self._thread: threading.Thread | None = None

    def wrote(self, fd: int, count: int) -> None:
        """Account for *count* bytes that were written to *fd*."""
        self._dirty += count
        if self._dirty >= DIRTY_BYTES:
            self._keep(fd)
            self._hand_over()

    def closes(self, fd: int, size: int) -> None:
        """Keep the file of *size* bytes that is complete in mind, before its descriptor is closed."""
        if size >= SMALLEST:
            self._keep(fd)
            if len(self._kept) >= self._max_files:
                self._hand_over()

    def close(self) -> None:
        """End the thread, and wait for it: as long as the request that is under way blocks."""
        _close_all(self._kept)
        self._kept = []
        thread, self._thread = self._thread, None
        if thread is not None:
            with contextlib.suppress(queue.Empty):
                while True:
                    _close_all(self._batches.get_nowait() or ())
            self._batches.put_nowait(None)
            thread.join()

    def _keep(self, fd: int) -> None:
        with contextlib.suppress(OSError):
            self._kept.append(os.dup(fd))

    def _hand_over(self) -> None:
        batch, self._kept, self._dirty = self._kept, [], 0
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
                self._start(fd)
                close_quietly(fd)


def _close_all(descriptors: Iterable[int]) -> None:
    for fd in descriptors:
        close_quietly(fd)

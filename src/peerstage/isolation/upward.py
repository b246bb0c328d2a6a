"""The landing as a child has it: each call becomes a frame that goes up, and none waits for an answer.

What has arrived is kept here too, as ranges, so that after a lost connection only the rest is asked for.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence

from peerstage.errors import IncompleteFile, NotAvailable, ProtocolError, StageError
from peerstage.isolation.frames import (
    HEADER,
    MOST_BODY,
    MOST_DATA,
    Adopt,
    Alive,
    Expect,
    Fail,
    Finish,
    Log,
    Open,
    Record,
    Refuse,
    Result,
    Said,
    Shared,
    data_header,
    encode,
)
from peerstage.isolation.messages import MOST_MESSAGE
from peerstage.isolation.ring import RingWriter
from peerstage.landing.arrived import Arrived
from peerstage.landing.base import MAX_TRIALS, Buffer, Landing, Slot
from peerstage.records import KIB, MIB, Entry

#: Frames are kept back until there are so many bytes, or so many seconds have passed since the last went.
_BATCH = 64 * KIB
_KEPT_BACK = 0.05
_MOST_BUFFERS = 512
#: Bytes that are worth a place in the memory that is shared.
_SHARED_FROM = 16 * KIB
#: Bytes there of which the parent is told at once: each time wakes it up.
_SHARED_BATCH = MIB


class Upward:
    """The pipe to the parent. Frames are whole and in order, whichever threads they come from.

    The parent listens from the beginning of a job until its result; what is logged in between is kept for the next job.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.RLock()
        self._kept: list[Buffer] = []
        self._size = 0
        self._placed = 0
        self._is_heard = False
        self._sent_at = time.monotonic()
        self._ring: RingWriter | None = None

    def share(self, ring: RingWriter) -> None:
        """Put the bytes of large files there from now on."""
        self._ring = ring

    def begin(self) -> None:
        """Begin a job: send what was logged before it, and that it is being done."""
        with self._lock:
            self._is_heard = True
            self.put(Alive())
            self.flush()

    def end(self, result: Result) -> None:
        """End a job: send *result*, and nothing behind it until the next job begins, whichever thread wants to."""
        with self._lock:
            self.put(result)
            self.flush()
            self._is_heard = False

    def beat(self) -> None:
        """Send that the job is still being done, and everything that was kept back."""
        with self._lock:
            if self._is_heard:
                self.put(Alive())
                self.flush()

    def put(self, record: Record) -> None:
        """Say *record*, sooner or later."""
        with self._lock:
            self._keep(encode(record))

    def put_log(self, record: Log) -> None:
        """Say *record* now: the last line before a crash is the one that is needed. Between jobs it is kept."""
        with self._lock:
            if self._is_heard:
                self.put(record)
                self.flush()
            elif self._size < _BATCH:
                self._kept.append(frame := encode(record))
                self._size += len(frame)

    def put_said(self, said: Buffer) -> None:
        """Say now what a command on the peer says: it may say no more for hours."""
        for at in range(0, len(said), MOST_BODY):
            self.put(Said(bytes(said[at : at + MOST_BODY])))
        self.flush()

    def put_data(self, slot: int, offset: int, buffers: Sequence[Buffer], length: int) -> None:
        """Send the bytes of *buffers* for a file."""
        if length > MOST_DATA:
            for buffer in buffers:
                for at in range(0, len(buffer), MOST_DATA):
                    piece = memoryview(buffer)[at : at + MOST_DATA]
                    self.put_data(slot, offset, [piece], len(piece))
                    offset += len(piece)
            return
        with self._lock:
            if self._ring is not None and length >= _SHARED_FROM:
                place = self._ring.place(buffers, length)
                if place is not None:
                    position, mark = place
                    self._placed += length
                    self._keep(encode(Shared(slot, offset, position, length, mark)))
                    return
            header = data_header(slot, offset, length)
            if length < _BATCH:
                self._keep(b"".join((header, *buffers)))
                return
            self._kept.append(header)
            self._kept.extend(buffers)
            self._size += HEADER.size + length
            self.flush()

    def flush(self) -> None:
        """Send everything that was kept back."""
        with self._lock:
            kept, self._kept, self._size, self._placed = self._kept, [], 0, 0
            for at in range(0, len(kept), _MOST_BUFFERS):
                self._write(kept[at : at + _MOST_BUFFERS])
            self._sent_at = time.monotonic()

    def _keep(self, frame: bytes) -> None:
        self._kept.append(frame)
        self._size += len(frame)
        late = time.monotonic() - self._sent_at > _KEPT_BACK
        if late or self._size >= _BATCH or self._placed >= _SHARED_BATCH:
            self.flush()

    def _write(self, buffers: list[Buffer]) -> None:
        left = sum(len(buffer) for buffer in buffers)
        while left:
            written = os.writev(self._fd, buffers)
            left -= written
            while written:
                if written < len(buffers[0]):
                    buffers[0] = memoryview(buffers[0])[written:]
                    break
                written -= len(buffers.pop(0))


class UpwardLanding(Landing):
    """Speaks to the parent's landing.

    Args:
        upward: Where to.
        wants_content: Whether the files are wanted, and not only what there is.
        workspace: Descriptor of the directory that a command may fill, -1 for none.
    """

    def __init__(self, upward: Upward, *, wants_content: bool = True, workspace: int = -1) -> None:
        self.wants_content = wants_content
        self._upward = upward
        self._workspace = workspace
        self._slots: dict[bytes, UpwardSlot] = {}
        self._next = 0

    def expect(self, files: int, size: int) -> None:
        self._upward.put(Expect(files, size))

    def open(self, entry: Entry) -> Slot:
        """See `Landing.open`. What is begun goes on, as it does in the parent, and under a new number."""
        slot = self._slots.get(entry.name)
        if slot is None or slot.entry != entry or not (slot.is_finished or entry.mtime is not None):
            size = entry.size if self.wants_content else 0
            settled = not self.wants_content and len(self._slots) >= MAX_TRIALS
            slot = self._slots[entry.name] = UpwardSlot(self._upward, entry, size, settled=settled)
        else:
            slot.resume()
        slot.number = self._next
        self._next += 1
        self._upward.put(Open(slot.number, entry))
        if slot.is_finished:  # the parent keeps what is open, and not for ever
            self._upward.put(Finish(slot.number))
        return slot

    def refuse(self, name: bytes, error: StageError) -> None:
        self._upward.put(Refuse(name, error))

    def workspace(self) -> str:
        """See `Landing.workspace`: it becomes the current directory, since no path may lead this user there."""
        if self._workspace < 0:
            raise NotAvailable("There is no workspace for a command.")
        os.fchdir(self._workspace)
        return "."

    def adopt(self, name: bytes, check: Callable[[], object] = lambda: None) -> int:
        """See `Landing.adopt`. What the file is, the parent looks at."""
        self._upward.put(Adopt(name))
        return 0


class UpwardSlot(Slot):
    """One file on its way up.

    Args:
        upward: Where to.
        entry: The file.
        size: Bytes of it that are wanted.
        settled: Whether it is finished from the start.
    """

    __slots__ = ("_arrived", "_settled", "_size", "_upward", "entry", "number")

    def __init__(self, upward: Upward, entry: Entry, size: int, *, settled: bool) -> None:
        self.entry = entry
        self.number = 0
        self._size = size
        self._upward = upward
        self._arrived: Arrived | None = None
        self._settled = settled

    @property
    def is_finished(self) -> bool:
        return self._settled

    def missing(self) -> Sequence[tuple[int, int]]:
        if self._settled or not self._size:
            return ()
        return ((0, self._size),) if self._arrived is None else tuple(self._arrived.missing())

    def resume(self) -> None:
        """Continue the file over another connection. The parent's slot compares what it has itself, and agrees."""
        if self._arrived is not None:
            self._arrived.resume()

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        length = sum(len(buffer) for buffer in buffers)
        if offset < 0 or offset + length > self._size:
            raise ProtocolError("More bytes came than were promised.", path=self.entry.name)
        if not length:
            return
        if self._arrived is None:
            self._arrived = Arrived(self._size)
        self._arrived.add(offset, buffers, length)
        self._upward.put_data(self.number, offset, buffers, length)

    def finish(self) -> None:
        if self._settled:
            return
        size = self._size
        if size and (self._arrived is None or not self._arrived.is_complete):
            received = 0 if self._arrived is None else self._arrived.received
            self.fail(IncompleteFile(f"{received} of {size} bytes arrived. Stage again once the peer is well."))
            return
        self._settle()
        self._upward.put(Finish(self.number))

    def fail(self, error: StageError) -> None:
        if not self._settled:
            self._settle()
            self._upward.put(Fail(self.number, error))

    def _settle(self) -> None:
        self._settled = True
        self._arrived = None


class UpwardLog(logging.Handler):
    """Sends what is logged to the parent's loggers of the same names."""

    def __init__(self, upward: Upward) -> None:
        super().__init__()
        self._upward = upward

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._upward.put_log(Log(min(record.levelno, 50), record.name, record.getMessage()[:MOST_MESSAGE]))
        except OSError:  # nobody is there to read it any more
            pass

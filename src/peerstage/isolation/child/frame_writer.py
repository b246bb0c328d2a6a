"""Write frames to the parent: in batches, with log lines and a heartbeat."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Sequence

from peerstage.isolation.protocol import frames
from peerstage.records import KIB
from peerstage.target.base import Buffer
from peerstage.watchdog import Watchdog

#: Frames are batched up to this many bytes, or seconds since the last write.
_BATCH_SIZE = 64 * KIB
_BATCH_SECONDS = 0.05
#: Buffers in one writev(2), below IOV_MAX.
_MAX_BUFFERS = 512
#: Seconds between two heartbeats, at most; heartbeats within the parent's stall timeout, at least.
_MAX_HEARTBEAT_INTERVAL = 1.0
_HEARTBEATS_PER_TIMEOUT = 4


class FrameWriter:
    """Writes whole frames in order, from any thread.

    The parent reads from the beginning of a job to its reply; log lines in between are kept for the next job.

    Args:
        fd: The write end of the pipe.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.RLock()
        self._batch: list[Buffer] = []
        self._batch_size = 0
        self._in_job = False
        self._written_at = time.monotonic()

    def begin_job(self) -> None:
        """Send the log lines from before the job, and a heartbeat."""
        with self._lock:
            self._in_job = True
            self.send_heartbeat()

    def end_job(self, reply: frames.Reply) -> None:
        """Send *reply*, and nothing after it until the next job begins."""
        with self._lock:
            self.put(reply)
            self.flush()
            self._in_job = False

    def send_heartbeat(self) -> None:
        """Send a heartbeat and the current batch, if a job is in progress."""
        with self._lock:
            if self._in_job:
                self.put(frames.Alive())
                self.flush()

    def put(self, frame: frames.Frame) -> None:
        """Add *frame* to the batch."""
        with self._lock:
            self._add(frames.encode_frame(frame))

    def put_log(self, line: frames.Log) -> None:
        """Send *line* at once, so that the last line before a crash arrives. Between jobs it is kept."""
        with self._lock:
            if self._in_job:
                self.put(line)
                self.flush()
            elif self._batch_size < _BATCH_SIZE:
                self._batch.append(encoded := frames.encode_frame(line))
                self._batch_size += len(encoded)

    def put_output(self, output: Buffer) -> None:
        """Send output of a command at once: it may be the last for hours."""
        for at in range(0, len(output), frames.MAX_BODY):
            self.put(frames.Output(bytes(output[at : at + frames.MAX_BODY])))
        self.flush()

    def put_data(self, file_number: int, offset: int, buffers: Sequence[Buffer], length: int) -> None:
        """Send *length* bytes of *buffers* as the content of a file from *offset* on."""
        if length > frames.MAX_DATA:
            for buffer in buffers:
                for at in range(0, len(buffer), frames.MAX_DATA):
                    part = memoryview(buffer)[at : at + frames.MAX_DATA]
                    self.put_data(file_number, offset, [part], len(part))
                    offset += len(part)
            return
        with self._lock:
            header = frames.pack_data_header(file_number, offset, length)
            if length < _BATCH_SIZE:
                self._add(b"".join((header, *buffers)))
                return
            self._batch.append(header)
            self._batch.extend(buffers)
            self._batch_size += frames.HEADER.size + length
            self.flush()

    def flush(self) -> None:
        """Write the batch."""
        with self._lock:
            batch, self._batch, self._batch_size = self._batch, [], 0
            for at in range(0, len(batch), _MAX_BUFFERS):
                self._write(batch[at : at + _MAX_BUFFERS])
            self._written_at = time.monotonic()

    def _add(self, frame: bytes) -> None:
        self._batch.append(frame)
        self._batch_size += len(frame)
        is_late = time.monotonic() - self._written_at > _BATCH_SECONDS
        if is_late or self._batch_size >= _BATCH_SIZE:
            self.flush()

    def _write(self, buffers: list[Buffer]) -> None:
        remaining = sum(len(buffer) for buffer in buffers)
        while remaining:
            written = os.writev(self._fd, buffers)
            remaining -= written
            while written:
                if written < len(buffers[0]):
                    buffers[0] = memoryview(buffers[0])[written:]
                    break
                written -= len(buffers.pop(0))


class ChildLogHandler(logging.Handler):
    """Sends log lines to the parent's loggers of the same names."""

    def __init__(self, writer: FrameWriter) -> None:
        super().__init__()
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        line = frames.Log(min(record.levelno, 50), record.name, record.getMessage()[: frames.MAX_LOG_LINE])
        with contextlib.suppress(OSError):  # the parent is gone
            self._writer.put_log(line)


class Heartbeat:
    """Sends an `Alive` frame at intervals, from its own thread, while a job runs and the watchdog has not ended it.

    It lets the parent tell a slow peer from a child that is stopped or hangs.

    Args:
        writer: The pipe to the parent.
        watchdog: Enforces the time limits of the run. The heartbeat stops once it has ended the run.
    """

    def __init__(self, writer: FrameWriter, watchdog: Watchdog) -> None:
        self._writer = writer
        self._watchdog = watchdog
        self._interval = min(_MAX_HEARTBEAT_INTERVAL, watchdog.limits.stall_timeout / _HEARTBEATS_PER_TIMEOUT)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="peerstage-heartbeat", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """Stop the thread."""
        self._stopped.set()

    def _run(self) -> None:
        with contextlib.suppress(OSError):  # the parent is gone, or the watchdog has ended the run
            while not self._stopped.wait(self._interval):
                self._watchdog.raise_if_final()
                self._writer.send_heartbeat()

"""The parent's ends of the socket and the pipes that connect it to a child process."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from peerstage.isolation.protocol.frames import MAX_UNANSWERED
from peerstage.isolation.protocol.jobs import encode_job, send_part
from peerstage.isolation.protocol.values import child_violation
from peerstage.records import KIB, MIB

if sys.platform != "win32":
    import fcntl

#: Maximum bytes of one read, and the size of the pipe for frames if the system allows it.
MAX_BUFFER = MIB
#: fcntl.F_SETPIPE_SZ, which only Linux has; other systems reject the number.
_F_SETPIPE_SZ = 1031
#: Bytes of stderr that are kept for error messages, and the maximum in all.
_STDERR_TAIL = 2 * KIB
_MAX_STDERR = MIB
#: Seconds between two checks of the time limits.
_CHECK_INTERVAL = 60.0


class ChildChannel:
    """Sends jobs to a child, and receives its frames and its stderr.

    Args:
        child_ends: Gets callbacks that close the child's ends; to be closed once the child has inherited them.
        max_buffer: Bytes that the pipe for frames, and a read from it, may hold; `MAX_BUFFER` at most.

    Attributes:
        child_stdio: The child's ends, as descriptors for its stdin, stdout and stderr.
        has_received: Whether the child has sent any frame data.

    Raises:
        OSError: If the system refuses a descriptor. Nothing is left open then.
    """

    def __init__(self, child_ends: contextlib.ExitStack, *, max_buffer: int = MAX_BUFFER) -> None:
        self.has_received = False
        self._stderr_tail = b""
        self._stderr_size = 0
        self._answers: deque[memoryview] = deque()  # not sent yet
        buffer_size = min(MAX_BUFFER, max_buffer)
        self._buffer = memoryview(bytearray(buffer_size))
        with contextlib.ExitStack() as on_failure:
            self._jobs, child_jobs = socket.socketpair()
            on_failure.callback(self._jobs.close)
            child_ends.callback(child_jobs.close)
            self._frames, child_frames = _create_pipe(on_failure, child_ends)
            self._stderr, child_stderr = _create_pipe(on_failure, child_ends)
            with contextlib.suppress(OSError):  # not on this system, or above its limit
                fcntl.fcntl(child_frames, _F_SETPIPE_SZ, buffer_size)
            for fd in (self._frames, self._stderr):
                os.set_blocking(fd, False)
            self._jobs.setblocking(False)
            self._poll = select.poll()
            for fd in (self._frames, self._stderr, self._jobs.fileno()):
                self._poll.register(fd, select.POLLIN)
            on_failure.pop_all()
        self.child_stdio = (child_jobs.fileno(), child_frames, child_stderr)

    @property
    def has_answers(self) -> bool:
        """Whether the child has not read all answers."""
        return bool(self._answers)

    @property
    def last_stderr_line(self) -> str:
        """The last line that the child wrote to stderr."""
        return self._stderr_tail.decode("utf-8", "backslashreplace").strip().rpartition("\n")[2]

    def send(self, job: dict[str, Any], fd: int, remaining: Callable[[], float]) -> None:
        """Send *job*, with the descriptor *fd* unless it is -1.

        Args:
            remaining: Returns the maximum number of seconds to wait, or raises.

        Raises:
            EOFError: If the child has closed its end.
        """
        data = memoryview(encode_job(job))
        poll = select.poll()
        poll.register(self._jobs, select.POLLOUT)
        while data:
            try:
                data = data[send_part(self._jobs, data, fd) :]
                fd = -1
            except BlockingIOError:
                poll.poll(1000 * min(remaining(), _CHECK_INTERVAL))
            except OSError as exc:
                raise EOFError from exc

    def queue_answer(self, answer: dict[str, Any]) -> None:
        """Send *answer* as fast as the child reads, without waiting: the rest is sent while frames are received.

        Raises:
            ProtocolError: If the child does not read its answers.
        """
        if len(self._answers) >= MAX_UNANSWERED:
            raise child_violation("The child process does not read the answers that it asks for.")
        self._answers.append(memoryview(encode_job(answer)))
        self._send_answers()

    def _send_answers(self) -> None:
        """Send what the child has space for, and wake up for the rest."""
        try:
            while self._answers:
                self._answers[0] = self._answers[0][send_part(self._jobs, self._answers[0], -1) :]
                if not self._answers[0]:
                    self._answers.popleft()
        except BlockingIOError:
            pass
        except OSError:  # the child has closed its end, which `receive` reports
            self._answers.clear()
        self._poll.modify(self._jobs.fileno(), select.POLLIN | select.POLLOUT if self._answers else select.POLLIN)

    def receive(self, remaining: Callable[[], float]) -> memoryview:
        """Return the next bytes of the frame stream, valid until the next call.

        Bytes that have arrived are returned before *remaining* is called.

        Raises:
            EOFError: If the child has closed its end.
            ProtocolError: If the child writes too much to stderr.
        """
        while True:
            if self._answers:
                self._send_answers()
            with contextlib.suppress(BlockingIOError):
                if count := os.readv(self._frames, [self._buffer]):
                    self.has_received = True
                    return self._buffer[:count]
                raise EOFError
            ready = dict(self._poll.poll(1000 * min(remaining(), _CHECK_INTERVAL)))
            if self._stderr in ready:
                self.read_stderr()
            # The child never writes to this socket: readable means that it has exited, or that shut_down() was called.
            if ready.get(self._jobs.fileno(), 0) & ~select.POLLOUT and self._frames not in ready:
                raise EOFError

    def read_stderr(self, timeout: float = 0) -> None:
        """Read what the child has written to stderr, waiting *timeout* seconds at most, and keep the tail.

        Raises:
            ProtocolError: If the child has written too much.
        """
        if timeout:
            poll = select.poll()
            poll.register(self._stderr, select.POLLIN)
            if not poll.poll(1000 * timeout):
                return
        with contextlib.suppress(BlockingIOError):
            data = os.read(self._stderr, 64 * KIB)
            if not data:  # end of file stays readable
                with contextlib.suppress(KeyError):
                    self._poll.unregister(self._stderr)
                if timeout:
                    time.sleep(0.001)  # at end of file poll() no longer waits: do not busy-wait in ChildProcess._wait
            self._stderr_tail = (self._stderr_tail + data)[-_STDERR_TAIL:]
            self._stderr_size += len(data)
        if self._stderr_size > _MAX_STDERR:
            raise child_violation(f"The child process wrote more than {_MAX_STDERR} bytes to stderr.")

    def shut_down(self) -> None:
        """Make `send` and `receive` raise EOFError, in any thread, and end the child's stream of jobs."""
        with contextlib.suppress(OSError):
            self._jobs.shutdown(socket.SHUT_RDWR)

    def stop_receiving(self) -> None:
        """Close the pipe for frames, so that a child that blocks on a write gets EPIPE."""
        os.close(self._frames)
        self._frames = -1

    def close(self) -> None:
        """Close everything."""
        self._jobs.close()
        for fd in (self._frames, self._stderr):
            if fd >= 0:
                os.close(fd)
        self._frames = self._stderr = -1


def _create_pipe(on_failure: contextlib.ExitStack, child_ends: contextlib.ExitStack) -> tuple[int, int]:
    """Return the read end and the write end of a pipe, to be closed by the two stacks."""
    read_end, write_end = os.pipe()
    on_failure.callback(os.close, read_end)
    child_ends.callback(os.close, write_end)
    return read_end, write_end

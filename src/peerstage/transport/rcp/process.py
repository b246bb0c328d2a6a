"""Runs a foreign command: in a process group of its own, watched, its output drained, its children killed with it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from peerstage.errors import NotAvailable, StageError, escape
from peerstage.peer_log import PeerLog
from peerstage.reasons import Reason
from peerstage.records import KIB, Limits
from peerstage.session.watchdog import Watchdog
from peerstage.system_errors import has_exited, is_of_this_machine, start_process, system_error

#: Seconds between two looks at the command, and at what it has brought.
_LOOK = 0.05
_MEASURE = 0.5
#: Seconds between asking the command to end and killing it, and for what its children still have to say.
_GRACE = 2.0
_LAST_WORDS = 0.5
#: Characters of output that are logged.
_LOGGED = 4 * KIB


class Outcome(NamedTuple):
    """How a command ended: its exit status (negative: the signal that killed it), and the beginning of what it said."""

    status: int
    output: bytes


def run(
    argv: Sequence[str],
    *,
    limits: Limits,
    watchdog: Watchdog,
    log: PeerLog,
    progress: Callable[[], int] = lambda: 0,
    said: Callable[[bytes], object] | None = None,
) -> Outcome:
    """Run *argv*, without a shell and without input, and wait for its end.

    Whatever happens, nothing of its process group is left when this returns. A child that left the group for a session
    of its own can not be found.

    Args:
        argv: The program and its arguments.
        limits: How much of its output is kept.
        watchdog: Ends it when a bound is passed.
        log: For what it says.
        progress: Returns the bytes that have arrived; as long as these grow, the command is not stalled.
        said: Called with all that it says, as it comes; then nothing of it is logged here.

    Raises:
        NotAvailable: There is no such program, or it can not be run.
        StageError: If this machine is short of descriptors, memory or processes, or the exit status is lost.
        LimitExceeded, Cancelled: A bound was passed, or the run was cancelled.
    """
    try:
        process = start_process(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0
        )
    except OSError as exc:
        if is_of_this_machine(exc):
            raise system_error(f"The command {argv[0]!r} cannot be run", exc) from exc
        raise NotAvailable(
            f"The command {argv[0]!r} can not be run: {exc.strerror}. Install or correct it.",
            reason=Reason.PROGRAM_MISSING,
        ) from exc
    with process, _nothing_left(process), _said_of(argv[0]):
        output = _Output(process, limits.stderr_bytes, said)
        with watchdog.ending(lambda: _signal(process, signal.SIGTERM)):
            _wait(process, output, watchdog, progress)
        _signal(process, signal.SIGKILL)  # children that it has left behind
        output.drain_for(_LAST_WORDS)
    watchdog.check()
    if output.kept and said is None:
        log.info("%s said: %s", escape(argv[0]), escape(output.kept[:_LOGGED]))
    return Outcome(process.returncode, output.kept)


def _wait(process: subprocess.Popen[bytes], output: _Output, watchdog: Watchdog, progress: Callable[[], int]) -> None:
    """Wait for the end of the command; kill it if it does not heed the watchdog."""
    arrived = 0
    watchdog.count_kept(lambda: arrived)
    measure_at = time.monotonic() + _MEASURE
    kill_at: float | None = None
    while not _has_ended(process):
        watchdog.begin_wait()
        try:
            output.take(_LOOK)
        finally:
            watchdog.end_wait()
        now = time.monotonic()
        if watchdog.failure is not None:
            kill_at = kill_at or now + _GRACE
            if now > kill_at:
                return
        elif now > measure_at:
            measure_at = now + _MEASURE
            if (size := progress()) > arrived:
                watchdog.received(size - arrived, content=True)
                arrived = size


class _Output:
    """What a command says: the beginning is kept, the rest is read and dropped."""

    def __init__(
        self, process: subprocess.Popen[bytes], most: int, said: Callable[[bytes], object] | None = None
    ) -> None:
        self.kept = b""
        self._most = most
        self._said = said
        self._pipe = process.stdout
        self._poll = select.poll()
        if self._pipe is not None:
            os.set_blocking(self._pipe.fileno(), False)
            self._poll.register(self._pipe, select.POLLIN)

    def take(self, seconds: float) -> None:
        """Take what comes within so many seconds; sleep them once there will be nothing more."""
        if self._pipe is None:
            time.sleep(seconds)
        elif self._poll.poll(seconds * 1000):
            data = self._pipe.read(64 * KIB)
            if data:
                if self._said is not None:
                    self._said(data)
                self.kept += data[: self._most - len(self.kept)]
            elif data is not None:
                self._pipe = None

    def drain_for(self, seconds: float) -> None:
        """Take what is still to come, for so many seconds at most."""
        until = time.monotonic() + seconds
        while self._pipe is not None and (left := until - time.monotonic()) > 0:
            self.take(left)


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether the command has ended; where the system can tell without taking its group's number away.

    Raises:
        StageError: If it has, and its status is lost.
    """
    try:
        return has_exited(process)
    except ChildProcessError:
        if process.poll() is None:
            return False
        raise StageError(
            "The command's exit status is lost: this program ignores SIGCHLD, or reaps children that are not its own.",
            reason=Reason.STATUS_LOST,
        ) from None


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    """Signal the whole group, as long as its number is surely its own."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)


@contextlib.contextmanager
def _said_of(command: str) -> Iterator[None]:
    """Raise what the system says meanwhile as a `StageError`."""
    try:
        yield
    except StageError:
        raise
    except OSError as exc:
        raise system_error(f"The command {command!r} cannot be watched", exc) from exc


@contextlib.contextmanager
def _nothing_left(process: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        _signal(process, signal.SIGKILL)
        process.wait()

"""Run an external command in a process group of its own, and end the whole group with it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from peerstage.errors import NotAvailable, StageError
from peerstage.peer_log import PeerLog
from peerstage.printable import escape
from peerstage.processes import has_exited, signal_group, start_process
from peerstage.reasons import Reason
from peerstage.records import KIB
from peerstage.system_errors import is_machine_wide, system_error
from peerstage.watchdog import Watchdog

#: Seconds between checks whether the command has exited, and of how much it has copied.
_POLL_INTERVAL = 0.05
_PROGRESS_INTERVAL = 0.5
#: Seconds between SIGTERM and SIGKILL, and for reading what the killed children have printed.
_TERM_GRACE = 2.0
_DRAIN_SECONDS = 0.5
#: The bytes of output to log.
_MAX_LOGGED = 4 * KIB


class CompletedCommand(NamedTuple):
    """How a command ended.

    Attributes:
        exit_status: Its exit status; negative if a signal killed it.
        output: The beginning of its stdout and stderr.
    """

    exit_status: int
    output: bytes


def run_command(
    argv: Sequence[str],
    *,
    watchdog: Watchdog,
    log: PeerLog,
    copied_bytes: Callable[[], int] = lambda: 0,
    on_output: Callable[[bytes], object] | None = None,
    environment: Mapping[str, str] | None = None,
) -> CompletedCommand:
    """Run *argv*, without a shell and without input, and wait for it to exit.

    No process of its process group is left when this returns or raises. A child that has left the group, by setsid(2),
    is not found.

    Args:
        argv: The program and its arguments.
        watchdog: Ends the command if a limit is exceeded; `Limits.stderr_bytes` bounds the output to keep.
        log: Logs the output, unless there is *on_output*.
        copied_bytes: Returns how many bytes the command has copied; while they grow, it is not stalled.
        on_output: Called with all output, as it arrives.
        environment: The environment of the command; None for that of this process.

    Raises:
        NotAvailable: If the program is missing or cannot be run.
        StageError: If this machine is short of descriptors, memory or processes, or the exit status is lost.
        LimitExceeded, Cancelled: If the run was cut off.
    """
    with _running(argv, environment) as process:
        output = _Output(process, watchdog.limits.stderr_bytes, on_output)
        with watchdog.on_failure(lambda: signal_group(process, signal.SIGTERM)):
            _wait(process, output, watchdog, copied_bytes)
        signal_group(process, signal.SIGKILL)  # the children that it has left behind
        output.drain(_DRAIN_SECONDS)
    watchdog.raise_if_failed()
    if output.kept and on_output is None:
        log.info("%s printed: %s", escape(argv[0]), escape(output.kept[:_MAX_LOGGED]))
    return CompletedCommand(process.returncode, output.kept)


@contextlib.contextmanager
def _running(argv: Sequence[str], environment: Mapping[str, str] | None) -> Iterator[subprocess.Popen[bytes]]:
    """Start the command; kill and reap its process group at the end of the block."""
    try:
        process = start_process(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
            env=environment,
        )
    except OSError as exc:
        if is_machine_wide(exc):
            raise system_error(f"The command {argv[0]!r} cannot be run", exc) from exc
        raise NotAvailable(
            f"The command {argv[0]!r} cannot be run: {exc.strerror}. Install it, or correct its path.",
            reason=Reason.PROGRAM_MISSING,
        ) from exc
    with process:
        try:
            yield process
        except StageError:
            raise
        except OSError as exc:
            raise system_error(f"The command {argv[0]!r} cannot be supervised", exc) from exc
        finally:
            signal_group(process, signal.SIGKILL)
            process.wait()


def _wait(
    process: subprocess.Popen[bytes], output: _Output, watchdog: Watchdog, copied_bytes: Callable[[], int]
) -> None:
    """Wait for the command to exit; once the watchdog has ended it, for the grace period at most."""
    copied = 0
    watchdog.extend_deadline_by(lambda: copied)
    measure_at = time.monotonic() + _PROGRESS_INTERVAL
    kill_at: float | None = None
    while not _has_exited(process):
        watchdog.begin_wait()
        try:
            output.read(_POLL_INTERVAL)
        finally:
            watchdog.end_wait()
        now = time.monotonic()
        if watchdog.failure is not None:
            kill_at = kill_at or now + _TERM_GRACE
            if now > kill_at:
                return
        elif now > measure_at:
            measure_at = now + _PROGRESS_INTERVAL
            if (size := copied_bytes()) > copied:
                watchdog.count_received(size - copied, is_content=True)
                copied = size


class _Output:
    """The output of a command: the beginning is kept, the rest is read and dropped."""

    def __init__(
        self, process: subprocess.Popen[bytes], max_kept: int, on_output: Callable[[bytes], object] | None = None
    ) -> None:
        self.kept = b""
        self._max_kept = max_kept
        self._on_output = on_output
        self._pipe = process.stdout
        self._poll = select.poll()
        if self._pipe is not None:
            os.set_blocking(self._pipe.fileno(), False)
            self._poll.register(self._pipe, select.POLLIN)

    def read(self, seconds: float) -> None:
        """Wait up to *seconds* for output and read it; after its end, sleep for *seconds*."""
        if self._pipe is None:
            time.sleep(seconds)
        elif self._poll.poll(seconds * 1000):
            data = self._pipe.read(64 * KIB)
            if data:
                if self._on_output is not None:
                    self._on_output(data)
                self.kept += data[: self._max_kept - len(self.kept)]
            elif data is not None:
                self._pipe = None

    def drain(self, seconds: float) -> None:
        """Read to the end of the output, for *seconds* at most."""
        until = time.monotonic() + seconds
        while self._pipe is not None and (remaining := until - time.monotonic()) > 0:
            self.read(remaining)


def _has_exited(process: subprocess.Popen[bytes]) -> bool:
    """Return whether the command has exited, without reaping it.

    Raises:
        StageError: If it has, and its status is lost.
    """
    try:
        return has_exited(process)
    except ChildProcessError:
        if process.poll() is None:
            return False
        raise StageError(
            "The command's exit status is lost: this program ignores SIGCHLD, or reaps children it did not start.",
            reason=Reason.STATUS_LOST,
        ) from None

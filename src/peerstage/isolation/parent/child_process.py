"""Start a child process, report how it exited, and kill it with everything that it has started."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from peerstage.errors import NotAvailable, StageError
from peerstage.forks import OwnerProcess, release_after_fork
from peerstage.isolation.parent.child_channel import MAX_BUFFER, ChildChannel
from peerstage.isolation.parent.orphans import MARKER_VARIABLE, kill_marked_processes
from peerstage.processes import exit_status, has_exited, signal_group
from peerstage.reasons import Reason

#: Seconds that an idle child has to exit, and that a working child has to clean up after SIGTERM.
_EXIT_TIMEOUT = 3.0
CLEANUP_TIMEOUT = 0.8
#: Seconds between two checks whether it has exited.
_EXIT_CHECK_INTERVAL = 0.02

_PACKAGE = Path(__file__).parents[2]
_BOOTSTRAP = _PACKAGE / "isolation" / "child" / "bootstrap.py"
#: Modules outside the standard library that a child imports, and the directories of `sys.path` that may hold them.
_MODULES = ("paramiko", "scp", "cryptography", "bcrypt", "nacl", "cffi", "_cffi_backend")
_SITE_DIRECTORIES = ("site-packages", "dist-packages")


class ChildProcess:
    """A child process in its own session, which the parent does not trust.

    Args:
        environment: Its whole environment.
        command: Its arguments; by default those that start this Python in isolated mode, with this process's own
            package and modules. See `peerstage.isolation.child.bootstrap`.
        max_buffer: As for `ChildChannel`.

    Attributes:
        channel: The connection to it.

    Raises:
        NotAvailable: If it cannot be started. Nothing is left open then.
    """

    def __init__(
        self, environment: dict[str, str], command: Sequence[str] = (), *, max_buffer: int = MAX_BUFFER
    ) -> None:
        self._owner = OwnerProcess()
        self._reaped_elsewhere = False
        self._marker = secrets.token_hex(16)
        try:
            with contextlib.ExitStack() as child_ends, contextlib.ExitStack() as on_failure:
                self.channel = ChildChannel(child_ends, max_buffer=max_buffer)
                on_failure.callback(self.channel.close)
                stdin, stdout, stderr = self.channel.child_stdio
                self._process = subprocess.Popen(
                    command or _child_command(),
                    stdin=stdin,
                    stdout=stdout,
                    stderr=stderr,
                    cwd="/",
                    env={**environment, MARKER_VARIABLE: self._marker},
                    close_fds=True,
                    start_new_session=True,
                )
                on_failure.pop_all()
        except StageError:
            raise
        except (OSError, ValueError) as exc:  # ValueError: a NUL or "=" in the environment
            raise NotAvailable(f"Cannot start a Python child process: {exc}.") from exc
        release_after_fork(self)

    def require_same_process(self) -> None:
        """Raise `StageError` in a fork of the process that started the child."""
        self._owner.require_current()

    def send(self, job: dict[str, Any], fd: int, remaining: Callable[[], float]) -> None:
        """Send a job; see `ChildChannel.send`.

        Raises:
            StageError: If the child has exited, or what *remaining* raises.
        """
        with self._report_exit(remaining):
            self.channel.send(job, fd, remaining)

    def receive(self, remaining: Callable[[], float]) -> memoryview:
        """Return the next bytes of the frame stream; see `ChildChannel.receive`. Raises as `send`."""
        with self._report_exit(remaining):
            return self.channel.receive(remaining)

    def has_exited(self) -> bool:
        """Return whether the child has exited; it stays unreaped until `end`."""
        try:
            return has_exited(self._process)
        except ChildProcessError:  # the caller ignores SIGCHLD, or reaps children that it did not start
            self._reaped_elsewhere = True
            return True

    def kill_orphans(self) -> None:
        """Kill every process that the child has started, but not the child."""
        kill_marked_processes(self._marker, self._process.pid)

    def end(self, *, is_idle: bool, may_have_orphans: bool, cleanup_timeout: float = CLEANUP_TIMEOUT) -> None:
        """End the child and every process that it has started. May be called again.

        Args:
            is_idle: Whether it is between two jobs, so that it exits by itself.
            may_have_orphans: Whether foreign commands may have left processes in sessions of their own.
            cleanup_timeout: Seconds that it has to clean up after SIGTERM.
        """
        if self._process.returncode is not None or not self._owner.is_current():
            return
        self.channel.shut_down()
        try:
            if not is_idle:
                self.channel.stop_receiving()
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(self._process.pid, signal.SIGTERM)  # Popen.terminate() could reap it
            exited = self._wait(_EXIT_TIMEOUT if is_idle else cleanup_timeout)
            self._kill_group()  # also what a child that has exited left behind in its group
            if may_have_orphans or not exited:
                kill_marked_processes(self._marker)
        finally:
            self._kill_group()
            self._process.wait()
            self.channel.close()

    def release_in_child(self) -> None:
        """Close the copies of the descriptors in a forked process, which must not signal or reap the parent's child."""
        self._process.returncode = 0
        self.channel.close()

    @contextlib.contextmanager
    def _report_exit(self, remaining: Callable[[], float]) -> Iterator[None]:
        """Report a child that exited early, unless *remaining* raises."""
        try:
            yield
        except EOFError as exc:
            remaining()
            raise self._exit_error() from exc

    def _exit_error(self) -> StageError:
        advice = "Run this again."
        if not self._wait(CLEANUP_TIMEOUT):
            outcome = "closed its channels"
        elif (status := exit_status(self._process)) < 0:
            outcome = f"was killed by signal {-status}"
            if status == -signal.SIGKILL:
                advice = "Check the kernel log for the OOM killer, then run this again."
        else:
            outcome = f"exited with status {status}"
        last_line = self.channel.last_stderr_line
        printed = f" and printed {last_line!r}" if last_line else ""
        return StageError(
            f"The child process {outcome} before its job was done{printed}. {advice}",
            reason=Reason.CHILD_ENDED,
        )

    def _kill_group(self) -> None:
        """Kill the process group, unless the child was reaped and the group id may have been reused."""
        if not self._reaped_elsewhere:
            signal_group(self._process, signal.SIGKILL)

    def _wait(self, seconds: float) -> bool:
        """Wait for the child to exit, reading its stderr; return whether it has, leaving it unreaped."""
        until = time.monotonic() + seconds
        with contextlib.suppress(StageError):
            while not self.has_exited() and (remaining := until - time.monotonic()) > 0:
                self.channel.read_stderr(min(remaining, _EXIT_CHECK_INTERVAL))
            self.channel.read_stderr()
        return self.has_exited()


def _child_command() -> list[str]:
    if not sys.executable:
        raise NotAvailable(
            "Cannot start a Python child process: sys.executable is empty. Run the program with python3."
        )
    modes = ["-X", "utf8"] if sys.flags.utf8_mode else []
    return [sys.executable, "-I", "-S", *modes, str(_BOOTSTRAP), str(_PACKAGE.resolve()), *_module_directories()]


def _module_directories() -> list[str]:
    """Return where this process finds the child's modules; never a script's directory or the current one."""
    found = [entry for entry in sys.path if os.path.isabs(entry) and os.path.basename(entry) in _SITE_DIRECTORIES]
    for name in _MODULES:
        spec = getattr(sys.modules.get(name), "__spec__", None) or importlib.util.find_spec(name)
        if spec is not None and spec.origin:
            directory = Path(spec.origin).parent
            found.append(str(directory.parent if spec.submodule_search_locations else directory))
    return list(dict.fromkeys(os.path.abspath(entry) for entry in found))

"""ProxyCommand of ssh_config(5): a program that carries the connection to a peer on its standard input and output."""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import signal
import socket
import subprocess
import threading
import time
import weakref

from peerstage.errors import ConnectError, StageError
from peerstage.forks import OwnerProcess, release_after_fork
from peerstage.processes import exit_status, has_exited, signal_group, start_process
from peerstage.reasons import Reason
from peerstage.system_errors import is_machine_wide, start_thread, system_error

#: Bytes of the end of standard error that are kept.
_STDERR_TAIL = 2048
#: Seconds to exit after SIGHUP, and after SIGKILL.
_HANGUP_TIMEOUT = 0.5
_KILL_TIMEOUT = 5.0
#: Seconds for a command whose connection ended to exit, and for its standard error to arrive.
_EXIT_TIMEOUT = 0.5
_POLL_INTERVAL = 0.01

_running: weakref.WeakSet[ProxyCommand] = weakref.WeakSet()


class ProxyCommand:
    """A running proxy command.

    The user's shell runs it, as for ssh, in a session of its own: it has no terminal, and its children are killed with
    it. It is ended when this process exits.

    Args:
        command: A command line, its tokens expanded.

    Attributes:
        sock: The command's standard input and output.

    Raises:
        ConnectError: If it cannot be started.
        StageError: If this machine is short of descriptors, memory, processes or threads.
    """

    def __init__(self, command: str) -> None:
        shell = os.environ.get("SHELL") or "/bin/sh"
        with contextlib.ExitStack() as on_failure:
            try:
                self._start(shell, command, on_failure)
            except StageError:
                raise
            except (OSError, ValueError) as exc:
                raise _start_error(shell, exc) from exc
            on_failure.pop_all()
        self._owner = OwnerProcess()
        self._stderr = b""
        self._closing = threading.Lock()
        self._is_closed = False
        self._reader = threading.Thread(target=self._read_stderr, name="peerstage-proxy", daemon=True)
        try:
            start_thread(self._reader)
        except BaseException:
            self.close()
            raise
        _running.add(self)
        release_after_fork(self)

    def _start(self, shell: str, command: str, on_failure: contextlib.ExitStack) -> None:
        self.sock, child_sock = socket.socketpair()
        on_failure.enter_context(self.sock)
        with child_sock:
            self._stderr_sock, child_stderr = socket.socketpair()
            on_failure.enter_context(self._stderr_sock)
            with child_stderr:
                self._process = start_process(
                    [shell, "-c", f"exec {command}"],
                    stdin=child_sock.fileno(),
                    stdout=child_sock.fileno(),
                    stderr=child_stderr.fileno(),
                )

    def describe(self) -> str | None:
        """Return a sentence with its exit status and error output; None if it is running and has printed nothing.

        Waits up to `_EXIT_TIMEOUT` seconds for it to exit, as its connection may just have ended. Call before `close`.
        """
        deadline = time.monotonic() + _EXIT_TIMEOUT
        if self._wait_for_exit(_EXIT_TIMEOUT):
            self._reader.join(max(0.0, deadline - time.monotonic()))
        lines = self._stderr.decode("utf-8", "backslashreplace").splitlines()
        printed = "; ".join(stripped for line in lines if (stripped := line.strip()))
        if not self._has_exited():
            return f"The ProxyCommand printed: {printed}." if printed else None
        status = exit_status(self._process)
        how = f"signal {-status}" if status < 0 else f"status {status}"
        return f"The ProxyCommand exited ({how}) and printed {printed or 'nothing'}."

    def has_failed(self) -> bool:
        """Return whether it has exited by itself with a status other than 0."""
        return self._has_exited() and exit_status(self._process) != 0

    def close(self) -> None:
        """End it, and everything it has started in its process group. May be called again; no effect in a fork."""
        if not self._owner.is_current():
            return
        with self._closing:
            if self._is_closed:
                return
            self._is_closed = True
            _running.discard(self)
            _shut_down(self.sock)
            with contextlib.suppress(OSError):
                self.sock.close()
            signal_group(self._process, signal.SIGHUP)
            self._wait_for_exit(_HANGUP_TIMEOUT)
            signal_group(self._process, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_KILL_TIMEOUT)
            _shut_down(self._stderr_sock)
            if self._reader.is_alive():
                self._reader.join(_KILL_TIMEOUT)
            with contextlib.suppress(OSError):
                self._stderr_sock.close()

    def release_in_child(self) -> None:
        """Close a forked process's copies of the sockets, and keep it from reaping the parent's child."""
        self.sock.close()
        self._stderr_sock.close()
        self._process.returncode = 0

    def _read_stderr(self) -> None:
        with contextlib.suppress(OSError):
            while data := self._stderr_sock.recv(4096):
                self._stderr = (self._stderr + data)[-_STDERR_TAIL:]

    def _wait_for_exit(self, timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        while not self._has_exited() and time.monotonic() < deadline:
            time.sleep(_POLL_INTERVAL)
        return self._has_exited()

    def _has_exited(self) -> bool:
        try:
            return has_exited(self._process)
        except ChildProcessError:  # SIGCHLD is ignored, or other code in this program reaps its children
            return self._process.poll() is not None


def _start_error(shell: str, exc: OSError | ValueError) -> StageError:
    """Return the error for a command that *shell* could not be started with."""
    if isinstance(exc, OSError) and is_machine_wide(exc):
        return system_error("The ProxyCommand cannot be run", exc)
    is_about_shell = isinstance(exc, OSError) and exc.errno != errno.E2BIG
    return ConnectError(
        f"The ProxyCommand cannot be run by {shell}: {exc.strerror if isinstance(exc, OSError) else exc}. "
        f"Correct the {'environment variable SHELL' if is_about_shell else 'ProxyCommand'}.",
        reason=Reason.PROXY_COMMAND_FAILED,
    )


def _shut_down(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


@atexit.register
def _close_all() -> None:
    for command in list(_running):
        command.close()

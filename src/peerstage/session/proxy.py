"""ProxyCommand: a program that reaches the peer for us, on a socket pair. Nothing of it is left in the end."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
import weakref

from peerstage.errors import ConnectError
from peerstage.reasons import Reason
from peerstage.system_errors import has_exited, is_of_this_machine, start_process, start_thread, system_error

#: Bytes of what it says on standard error that are kept: the last ones.
_KEPT = 2048
#: Seconds that it gets to end by itself once it is told to, and to be gone when it is killed.
_GRACE = 0.5
_GONE = 5.0
#: Seconds that its last words may take to arrive.
_LAST_WORDS = 0.5
_SLICE = 0.01

_live: weakref.WeakSet[ProxyCommand] = weakref.WeakSet()


class ProxyCommand:
    """A command that is running, with what it reaches on a socket.

    The user's shell runs it, as for ssh, in a session of its own: it has no terminal, and is killed with its children.

    Args:
        command: For the shell, its tokens expanded.

    Attributes:
        sock: Its standard input and output.

    Raises:
        ConnectError: It can not be started.
        StageError: If this machine is short of descriptors, memory, processes or threads.
    """

    def __init__(self, command: str) -> None:
        shell = os.environ.get("SHELL") or "/bin/sh"
        with contextlib.ExitStack() as opened:
            try:
                self._start(shell, command, opened)
            except (OSError, ValueError) as exc:
                if isinstance(exc, OSError) and is_of_this_machine(exc):
                    raise system_error("The ProxyCommand cannot be run", exc) from exc
                reason = exc.strerror if isinstance(exc, OSError) else str(exc)
                raise ConnectError(
                    f"The ProxyCommand can not be run by {shell}: {reason}. Is SHELL right?",
                    reason=Reason.PROXY_COMMAND_FAILED,
                ) from exc
            opened.pop_all()
        self._owner = os.getpid()
        self._words = b""
        self._closing = threading.Lock()
        self._is_closed = False
        self._listener = threading.Thread(target=self._listen, name="peerstage-proxy", daemon=True)
        try:
            start_thread(self._listener)
        except BaseException:
            self.close()
            raise
        _live.add(self)

    def _start(self, shell: str, command: str, opened: contextlib.ExitStack) -> None:
        """Run *command*; what has to be closed if that fails is *opened*."""
        self.sock, theirs = socket.socketpair()
        opened.enter_context(self.sock)
        with theirs:
            self._said, saying = socket.socketpair()
            opened.enter_context(self._said)
            with saying:
                self._process = start_process(
                    [shell, "-c", f"exec {command}"],
                    stdin=theirs.fileno(),
                    stdout=theirs.fileno(),
                    stderr=saying.fileno(),
                )

    def last_words(self) -> str | None:
        """Return how it ended and what it said, as a sentence; None as long as it runs and says nothing.

        It may be a moment before one that hangs up has ended.
        """
        until = time.monotonic() + _LAST_WORDS
        while not self._has_ended() and time.monotonic() < until:
            time.sleep(_SLICE)
        if self._has_ended():
            self._listener.join(max(0.0, until - time.monotonic()))
        lines = self._words.decode("utf-8", "backslashreplace").splitlines()
        said = "; ".join(stripped for line in lines if (stripped := line.strip()))
        if not self._has_ended():
            return f"The ProxyCommand says: {said}." if said else None
        return f"The ProxyCommand has ended ({self._status()}), saying {said or 'nothing'}."

    @property
    def has_failed(self) -> bool:
        """Whether it has ended by itself, and not well."""
        return self._has_ended() and self._code() != 0

    def close(self) -> None:
        """End it, and all that it has started in its session's first process group. Closing again is allowed."""
        if os.getpid() != self._owner:
            return
        with self._closing:
            if self._is_closed:
                return
            self._is_closed = True
            _live.discard(self)
            _hang_up(self.sock)
            self._signal(signal.SIGHUP)
            until = time.monotonic() + _GRACE
            while not self._has_ended() and time.monotonic() < until:
                time.sleep(_SLICE)
            self._signal(signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_GONE)
            with contextlib.suppress(OSError):
                self._said.shutdown(socket.SHUT_RDWR)
            if self._listener.is_alive():
                self._listener.join(_GONE)
            with contextlib.suppress(OSError):
                self._said.close()

    def forget(self) -> None:
        """Let go of it in a forked child; it stays the parent's."""
        self.sock.close()
        self._said.close()
        self._process.returncode = 0  # which is not known here, and nobody is to ask for

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while data := self._said.recv(4096):
                self._words = (self._words + data)[-_KEPT:]

    def _has_ended(self) -> bool:
        """Whether it has ended; where the system can tell without taking its group's number away."""
        try:
            return has_exited(self._process)
        except ChildProcessError:  # SIGCHLD is ignored, or something else in this program reaps its children
            return self._process.poll() is not None

    def _status(self) -> str:
        code = self._code()
        return f"signal {-code}" if code < 0 else f"status {code}"

    def _code(self) -> int:
        """Return the exit status of one that has ended, the negative number of a signal that killed it."""
        if self._process.returncode is not None or not hasattr(os, "waitid"):
            return self._process.returncode or 0
        try:
            told = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return 0
        if told is None:
            return 0
        return told.si_status if told.si_code == os.CLD_EXITED else -told.si_status

    def _signal(self, number: int) -> None:
        """Signal the whole group, as long as its number is surely its own."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)


def _hang_up(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    with contextlib.suppress(OSError):
        sock.close()


@atexit.register
def _end_all() -> None:
    for command in list(_live):
        command.close()


def _forget_all_in_child() -> None:
    for command in list(_live):
        command.forget()
    _live.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all_in_child)

"""A child process from outside: how it is started, spoken to and listened to within a time, and ended in any case."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import select
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import peerstage
from peerstage.errors import NotAvailable, ProtocolError, StageError
from peerstage.isolation.channel import encode_job, send_some
from peerstage.isolation.frames import Shared
from peerstage.isolation.leftovers import MARK, kill_marked, new_mark
from peerstage.isolation.ring import Ring
from peerstage.reasons import Reason
from peerstage.records import KIB, MIB

if sys.platform != "win32":
    import fcntl

_START = str(Path(__file__).with_name("start.py"))
#: What a child needs beside the standard library, and where its parts may lie.
_NEEDED = ("paramiko", "scp", "cryptography", "bcrypt", "nacl", "cffi", "_cffi_backend", "invoke")
_SITES = ("site-packages", "dist-packages")

#: Bytes read at once.
_PIECE = MIB
#: Bytes of last words that are kept, and how many are too many.
_WORDS = 2 * KIB
_MOST_WORDS = MIB
#: Seconds between two looks at the clock.
_LOOK = 60.0
#: Seconds to end in good order, and to clean up after having been told to end.
_PATIENCE = 3.0
_CLEANING = 0.8
_F_SETPIPE_SZ = 1031

_live: weakref.WeakSet[Child] = weakref.WeakSet()


class Child:
    """A process of ours in a session of its own, that is not trusted any more from the moment it is started.

    Args:
        environment: The whole environment that it gets.
        command: What is run; by default this package, as `peerstage.isolation.start` says.

    Attributes:
        has_spoken: Whether anything has come from it.

    Raises:
        NotAvailable: If it cannot be started. Nothing is left open then.
    """

    def __init__(self, environment: dict[str, str], command: Sequence[str] = ()) -> None:
        self.has_spoken = False
        self._owner = os.getpid()
        self._words = b""
        self._said = 0
        self._is_reaped = False
        self._buffer = memoryview(bytearray(_PIECE))
        self._mark = new_mark()
        with _as_not_available(), contextlib.ExitStack() as theirs, contextlib.ExitStack() as on_failure:
            self._ring = Ring.make()
            if self._ring is not None:
                on_failure.callback(self._ring.close)
            self._sock, jobs = socket.socketpair()
            on_failure.callback(self._sock.close)
            theirs.callback(jobs.close)
            self._frames, frames = _pipe(on_failure, theirs)
            self._stderr, stderr = _pipe(on_failure, theirs)
            _enlarge(frames)
            self._process = subprocess.Popen(
                command or _command(),
                stdin=jobs.fileno(),
                stdout=frames,
                stderr=stderr,
                cwd="/",
                env={**environment, MARK: self._mark},
                close_fds=True,
                start_new_session=True,
            )
            on_failure.pop_all()
        for fd in (self._frames, self._stderr):
            os.set_blocking(fd, False)
        self._sock.setblocking(False)
        self._poll = select.poll()
        for fd in (self._frames, self._stderr, self._sock.fileno()):
            self._poll.register(fd, select.POLLIN)
        _live.add(self)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def memory(self) -> int:
        """Descriptor of the memory that is shared with it, -1 for none."""
        return -1 if self._ring is None else self._ring.fd

    @contextlib.contextmanager
    def piece(self, shared: Shared) -> Iterator[memoryview]:
        """Yield the bytes that lie in the memory that is shared.

        Raises:
            ProtocolError: There are none.
        """
        if self._ring is None:
            raise ProtocolError(
                "The child process says that bytes lie where there is no memory.", reason=Reason.CHILD_VIOLATION
            )
        with self._ring.piece(shared.position, shared.length) as piece:  # an error must not hold on to the memory
            yield piece
        self._ring.release(shared.mark)

    def require_same_process(self) -> None:
        """Raise `StageError` in a process that was forked from the one that started the child."""
        if os.getpid() != self._owner:
            raise StageError(
                "This connection was made before a fork and can not be used in the child. Connect anew.",
                reason=Reason.FORKED,
            )

    def wake(self) -> None:
        """Make `send` and `receive` return, from any thread. Nothing can be sent or received after that."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def send(self, job: dict[str, Any], fd: int, left: Callable[[], float]) -> None:
        """Send *job*, and a descriptor if *fd* is one.

        Args:
            left: Returns how many seconds there are, or raises.

        Raises:
            StageError: The child has ended, or what *left* raises.
        """
        data = memoryview(encode_job(job))
        poll = select.poll()
        poll.register(self._sock, select.POLLOUT)
        while data:
            try:
                data = data[send_some(self._sock, data, fd) :]
                fd = -1
            except BlockingIOError:
                poll.poll(1000 * min(left(), _LOOK))
            except OSError as exc:
                raise self.ended(left) from exc

    def receive(self, left: Callable[[], float]) -> memoryview:
        """Return what the child sends next; it is valid until the next call.

        What has come is returned before *left* is asked.

        Raises:
            StageError: The child has ended, or what *left* raises.
        """
        while True:
            with contextlib.suppress(BlockingIOError):
                if count := os.readv(self._frames, [self._buffer]):
                    self.has_spoken = True
                    return self._buffer[:count]
                raise self.ended(left)
            ready = dict(self._poll.poll(1000 * min(left(), _LOOK)))
            if self._stderr in ready:
                self._listen()
            if self._sock.fileno() in ready and self._frames not in ready:
                raise self.ended(left)

    def ended(self, left: Callable[[], float]) -> StageError:
        """Return how the child has ended, with its last words; what *left* raises says it better."""
        left()
        if not self._wait(_CLEANING):
            how = "closed its channels"
        elif (status := self._status()) < 0:
            how = f"was killed by signal {-status}"
        else:
            how = f"ended with status {status}"
        words = self._words.decode("utf-8", "backslashreplace").strip().rpartition("\n")[2]
        return StageError(
            f"The child process {how} before its work was done{f', saying {words!r}' if words else ''}. "
            "Nothing was published; run again.",
            reason=Reason.CHILD_ENDED,
        )

    def end_its_own(self) -> None:
        """End what it has started and that has left its group, and leave itself alone."""
        kill_marked(self._mark, self.pid)

    def end(self, *, politely: bool, found: bool) -> None:
        """End it and everything it has started; nothing of it is left when this returns. Ending again is allowed.

        Args:
            politely: Whether it is between two jobs, so that it ends by itself.
            found: Whether to look for foreign commands that it may have left in sessions of their own.
        """
        if self._process.returncode is not None or os.getpid() != self._owner:
            return
        self.wake()
        try:
            if not politely:
                os.close(self._frames)  # what it still says wakes it up: nobody listens
                self._frames = -1
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(self.pid, signal.SIGTERM)
            orderly = self._wait(_PATIENCE if politely else _CLEANING)
            self._kill()  # also what an orderly one has left behind in its group
            if found or not orderly:
                kill_marked(self._mark)
        finally:
            self._kill()
            self._process.wait()
            self._close()

    def forget(self) -> None:
        """Let go of it in a forked child: it stays the parent's."""
        self._process.returncode = 0
        self._close()

    def _kill(self) -> None:
        """Kill its whole group, as long as the number is surely its own: it is not reaped yet."""
        if self._process.returncode is None and not self._is_reaped:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    def _listen(self) -> None:
        """Keep the last of what it says on stderr."""
        with contextlib.suppress(BlockingIOError):
            words = os.read(self._stderr, 64 * KIB)
            if not words:
                with contextlib.suppress(KeyError):
                    self._poll.unregister(self._stderr)
            self._words = (self._words + words)[-_WORDS:]
            self._said += len(words)
        if self._said > _MOST_WORDS:
            raise StageError(
                "The child process says too much on stderr; it is not listened to any more.",
                reason=Reason.CHILD_VIOLATION,
            )

    def _wait(self, seconds: float) -> bool:
        """Wait so long for its end, without reaping it; return whether it came. What it says meanwhile is kept."""
        until = time.monotonic() + seconds
        poll = select.poll()
        poll.register(self._stderr, select.POLLIN)
        with contextlib.suppress(StageError):
            while not self._has_ended() and (left := until - time.monotonic()) > 0:
                if poll.poll(1000 * min(left, 0.02)):
                    self._listen_or_pause()
            self._listen()
        return self._has_ended()

    def _listen_or_pause(self) -> None:
        before = self._said
        self._listen()
        if self._said == before:  # it has closed stderr, and is about to end
            time.sleep(0.001)

    def _has_ended(self) -> bool:
        if self._process.returncode is not None:
            return True
        if not hasattr(os, "waitid"):
            return self._process.poll() is not None
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:  # the caller lets the system, or somebody else, reap its children
            self._is_reaped = True
            return True

    def _status(self) -> int:
        """Return its exit status, or the signal that killed it as a negative number, without reaping it."""
        try:
            found = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except (ChildProcessError, AttributeError):
            return self._process.wait()
        return 0 if found is None else found.si_status if found.si_code == os.CLD_EXITED else -found.si_status

    def _close(self) -> None:
        self._sock.close()
        for fd in (self._frames, self._stderr):
            if fd >= 0:
                os.close(fd)
        self._frames = self._stderr = -1
        ring, self._ring = self._ring, None
        if ring is not None:
            ring.close()
        _live.discard(self)


@contextlib.contextmanager
def _as_not_available() -> Iterator[None]:
    """Raise what the system refuses, and what it cannot be told, as `NotAvailable`."""
    try:
        yield
    except StageError:
        raise
    except (OSError, ValueError) as exc:
        raise NotAvailable(f"A child process of Python can not be started: {exc}.") from exc


def _pipe(on_failure: contextlib.ExitStack, theirs: contextlib.ExitStack) -> tuple[int, int]:
    """Return a pipe: the end to read from is closed on failure, the other one in any case."""
    reading, writing = os.pipe()
    on_failure.callback(os.close, reading)
    theirs.callback(os.close, writing)
    return reading, writing


def _command() -> list[str]:
    if not sys.executable:
        raise NotAvailable(
            "The Python that runs this program does not say where it lies, so that no child can be made."
        )
    modes = ["-X", "utf8"] if sys.flags.utf8_mode else []
    package = str(Path(peerstage.__file__).parent.resolve())
    return [sys.executable, "-I", "-S", *modes, _START, package, *_directories()]


def _directories() -> list[str]:
    """Return where this process finds what a child needs: sites, and no script's directory or the current one."""
    found = [entry for entry in sys.path if os.path.isabs(entry) and os.path.basename(entry) in _SITES]
    for name in _NEEDED:
        module = sys.modules.get(name)
        spec = getattr(module, "__spec__", None) or importlib.util.find_spec(name)
        if spec is not None and spec.origin:
            place = Path(spec.origin).parent
            found.append(str(place.parent if spec.submodule_search_locations else place))
    return list(dict.fromkeys(os.path.abspath(entry) for entry in found))


def _enlarge(pipe: int) -> None:
    with contextlib.suppress(OSError):  # not on this system, or not so large
        fcntl.fcntl(pipe, _F_SETPIPE_SZ, _PIECE)


def _forget_all_in_child() -> None:
    for child in list(_live):
        child.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all_in_child)

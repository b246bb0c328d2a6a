"""What runs in a child: it imports, gives up root, reads that user's configuration, and does one job after the other.

Of what it was started with it has three descriptors: jobs in, frames out, and stderr for last words.
"""

from __future__ import annotations

import _thread
import contextlib
import importlib
import logging
import os
import pkgutil
import signal
import socket
import sys
from types import FrameType
from typing import Any

import peerstage
from peerstage.errors import StageError
from peerstage.isolation.channel import JobReader
from peerstage.isolation.frames import Result
from peerstage.isolation.heartbeat import Heartbeat
from peerstage.isolation.messages import bytes_of, error_to, route_of
from peerstage.isolation.privileges import end_with_parent, give_up_root
from peerstage.isolation.ring import RingWriter
from peerstage.isolation.upward import Upward, UpwardLanding, UpwardLog
from peerstage.isolation.users import LocalUser
from peerstage.records import Limits
from peerstage.session.watchdog import Watchdog
from peerstage.transport.base import Transport
from peerstage.transport.choose import assemble
from peerstage.transport.retry import Retry

#: Rooms that no child has a use for.
_ELSEWHERE = frozenset({"__main__", "cback3", "cli", "fleet", "peer", "testing", "util"})
#: What is only imported, or only looked up, when it is needed: by then this user may not be able to read it.
_LATER = (
    "paramiko",
    "scp",
    "encodings.ascii",
    "encodings.idna",
    "encodings.latin_1",
    "encodings.punycode",
    "encodings.utf_8",
    "pwd",
    "random",
    "stringprep",
    "subprocess",
    "tempfile",
    "traceback",
)
#: Seconds that the last job has to clean up in once the parent is gone, or wants an end.
_LAST_SECONDS = 10


def main() -> None:
    """Do what comes down the channel, until it ends."""
    sock, upward = _take_channels()
    with sock, contextlib.suppress(BrokenPipeError):  # the parent wants to hear no more
        jobs = JobReader(sock)
        first = jobs.next()
        if first is None:
            return
        said, memory = first
        if memory >= 0:
            with contextlib.suppress(OSError):  # without it the bytes go through the pipe
                upward.share(RingWriter(memory))
        route, limits, retry = route_of(said), Limits(**said["limits"]), Retry(**said["retry"])
        _import_everything()
        if said["user"] is not None:
            give_up_root(LocalUser(**said["user"]), set_id_programs=route.by_command)
        watchdog = Watchdog(limits, peer=route.name)
        heartbeat = Heartbeat(upward, watchdog)
        with contextlib.closing(watchdog), contextlib.closing(heartbeat):
            _heed_signals(watchdog, said["parent"])
            heartbeat.start()
            _log_to(upward, said["log_level"])
            work = _Work(upward)
            forget_sftp = work.remember_fallback
            with assemble(route, limits=limits, retry=retry, watchdog=watchdog, on_fallback=forget_sftp) as stack:
                while (job := jobs.next()) is not None:
                    work.do(stack, *job)


class _Work:
    """Does jobs, and says what came of them."""

    def __init__(self, upward: Upward) -> None:
        self._upward = upward
        self._has_no_sftp = False

    def remember_fallback(self) -> None:
        """Take note that the peer has no SFTP."""
        self._has_no_sftp = True

    def do(self, stack: Transport, job: dict[str, Any], fd: int) -> None:
        """Do *job* on *stack*, with the descriptor that came with it, and say how it ended."""
        self._upward.begin()
        os.umask(job["umask"])
        value: Any = None
        error: Exception | None = None
        try:
            value = self._operation(stack, job, fd)
        except (StageError, ValueError) as exc:
            error = exc
        finally:
            os.chdir("/")
            if fd >= 0:
                os.close(fd)
        said = {
            "value": value,
            "error": None if error is None else error_to(error),
            "transport": stack.capabilities.name,
            "host_key": stack.host_key,
            "retries": stack.retries,
            "no_sftp": self._has_no_sftp,
        }
        self._upward.end(Result(said))

    def _operation(self, stack: Transport, job: dict[str, Any], fd: int) -> Any:
        """Do what the seam offers (`Transport`), an operation a name."""
        operation, path = job["operation"], bytes_of(job["path"])  # of a command it is the line
        if operation == "pull":
            return stack.pull(path, UpwardLanding(self._upward, wants_content=job["wants_content"], workspace=fd))
        if operation == "exists":
            return stack.exists(path)
        if operation == "touch":
            return stack.touch(path)
        if operation == "execute":
            return stack.execute(path, self._upward.put_said)
        raise ValueError(f"There is no operation {operation!r}.")


def _take_channels() -> tuple[socket.socket, Upward]:
    """Take the two channels away from where programs that are started, and what prints, would meet them."""
    sock = socket.socket(fileno=os.dup(0))
    upward = Upward(os.dup(1))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    os.close(nothing)
    return sock, upward


def _import_everything() -> None:
    """Import whatever may be needed, while it can be read."""
    for name in _LATER:
        importlib.import_module(name)
    for module in pkgutil.walk_packages(peerstage.__path__, "peerstage."):
        if module.name.split(".")[1] not in _ELSEWHERE:
            importlib.import_module(module.name)
    "localhost".encode("idna")


def _heed_signals(watchdog: Watchdog, parent: int) -> None:
    """End what is under way when the parent asks for it, or is gone.

    The kernel tells of the end of the *thread* that started this process; a peer may have moved on to another by then.
    """

    def end(signum: int, frame: FrameType | None) -> None:
        signal.alarm(_LAST_SECONDS)
        _thread.start_new_thread(watchdog.cancel, ())  # the main thread may hold a lock that this needs

    def look(signum: int, frame: FrameType | None) -> None:
        if os.getppid() != parent:
            end(signum, frame)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGHUP, look)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    end_with_parent(signal.SIGHUP)
    if os.getppid() != parent:
        sys.exit(1)


def _log_to(upward: Upward, level: int) -> None:
    ours = logging.getLogger("peerstage")
    ours.setLevel(level)
    ours.propagate = False
    ours.addHandler(UpwardLog(upward))

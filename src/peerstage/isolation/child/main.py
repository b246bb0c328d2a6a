"""The main program of a child: import everything, drop privileges, read the user's configuration, and run jobs.

A child inherits three descriptors: jobs on stdin, frames on stdout, and stderr for a traceback.
"""

from __future__ import annotations

import _thread
import contextlib
import gc
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
from peerstage.errors import Cancelled, StageError
from peerstage.isolation.child.child_target import ChildTarget
from peerstage.isolation.child.frame_writer import ChildLogHandler, FrameWriter, Heartbeat
from peerstage.isolation.child.privileges import drop_privileges, signal_on_parent_exit
from peerstage.isolation.protocol.error_codec import encode_error
from peerstage.isolation.protocol.frames import Fallback, Reply
from peerstage.isolation.protocol.jobs import decode_transport_options, receive_job
from peerstage.isolation.protocol.values import text_to_bytes
from peerstage.isolation.users import LocalUser
from peerstage.rates import BandwidthLimit
from peerstage.records import Limits
from peerstage.staging import with_peer_name
from peerstage.target.base import Selection
from peerstage.transport.base import Transport
from peerstage.transport.factory import TransportOptions, build_transport
from peerstage.transport.retry import Retry
from peerstage.watchdog import Watchdog

#: Packages and modules of peerstage that a child does not use.
_UNUSED = frozenset({"__main__", "cback3", "cli", "fleet", "peer", "testing", "util"})
#: Modules that are otherwise imported on first use, when the user may not be able to read them.
_LAZY_IMPORTS = (
    "paramiko", "scp", "pwd", "random", "stringprep", "subprocess", "tempfile", "traceback",
    "encodings.ascii", "encodings.idna", "encodings.latin_1", "encodings.punycode", "encodings.utf_8",
)  # fmt: skip
#: Seconds that the current job has to clean up once the parent has exited or sent SIGTERM.
_CLEANUP_SECONDS = 10


def main() -> None:
    """Run the jobs that the parent sends, until it closes the socket."""
    sock, writer = _move_off_stdio()
    with sock, contextlib.suppress(BrokenPipeError):  # the parent has closed the pipe for frames
        first = receive_job(sock)
        if first is None:
            return
        settings, _ = first
        options = decode_transport_options(settings)
        limits, retry = Limits(**settings["limits"]), Retry(**settings["retry"])
        _import_everything()
        for name in settings["modules"]:
            importlib.import_module(name)
        gc.freeze()  # modules live as long as the process
        gc.enable()
        if settings["user"] is not None:
            try:
                drop_privileges(LocalUser(**settings["user"]), allow_set_id_programs=options.uses_rcp_command)
            except StageError as exc:
                _refuse_jobs(sock, writer, options, exc)
                return
        bandwidth = None if options.bwlimit is None else BandwidthLimit(options.bwlimit)
        watchdog = Watchdog(limits, peer=options.name, bandwidth=bandwidth)
        heartbeat = Heartbeat(writer, watchdog)
        with contextlib.closing(watchdog), contextlib.closing(heartbeat):
            _install_signal_handlers(watchdog, settings["parent"])
            heartbeat.start()
            _install_log_handler(writer, settings["log_level"])
            runner = _JobRunner(sock, writer, options, limits, watchdog)
            with build_transport(
                options, retry=retry, watchdog=watchdog, on_fallback=lambda: writer.put(Fallback())
            ) as transport:
                while (job := receive_job(sock)) is not None:
                    runner.run(transport, *job)


class _JobRunner:
    """Runs jobs and sends the replies."""

    def __init__(
        self,
        sock: socket.socket,
        writer: FrameWriter,
        options: TransportOptions,
        limits: Limits,
        watchdog: Watchdog,
    ) -> None:
        self._sock = sock
        self._writer = writer
        self._options = options
        self._limits = limits
        self._watchdog = watchdog

    def run(self, transport: Transport, job: dict[str, Any], fd: int) -> None:
        """Run *job* with the descriptor sent with it, and send the reply."""
        self._writer.begin_job()
        os.umask(job["umask"])
        result: Any = None
        error: Exception | None = None
        try:
            with with_peer_name(self._options.name):
                result = self._do_operation(transport, job, fd)
        except (StageError, ValueError) as exc:
            error = exc
        finally:
            os.chdir("/")
            if fd >= 0:
                os.close(fd)
        reply = {
            "result": result,
            "error": None if error is None else encode_error(error),
            "transport": transport.capabilities.name,
            "host_key": transport.host_key,
            "retries": transport.retries,
        }
        self._writer.end_job(Reply(reply))

    def _receive_answer(self) -> dict[str, Any]:
        received = receive_job(self._sock)
        if received is None:
            raise Cancelled("The parent process has ended the run.")
        return received[0]

    def _do_operation(self, transport: Transport, job: dict[str, Any], fd: int) -> Any:
        """Call the method of `Transport` that *job* names."""
        operation, path = job["operation"], text_to_bytes(job["path"])  # for "execute" a command line
        if operation == "pull":
            selection = Selection[job["selection"]]
            target = ChildTarget(
                self._writer,
                self._receive_answer,
                selection=selection,
                verifies_stability=bool(job["verifies_stability"]),
                workspace=fd,
                while_sending=contextlib.nullcontext if self._options.bwlimit is None else self._watchdog.throttled,
            )
            return transport.pull(path, target)
        if operation == "stat":
            found = transport.stat(path)
            return None if found is None else [found.size, found.mtime]
        if operation == "touch":
            return transport.touch(path)
        if operation == "execute":
            return transport.execute(path, self._writer.put_output)
        if operation == "call":  # a function that the parent names, in a module imported at its request
            module, _, name = path.decode().partition(":")
            function = getattr(sys.modules[module], name)
            return function(self._options, self._limits, self._watchdog, job["argument"], self._writer.put_output)
        raise ValueError(f"Unknown operation {operation!r}.")


def _refuse_jobs(sock: socket.socket, writer: FrameWriter, options: TransportOptions, error: StageError) -> None:
    """Reply to every job with *error*, and do nothing else."""
    while (job := receive_job(sock)) is not None:
        _, fd = job
        if fd >= 0:
            os.close(fd)
        writer.begin_job()
        writer.end_job(
            Reply(
                {
                    "result": None,
                    "error": encode_error(error),
                    "transport": options.capabilities.name,
                    "host_key": None,
                    "retries": 0,
                }
            )
        )


def _move_off_stdio() -> tuple[socket.socket, FrameWriter]:
    """Move the job socket and the frame pipe off stdin and stdout, which child processes and print() use."""
    sock = socket.socket(fileno=os.dup(0))
    writer = FrameWriter(os.dup(1))
    devnull = os.open(os.devnull, os.O_RDONLY)
    os.dup2(devnull, 0)
    os.dup2(2, 1)
    os.close(devnull)
    return sock, writer


def _import_everything() -> None:
    """Import every module that may be needed, while it can be read."""
    for name in _LAZY_IMPORTS:
        importlib.import_module(name)
    for module in pkgutil.walk_packages(peerstage.__path__, "peerstage."):
        if module.name.split(".")[1] not in _UNUSED:
            importlib.import_module(module.name)
    "localhost".encode("idna")  # loads the codec, which getaddrinfo() would look up after the privileges are dropped


def _install_signal_handlers(watchdog: Watchdog, parent: int) -> None:
    """Cancel the current job when the parent sends SIGTERM or exits.

    PR_SET_PDEATHSIG also reports the exit of the *thread* that started the child, after which another thread may use
    the peer.
    """

    def cancel(signum: int, frame: FrameType | None) -> None:
        signal.alarm(_CLEANUP_SECONDS)
        _thread.start_new_thread(watchdog.cancel, ())  # the interrupted main thread may hold a lock that this needs

    def cancel_if_orphaned(signum: int, frame: FrameType | None) -> None:
        if os.getppid() != parent:
            cancel(signum, frame)

    signal.signal(signal.SIGTERM, cancel)
    signal.signal(signal.SIGHUP, cancel_if_orphaned)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal_on_parent_exit(signal.SIGHUP)
    if os.getppid() != parent:
        sys.exit(1)


def _install_log_handler(writer: FrameWriter, level: int) -> None:
    logger = logging.getLogger("peerstage")
    logger.setLevel(level)
    logger.propagate = False
    logger.addHandler(ChildLogHandler(writer))

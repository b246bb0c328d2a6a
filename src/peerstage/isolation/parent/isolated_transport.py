"""`IsolatedTransport`: a transport whose work a child process does."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

from peerstage.errors import ConfigurationError, HostKeyError, LoginError
from peerstage.isolation.parent.child_process import CLEANUP_TIMEOUT, ChildProcess
from peerstage.isolation.parent.frame_receiver import FrameReceiver
from peerstage.isolation.parent.time_limits import GRACE, ChildTimeLimits
from peerstage.isolation.protocol.error_codec import decode_error
from peerstage.isolation.protocol.frames import Fallback, FrameParser
from peerstage.isolation.protocol.jobs import encode_settings
from peerstage.isolation.protocol.values import (
    bytes_to_text,
    child_violation,
    parse_fingerprint,
    parse_int,
    parse_items,
)
from peerstage.isolation.users import LocalUser
from peerstage.records import KIB, Limits, Ownership, Progress, RemoteFile
from peerstage.target.attributes import current_umask
from peerstage.target.base import Buffer, Target, require_command_target
from peerstage.target.workspace import measure_workspace
from peerstage.transport.base import Transport
from peerstage.transport.capabilities import SCP, capabilities_named
from peerstage.transport.factory import TransportOptions, build_transport
from peerstage.transport.progress import ProgressTransport
from peerstage.transport.retry import Retry
from peerstage.watchdog import Watchdog

_MAX_RETRIES = 1 << 20
#: The least size of a pipe.
_MIN_BUFFER = 4 * KIB
_MAX_STATUS = 2**32 - 1
#: Of a file, as SFTP can send them.
_MAX_SIZE, _MAX_MTIME = 2**64 - 1, 2**32 - 1

#: Errors whose cause depends on the local user.
_USER_ERRORS = (ConfigurationError, HostKeyError, LoginError)


def build_isolated_transport(
    user: LocalUser | None,
    options: TransportOptions,
    *,
    isolated: bool,
    retry: Retry,
    watchdog: Watchdog,
    on_progress: Callable[[Progress], object] | None = None,
    on_fallback: Callable[[], object] = lambda: None,
) -> Transport:
    """Return the transport for *options*, as `build_transport` does; it connects when it is first used.

    Args:
        user: The local user that the child process becomes; None for the user of this process.
        isolated: Whether to use a child process even if *user* is None.

    Raises:
        ValueError: As `TransportOptions.validate`.
        ConfigurationError: If an option cannot be sent to another process.
    """
    if user is None and not isolated:
        return build_transport(
            options, retry=retry, watchdog=watchdog, on_progress=on_progress, on_fallback=on_fallback
        )
    options.validate()
    transport = IsolatedTransport(
        options, user, limits=watchdog.limits, retry=retry, watchdog=watchdog, on_fallback=on_fallback
    )
    return transport if on_progress is None else ProgressTransport(transport, on_progress)


class IsolatedTransport(Transport):
    """Runs the transport in a child process, and checks everything that the child sends. It starts no thread here.

    If the child has exited, during an operation or after it, the next operation starts another. No process outlives
    `close`.

    Args:
        options: How the peer is reached.
        user: The local user that the child becomes; None for the user of this process.
        limits: Bounds that the child enforces on the peer, and the parent on the child.
        retry: How often the child may connect.
        watchdog: Cancels the run, and has the bandwidth limit that its peers share. The child has one of the same rate,
            so that its server sends little ahead, and waits while the parent does.
        on_fallback: Called when the peer turns out to have no SFTP.
        start_child: Starts a child with the given environment; by default `ChildProcess`.
        grace: Seconds that the child has beyond its own deadline, and beyond the stall timeout.
        modules: Modules with functions for `call`; the child imports them before it drops privileges.
        cleanup_timeout: Seconds that the child has to clean up after SIGTERM.
    """

    def __init__(
        self,
        options: TransportOptions,
        user: LocalUser | None,
        *,
        limits: Limits,
        retry: Retry,
        watchdog: Watchdog,
        on_fallback: Callable[[], object] = lambda: None,
        start_child: Callable[[dict[str, str]], ChildProcess] | None = None,
        grace: float = GRACE,
        modules: Sequence[str] = (),
        cleanup_timeout: float = CLEANUP_TIMEOUT,
    ) -> None:
        self._modules = list(modules)
        self._cleanup_timeout = cleanup_timeout
        self._options = options
        self._user = user
        self._limits = limits
        self._retry = retry
        self._watchdog = watchdog
        max_buffer = limits.in_flight_bytes
        if watchdog.bandwidth is not None:
            max_buffer = max(_MIN_BUFFER, min(max_buffer, watchdog.bandwidth.max_in_flight()))
        self._start_child = start_child or functools.partial(ChildProcess, max_buffer=max_buffer)
        self._grace = grace
        self._on_fallback = on_fallback
        self._settings = encode_settings(options, limits, retry)
        self.capabilities = options.capabilities
        self._child: ChildProcess | None = None

    def pull(self, directory: bytes, target: Target) -> None:
        """See `Transport.pull`. A command fills a workspace of the target that belongs to the child's user."""
        job = {
            "operation": "pull",
            "path": bytes_to_text(directory),
            "selection": target.selection.name,
            "verifies_stability": target.verifies_stability,
        }
        if not self._options.uses_rcp_command:
            receiver = FrameReceiver(
                target, self._limits, tries=self._retry.tries, answer=self._answer, directory=directory
            )
            self._run(job, receiver)
            return
        command_target = require_command_target(target)
        own = Ownership(os.geteuid(), os.getegid())
        workspace = command_target.create_workspace_for(
            own if self._user is None else Ownership(self._user.uid, self._user.gid)
        )
        time_limits = self._create_time_limits(lambda: measure_workspace(workspace, self._limits))
        orphans_killed = False

        def import_file(name: bytes) -> None:
            nonlocal orphans_killed
            if self._child is not None and not orphans_killed:
                self._child.kill_orphans()  # they could still change the files
                orphans_killed = True
            command_target.import_file(name, time_limits.remaining)

        receiver = FrameReceiver(target, self._limits, directory=directory, import_file=import_file)
        self._run(job, receiver, time_limits, workspace)

    def stat(self, path: bytes) -> RemoteFile | None:
        found = self._run({"operation": "stat", "path": bytes_to_text(path)}, FrameReceiver(None, self._limits))
        if found is None:
            return None
        size, mtime = parse_items(found, 2, exactly=True)
        return RemoteFile(
            None if size is None else parse_int(size, "file size", 0, _MAX_SIZE),
            None if mtime is None else parse_int(mtime, "modification time", 0, _MAX_MTIME),
        )

    def touch(self, path: bytes) -> None:
        self._run({"operation": "touch", "path": bytes_to_text(path)}, FrameReceiver(None, self._limits))

    def execute(self, command: bytes, on_output: Callable[[Buffer], object]) -> int | None:
        """See `Transport.execute`."""
        time_limits = self._create_time_limits(lambda: 0, self._limits.command_deadline)
        job = {"operation": "execute", "path": bytes_to_text(command)}
        status = self._run(job, FrameReceiver(None, self._limits, on_output=on_output), time_limits)
        return None if status is None else parse_int(status, "exit status", 0, _MAX_STATUS)

    def call(
        self, function: str, argument: Any, on_output: Callable[[Buffer], object], *, seconds: float | None = None
    ) -> None:
        """Call the function ``MODULE:NAME`` in the child.

        Args:
            argument: What JSON can hold.
            on_output: Called with the bytes that the function writes, which are not trusted.
            seconds: The deadline; by default that of an operation without data.

        Raises:
            StageError, ValueError: If the function raised it, or the child failed.
        """
        job = {"operation": "call", "path": bytes_to_text(function.encode()), "argument": argument}
        time_limits = self._create_time_limits(lambda: 0, seconds)
        self._run(job, FrameReceiver(None, self._limits, on_output=on_output), time_limits)

    def close(self) -> None:
        self._end_child(is_idle=True)

    def _run(
        self, job: dict[str, Any], receiver: FrameReceiver, time_limits: ChildTimeLimits | None = None, fd: int = -1
    ) -> Any:
        """Have the child do *job*, and return its result. After a failure that the child does not report, kill it."""
        time_limits = time_limits or self._create_time_limits(lambda: receiver.received)
        child = self._require_child(time_limits)
        try:
            with self._watchdog.on_failure(child.channel.shut_down):
                child.send({**job, "umask": current_umask()}, fd, time_limits.remaining)
                reply = self._receive_reply(child, receiver, time_limits)
            error = self._read_connection_state(reply)
        except BaseException:
            self._end_child(is_idle=False)
            raise
        if error is not None:
            if self._user is not None and isinstance(error, _USER_ERRORS):
                error.message += f" The keys and configuration used are those of the local user {self._user.name!r}."
            raise error
        return reply.get("result")

    def _answer(self, answer: dict[str, Any]) -> None:
        if self._child is not None:
            self._child.channel.queue_answer(answer)

    def _receive_reply(
        self, child: ChildProcess, receiver: FrameReceiver, time_limits: ChildTimeLimits
    ) -> dict[str, Any]:
        parser = FrameParser()
        while receiver.reply is None:
            time_limits.expect_frame(is_starting=not child.channel.has_received)
            data = child.receive(time_limits.remaining)
            for frame in parser.feed(data):
                if isinstance(frame, Fallback):
                    self.capabilities = SCP
                    self._on_fallback()
                else:
                    receiver.handle(frame)
            if receiver.receives_files:
                self._watchdog.throttle(len(data))
        if not parser.is_between_frames:
            raise child_violation("The child process sent a frame after its reply.")
        if child.channel.has_answers:
            raise child_violation("The child process ended its job before it had read the answers that it asked for.")
        return receiver.reply

    def _read_connection_state(self, reply: dict[str, Any]) -> Any:
        """Keep what the child reports about the connection; return the error that it reports, or None."""
        self.host_key = parse_fingerprint(reply.get("host_key")) or self.host_key
        self.retries = parse_int(reply.get("retries"), "retry count", 0, _MAX_RETRIES)
        self.capabilities = capabilities_named(reply.get("transport"), self.capabilities)
        return None if reply.get("error") is None else decode_error(reply["error"])

    def _require_child(self, time_limits: ChildTimeLimits) -> ChildProcess:
        """Return the running child, or start one."""
        if self._child is not None:
            self._child.require_same_process()
        time_limits.remaining()
        if self._child is not None and self._child.has_exited():
            self._end_child(is_idle=True)
        if self._child is not None:
            return self._child
        environment = dict(os.environ) if self._user is None else self._user.environment()
        child = self._child = self._start_child(environment)
        settings = {
            **self._settings,
            "user": None if self._user is None else dataclasses.asdict(self._user),
            "parent": os.getpid(),
            "modules": self._modules,
            "log_level": logging.getLogger("peerstage").getEffectiveLevel(),
        }
        try:
            with self._watchdog.on_failure(child.channel.shut_down):
                child.send(settings, -1, time_limits.remaining)
        except BaseException:
            self._end_child(is_idle=False)
            raise
        return child

    def _create_time_limits(self, count_received: Callable[[], int], deadline: float | None = None) -> ChildTimeLimits:
        return ChildTimeLimits(self._limits, self._watchdog, count_received, deadline, grace=self._grace)

    def _end_child(self, *, is_idle: bool) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.end(
                is_idle=is_idle,
                may_have_orphans=self._options.uses_rcp_command,
                cleanup_timeout=self._cleanup_timeout,
            )

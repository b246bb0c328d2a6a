"""`IsolatedTransport`: a stack of transports in a child process, and the seam to it in this one."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable
from typing import Any

from peerstage.errors import ConfigurationError, HostKeyError, LoginError, ProtocolError, StageError
from peerstage.isolation.clock import GRACE, Clock
from peerstage.isolation.frames import Data, FrameParser, Shared
from peerstage.isolation.messages import error_from, fingerprint_of, integer, settings, text_of
from peerstage.isolation.process import Child
from peerstage.isolation.receive import Receiver
from peerstage.isolation.users import LocalUser
from peerstage.landing.adopt import size_of
from peerstage.landing.base import Buffer, Landing
from peerstage.landing.directory import current_umask
from peerstage.reasons import Reason
from peerstage.records import Capabilities, Limits, Ownership, Progress
from peerstage.session.watchdog import Watchdog
from peerstage.transport import capabilities
from peerstage.transport.base import Transport
from peerstage.transport.choose import Route, assemble
from peerstage.transport.observe import Observing
from peerstage.transport.retry import Retry

_MOST_RETRIES = 1 << 20
_MOST_STATUS = 2**32 - 1

#: What depends on who asks.
_ABOUT_THE_USER = (ConfigurationError, HostKeyError, LoginError)


def assemble_as(
    user: LocalUser | None,
    route: Route,
    *,
    isolated: bool,
    limits: Limits,
    retry: Retry,
    watchdog: Watchdog,
    on_progress: Callable[[Progress], object] | None = None,
    on_fallback: Callable[[], object] | None = None,
) -> Transport:
    """Return the stack of transports for *route*, as `assemble` does; it connects when it is first used.

    Args:
        user: Whose process it works in; None for whoever runs this one.
        isolated: Whether to work in a process of its own even so.

    Raises:
        ValueError: As `Route.check`.
        ConfigurationError: Something in *route* can not be sent to another process.
    """
    if user is None and not isolated:
        return assemble(
            route, limits=limits, retry=retry, watchdog=watchdog, on_progress=on_progress, on_fallback=on_fallback
        )
    route.check()
    stack = IsolatedTransport(route, user, limits=limits, retry=retry, watchdog=watchdog, on_fallback=on_fallback)
    return stack if on_progress is None else Observing(stack, on_progress)


class IsolatedTransport(Transport):
    """Has a child do the work. No thread is started here, and what comes back is believed only where it can be checked.

    A child that has ended is followed by another one at the next operation. Nothing outlives `close`.

    Args:
        route: How the peer is reached.
        user: Whom the child becomes; None leaves it who we are.
        limits: Bounds for the child, which keeps them, and for what it says, which are kept here.
        retry: How often it may begin anew.
        watchdog: Tells whether the run was cancelled.
        on_fallback: Called when the peer turns out to have no SFTP.
        start: Starts a child with an environment.
        grace: Seconds that a child gets beyond its own deadline, and beyond the stall bound, to say something.
    """

    def __init__(
        self,
        route: Route,
        user: LocalUser | None,
        *,
        limits: Limits,
        retry: Retry,
        watchdog: Watchdog,
        on_fallback: Callable[[], object] | None = None,
        start: Callable[[dict[str, str]], Child] = Child,
        grace: float = GRACE,
    ) -> None:
        self._route = route
        self._user = user
        self._limits = limits
        self._retry = retry
        self._watchdog = watchdog
        self._start = start
        self._grace = grace
        self._on_fallback = on_fallback or (lambda: None)
        self._settings = settings(route, limits, retry)
        self._capabilities = capabilities.expected(route.transport, by_command=route.by_command, guarded=route.guarded)
        self._child: Child | None = None

    @property
    def capabilities(self) -> Capabilities:  # type: ignore[override]
        return self._capabilities

    def pull(self, directory: bytes, landing: Landing) -> None:
        """See `Transport.pull`. A command gets a directory of the landing's that belongs to its user."""
        job = {"operation": "pull", "path": text_of(directory), "wants_content": landing.wants_content}
        tries = self._retry.tries
        if not self._route.by_command:
            self._run(job, Receiver(landing, self._limits, tries=tries, directory=directory))
            return
        place = landing.hand_over(self._owner())
        clock = self._clock(lambda: size_of(place, self._limits.entries))
        begun: list[bytes] = []

        def adopt(name: bytes) -> None:
            if self._child is not None and not begun:
                self._child.end_its_own()  # whoever is still there might change what is taken
            begun.append(name)
            landing.adopt(name, clock.left)

        self._run(job, Receiver(landing, self._limits, directory=directory, adopt=adopt), clock, place)

    def exists(self, path: bytes) -> bool:
        return bool(self._run({"operation": "exists", "path": text_of(path)}, Receiver(None, self._limits)))

    def touch(self, path: bytes) -> None:
        self._run({"operation": "touch", "path": text_of(path)}, Receiver(None, self._limits))

    def execute(self, command: bytes, said: Callable[[Buffer], object]) -> int | None:
        """See `Transport.execute`."""
        clock = self._clock(lambda: 0, self._limits.seconds_for_command)
        job = {"operation": "execute", "path": text_of(command)}
        status = self._run(job, Receiver(None, self._limits, said=said), clock)
        return None if status is None else integer(status, "status", 0, _MOST_STATUS)

    def close(self) -> None:
        self._end(politely=True)

    def _run(self, job: dict[str, Any], receiver: Receiver, clock: Clock | None = None, fd: int = -1) -> Any:
        """Have the child do *job*, and return what it comes to; after any failure but a reported one it is ended."""
        clock = clock or self._clock(lambda: receiver.received)
        child = self._started(clock)
        try:
            with self._watchdog.ending(child.wake):
                child.send({**job, "umask": current_umask()}, fd, clock.left)
                self._receive(child, receiver, clock)
        except BaseException:
            self._end(politely=False)
            raise
        return self._outcome(receiver.result or {})

    def _receive(self, child: Child, receiver: Receiver, clock: Clock) -> None:
        parser = FrameParser()
        while receiver.result is None:
            clock.listen(starting=not child.has_spoken)
            for record in parser.feed(child.receive(clock.left)):
                if isinstance(record, Shared):
                    with child.piece(record) as piece:
                        receiver.take(Data(record.slot, record.offset, piece))
                else:
                    receiver.take(record)
        if not parser.is_between_frames:
            raise ProtocolError("The child process goes on after its job has ended.", reason=Reason.CHILD_VIOLATION)

    def _outcome(self, said: dict[str, Any]) -> Any:
        """Return the value of a job, or raise its error; take note of what else the child says."""
        try:
            self.host_key = fingerprint_of(said.get("host_key")) or self.host_key
            self.retries = integer(said.get("retries"), "count of retries", 0, _MOST_RETRIES)
            self._capabilities = capabilities.named(said.get("transport"), self._capabilities)
            error = None if said.get("error") is None else error_from(said["error"])
        except StageError:
            self._end(politely=False)
            raise
        if said.get("no_sftp") is True:
            self._on_fallback()
        if error is not None:
            if self._user is not None and isinstance(error, _ABOUT_THE_USER):
                error.message += f" It is the local user {self._user.name!r} whose keys and configuration are used."
            raise error
        return said.get("value")

    def _started(self, clock: Clock) -> Child:
        if self._child is not None:
            self._child.require_same_process()
            clock.left()
            return self._child
        clock.left()
        environment = dict(os.environ) if self._user is None else self._user.environment()
        child = self._child = self._start(environment)
        said = {
            **self._settings,
            "user": None if self._user is None else dataclasses.asdict(self._user),
            "parent": os.getpid(),
            "log_level": logging.getLogger("peerstage").getEffectiveLevel(),
        }
        try:
            with self._watchdog.ending(child.wake):
                child.send(said, child.memory, clock.left)
        except BaseException:
            self._end(politely=False)
            raise
        return child

    def _clock(self, received: Callable[[], int], allowed: float | None = None) -> Clock:
        return Clock(self._limits, self._watchdog, received, allowed, grace=self._grace)

    def _end(self, *, politely: bool) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.end(politely=politely, found=self._route.by_command)

    def _owner(self) -> Ownership:
        return Ownership(os.geteuid(), os.getegid()) if self._user is None else self._user.ownership(None)

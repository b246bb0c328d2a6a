"""Keep a forked child process from using what its parent has open: connections, directories and child processes.

The child has copies of the parent's sockets, session keys and packet counters, but of its threads only the one that
forked. Anything that it sent, shut down, killed or removed would damage the parent's work.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Callable
from typing import Protocol

from peerstage.errors import StageError
from peerstage.reasons import Reason


class OwnerProcess:
    """The process that created a resource, and that alone may use it."""

    def __init__(self) -> None:
        self._pid = os.getpid()

    def is_current(self) -> bool:
        """Return whether this is the owner, and not a process that it forked."""
        return os.getpid() == self._pid

    def require_current(self) -> None:
        """Raise `StageError` if this process was forked from the owner."""
        if not self.is_current():
            raise StageError(
                "This connection belongs to the process that this one was forked from. Connect again in this process.",
                reason=Reason.FORKED,
            )


class Releasable(Protocol):
    """A resource with file descriptors that a forked child must not keep open."""

    def release_in_child(self) -> None:
        """Close the child's copies of the descriptors, without any effect on the parent's. May be called twice."""


_releasable: weakref.WeakSet[Releasable] = weakref.WeakSet()


def release_after_fork(resource: Releasable) -> None:
    """Have *resource* released in every forked child, as long as it exists."""
    _releasable.add(resource)


def call_in_forked_child(callback: Callable[[], object]) -> None:
    """Have *callback* called in every forked child before anything else runs there; without effect on Windows."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=callback)


def _release_all() -> None:
    for resource in list(_releasable):
        with contextlib.suppress(OSError):  # the others must be released, too
            resource.release_in_child()
    _releasable.clear()


call_in_forked_child(_release_all)

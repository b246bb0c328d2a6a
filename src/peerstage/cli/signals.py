"""Signals that end the command: they clean up first, and then the process ends by that very signal.

Outside of an operation on a peer a signal is an exception in the main thread, so that ``with`` blocks clean up. Inside
one it cancels the operation, which ends at a point of its own choosing: no exception hits it between two steps of
making, publishing or removing its private directory.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType

_ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Interrupted(BaseException):
    """A signal asked the command to end. No `Exception`, so that nothing but ``with`` and ``finally`` sees it."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


@contextlib.contextmanager
def raising() -> Iterator[None]:
    """Raise `Interrupted` in the block at the first signal; later ones do not disturb the cleaning up."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        _ignore()
        raise Interrupted(signum)

    with _handled(interrupt):
        yield


@contextlib.contextmanager
def cancelling(cancel: Callable[[], object]) -> Iterator[None]:
    """Call *cancel* at a signal in the block, and raise `Interrupted` when the block has ended because of it.

    Args:
        cancel: Ends what the block does. It is called in a thread of its own: the main thread may hold, at the very
            moment of the signal, a lock that it needs.
    """
    received: list[int] = []

    def end(signum: int, frame: FrameType | None) -> None:
        received.append(signum)
        _thread.start_new_thread(cancel, ())

    try:
        with _handled(end):
            yield
    finally:
        if received:
            _ignore()
            raise Interrupted(received[0])


def end_by(signum: int) -> None:
    """End this process by *signum*, so that whoever started it sees what happened (a shell: status 128 + signum)."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)


@contextlib.contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Put *handler* in force; what is ignored (nohup, a shell's background job) stays ignored."""
    before = {signum: signal.getsignal(signum) for signum in _ENDING}
    taken = [signum for signum, old in before.items() if old not in (signal.SIG_IGN, None)]
    for signum in taken:
        signal.signal(signum, handler)
    try:
        yield
    finally:
        for signum in taken:
            if signal.getsignal(signum) == handler:
                signal.signal(signum, before[signum])


def _ignore() -> None:
    for signum in _ENDING:
        signal.signal(signum, signal.SIG_IGN)

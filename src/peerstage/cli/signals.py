"""End the command by a signal: clean up first, then end the process by that very signal.

Outside of an operation on a peer a signal raises `Interrupted` in the main thread, so that ``with`` blocks clean up.
Inside one it cancels the operation, which ends at a safe point: an exception between two steps of making, publishing
or removing the private directory would leave it behind.

Cleaning up ignores further signals, so that a service manager's second SIGTERM does not cut it short. A second Ctrl-C
comes from a person: the kernel then ends the process at once, whatever the main thread is doing.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Interrupted(BaseException):
    """A signal asked the command to end. Not an `Exception`: only ``with`` and ``finally`` act on it."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


@contextlib.contextmanager
def raise_on_signal() -> Iterator[None]:
    """Raise `Interrupted` in the block at the first signal."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        _let_cleanup_finish(signum)
        raise Interrupted(signum)

    with _handle_signals(interrupt):
        yield


@contextlib.contextmanager
def cancel_on_signal(cancel: Callable[[], object]) -> Iterator[None]:
    """Call *cancel* at the first signal in the block, and raise `Interrupted` once the block has ended.

    Args:
        cancel: Ends what the block does. It is called in a thread of its own, because the main thread may hold a lock
            that *cancel* needs.
    """
    received: list[int] = []

    def start_cancel(signum: int, frame: FrameType | None) -> None:
        _let_cleanup_finish(signum)
        received.append(signum)
        _thread.start_new_thread(cancel, ())

    with _handle_signals(start_cancel):
        try:
            yield
        finally:
            if received:
                raise Interrupted(received[0])


def end_by_signal(signum: int) -> None:
    """End this process by *signum*, so that its parent sees the cause (a shell: status 128 + signum)."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)


@contextlib.contextmanager
def _handle_signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Install *handler* for each signal that is not ignored (nohup); for none once the process is cleaning up."""
    before = {signum: signal.getsignal(signum) for signum in _SIGNALS}
    is_cleaning_up = _ignore_one in before.values()
    handled = [signum for signum, old in before.items() if not is_cleaning_up and old not in (signal.SIG_IGN, None)]
    for signum in handled:
        signal.signal(signum, handler)
    try:
        yield
    finally:
        for signum in handled:
            if signal.getsignal(signum) == handler:
                signal.signal(signum, before[signum])


def _let_cleanup_finish(signum: int) -> None:
    """Ignore further signals; unlike SIG_IGN, this is not inherited by programs that the cleanup starts."""
    for other in _SIGNALS:
        if signal.getsignal(other) != signal.SIG_IGN:
            signal.signal(other, _ignore_one)
    if signum == signal.SIGINT:
        _ignore_one(signum, None)


def _ignore_one(signum: int, frame: FrameType | None) -> None:
    """Ignore a signal; leave the Ctrl-C after this one to the kernel."""
    if signum == signal.SIGINT:
        signal.signal(signum, signal.SIG_DFL)

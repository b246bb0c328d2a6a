"""Run an operation on many peers in a bounded number of threads, with results in order, until a signal cancels all."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

from peerstage.cli.signals import cancel_on_signal
from peerstage.errors import StageError
from peerstage.printable import escape
from peerstage.records import Limits
from peerstage.watchdog import Watchdog

log = logging.getLogger("peerstage.cli")

T = TypeVar("T")
R = TypeVar("R")

#: Peers at a time: a hundred dead ones take seven times the connect timeout.
THREADS = 16
#: Seconds of one wait: a signal that arrives just before an unbounded wait would not interrupt it.
_WAIT_SECONDS = 0.2


def run_in_parallel(
    operation: Callable[[T, Watchdog], R], peers: Iterable[T], limits_of: Callable[[T], Limits]
) -> Generator[R | Exception, None, None]:
    """Yield the result of *operation* for each of *peers*, or the exception that it raised, in their order.

    One peer's exception does not stop the others. Closing the generator early cancels the running operations, starts
    no other, and returns when the threads have ended.

    Args:
        operation: Called in a thread with a peer and a watchdog of its own, which a signal cancels.
        peers: Any number.
        limits_of: Returns the limits of the operation for a peer.

    Raises:
        Interrupted: If a signal arrived, after all operations have ended. Results not yet yielded are discarded.
    """
    running = _RunningOperations()

    def run(peer: T) -> R | Exception:
        watchdog = Watchdog(limits_of(peer), peer=str(peer))
        try:
            with running.register(watchdog):
                return operation(peer, watchdog)
        except Exception as exc:
            if not isinstance(exc, (StageError, ValueError)):
                log.debug("%s: a bug, or a problem of this machine.", escape(str(peer)), exc_info=True)
            return exc
        finally:
            watchdog.close()

    executor = ThreadPoolExecutor(THREADS, thread_name_prefix="peerstage-peer")
    with cancel_on_signal(running.cancel):
        try:
            for future in [executor.submit(run, peer) for peer in peers]:
                while not wait([future], _WAIT_SECONDS).done:
                    pass
                if running.is_cancelled:  # one `Interrupted` instead of one `Cancelled` per peer
                    return
                yield future.result()
        except BaseException:  # GeneratorExit among them
            executor.shutdown(wait=False, cancel_futures=True)  # before threads become idle and start others
            running.cancel()
            raise
        finally:
            executor.shutdown(cancel_futures=True)


class _RunningOperations:
    """The watchdogs of running operations.

    Attributes:
        is_cancelled: Whether all are cancelled; set before the first one ends because of it.
    """

    def __init__(self) -> None:
        self.is_cancelled = False
        self._lock = threading.Lock()
        self._watchdogs: set[Watchdog] = set()

    @contextlib.contextmanager
    def register(self, watchdog: Watchdog) -> Iterator[None]:
        with self._lock:
            self._watchdogs.add(watchdog)
        if self.is_cancelled:
            watchdog.cancel()
        try:
            yield
        finally:
            with self._lock:
                self._watchdogs.discard(watchdog)

    def cancel(self) -> None:
        with self._lock:
            self.is_cancelled = True
            watchdogs = list(self._watchdogs)
        for watchdog in watchdogs:
            watchdog.cancel()

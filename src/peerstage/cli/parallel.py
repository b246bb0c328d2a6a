"""Many peers at once: a bounded number of threads, results in the order given, and one signal that ends all."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

from peerstage.cli.signals import cancelling
from peerstage.errors import StageError, escape
from peerstage.records import Limits
from peerstage.session.watchdog import Watchdog

log = logging.getLogger("peerstage.cli")

T = TypeVar("T")
R = TypeVar("R")

#: Peers that are asked at the same time; a hundred dead ones cost seven times the time to connect.
THREADS = 16
_SLICE = 0.2


def each(ask: Callable[[T, Watchdog], R], peers: Iterable[T], limits: Limits) -> Generator[R | Exception, None, None]:
    """Yield what *ask* returns for each of *peers*, or the exception that it raises, in their order.

    No exception of *ask* is raised here, so that one peer never costs the others their answers. Closing the generator
    before its end cancels every peer that is under way, asks no further one, and returns when the threads have ended.

    Args:
        ask: Called in a thread with a peer and a watchdog of its own, which a signal cancels.
        peers: Any number.
        limits: Bounds for each of them.

    Raises:
        Interrupted: At a signal, when everything that was under way has ended.
    """
    running = _Running()

    def one(peer: T) -> R | Exception:
        watchdog = Watchdog(limits, peer=str(peer))
        try:
            with running.one_more(watchdog):
                return ask(peer, watchdog)
        except Exception as exc:
            if not isinstance(exc, (StageError, ValueError)):
                log.debug("%s: a bug, or a problem of this machine.", escape(str(peer)), exc_info=True)
            return exc
        finally:
            watchdog.close()

    executor = ThreadPoolExecutor(THREADS, thread_name_prefix="peerstage-peer")
    with cancelling(running.cancel):
        try:
            for future in [executor.submit(one, peer) for peer in peers]:
                while not wait([future], _SLICE).done:  # a signal may come in the instant before a wait without end
                    pass
                if running.cancelled:  # nobody wants to read that of each of them
                    return
                yield future.result()
        except BaseException:  # GeneratorExit among them
            running.cancel()
            raise
        finally:
            executor.shutdown(cancel_futures=True)


class _Running:
    """The watchdogs of what is under way.

    Attributes:
        cancelled: Whether it is to end; set before anything ends because of it.
    """

    def __init__(self) -> None:
        self.cancelled = False
        self._lock = threading.Lock()
        self._watchdogs: set[Watchdog] = set()

    @contextlib.contextmanager
    def one_more(self, watchdog: Watchdog) -> Iterator[None]:
        with self._lock:
            self._watchdogs.add(watchdog)
        if self.cancelled:
            watchdog.cancel()
        try:
            yield
        finally:
            with self._lock:
                self._watchdogs.discard(watchdog)

    def cancel(self) -> None:
        with self._lock:
            self.cancelled = True
            watchdogs = list(self._watchdogs)
        for watchdog in watchdogs:
            watchdog.cancel()

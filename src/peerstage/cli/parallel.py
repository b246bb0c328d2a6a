"""Many peers at once: a bounded number of threads, results in the order given, and one signal that ends all."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

from peerstage.cli.signals import cancelling
from peerstage.errors import StageError
from peerstage.records import Limits
from peerstage.session.watchdog import Watchdog

T = TypeVar("T")
R = TypeVar("R")

#: Peers that are asked at the same time; a hundred dead ones cost seven times the time to connect.
THREADS = 16
_SLICE = 0.2


def each(ask: Callable[[T, Watchdog], R], peers: Iterable[T], limits: Limits) -> Generator[R | StageError, None, None]:
    """Yield what *ask* returns for each of *peers*, or the `StageError` that it raises, in their order.

    Close it, lest threads go on for nobody.

    Args:
        ask: Called in a thread with a peer and a watchdog of its own, which a signal cancels.
        peers: Any number.
        limits: Bounds for each of them.

    Raises:
        Interrupted: At a signal, when everything that was under way has ended.
    """
    running = _Running()

    def one(peer: T) -> R | StageError:
        watchdog = Watchdog(limits)
        try:
            with running.one_more(watchdog):
                return ask(peer, watchdog)
        except StageError as exc:
            return exc
        finally:
            watchdog.close()

    with (
        cancelling(running.cancel),
        ThreadPoolExecutor(THREADS, thread_name_prefix="peerstage-peer") as executor,
    ):
        for future in [executor.submit(one, peer) for peer in peers]:
            while not wait([future], _SLICE).done:  # a signal may come in the instant before a wait without end
                pass
            if running.cancelled:  # nobody wants to read that of each of them
                return
            yield future.result()


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

"""The interface of workers, which stage the peers of a run, and their messages to it."""

from __future__ import annotations

import queue
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future
from typing import Any, NamedTuple, TypeAlias, TypeVar

from peerstage.errors import StageError
from peerstage.fleet.results import PeerResult
from peerstage.fleet.run_peer import PeerWork
from peerstage.printable import escape
from peerstage.reasons import Reason
from peerstage.system_errors import resource_error

R = TypeVar("R")


class WorkerMessage(NamedTuple):
    """What a worker tells the run.

    Attributes:
        peer: The peer's name.
        outcome: What became of the peer; None if its worker has just begun.
    """

    peer: str
    outcome: PeerResult | None = None


#: Messages to the run; None only wakes it.
Inbox: TypeAlias = "queue.SimpleQueue[WorkerMessage | None]"


class Workers(ABC):
    """Stages peers elsewhere than in the thread of the run. Only that thread calls the methods, and none of them waits.

    Every peer that was started leads to a message with an outcome, unless its worker is lost.
    """

    @abstractmethod
    def start(self, work: PeerWork) -> None:
        """Have a worker stage a peer.

        Raises:
            Exception: If that is impossible.
        """

    @abstractmethod
    def poll(self) -> Iterable[WorkerMessage]:
        """Return what is known without having been told: workers that have begun, and those that were lost."""

    @abstractmethod
    def cancel(self) -> Iterable[str]:
        """Cancel every peer that is being staged; return those with which no worker has begun, or will.

        Call it again and again: a peer between two operations does not notice.
        """

    @abstractmethod
    def forget(self, peer: str) -> None:
        """Forget a peer that has its outcome, or was given up."""


def submit(executor: Executor, function: Callable[..., R], *arguments: Any) -> Future[R]:
    """Have *executor* call *function*.

    Raises:
        StageError: If it takes no more work (worker-lost), or if the system refuses another thread.
    """
    try:
        return executor.submit(function, *arguments)
    except Exception as exc:  # it is shut down, or broken because a worker was killed, or has lost its connection
        raise resource_error(exc) or worker_lost("The executor takes no more work", exc) from exc


def worker_lost(what: str, exc: BaseException) -> StageError:
    """Return the error of a peer whose worker ended, or never began: *what* happened, because of *exc*."""
    detail = f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__
    return StageError(f"{what} ({escape(detail)}). Run it again.", reason=Reason.WORKER_LOST)

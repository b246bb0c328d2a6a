"""Workers of another executor: processes, or Dask's on other hosts. They are watched, and stopped, through the pool."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Iterator
from concurrent.futures import CancelledError, Executor, Future
from typing import Any

from peerstage.errors import ConfigurationError, StageError
from peerstage.fleet.pool.claims import RunClaims
from peerstage.fleet.results import PeerResult
from peerstage.fleet.run_peer import PeerWork, stage_peer
from peerstage.fleet.schedule import Clock
from peerstage.fleet.verdicts import result_of_error, result_of_not_started
from peerstage.fleet.workers import Inbox, WorkerMessage, Workers, submit, worker_lost
from peerstage.printable import escape
from peerstage.reasons import Reason

#: Seconds without a heartbeat after which a worker is lost.
_MAX_SILENCE = 120.0
#: Seconds without any sign of life from the executor after which work that no worker has begun is lost.
_MAX_IDLE = 600.0


class ExecutorWorkers(Workers):
    """Stages each peer in whatever process or host the executor chooses.

    Args:
        inbox: Where results arrive.
        executor: The executor. It is not shut down.
        claims: The claims of the run, which show what workers do.
        clock: The clock.
    """

    def __init__(self, inbox: Inbox, executor: Executor, claims: RunClaims, clock: Clock) -> None:
        self._inbox = inbox
        self._executor = executor
        self._claims = claims
        self._clock = clock
        self._works: dict[str, PeerWork] = {}
        self._futures: dict[str, Future[PeerResult]] = {}
        self._begun: set[str] = set()
        self._last_sign = 0.0
        self._seems_dead = False  # nothing gave a sign of life for `_MAX_IDLE`, and nothing has since

    def start(self, work: PeerWork) -> None:
        name = work.job.name
        job = StageJob(work)
        if not self._works and not self._seems_dead:
            self._note_sign()
        future = submit(self._executor, job)
        self._works[name], self._futures[name] = work, future
        future.add_done_callback(lambda done: self._inbox.put(WorkerMessage(name, _outcome_of(done, work))))

    def _note_sign(self, seconds_ago: float = 0.0) -> None:
        self._last_sign = max(self._last_sign, self._clock.monotonic() - seconds_ago)
        self._seems_dead = False

    def poll(self) -> Iterator[WorkerMessage]:
        silences = {name: self._claims.seconds_since_heartbeat(name) for name in self._works}
        for silence in silences.values():
            if silence is not None and silence < _MAX_SILENCE:
                self._note_sign(silence)
        idle = self._clock.monotonic() - self._last_sign
        for name, silence in silences.items():
            work = self._works[name]
            if silence is None:
                if idle > _MAX_IDLE:
                    self._seems_dead = True
                    text = f"No worker began with it for {_MAX_IDLE:g} s. Check the executor and its workers."
                    yield WorkerMessage(name, result_of_not_started(name, Reason.WORKER_LOST, text))
                continue
            if name not in self._begun:
                self._begun.add(name)
                yield WorkerMessage(name)
            if silence > _MAX_SILENCE:
                text = f"Its worker gave no sign of life for {_MAX_SILENCE:g} s, and was given up."
                error = StageError(text, peer=name, reason=Reason.WORKER_LOST)
                yield WorkerMessage(name, result_of_error(work.job, error))

    def cancel(self) -> list[str]:
        self._claims.stop()
        withdrawn = []
        for name, future in list(self._futures.items()):
            has_begun = name in self._begun or self._claims.seconds_since_heartbeat(name) is not None
            if not has_begun and (future.cancel() or future.cancelled()):
                withdrawn.append(name)
        return withdrawn

    def forget(self, peer: str) -> None:
        future = self._futures.pop(peer, None)
        if future is not None and not future.done():
            future.cancel()  # its worker was given up, and another must not begin with it
        else:
            self._note_sign()
        self._works.pop(peer, None)
        self._begun.discard(peer)


class StageJob:
    """Stages a peer when it is called.

    It unpickles without peerstage, which only the call needs: a Dask worker that cannot unpickle a message ends, and
    the next worker gets the same message.

    Args:
        work: What to do.

    Raises:
        ConfigurationError: If it cannot be sent to another process.
    """

    def __init__(self, work: PeerWork) -> None:
        self.work = work
        try:
            self._data = pickle.dumps(_Call(work))
        except Exception as exc:
            text = f"This job cannot be sent to a worker: {exc}"
            raise ConfigurationError(text, reason=Reason.INVALID_ARGUMENT) from exc

    def __call__(self) -> PeerResult:
        return stage_peer(self.work)

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial, (pickle.loads, self._data)


class _Call:
    """Unpickles as what `stage_peer` returns for *work*."""

    def __init__(self, work: PeerWork) -> None:
        self._work = work

    def __reduce__(self) -> tuple[Any, ...]:
        return stage_peer, (self._work,)


def _outcome_of(done: Future[PeerResult], work: PeerWork) -> PeerResult:
    try:
        outcome = done.result()
        if isinstance(outcome, PeerResult):
            return outcome
        raise TypeError(f"a result of type {type(outcome).__name__}")
    except CancelledError as exc:
        return result_of_error(work.job, worker_lost("The executor cancelled it", exc))
    except (ImportError, AttributeError) as exc:
        text = f"Its worker has no peerstage, or another version: {escape(str(exc))}. Install the same version there."
        return result_of_error(work.job, StageError(text, reason=Reason.WORKER_LOST))
    except BaseException as exc:
        return result_of_error(work.job, worker_lost("Its worker ended, or could not run it", exc))

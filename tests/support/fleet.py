"""Helpers for tests of fleets: runs of jobs in memory, with bugs, and on a clock that passes only while a run waits."""

from __future__ import annotations

import os
import queue
import signal
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peerstage import BackupPeer, FleetPlan, FleetReport, FleetRun, PeerJob
from peerstage.fleet.executor_workers import StageJob
from peerstage.fleet.run_peer import PeerWork, stage_peer
from peerstage.fleet.schedule import Clock
from peerstage.testing import MemoryHost, MemoryJob
from peerstage.transport.base import Transport

#: The files of a peer that has collected.
READY = {"cback.collect": b"", "dump": b"content"}


class FrozenClock(Clock):
    """A clock that stands still but for waits and `advance`.

    Attributes:
        wall: Seconds since the epoch, which a test may set.
    """

    def __init__(self, wall: float = 1_700_000_000.0) -> None:
        self.wall = wall
        self._monotonic = 1000.0

    def time(self) -> float:
        return self.wall

    def monotonic(self) -> float:
        return self._monotonic

    def wait(self, messages: queue.SimpleQueue[Any], seconds: float) -> Any:
        """Return a message that is there; else let the time pass at once."""
        try:
            return messages.get_nowait()
        except queue.Empty:
            self.advance(seconds)
            return None

    def advance(self, seconds: float) -> None:
        """Let *seconds* pass."""
        self.wall += seconds
        self._monotonic += seconds


class FastClock(Clock):
    """A clock for which time passes thirty times as fast: a run starts more peers per second, and waits less."""

    _SPEED = 30.0

    def monotonic(self) -> float:
        return super().monotonic() * self._SPEED

    def wait(self, messages: queue.SimpleQueue[Any], seconds: float) -> Any:
        return super().wait(messages, seconds / self._SPEED)


class InlineThreads(ThreadPoolExecutor):
    """An executor whose one thread is the caller's: nothing runs while the run waits, as a `FrozenClock` needs."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(fn(*args, **kwargs))
        return done


class Elsewhere(Executor):
    """An executor that a run treats like one of processes, although its workers are threads of this one.

    Args:
        workers: The number of workers.
        change: Called with the work; returns what a worker gets instead.
    """

    def __init__(self, workers: int = 4, change: Callable[[PeerWork], PeerWork] = lambda work: work) -> None:
        self._threads = ThreadPoolExecutor(workers)
        self._change = change
        self._futures: list[Future[Any]] = []

    @property
    def done_count(self) -> int:
        """The number of jobs that have ended."""
        return sum(future.done() for future in self._futures)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        assert isinstance(fn, StageJob)
        self._futures.append(self._threads.submit(stage_peer, self._change(fn.work)))
        return self._futures[-1]

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._threads.shutdown(wait, cancel_futures=cancel_futures)


class Idle(Executor):
    """An executor that accepts everything and begins with nothing.

    Attributes:
        futures: What it has returned.
    """

    def __init__(self) -> None:
        self.futures: list[Future[Any]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.futures.append(Future())
        return self.futures[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class KillingJob(MemoryJob):
    """A job that kills the process of its worker when its peer is built to connect.

    Attributes:
        once: A file that it creates before; it kills nothing if that exists. None to kill every time.
    """

    once: str | None = None

    def build_peer(self, *, reads_secrets: bool = False, **options: Any) -> BackupPeer:
        if reads_secrets and not (self.once and os.path.exists(self.once)):
            if self.once:
                Path(self.once).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super(KillingJob, self).build_peer(**options)


def killing_job(name: str, once: Path | None = None) -> KillingJob:
    """Return a `KillingJob` whose peer is ready."""
    options = {"collect_dir": "/collect", "user": "backup", "memory_host": MemoryHost({"/collect": READY})}
    return KillingJob(name=name, once=None if once is None else str(once), **options)  # type: ignore[arg-type]


class ScriptedHost(MemoryHost):
    """A host that calls a function at every connection, with itself; what that raises is the connection's error."""

    def __init__(self, files: Any, on_connect: Callable[[ScriptedHost], object], **options: Any) -> None:
        super().__init__({"/collect": files}, **options)
        self.on_connect = on_connect

    def __reduce__(self) -> tuple[Any, ...]:
        return str, ("It works in this process only, but a run insists on work that pickles.",)

    def connect(self) -> Transport:
        self.on_connect(self)
        return super().connect()


def scripted_job(
    name: str, on_connect: Callable[[ScriptedHost], object], files: Mapping[str, bytes] = READY, **options: Any
) -> MemoryJob:
    """Return a job whose host is a `ScriptedHost`."""
    host = ScriptedHost(files, on_connect)
    return MemoryJob(name=name, collect_dir="/collect", user="backup", memory_host=host, **options)


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokenJob(MemoryJob):
    """A job with a bug: building its peer to connect raises an error."""

    bug: BaseException

    def build_peer(self, *, reads_secrets: bool = False, **options: Any) -> BackupPeer:
        if reads_secrets:
            raise self.bug
        return super(BrokenJob, self).build_peer(**options)


def broken_job(name: str, bug: BaseException) -> BrokenJob:
    """Return a `BrokenJob`."""
    return BrokenJob(name=name, collect_dir="/collect", user="backup", bug=bug)


def run(pool: Path, *jobs: PeerJob, **options: Any) -> FleetReport:
    """Run a plan of *jobs*; *options* are those of `FleetPlan` and `FleetRun`."""
    return make_run(pool, *jobs, **options).run()


def make_run(pool: Path, *jobs: PeerJob, **options: Any) -> FleetRun:
    """Return a run of a plan of *jobs*."""
    names = ("executor", "peers", "again", "on_event", "clock")
    run_options = {name: options.pop(name) for name in names if name in options}
    return FleetRun(FleetPlan(staging=str(pool), peers=jobs, **options), **run_options)


def files_in(pool: Path) -> dict[str, bytes]:
    """Return the staged files of a pool, without manifests, by their paths below the pool."""
    paths = (path for path in sorted(pool.glob("[0-9]*/**/*")) if path.is_file())
    return {str(path.relative_to(pool)): path.read_bytes() for path in paths if not path.name.startswith("peerstage.")}


def results_of(report: FleetReport) -> dict[str, str]:
    """Return the verdict of each peer, and the reason if there is one."""
    return {
        result.peer: f"{result.verdict}" if result.reason is None else f"{result.verdict}: {result.reason}"
        for result in report.results
    }

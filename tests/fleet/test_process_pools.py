"""Runs in processes and on Dask: the same tree and report as with threads, and workers that are killed."""

from __future__ import annotations

import dataclasses
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from peerstage import FleetReport, PeerResult, Reason, Verdict
from peerstage.errors import ConnectError, RemoteError
from peerstage.fleet.dask import dask_executor
from peerstage.testing import MemoryFile, MemoryJob, memory_job
from support.fleet import READY, files_in, killing_job, run
from support.quick import quick_directory

pytestmark = pytest.mark.usefixtures("patience")


@pytest.fixture
def processes() -> Iterator[ProcessPoolExecutor]:
    """Two processes, which are not forked: forking one that has threads may hang."""
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as executor:
        yield executor


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    """The address of a Dask scheduler with two processes."""
    from distributed import LocalCluster

    options = {"n_workers": 2, "threads_per_worker": 2, "processes": True, "host": "127.0.0.1"}
    with LocalCluster(**options, dashboard_address=":0") as cluster:
        yield cluster.scheduler_address


def make_jobs() -> list[MemoryJob]:
    """Return peers of every kind, each with its verdict in its name."""
    old = {"cback.collect": MemoryFile(mtime=900), "a": MemoryFile(b"aaaa", mtime=500), "b": MemoryFile(b"b", mtime=9)}
    refused = ConnectError("Connection refused.", reason=Reason.CONNECTION_REFUSED)
    bad = MemoryFile(mtime=8, error=RemoteError("Permission denied.", reason=Reason.PERMISSION_DENIED))
    return [
        memory_job("staged", old, link_dest=True),
        memory_job("flaky", {**old, "big": MemoryFile(bytes(200_000), mtime=7)}, lose_after=1, faulty_connections=1),
        memory_job("incomplete", {**old, "bad": bad}),
        memory_job("empty", {"cback.collect": MemoryFile(mtime=900)}),
        memory_job("not-ready"),
        memory_job("stale", {**old, "cback.stage": MemoryFile(mtime=901)}),
        memory_job("refused", error=refused, ignore_failures="all"),
        memory_job("unmarked", old, writable=False),
    ]


def comparable(result: PeerResult) -> PeerResult:
    """Return a result without what differs from one run to the next: times, and the path of the pool."""
    report = result.report
    if report is not None:
        report = dataclasses.replace(report, started=0, seconds=0, target="")
    return dataclasses.replace(result, started=0, seconds=0, report=report)


def run_everywhere(pool: Path, executor: Executor | None) -> tuple[FleetReport, dict[str, Any]]:
    """Return the report of a run, and what is left of it on the disk."""
    report = run(pool, *make_jobs(), executor=executor, parallel=4)
    tree = {path: (data, (pool / path).stat().st_mode) for path, data in files_in(pool).items()}
    return report, tree


def test_threads_processes_and_dask_give_the_same_tree_and_report(
    processes: ProcessPoolExecutor, scheduler: str
) -> None:
    found = []
    with dask_executor(scheduler) as dask:
        for executor in (None, processes, dask):
            with quick_directory() as pool:
                found.append(run_everywhere(pool, executor))
    (report, tree), *others = found
    assert report.counts == {"staged": 2, "incomplete": 2, "not-ready": 2, "failed": 2}
    for other_report, other_tree in others:
        assert list(map(comparable, other_report.results)) == list(map(comparable, report.results))
        assert other_report.exit == report.exit
        assert other_tree == tree


def test_a_process_that_is_killed_ends_in_a_result_for_everybody(pool: Path, processes: ProcessPoolExecutor) -> None:
    jobs = [memory_job(f"db{number}", READY) for number in range(6)]
    report = run(pool, *jobs[:3], killing_job("killer"), *jobs[3:], executor=processes)
    results = {result.peer: result for result in report.results}
    assert len(results) == 7
    assert (results["killer"].verdict, results["killer"].reason) == (Verdict.FAILED, Reason.WORKER_LOST)
    for job in jobs:
        if results[job.name].verdict is Verdict.STAGED:
            assert f"{report.day}/{job.name}/dump" in files_in(pool)
        else:
            assert results[job.name].reason is Reason.WORKER_LOST
    assert run(pool, *jobs).counts == {"staged": 6}


def test_what_a_killed_dask_worker_did_is_done_by_another(pool: Path, scheduler: str) -> None:
    jobs = [memory_job(f"db{number}", READY) for number in range(6)]
    with dask_executor(scheduler) as dask:
        report = run(pool, *jobs[:3], killing_job("killer", pool / "killed"), *jobs[3:], executor=dask)
    assert (pool / "killed").exists()
    assert report.counts == {"staged": 7}


def test_a_job_that_kills_every_dask_worker_ends_in_a_result_for_everybody(pool: Path, scheduler: str) -> None:
    """Dask gives up a job after four workers, and perhaps others that they were given at the same time."""
    jobs = [memory_job(f"db{number}", READY) for number in range(6)]
    with dask_executor(scheduler) as dask:
        report = run(pool, *jobs[:3], killing_job("killer"), *jobs[3:], executor=dask)
    assert len(report.results) == 7
    assert {result.reason for result in report.results} <= {None, Reason.WORKER_LOST}
    assert report.results[3].reason is Reason.WORKER_LOST
    assert run(pool, *jobs).counts == {"staged": 6}


def test_a_scheduler_that_cannot_be_reached_is_a_clear_error() -> None:
    with (
        pytest.raises(ConnectError, match=r"127\.0\.0\.1:1 cannot be reached"),
        dask_executor("tcp://127.0.0.1:1", timeout=0.2),
    ):
        pass
    with pytest.raises(ConnectError, match="address is like tcp://"), dask_executor("nonsense"):
        pass

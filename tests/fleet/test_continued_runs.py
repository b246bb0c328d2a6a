"""A run that is killed at any instant is continued by the next: the same tree as of a run that nobody disturbed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from peerstage import FleetReport, PeerJob, Verdict, verify
from peerstage.fleet import schedule
from peerstage.fleet.pool.run_records import RunRecords
from peerstage.fleet.pool.runs_directory import RunsDirectory
from support.fleet import InlineThreads, files_in, run
from support.kills import each_instant

pytestmark = pytest.mark.usefixtures("patience")

PEERS = ("db1", "db2")

SCRIPT = """
import sys
from peerstage import FleetPlan, PeerJob, stage_fleet
staging, collect, names = sys.argv[1], sys.argv[2], sys.argv[3:]
jobs = tuple(PeerJob(name=name, collect_dir=f"{collect}/{name}", transport="local") for name in names)
def tell(event):
    print(event.name, event.to_dict().get("peer"), flush=True)
stage_fleet(FleetPlan(staging=staging, peers=jobs, parallel=2), on_event=tell)
"""


def make_peer(directory: Path, *, files: int = 2, size: int = 100) -> None:
    """Create the collect directory of a peer that has collected long ago."""
    directory.mkdir(parents=True)
    for number in range(files):
        (directory / f"file{number}").write_bytes(f"{directory.name} {number} ".encode() * size)
    (directory / "cback.collect").touch()
    for path in directory.iterdir():
        os.utime(path, (1_600_000_000, 1_600_000_000))


def job_of(directory: Path) -> PeerJob:
    return PeerJob(name=directory.name, collect_dir=str(directory), transport="local")


def expected(report: FleetReport, collect: Path, *names: str) -> dict[str, bytes]:
    """Return the tree of a pool in which every peer is complete."""
    tree = {
        f"{report.day}/{name}/{path.name}": path.read_bytes()
        for name in names
        for path in (collect / name).iterdir()
        if path.name != "cback.stage"
    }
    return {**tree, f"{report.day}/cback.stage": b""}


@pytest.mark.bulk
def test_a_run_killed_before_any_of_its_system_calls_is_continued(pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "STARTS_PER_SECOND", 1e6)
    monkeypatch.setattr("peerstage.fleet.pool.free_space.PoolSweep.start", lambda sweep: sweep._run())
    collect, staging = pool / "collect", pool / "staging"
    endings: dict[str, int] = {}

    def start_over() -> list[PeerJob]:
        for directory in (collect, staging):
            shutil.rmtree(directory, ignore_errors=True)
        staging.mkdir()
        for name in PEERS:
            make_peer(collect / name, files=1)
        return [job_of(collect / name) for name in PEERS]

    jobs = start_over()
    for step in each_instant(lambda: run(staging, *jobs, executor=InlineThreads())):
        report = run(staging, *jobs, executor=InlineThreads())
        assert report.counts == {"staged": 2}, step
        assert files_in(staging) == expected(report, collect, *PEERS), step
        assert all((collect / name / "cback.stage").exists() for name in PEERS), step
        assert not list(staging.rglob(".peerstage-????????")), step
        assert all(verify(str(staging / report.day / name)).is_intact for name in PEERS), step
        with RunsDirectory(str(staging)) as runs:
            records = list(RunRecords(runs).newest_first())
        killed = records[1].ended_by or "whole" if len(records) > 1 else "no record"
        endings[killed] = endings.get(killed, 0) + 1
        start_over()
    assert set(endings) == {"no record", "killed", "whole"}
    assert endings["killed"] > 100


@pytest.mark.usefixtures("fresh_interpreter")
@pytest.mark.parametrize("finished", [0, 3, 7])
def test_a_process_killed_in_mid_run_leaves_the_rest_to_the_next(pool: Path, finished: int) -> None:
    names = [f"db{number}" for number in range(10)]
    collect, staging = pool / "collect", pool / "staging"
    staging.mkdir()
    for name in names:
        make_peer(collect / name, files=20, size=5000)
    command = [sys.executable, "-c", SCRIPT, str(staging), str(collect), *names]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            finished -= line.startswith("peer-finished")
            if finished < 0 or (line.startswith("peer-started") and finished == 0):
                break
        process.send_signal(signal.SIGKILL)
    report = run(staging, *(job_of(collect / name) for name in names))
    assert report.counts == {"staged": 10}
    assert files_in(staging) == expected(report, collect, *names)
    with RunsDirectory(str(staging)) as runs:
        killed = list(RunRecords(runs).newest_first())[1]
    staged_before = {result.peer for result in killed.results if result.verdict is Verdict.STAGED}
    assert staged_before == {result.peer for result in report.results if result.earlier_run == killed.run}
    assert killed.ended_by == "killed"
    assert len(killed.results) == 10

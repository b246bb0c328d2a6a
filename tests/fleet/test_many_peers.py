"""Hundreds of peers of which a tenth are dead: each gets one verdict, and nothing hangs or is left behind."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path

import pytest

from peerstage import PeerJob
from peerstage.testing import MemoryJob, memory_job
from support.dead_peers import DEAD, dead_peers
from support.fleet import FastClock, results_of, run
from support.fleet_usage import Usage

PARALLEL = 16
FILES = {"cback.collect": b"", **{f"file{number}": b"%d" % number for number in range(10)}}


@pytest.mark.usefixtures("leaves_nothing")
@pytest.mark.parametrize("count", [200, pytest.param(1000, marks=pytest.mark.bulk)])
def test_every_peer_has_one_verdict_although_a_tenth_are_dead(pool: Path, tmp_path: Path, count: int) -> None:
    kinds, expected = cycle(DEAD), {}
    healthy: list[MemoryJob] = []
    jobs: list[PeerJob] = []
    with dead_peers(tmp_path) as dead:
        for number in range(count):
            name = f"peer{number}"
            if number % 10:
                healthy.append(memory_job(name, FILES))
                jobs.append(healthy[-1])
                expected[name] = "staged"
            else:
                kind = next(kinds)
                jobs.append(dead[kind](name))
                expected[name] = DEAD[kind]
        usage = Usage()
        report = run(pool, *jobs, parallel=PARALLEL, clock=FastClock(), on_event=usage)
    assert results_of(report) == expected
    assert [result.peer for result in report.results] == [job.name for job in jobs]
    assert sorted(usage.finished) == sorted(expected)
    published = [path.parent.name for path in Path(report.target).glob("*/file9")]
    assert sorted(published) == sorted(job.name for job in healthy)
    assert [job.name for job in healthy if b"cback.stage" not in job.files] == []
    assert usage.descriptors < 30 * PARALLEL, "for the peers at a time, and those that do not answer"
    assert usage.threads < 15 * PARALLEL

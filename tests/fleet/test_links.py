"""Links between nights: only to what this fleet has staged and completed, and to today's own files."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from peerstage import FleetReport, PeerJob, Reason
from peerstage.errors import RemoteError
from peerstage.target.verify import verify
from peerstage.testing import MemoryFile, MemoryJob, memory_job
from support.fleet import FrozenClock, InlineThreads, files_in, results_of, run

pytestmark = pytest.mark.usefixtures("leaves_nothing")

DAY = 24 * 3600
#: Files whose times lie well before those of the stage: a younger one could have changed within the same second.
OLD = {"cback.collect": MemoryFile(mtime=900), "a": MemoryFile(b"aaaa", mtime=500), "b": MemoryFile(b"bb", mtime=600)}


class Nights:
    """Runs on successive days.

    Attributes:
        report: The report of the last one.
    """

    def __init__(self, pool: Path) -> None:
        self._pool = pool
        self._clock = FrozenClock(time.time())
        self._count = 0
        self.report: FleetReport

    def run(self, *jobs: PeerJob, **options: Any) -> dict[str, str]:
        """Run on the next day, and return the verdicts."""
        self._count += 1
        self._clock.wall += DAY
        for job in jobs:
            if isinstance(job, MemoryJob) and b"cback.collect" in job.files:
                job.files[b"cback.collect"] = MemoryFile(mtime=900 + self._count)
                job.files.pop(b"cback.stage", None)
        return self.run_again(*jobs, **options)

    def run_again(self, *jobs: PeerJob, **options: Any) -> dict[str, str]:
        """Run once more on the same day."""
        self.report = run(self._pool, *jobs, clock=self._clock, executor=InlineThreads(), **options)
        return results_of(self.report)

    @property
    def target(self) -> Path:
        """The daily directory of the last run."""
        return Path(self.report.target)

    def received(self, number: int = 0) -> int:
        """Return the bytes that a peer of the last run has sent."""
        summary = self.report.results[number].report
        assert summary is not None
        return summary.received


@pytest.fixture
def nights(pool: Path) -> Nights:
    return Nights(pool)


def inode(path: Path) -> int:
    return path.stat().st_ino


def test_a_second_night_transfers_nothing_that_is_unchanged(nights: Nights) -> None:
    job = memory_job("db1", OLD, link_dest=True)
    nights.run(job)
    first = nights.target
    job.files[b"b"] = MemoryFile(b"BBB", mtime=700)
    assert nights.run(job) == {"db1": "staged"}
    assert nights.target != first
    assert nights.received() == 3
    assert inode(nights.target / "db1" / "a") == inode(first / "db1" / "a")
    assert (first / "db1" / "b").read_bytes() == b"bb"
    assert verify(str(nights.target / "db1")).is_intact


def test_without_the_option_every_night_stands_alone(nights: Nights) -> None:
    job = memory_job("db1", OLD)
    nights.run(job)
    first = nights.target
    nights.run(job)
    assert inode(nights.target / "db1" / "a") != inode(first / "db1" / "a")


def test_links_lead_to_the_last_complete_night_and_not_to_one_that_failed(nights: Nights) -> None:
    job = memory_job("db1", OLD, link_dest=True)
    nights.run(job)
    complete = nights.target
    job.files[b"bad"] = MemoryFile(error=RemoteError("Permission denied.", reason=Reason.PERMISSION_DENIED))
    assert nights.run(job) == {"db1": "incomplete: incomplete-stage"}
    job.files[b"bad"] = MemoryFile(b"good", mtime=800)
    assert nights.run(job) == {"db1": "staged"}
    assert inode(nights.target / "db1" / "a") == inode(complete / "db1" / "a")
    assert nights.received() == 4


def test_a_night_that_was_removed_is_not_looked_for(nights: Nights, pool: Path) -> None:
    job = memory_job("db1", OLD, link_dest=True)
    nights.run(job)
    first = nights.target
    nights.run(job)
    os.rename(nights.target / "db1", pool / "away")
    assert nights.run(job) == {"db1": "staged"}
    assert inode(nights.target / "db1" / "a") == inode(first / "db1" / "a")
    assert nights.report.results[0].report is not None
    assert nights.report.results[0].report.notes == ()


def test_no_link_in_the_pool_is_followed(nights: Nights, pool: Path) -> None:
    """The owner of the staged directories may be a user whom root does not trust."""
    job = memory_job("db1", OLD, link_dest=True)
    nights.run(job)
    first = nights.target
    (first / "db1").rename(pool / "elsewhere")
    (first / "db1").symlink_to(pool / "elsewhere")
    assert nights.run(job) == {"db1": "staged"}
    assert inode(nights.target / "db1" / "a") != inode(pool / "elsewhere" / "a")


def test_a_continued_run_fetches_only_what_is_missing_even_without_the_option(nights: Nights) -> None:
    job = memory_job("db1", {**OLD, "bad": MemoryFile(error=RemoteError("No.", reason=Reason.PERMISSION_DENIED))})
    assert nights.run(job) == {"db1": "incomplete: incomplete-stage"}
    kept = inode(nights.target / "db1" / "a")
    job.files[b"bad"] = MemoryFile(b"12345", mtime=800)
    assert nights.run_again(job) == {"db1": "staged"}
    assert nights.received() == 5
    assert inode(nights.target / "db1" / "a") == kept
    assert sorted(os.listdir(nights.target / "db1")) == [
        "a", "b", "bad", "cback.collect", "peerstage.json", "peerstage.sha256",
    ]  # fmt: skip
    assert verify(str(nights.target / "db1")).is_intact


def test_files_of_today_that_changed_since_are_fetched(nights: Nights, pool: Path) -> None:
    job = memory_job("db1", OLD)
    nights.run(job)
    job.files[b"a"] = MemoryFile(b"AAAA", mtime=700)
    job.files[b"cback.collect"] = MemoryFile(mtime=2**33)
    assert nights.run_again(job, again=True) == {"db1": "staged"}
    assert files_in(pool)[f"{nights.report.day}/db1/a"] == b"AAAA"
    assert (nights.target / "db1" / "a").stat().st_nlink == 1
    assert verify(str(nights.target / "db1")).is_intact


def test_linked_files_of_an_earlier_night_are_linked_again_by_a_continued_run(nights: Nights) -> None:
    job = memory_job("db1", OLD, link_dest=True)
    nights.run(job)
    first = inode(nights.target / "db1" / "a")
    job.files[b"bad"] = MemoryFile(error=RemoteError("No.", reason=Reason.PERMISSION_DENIED))
    nights.run(job)
    del job.files[b"bad"]
    assert nights.run_again(job) == {"db1": "staged"}
    assert inode(nights.target / "db1" / "a") == first
    assert nights.received() == 0


def test_what_was_marked_by_a_killed_run_without_a_record_is_staged_again_from_what_is_there(
    nights: Nights, pool: Path
) -> None:
    """The peer was marked and the run was killed before it could note that: the mark alone would be stale."""
    job = memory_job("db1", OLD)
    nights.run(job)
    for record in (pool / ".peerstage-runs").glob("*.json"):
        record.unlink()
    assert job.files[b"cback.stage"].mtime > job.files[b"cback.collect"].mtime
    assert nights.run_again(job) == {"db1": "staged"}
    assert nights.received() == 0
    assert "cback.stage" not in os.listdir(nights.target / "db1")


def test_reports_and_notes_name_directories_and_no_descriptors(nights: Nights, pool: Path) -> None:
    job = memory_job("db1", OLD, link_dest=True)
    nights.run(job)
    first = nights.target
    (first / "db1" / "peerstage.json").write_text("damaged")
    nights.run(job)
    summary = nights.report.results[0].report
    assert summary is not None
    assert len(summary.notes) == 1
    assert str(first / "db1") in summary.notes[0]
    written = (nights.target / "db1" / "peerstage.json").read_text()
    assert "/proc/" not in written
    assert f'"target": "{nights.target}/db1"' in written


def test_a_stage_that_is_cut_off_leaves_todays_files_as_they_are(nights: Nights) -> None:
    job = memory_job("db1", OLD)
    nights.run(job)
    before = {path.name: path.read_bytes() for path in (nights.target / "db1").iterdir()}
    job.files[b"cback.collect"] = MemoryFile(mtime=2**33)
    job.files[b"a"] = MemoryFile(b"AAAA", mtime=700)
    job.memory_host.lose_after = 0
    assert nights.run_again(job, again=True) == {"db1": "failed: connection-lost"}
    assert {path.name: path.read_bytes() for path in (nights.target / "db1").iterdir()} == before

"""What is read of earlier runs: what the next one needs, and no more."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from peerstage.fleet.pool.history import History, read_history
from peerstage.fleet.pool.run_id import day_of, new_run_id
from peerstage.fleet.pool.run_records import RunRecords
from peerstage.fleet.pool.runs_directory import NAME, RunsDirectory
from peerstage.fleet.results import FleetReport, PeerResult, Verdict
from peerstage.reasons import Reason
from support.staged_pool import noon

TODAY = "2026/11/24"
NIGHTS = ["2026/11/20", "2026/11/21", "2026/11/22", "2026/11/23"]


@pytest.fixture
def notes() -> list[str]:
    """Notes about damaged records that were read."""
    return []


@pytest.fixture
def records(runs: RunsDirectory, notes: list[str]) -> RunRecords:
    return RunRecords(runs, notes.append)


def write(records: RunRecords, pool: Path, day: str, *results: PeerResult) -> None:
    """Write the record of a run on *day*, with the directories of its peers."""
    started = noon(day)
    assert day_of(started) == day
    for result in results:
        (pool / day / result.peer).mkdir(parents=True, exist_ok=True)
    target = str(pool / day)
    report = FleetReport(
        run=new_run_id(started), plan=None, staging=str(pool), target=target, day=day, started=started, results=results
    )
    records.write(report)


def damage_before(pool: Path, day: str) -> None:
    """Damage the records of all runs before *day*."""
    for path in (pool / NAME).glob("*.json"):
        if path.name < day.replace("/", ""):
            path.write_text("damaged")


def staged(*names: str) -> list[PeerResult]:
    return [PeerResult(peer=name, verdict=Verdict.STAGED) for name in names]


def read(records: RunRecords, pool: Path, peers: Sequence[str], linking: Sequence[str] = ()) -> History:
    return read_history(records, str(pool), TODAY, peers, linking)


def test_a_peer_without_links_needs_no_earlier_night(pool: Path, records: RunRecords, notes: list[str]) -> None:
    for night in NIGHTS:
        write(records, pool, night, *staged("db1"))
    damage_before(pool, NIGHTS[-1])
    assert read(records, pool, ["db1", "new"]) == History()
    assert notes == []


def test_a_new_peer_with_links_is_looked_for_in_every_earlier_night(pool: Path, records: RunRecords) -> None:
    write(records, pool, NIGHTS[0], *staged("db2"))
    for night in NIGHTS[1:]:
        write(records, pool, night, *staged("db1"))
    found = read(records, pool, ["db1", "db2", "new"], ["db1", "db2", "new"])
    assert found.nights == {"db1": NIGHTS[-1], "db2": NIGHTS[0]}


def test_nothing_more_is_read_once_each_linking_peer_has_its_night(
    pool: Path, records: RunRecords, notes: list[str]
) -> None:
    for night in NIGHTS:
        write(records, pool, night, *staged("db1", "db2"))
    damage_before(pool, NIGHTS[-1])
    assert read(records, pool, ["db1", "db2"], ["db1"]).nights == {"db1": NIGHTS[-1]}
    assert notes == []


def test_every_run_of_today_is_read(pool: Path, records: RunRecords) -> None:
    write(records, pool, TODAY, *staged("db1"))
    write(records, pool, TODAY, *staged("db2"))
    assert set(read(records, pool, ["db1", "db2", "db3"]).staged) == {"db1", "db2"}


def test_who_could_not_be_reached_is_known_from_the_last_run_that_asked(pool: Path, records: RunRecords) -> None:
    def failed(name: str, reason: Reason) -> PeerResult:
        return PeerResult(peer=name, verdict=Verdict.FAILED, reason=reason, attempts=1)

    dead = failed("dead", Reason.CONNECT_TIMEOUT)
    back = PeerResult(peer="back", verdict=Verdict.NOT_READY, attempts=1)
    write(records, pool, NIGHTS[-2], failed("long ago", Reason.CONNECT_TIMEOUT))
    write(records, pool, NIGHTS[-1], dead, failed("back", Reason.HOST_UNREACHABLE), failed("odd", Reason.LOGIN_REFUSED))
    write(records, pool, TODAY, PeerResult(peer="dead", verdict=Verdict.NOT_STARTED), back)
    assert read(records, pool, ["dead", "back", "odd", "long ago"]).unreachable == {"dead"}

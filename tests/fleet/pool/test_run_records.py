"""Journals and records of runs: whole or absent, and whatever lies in the directory, reading does not fail."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from peerstage.errors import TargetError
from peerstage.exit_codes import ExitCode
from peerstage.fleet.pool.run_id import day_of, new_run_id, start_time_of
from peerstage.fleet.pool.run_journal import RunJournal
from peerstage.fleet.pool.run_records import KEPT_RECORDS, RunRecords
from peerstage.fleet.pool.runs_directory import NAME, RunsDirectory
from peerstage.fleet.results import Flag, FleetReport, PeerResult, StageSummary, Verdict
from peerstage.reasons import Reason
from peerstage.records import FileResult
from support.children import forked
from support.filesystems import fill, tmpfs
from support.kills import each_instant
from support.staged_pool import noon

pytestmark = pytest.mark.usefixtures("leaves_nothing")

RUN = "20261124T021502.417Z-9f3c"
DAY = "2026/11/24"
PEERS = ("a", "b", "c")
FULL_RESULT = PeerResult(
    peer="a",
    verdict=Verdict.INCOMPLETE,
    flags=(Flag.SMALLER,),
    reason=Reason.INCOMPLETE_STAGE,
    error="Some.",
    next="look",
    marked=True,
    ignored=True,
    exit=ExitCode.INCOMPLETE,
    attempts=2,
    started=1.5,
    seconds=2.5,
    earlier_run="x",
    report=StageSummary(
        transport="sftp",
        target="/t",
        files=3,
        bytes=10,
        failures=(FileResult("b\udcff", 5, 0o644, 7, "No.", Reason.NOT_A_FILE),),
        notes=("One.",),
    ),
)


def report_of(run: str = RUN, **values: Any) -> FleetReport:
    started = start_time_of(run) or 0.0
    known = {"plan": None, "staging": "/srv", "target": f"/srv/{DAY}", "day": DAY, "started": started}
    return FleetReport(**{"run": run, **known, **values})


def staged(peer: str) -> PeerResult:
    return PeerResult(peer=peer, verdict=Verdict.STAGED, marked=True)


def verdicts(report: FleetReport) -> dict[str, str]:
    return {result.peer: str(result.verdict) for result in report.results}


class Records(RunRecords):
    """Records of the pool, and the notes about them."""

    def __init__(self, runs: RunsDirectory) -> None:
        self.notes: list[str] = []
        super().__init__(runs, self.notes.append)


@pytest.fixture
def records(runs: RunsDirectory) -> Records:
    return Records(runs)


@pytest.fixture
def journal(runs: RunsDirectory) -> Iterator[RunJournal]:
    """The journal of a run of three peers."""
    opened = RunJournal(runs, report_of(), PEERS)
    yield opened
    opened.close()


def killed(runs: RunsDirectory, work: Callable[[RunJournal], object], run: str = RUN) -> None:
    """Do *work* with a journal in a process that is then killed."""
    pid = os.fork()
    if pid == 0:
        try:
            work(RunJournal(runs, report_of(run), PEERS))
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL


# Records


def test_a_record_is_read_as_it_was_written(records: Records) -> None:
    report = report_of(
        plan="/etc/plan.toml",
        seconds=3.5,
        results=(FULL_RESULT, staged("b")),
        ended_by="signal",
        error="Why.",
        reason=Reason.NO_SPACE,
    )
    records.write(report)
    assert records.read(RUN) == report
    assert list(records.newest_first()) == [report]
    assert records.notes == []


def test_a_record_is_for_this_user_alone(pool: Path, records: Records) -> None:
    records.write(report_of())
    assert (pool / NAME / f"{RUN}.json").stat().st_mode & 0o777 == 0o600


def test_records_come_newest_first_and_are_read_one_by_one(pool: Path, records: Records) -> None:
    ids = [new_run_id(1_800_000_000 + 86_400 * number) for number in range(5)]
    for run in ids:
        records.write(report_of(run))
    found = records.newest_first()
    assert next(found).run == ids[4]
    (pool / NAME / f"{ids[3]}.json").write_bytes(b"damaged after the iteration began")
    assert [report.run for report in found] == [ids[2], ids[1], ids[0]]
    assert len(records.notes) == 1


def test_only_results_of_wanted_peers_are_read(records: Records) -> None:
    records.write(report_of(results=(staged("a"), staged("b"))))
    found = records.newest_first(wants=lambda peer: peer == "b")
    assert [verdicts(report) for report in found] == [{"b": "staged"}]


@pytest.mark.parametrize("damage", ["x", ["x"], [{"peer": []}], [{}]])
def test_a_record_with_damaged_results_is_ignored_whatever_is_wanted(
    pool: Path, records: Records, damage: object
) -> None:
    (pool / NAME / f"{RUN}.json").write_text(json.dumps({**report_of().to_dict(), "results": damage}))
    assert list(records.newest_first(wants=lambda peer: False)) == []
    assert len(records.notes) == 1


def test_the_runs_of_a_day_are_found_without_reading_those_of_other_weeks(pool: Path, records: Records) -> None:
    first, second, other = "20261124T021502.417Z-9f3c", "20261124T091502.417Z-9f3c", "20261123T021502.417Z-9f3c"
    for run in (first, second):
        records.write(report_of(run))
    records.write(report_of(other, day="2026/11/23"))
    (pool / NAME / "20261101T021502.417Z-9f3c.json").write_bytes(b"damaged")
    assert [report.run for report in records.newest_first({DAY})] == [second, first]
    assert [report.run for report in records.newest_first({"2026/11/23"})] == [other]
    assert records.notes == []


def test_a_record_is_whole_or_absent_whenever_its_writer_is_killed(runs: RunsDirectory, records: Records) -> None:
    report = report_of(results=tuple(staged(peer) for peer in PEERS))
    RunJournal(runs, report, PEERS).close()
    found = []
    for _ in each_instant(lambda: records.write(report)):
        (read,) = records.newest_first()
        found.append("whole" if read == report else str(read.ended_by))
    assert set(found) == {"killed", "whole"}
    assert found == sorted(found)
    assert records.notes == []


def nested(path: Path) -> None:
    path.write_bytes(b'{"schema": ' + b"[" * 100_000)


def huge(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


def changed(**values: Any) -> Callable[[Path], object]:
    """Writes a record with other values."""
    return lambda path: path.write_text(json.dumps({**report_of(results=(FULL_RESULT,)).to_dict(), **values}))


def with_result(**values: Any) -> Callable[[Path], object]:
    """Writes a record of a result with other values."""
    return changed(results=[{**FULL_RESULT.to_dict(), **values}])


def with_summary(**values: Any) -> Callable[[Path], object]:
    return with_result(report={**FULL_RESULT.to_dict()["report"], **values})


#: Files that are no records, and what the note about them says.
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (Path.touch, "Expecting value"),
    "cut off": (
        lambda path: path.write_text(json.dumps(report_of().to_dict())[:200]),
        "delimiter|Expecting|Unterminat",
    ),
    "not text": (lambda path: path.write_bytes(b"\xff\xfe\x00"), "codec|Expecting"),
    "a list": (lambda path: path.write_text("[]"), "not an object"),
    "something else": (lambda path: path.write_text("{}"), "not the record of a run"),
    "nested deeply": (nested, "nested too deeply"),
    "huge": (huge, "larger than"),
    "a FIFO": (os.mkfifo, "not a regular file"),
    "a directory": (Path.mkdir, "not a regular file"),
    "a symlink": (lambda path: path.symlink_to("/etc/hostname"), "symbolic link"),
    "newer": (changed(schema=2), r"newer version of peerstage has written it \(schema 2\)"),
    "no schema": (changed(schema=None), "not the record"),
    "a flag as schema": (changed(schema=True), "not the record"),
    "of another run": (changed(run="20261125T021502.417Z-9f3c"), "the record of run 20261125T021502"),
    "no day": (changed(day="../../../etc"), "day is invalid"),
    "a time in words": (changed(started="yesterday"), "started is invalid"),
    "a time beyond all times": (changed(started=1e300), "started is invalid"),
    "not a number": (changed(seconds=float("nan")), "seconds is invalid"),
    "results without peers": (changed(results=7), "Not the report"),
    "a text as a result": (changed(results=["x"]), "Not the report"),
    "an unknown verdict": (with_result(verdict="excellent"), "excellent"),
    "a peer without a name": (with_result(peer=None), "peer is invalid"),
    "flags that are lists": (with_result(flags=[[]]), "Not the report"),
    "an unknown code": (with_result(exit=99), "99"),
    "a number as a summary": (with_result(report=5), "Not the report"),
    "a size that is a text": (with_summary(bytes="many"), "bytes is invalid"),
    "a failure without a name": (with_summary(failures=[{"name": 5}]), "name is invalid"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_file_that_is_no_record_is_a_note_and_costs_no_other_record(pool: Path, records: Records, how: str) -> None:
    make, note = BROKEN[how]
    good = report_of("20261124T011502.417Z-9f3c")
    records.write(good)
    make(pool / NAME / f"{RUN}.json")
    assert list(records.newest_first()) == [good]
    assert list(records.newest_first({DAY})) == [good]
    assert records.read(RUN) is None
    assert records.close_killed() == []
    assert len(records.notes) == 3
    beginning, end = f"{pool}/{NAME}/{RUN}.json is ignored: ", ". Move it away if you do not need it."
    assert all(text.startswith(beginning) and text.endswith(end) and re.search(note, text) for text in records.notes)


def test_unknown_keys_flags_and_reasons_of_a_later_version_do_not_matter(pool: Path, records: Records) -> None:
    raw = report_of(results=(FULL_RESULT,)).to_dict()
    raw["weather"] = raw["results"][0]["mood"] = "fine"
    raw["results"][0].update(flags=["smaller", "odd"], reason="too-odd")
    (pool / NAME / f"{RUN}.json").write_text(json.dumps(raw))
    (result,) = records.newest_first()
    assert result.results[0].flags == (Flag.SMALLER,)
    assert result.results[0].reason is None
    assert records.notes == []


def test_files_with_other_names_are_not_even_looked_at(pool: Path, records: Records) -> None:
    for name in ("notes.txt", "x.json", f"{RUN}.json~", f".{RUN}.json", f"{RUN}.json.bak", "current", "run.lock"):
        (pool / NAME / name).write_bytes(b"x")
    assert list(records.newest_first()) == []
    assert records.close_killed() == []
    assert records.notes == []


def test_texts_of_hostile_peers_are_cut_off_in_the_record(records: Records) -> None:
    failure = FileResult("\udcff" * 255, 0, None, None, "e" * 100_000, Reason.NOT_A_FILE)
    summary = StageSummary(transport="sftp", target="/t", failures=(failure,) * 20, notes=("n" * 100_000,) * 5000)
    result = PeerResult(peer="a", verdict=Verdict.FAILED, error="x" * 1_000_000, report=summary)
    records.write(report_of(results=(result, staged("b"))))
    (found,) = records.newest_first()
    assert verdicts(found) == {"a": "failed", "b": "staged"}
    assert found.results[0].report is not None
    assert len(found.results[0].report.failures) == 20
    assert len(found.results[0].report.notes) == 100
    assert {len(found.results[0].error or ""), len(found.results[0].report.notes[0])} == {4096}


def test_a_record_that_would_be_too_large_to_be_read_leaves_out_what_peers_said(
    records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peerstage.fleet.pool.run_records._MAX_BYTES", 20_000)
    summary = StageSummary(transport="sftp", target="/t", files=7, notes=("n" * 4000,) * 20)
    records.write(report_of(results=(PeerResult(peer="a", verdict=Verdict.STAGED, report=summary), staged("b"))))
    (found,) = records.newest_first()
    assert found.files == 7
    assert found.results[0].report == StageSummary(transport="sftp", target="/t", files=7)


def test_records_of_400_days_are_kept_and_the_last_400_in_any_case(pool: Path, records: Records) -> None:
    now = 1_800_000_000.0
    ids = [new_run_id(now - 86_400 * number) for number in range(KEPT_RECORDS + 50)]
    for run in ids:
        (pool / NAME / f"{run}.json").touch()
    old_journal = new_run_id(now - 86_400 * 500)
    (pool / NAME / f"{old_journal}.jsonl").touch()
    (pool / NAME / "19700101.json").touch()
    records.remove_old(now - 86_400)
    assert len(os.listdir(pool / NAME)) == 402 + 1
    records.remove_old(now + 86_400 * 3650)  # a clock that is ten years ahead for one night
    assert {f"{run}.json" for run in ids[:KEPT_RECORDS]} | {"19700101.json"} == set(os.listdir(pool / NAME))


def test_the_record_of_a_day_that_is_still_there_is_kept_however_old(pool: Path, records: Records) -> None:
    """Such as the last complete night of a peer, which `prune` keeps."""
    now = 1_800_000_000.0
    ids = [new_run_id(now - 86_400 * number) for number in range(KEPT_RECORDS + 50)]
    for run in ids:
        (pool / NAME / f"{run}.json").touch()
    (pool / day_of(now - 86_400 * 430)).mkdir(parents=True)
    records.remove_old(now)
    left = {path.stem for path in (pool / NAME).iterdir()} - set(ids[: KEPT_RECORDS + 1])
    assert ids[430] in left
    assert left <= set(ids[429:432])


def test_the_records_of_some_days_are_read_and_no_others(pool: Path, records: Records) -> None:
    days = ["2026/11/20", "2026/11/22", "2026/11/24"]
    for day in ("2025/11/22", *days, "2027/01/01"):
        records.write(report_of(new_run_id(noon(day)), day=day))
    (damaged,) = (pool / NAME).glob("2025*.json")
    damaged.write_text("{")
    found = records.newest_first({"2026/11/24", "2026/11/20"})
    assert [report.day for report in found] == ["2026/11/24", "2026/11/20"]
    assert records.notes == []
    assert list(records.newest_first(set())) == []


def test_records_of_a_pool_that_runs_every_hour_are_kept_for_400_days_too(pool: Path, records: Records) -> None:
    now = 1_800_000_000.0
    for number in range(1000):
        (pool / NAME / f"{new_run_id(now - 3600 * number)}.json").touch()
    records.remove_old(now)
    assert len(os.listdir(pool / NAME)) == 1000


# Journals


def test_a_run_that_is_under_way_has_no_report_yet(records: Records, journal: RunJournal) -> None:
    journal.add_result(staged("a"))
    assert list(records.newest_first()) == []
    assert records.close_killed() == []
    assert records.notes == []


def test_a_killed_run_has_the_results_it_had_and_tells_what_became_of_the_others(
    pool: Path, runs: RunsDirectory, records: Records
) -> None:
    def work(journal: RunJournal) -> None:
        for peer in ("a", "b"):
            journal.add_started(peer)
        journal.add_result(FULL_RESULT)

    killed(runs, work)
    (seen,) = records.newest_first()
    (report,) = records.close_killed()
    assert report == seen == records.read(RUN)
    assert os.listdir(pool / NAME) == [f"{RUN}.json"]
    assert verdicts(report) == {"a": "incomplete", "b": "failed", "c": "not-started"}
    assert report.results[0] == FULL_RESULT
    assert {result.reason for result in report.results[1:]} == {Reason.RUN_KILLED}
    assert (report.ended_by, report.reason, report.exit) == ("killed", Reason.RUN_KILLED, ExitCode.LOCAL)
    assert (report.day, report.staging) == (DAY, "/srv")
    assert records.notes == []


def test_the_journal_is_removed_with_the_record(pool: Path, records: Records, journal: RunJournal) -> None:
    journal.add_result(staged("a"))
    records.write(report_of(results=(staged("a"),)))
    assert os.listdir(pool / NAME) == [f"{RUN}.json"]


def test_a_record_counts_more_than_the_journal_that_a_kill_has_left(
    pool: Path, runs: RunsDirectory, records: Records
) -> None:
    killed(runs, lambda journal: None)
    left = (pool / NAME / f"{RUN}.jsonl").read_bytes()
    records.write(report_of(results=(staged("a"),)))
    (pool / NAME / f"{RUN}.jsonl").write_bytes(left)
    assert [verdicts(report) for report in records.newest_first()] == [{"a": "staged"}]
    assert records.close_killed() == []
    assert os.listdir(pool / NAME) == [f"{RUN}.json"]


def test_whatever_was_torn_off_the_end_of_a_journal_costs_only_the_last_line(
    pool: Path, runs: RunsDirectory, records: Records
) -> None:
    def work(journal: RunJournal) -> None:
        for peer in PEERS:
            journal.add_started(peer)
            journal.add_result(staged(peer))

    killed(runs, work)
    path = pool / NAME / f"{RUN}.jsonl"
    whole = path.read_bytes()
    lines = [b"", *whole.splitlines(keepends=True)]
    ends = [len(b"".join(lines[:number])) for number in range(1, len(lines) + 1)]
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        complete = sum(end <= size for end in ends) - 1  # lines, the first of them the head
        found = list(records.newest_first())
        assert len(found) == (complete > 0)
        if found:
            expected = ["staged"] * ((complete - 1) // 2) + ["failed"] * ((complete - 1) % 2)
            assert list(verdicts(found[0]).values()) == expected + ["not-started"] * (3 - len(expected))
    assert records.notes == []


def test_a_damaged_line_in_a_journal_costs_only_that_line(pool: Path, runs: RunsDirectory, records: Records) -> None:
    def work(journal: RunJournal) -> None:
        journal.add_started("a")
        journal.add_result(staged("a"))
        journal.add_result(staged("b"))

    killed(runs, work)
    path = pool / NAME / f"{RUN}.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2:3] = [b"\0\0\0\n", b"[" * 50_000 + b"\n", b'{"result": {"peer": 5}}\n', b"[]\n", b'{"started": []}\n']
    path.write_bytes(b"".join(lines))
    (report,) = records.newest_first()
    assert verdicts(report) == {"a": "failed", "b": "staged", "c": "not-started"}


@pytest.mark.parametrize(
    "content", [b"\n", b"x\n", b"[]\n", b"{}\n", b'{"peers": ["a"]}\n', b'{"peers": [1], "schema": 1}\n', b"\xff\n"]
)
def test_a_file_that_is_no_journal_is_a_note(pool: Path, records: Records, content: bytes) -> None:
    (pool / NAME / f"{RUN}.jsonl").write_bytes(content)
    assert list(records.newest_first()) == []
    assert records.close_killed() == []
    assert len(records.notes) == 2
    assert (pool / NAME / f"{RUN}.jsonl").exists()


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/etc/hostname")])
def test_a_journal_that_is_no_file_is_a_note(pool: Path, records: Records, make: Callable[[Path], object]) -> None:
    make(pool / NAME / f"{RUN}.jsonl")
    assert list(records.newest_first()) == []
    assert len(records.notes) == 1


def test_a_huge_journal_is_read_as_far_as_it_is_bounded(pool: Path, runs: RunsDirectory, records: Records) -> None:
    killed(runs, lambda journal: journal.add_result(staged("a")))
    os.truncate(pool / NAME / f"{RUN}.jsonl", 1 << 40)
    (report,) = records.newest_first()
    assert verdicts(report)["a"] == "staged"


def test_a_run_that_is_killed_at_any_instant_leaves_a_journal_or_a_record_that_says_so(
    pool: Path, runs: RunsDirectory
) -> None:
    """From the first line of the journal to the end of the record; the next run goes through all of it as well."""

    def run() -> None:
        journal = RunJournal(runs, report_of(), PEERS)
        for peer in PEERS:
            journal.add_started(peer)
            journal.add_result(staged(peer))
        RunRecords(runs).write(report_of(results=tuple(map(staged, PEERS))))
        journal.close()

    counts = []
    for _ in each_instant(run):
        records = Records(runs)
        found = list(records.newest_first())
        if found:
            assert [report.run for report in found] == [RUN]
            assert list(verdicts(found[0])) == list(PEERS)
        counts.append(sum(result.verdict is Verdict.STAGED for report in found for result in report.results))
        runs.remove_unfinished()
        assert [report.ended_by for report in records.close_killed()] in ([], ["killed"])
        assert not found or os.listdir(pool / NAME) == [f"{RUN}.json"]
        assert records.notes == []
        for name in os.listdir(pool / NAME):
            (pool / NAME / name).unlink()
    assert counts == sorted(counts)
    assert set(counts) == {0, 1, 2, 3}


def test_making_records_of_killed_runs_can_itself_be_killed_at_any_instant(pool: Path, runs: RunsDirectory) -> None:
    def work(journal: RunJournal) -> None:
        journal.add_result(staged("a"))

    records = Records(runs)
    killed(runs, work)
    left = (pool / NAME / f"{RUN}.jsonl").read_bytes()
    for _ in each_instant(records.close_killed):
        (report,) = records.newest_first()
        assert (report.ended_by, verdicts(report)["a"]) == ("killed", "staged")
        for name in os.listdir(pool / NAME):
            (pool / NAME / name).unlink()
        (pool / NAME / f"{RUN}.jsonl").write_bytes(left)


@pytest.mark.usefixtures("root")
def test_a_full_disk_ends_neither_the_run_nor_the_journal(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with tmpfs(tmp_path / "small", "size=64k") as pool, RunsDirectory(str(pool)) as runs:
        records = Records(runs)
        journal = RunJournal(runs, report_of(), PEERS)
        journal.add_result(staged("a"))
        fill(pool / "ballast")
        journal.add_result(FULL_RESULT)
        while journal.error is None:  # the last block of the journal has some bytes left
            journal.add_result(FULL_RESULT)
        assert journal.error.reason is Reason.NO_SPACE
        journal.add_started("b")
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert "cannot be written: No space left on device. [no-space] The run continues" in caplog.text
        with pytest.raises(TargetError, match="The record of the run cannot be written: No space left"):
            records.write(report_of(results=(staged("a"),)))
        assert [name for name in os.listdir(pool / NAME) if name.startswith("new-")] == []
        (pool / "ballast").unlink()
        journal.add_result(staged("b"))
        assert journal.error is None
        journal.close()
        (report,) = records.close_killed()
        assert verdicts(report) == {"a": "incomplete", "b": "staged", "c": "not-started"}
        assert records.notes == []


def test_a_line_that_was_written_in_part_does_not_damage_the_next(
    runs: RunsDirectory, records: Records, journal: RunJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write

    def write_some(fd: int, data: bytes) -> int:
        if len(data) <= 10:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, data[: len(data) // 2])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write_some)
        journal.add_result(staged("a"))
    assert journal.error is not None
    journal.add_result(staged("b"))
    journal.close()
    (report,) = records.newest_first()
    assert verdicts(report) == {"a": "staged", "b": "staged", "c": "not-started"}


def test_a_journal_that_cannot_be_created_leaves_nothing(
    pool: Path, runs: RunsDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(TargetError, match="The run's journal cannot be created"):
            RunJournal(runs, report_of(), PEERS)
    assert os.listdir(pool / NAME) == []


def test_a_second_run_with_the_same_id_is_refused(runs: RunsDirectory, journal: RunJournal) -> None:
    with pytest.raises(TargetError, match="File exists"):
        RunJournal(runs, report_of(), PEERS)
    journal.add_result(staged("a"))
    assert journal.error is None


def test_a_fork_neither_writes_a_journal_nor_keeps_it_alive(runs: RunsDirectory, records: Records) -> None:
    journal = RunJournal(runs, report_of(), PEERS)
    with forked(lambda: journal.add_result(staged("a"))):
        journal.close()
        (report,) = records.newest_first()
    assert verdicts(report) == dict.fromkeys(PEERS, "not-started")


def test_the_duration_of_a_killed_run_ends_with_its_last_line(
    pool: Path, runs: RunsDirectory, records: Records
) -> None:
    killed(runs, lambda journal: None)
    started = start_time_of(RUN) or 0.0
    os.utime(pool / NAME / f"{RUN}.jsonl", (0, started + 90))
    (report,) = records.newest_first()
    assert report.seconds == pytest.approx(90)
    os.utime(pool / NAME / f"{RUN}.jsonl", (0, started - 90))  # the clock was set back
    assert next(records.newest_first()).seconds == 0

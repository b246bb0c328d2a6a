"""The records of the runs in a pool: one file ``RUN.json`` for each, in the runs directory."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import time
from collections.abc import Callable, Iterator, Set
from typing import Any

from peerstage.errors import StageError
from peerstage.fleet.pool.run_id import days_about, is_day, is_run_id, start_time_of
from peerstage.fleet.pool.run_journal import JournalContent, decode_line, encode_line, read_journal, shorten
from peerstage.fleet.pool.runs_directory import JOURNAL, RECORD, RunsDirectory
from peerstage.fleet.results import SCHEMA, FleetReport, PeerResult, Verdict
from peerstage.printable import escape
from peerstage.reasons import Reason
from peerstage.records import MIB

_log = logging.getLogger("peerstage.fleet")

_MAX_BYTES = 64 * MIB
#: Seconds for which records are kept, and the number of newest ones that always are, since the clock may be wrong.
KEPT_SECONDS = 400 * 24 * 3600
KEPT_RECORDS = 400

_KILLED = "The run was killed"


class RunRecords:
    """The records of a pool's runs. Damaged, foreign and newer files are left alone, with a note.

    Args:
        runs: The pool's runs directory.
        on_note: Called with a sentence for each record or journal that cannot be used; by default it is logged.
    """

    def __init__(self, runs: RunsDirectory, on_note: Callable[[str], object] | None = None) -> None:
        self._runs = runs
        self._on_note = on_note or (lambda note: _log.warning("%s", note))

    def newest_first(
        self, days: Set[str] | None = None, wants: Callable[[str], bool] | None = None
    ) -> Iterator[FleetReport]:
        """Yield the report of each run that has ended, the newest first; each is read when it is asked for.

        A run that was killed is among them, made of its journal. One that is under way is not.

        Args:
            days: The daily directories of these runs, ``YYYY/MM/DD``; None for all. Only records whose id is of about
                these days are read.
            wants: Returns whether the result of a peer is wanted; the others are left out, which saves most of the time
                that a record of thousands takes. None for all.

        Raises:
            TargetError: If the directory cannot be read.
        """
        records, journals = self._list()
        for run in sorted(records | journals, reverse=True):
            if days is None or not days.isdisjoint(days_about(run)):
                report = self.read(run, wants)
                if report is not None and (days is None or report.day in days):
                    yield report

    def read(self, run: str, wants: Callable[[str], bool] | None = None) -> FleetReport | None:
        """Return the report of the run with the id *run*; None, with a note, if it cannot be read.

        None without a note: there is no such run, or it is under way.

        Args:
            run: The id.
            wants: As for `newest_first`, except that the report of a killed run has every result.
        """
        try:
            raw = decode_line(self._runs.read(run + RECORD, _MAX_BYTES))
            return _parse_report(run, raw if wants is None else _keep_wanted(raw, wants))
        except FileNotFoundError:
            return self._read_killed(run)
        except (OSError, ValueError) as exc:
            self._note(run + RECORD, exc)
            return None

    def write(self, report: FleetReport) -> None:
        """Write the record of a run that has ended, and remove its journal. At every instant, it is whole or absent.

        Raises:
            TargetError: If it cannot be written. The journal remains.
        """
        with self._runs.errors("The record of the run cannot be written"):
            self._runs.write(report.run + RECORD, _encode_report(report))
        with contextlib.suppress(OSError):
            self._runs.remove(report.run + JOURNAL)

    def close_killed(self) -> list[FleetReport]:
        """Make records of the journals that killed runs have left, and return them. The caller holds the pool's lock.

        Raises:
            TargetError: If the disk is full or failed. The journals remain.
        """
        found = []
        records, journals = self._list()
        for run in sorted(journals - records):
            report = self._read_killed(run)
            if report is not None:
                self.write(report)
                found.append(report)
        for run in journals & records:  # killed between writing the record and removing the journal
            with contextlib.suppress(OSError):
                self._runs.remove(run + JOURNAL)
        return found

    def remove_old(self, now: float | None = None) -> None:
        """Remove the records of runs that started more than `KEPT_SECONDS` ago, but keep the last `KEPT_RECORDS`.

        While there is a daily directory that may be of a run, its record is kept too: only records tell `prune` that a
        day is ours, and which peers it needs.

        Args:
            now: Seconds since the epoch; None for the present.

        Raises:
            TargetError: If the directory cannot be read. What cannot be removed remains.
        """
        before = (time.time() if now is None else now) - KEPT_SECONDS
        records, journals = self._list()
        for run in sorted(records | journals, reverse=True)[KEPT_RECORDS:]:
            started = start_time_of(run)
            if started is not None and started < before and not self._has_daily_directory(run):
                for suffix in (RECORD, JOURNAL):
                    with contextlib.suppress(OSError):
                        self._runs.remove(run + suffix)

    def _has_daily_directory(self, run: str) -> bool:
        return any(os.path.lexists(os.path.join(self._runs.staging, day)) for day in days_about(run))

    def _list(self) -> tuple[set[str], set[str]]:
        """Return the ids of runs that have a record, and of those that have a journal."""
        with self._runs.errors("The records cannot be listed"):
            names = os.listdir(self._runs.fd)
        found = [{name.removesuffix(suffix) for name in names if name.endswith(suffix)} for suffix in (RECORD, JOURNAL)]
        records, journals = ({run for run in runs if is_run_id(run)} for runs in found)
        return records, journals

    def _read_killed(self, run: str) -> FleetReport | None:
        """Return the report of a run that was killed; None if it is under way, or its journal says nothing."""
        try:
            content = read_journal(self._runs, run)
            return None if content is None else _report_of_killed(run, content)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as exc:
            self._note(run + JOURNAL, exc)
            return None

    def _note(self, name: str, exc: Exception) -> None:
        why = exc.message if isinstance(exc, StageError) else getattr(exc, "strerror", None) or str(exc)
        path = escape(os.path.join(self._runs.path, name))
        self._on_note(f"{path} is ignored: {escape(why).rstrip('.')}. Move it away if you do not need it.")


def _encode_report(report: FleetReport) -> bytes:
    raw = report.to_dict()
    results = raw["results"] = [shorten(result) for result in raw["results"]]
    data = encode_line(raw)
    if len(data) > _MAX_BYTES:  # hundreds of peers that fail as verbosely as they can
        for result in results:
            if result["report"] is not None:
                result["report"].update(failures=[], notes=[])
        data = encode_line(raw)
    return data


def _keep_wanted(raw: dict[str, Any], wants: Callable[[str], bool]) -> dict[str, Any]:
    """Return a record without the results of peers that are not wanted; what is damaged stays, to be found."""
    results = raw.get("results")
    if not isinstance(results, list):
        return raw
    return {**raw, "results": [result for result in results if _may_be_wanted(result, wants)]}


def _may_be_wanted(result: Any, wants: Callable[[str], bool]) -> bool:
    peer = result.get("peer") if isinstance(result, dict) else None
    return not isinstance(peer, str) or wants(peer)


def _parse_report(run: str, raw: Any) -> FleetReport:
    schema = raw.get("schema") if isinstance(raw, dict) else None
    if not isinstance(schema, int) or isinstance(schema, bool):
        raise ValueError("it is not the record of a run")
    if schema > SCHEMA:
        raise ValueError(f"a newer version of peerstage has written it (schema {schema})")
    report = FleetReport.from_dict(raw)
    if report.run != run:
        raise ValueError(f"it is the record of run {report.run}")
    if not is_day(report.day):
        raise ValueError("its day is invalid")
    return report


def _report_of_killed(run: str, content: JournalContent) -> FleetReport:
    """Return the report of a run that left only its journal."""
    report = _parse_report(run, {**content.head, "results": []})
    results = tuple(
        content.results.get(peer) or _result_of_killed(peer, is_started=peer in content.started)
        for peer in content.peers
    )
    return dataclasses.replace(
        report,
        seconds=max(0.0, content.ended - report.started),
        results=results,
        ended_by="killed",
        error=f"{_KILLED} before it was done. Run again: only what is missing is fetched.",
        reason=Reason.RUN_KILLED,
    )


def _result_of_killed(peer: str, *, is_started: bool) -> PeerResult:
    when = "while it staged this peer" if is_started else "before it began with this peer"
    verdict = Verdict.FAILED if is_started else Verdict.NOT_STARTED
    return PeerResult.unstaged(peer, verdict, Reason.RUN_KILLED, f"{_KILLED} {when}.")

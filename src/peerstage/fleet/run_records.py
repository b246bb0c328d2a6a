"""The records of the runs in a pool: one file ``RUN.json`` for each, in the runs directory."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

from peerstage.errors import StageError
from peerstage.exit_codes import CODES
from peerstage.fleet.results import SCHEMA, FleetReport, PeerResult, Verdict
from peerstage.fleet.run_id import is_run_id, start_time_of
from peerstage.fleet.run_journal import SUFFIX as JOURNAL
from peerstage.fleet.run_journal import JournalContent, parse_journal
from peerstage.fleet.run_lock import is_locked
from peerstage.fleet.runs_directory import RunsDirectory
from peerstage.printable import escape
from peerstage.reasons import Reason
from peerstage.records import MIB
from peerstage.target.file_descriptors import NO_FOLLOW, READ_WITHOUT_WAITING, closing

_log = logging.getLogger("peerstage.fleet")

SUFFIX = ".json"
_MAX_BYTES = 64 * MIB
#: Records are kept for so many seconds; and so many in any case, in case the clock has once been far ahead.
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

    def newest_first(self) -> Iterator[FleetReport]:
        """Yield the report of each run that has ended, the newest first; each is read when it is asked for.

        A run that was killed is among them, made of its journal. One that is under way is not.

        Raises:
            TargetError: If the directory cannot be read.
        """
        records, journals = self._list()
        for run in sorted(records | journals, reverse=True):
            report = self.read(run)
            if report is not None:
                yield report

    def of_day(self, day: str) -> list[FleetReport]:
        """Return the reports of the runs that have ended of the daily directory *day*, the newest first.

        Args:
            day: The daily directory, ``YYYY/MM/DD``.

        Raises:
            TargetError: If the directory cannot be read.
        """
        return [report for report in self.newest_first() if report.day == day]

    def read(self, run: str) -> FleetReport | None:
        """Return the report of the run with the id *run*; None, with a note, if it cannot be read.

        None without a note: there is no such run, or it is under way.
        """
        try:
            return _parse_record(run, self._runs.read(run + SUFFIX, _MAX_BYTES))
        except FileNotFoundError:
            return self._read_killed(run)
        except (OSError, ValueError) as exc:
            self._note(run + SUFFIX, exc)
            return None

    def write(self, report: FleetReport) -> None:
        """Write the record of a run that has ended, and remove its journal. At every instant, it is whole or absent.

        Raises:
            TargetError: If it cannot be written. The journal remains.
        """
        with self._runs.errors("The record of the run cannot be written"):
            self._runs.write(report.run + SUFFIX, json.dumps(report.to_dict()).encode() + b"\n")
        with contextlib.suppress(OSError):
            self._runs.remove(report.run + JOURNAL)

    def close_killed(self) -> list[FleetReport]:
        """Write the records of runs that were killed, of their journals, and return them. The caller holds the lock.

        Raises:
            TargetError: If the disk is full or failed.
        """
        found = []
        records, journals = self._list()
        for run in sorted(journals):
            if run not in records:
                report = self._read_killed(run)
                if report is not None:
                    self.write(report)
                    found.append(report)
            else:  # killed between writing the record and removing the journal
                with contextlib.suppress(OSError):
                    self._runs.remove(run + JOURNAL)
        return found

    def remove_old(self, now: float | None = None) -> None:
        """Remove the records of runs that started more than `KEPT_SECONDS` ago, but keep the last `KEPT_RECORDS`.

        Args:
            now: Seconds since the epoch; None for the present.

        Raises:
            TargetError: If the directory cannot be read. A failed removal is only logged.
        """
        before = (time.time() if now is None else now) - KEPT_SECONDS
        for run in sorted(self._list()[0], reverse=True)[KEPT_RECORDS:]:
            started = start_time_of(run)
            if started is not None and started < before:
                with contextlib.suppress(OSError):
                    self._runs.remove(run + SUFFIX)

    def _list(self) -> tuple[set[str], set[str]]:
        """Return the ids of runs that have a record, and of those that have a journal."""
        with self._runs.errors("The records cannot be listed"):
            names = os.listdir(self._runs.fd)
        found = [{name.removesuffix(suffix) for name in names if name.endswith(suffix)} for suffix in (SUFFIX, JOURNAL)]
        records, journals = ({run for run in runs if is_run_id(run)} for runs in found)
        return records, journals

    def _read_killed(self, run: str) -> FleetReport | None:
        """Return the report of a run that was killed; None if it is under way, or its journal says nothing."""
        name = run + JOURNAL
        try:
            with closing(os.open(name, READ_WITHOUT_WAITING | NO_FOLLOW, dir_fd=self._runs.fd)) as fd:
                if is_locked(fd, self._runs):
                    return None
                ended = os.fstat(fd).st_mtime
            content = parse_journal(self._runs.read(name, _MAX_BYTES))
            return None if content is None else _report_of_killed(run, content, ended)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as exc:
            self._note(name, exc)
            return None

    def _note(self, name: str, exc: Exception) -> None:
        why = exc.message if isinstance(exc, StageError) else getattr(exc, "strerror", None) or str(exc)
        path = escape(os.path.join(self._runs.path, name))
        self._on_note(f"{path} is ignored: {escape(why).rstrip('.')}.")


def _parse_record(run: str, data: bytes) -> FleetReport:
    try:
        raw = json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return _parse_report(run, raw)


def _parse_report(run: str, raw: Any) -> FleetReport:
    schema = raw.get("schema") if isinstance(raw, dict) else None
    if not isinstance(schema, int) or isinstance(schema, bool):
        raise ValueError("it is not the record of a run")
    if schema > SCHEMA:
        raise ValueError(f"a newer version of peerstage has written it (schema {schema})")
    report = FleetReport.from_dict(raw)
    if report.run != run:
        raise ValueError(f"it is the record of run {report.run}")
    return report


def _report_of_killed(run: str, content: JournalContent, ended: float) -> FleetReport:
    """Return the report of a run that left only its journal."""
    base = _parse_report(run, {**content.head, "results": [], "ended_by": "killed", "error": None, "reason": None})
    results = tuple(
        content.results.get(peer) or _result_of_killed(peer, is_started=peer in content.started)
        for peer in content.peers
    )
    return FleetReport(
        run=base.run,
        plan=base.plan,
        staging=base.staging,
        target=base.target,
        day=base.day,
        started=base.started,
        seconds=max(0.0, ended - base.started),
        results=results,
        ended_by="killed",
        error=f"{_KILLED} before it was done. Run again: only what is missing is fetched.",
        reason=Reason.RUN_KILLED,
    )


def _result_of_killed(peer: str, *, is_started: bool) -> PeerResult:
    when = "while it staged this peer" if is_started else "before it began with this peer"
    return PeerResult(
        peer=peer,
        verdict=Verdict.FAILED if is_started else Verdict.NOT_STARTED,
        reason=Reason.RUN_KILLED,
        error=f"{_KILLED} {when}.",
        exit=CODES[Reason.RUN_KILLED],
    )

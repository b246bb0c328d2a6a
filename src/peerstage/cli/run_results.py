"""Results of ``run``: its events, and the table at the end, with what needs action first."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from peerstage.cli.results import Line, Result, format_count, format_size
from peerstage.exit_codes import ExitCode
from peerstage.fleet.events import Event
from peerstage.fleet.plan import FleetPlan
from peerstage.fleet.results import FleetReport, PeerResult, Verdict
from peerstage.printable import escape, join_first
from peerstage.reasons import Reason

#: The states of peers in the order of the table, each with its style; "suspect" is a staged peer with a flag.
_STATES = {
    "failed": "bold red",
    "incomplete": "red",
    "suspect": "yellow",
    "not ready": "yellow",
    "not started": "dim",
    "staged": "green",
}
_STATE_WIDTH = max(map(len, _STATES)) + 1
#: Peers that were not started share a row, which names this many.
MAX_NAMED = 5


@dataclass(frozen=True, slots=True)
class EventResult(Result):
    """An event, which only ``--json`` prints."""

    event: Event

    def to_json(self) -> list[dict[str, Any]]:
        return [self.event.to_dict()]

    def to_lines(self) -> Iterator[Line]:
        return iter(())


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary(Result):
    """The end of a run, for people.

    Attributes:
        report: The report of the run.
        plan: The plan.
        is_quiet: Whether rows that need no action are left out, and everything if there is no other.
        is_again: Whether peers were asked that had been staged on the same day.
    """

    report: FleetReport
    plan: FleetPlan
    is_quiet: bool = False
    is_again: bool = False

    @property
    def needs_action(self) -> bool:
        """Whether action is needed: a peer that counts is not as it should be, or the run itself failed."""
        report = self.report
        return report.error is not None or report.ended_by is not None or any(map(_needs_action, report.results))

    def to_json(self) -> list[dict[str, Any]]:
        return []  # the last event says it

    def to_lines(self) -> Iterator[Line]:
        if self.is_quiet and not self.needs_action:
            return
        results = [result for result in self.report.results if not self.is_quiet or _needs_action(result)]
        if self.is_quiet:
            yield f"{self._counts()} ", f"-> {escape(self.report.target)}"
        rows = list(_rows(results))
        if rows:
            yield ()
            yield from _format_rows(rows)
            yield ()
        if not self.is_quiet:
            yield (self._counts(),)
        yield (self._totals(),)
        if advice := self._advice():
            yield (advice,)

    def _counts(self) -> str:
        results = self.report.results
        counts = [(sum(_state(result) == state for result in results), state) for state in _STATES]
        return f"{format_count(len(results), 'peer')}: " + ", ".join(f"{n} {state}" for n, state in counts if n)

    def _totals(self) -> str:
        report = self.report
        staged = f"{format_count(report.files, 'file')}, {format_size(report.bytes)}, {format_seconds(report.seconds)}."
        return f"{staged} Ended by a signal." if report.ended_by else f"{staged} Exit code {int(report.exit)}."

    def _advice(self) -> str:
        """Return the sentence about another run, where it is true."""
        missing = [result for result in self.report.results if result.verdict is not Verdict.STAGED]
        if not missing:
            return ""
        if self.is_again and any(result.verdict is Verdict.NOT_STARTED for result in missing):
            return "Run it again with --again: otherwise, peers that were staged today are not asked."
        jobs = {job.name: job for job in self.plan.peers}
        if all(result.report is None or jobs[result.peer].can_link for result in missing):
            return "Run it again safely: only what is missing is fetched."
        return "Run it again safely: peers that are staged are not asked again."


def _state(result: PeerResult) -> str:
    if result.verdict is Verdict.STAGED:
        return "suspect" if result.flags else "staged"
    return str(result.verdict).replace("-", " ")


def _needs_action(result: PeerResult) -> bool:
    return not result.ignored and _state(result) != "staged"


@dataclass(frozen=True, slots=True)
class _Row:
    state: str
    name: str
    texts: Sequence[str]


def _rows(results: Sequence[PeerResult]) -> Iterator[_Row]:
    """Yield the rows by state; within a state in the plan's order."""
    for state in _STATES:
        found = [result for result in results if _state(result) == state]
        if state == "not started" and len(found) > 1:
            names = join_first([result.peer for result in found], MAX_NAMED)
            yield _Row(state, format_count(len(found), "peer"), [names])
            continue
        for result in found:
            is_told = result.next is None or result.reason is Reason.CANCELLED  # the last line says to run it again
            step = [] if is_told else [f"next: {escape(result.next or '')}"]
            yield _Row(state, result.peer, [_describe(result), *step])


def _describe(result: PeerResult) -> str:
    report = result.report
    ignored = " (ignored)" if result.ignored else ""
    if result.verdict is Verdict.STAGED and report is not None:
        linked = f" ({report.linked:,} linked)" if report.linked else ""
        staged = f"{format_count(report.files, 'file')}{linked}, {format_size(report.bytes)}"
        if result.flags:
            return f"staged, but only {staged} [{', '.join(map(str, result.flags))}]{ignored}"
        return f"{staged}, by an earlier run" if result.earlier_run else f"{staged}, {format_seconds(result.seconds)}"
    staged = "" if report is None else f"{format_count(report.files, 'file')} staged; "
    marked = "" if report is None or result.marked else "; not marked"
    reason = "" if result.reason is None else f"  [{result.reason}]"
    return f"{staged}{_shorten(result).rstrip('.')}{marked}{reason}{ignored}"


def _shorten(result: PeerResult) -> str:
    """Return the error; only its first sentence if the others are advice, in whose place there is a next step."""
    text = escape(result.error or "")
    is_about_peer = result.exit in (ExitCode.NOT_READY, ExitCode.UNREACHED, ExitCode.INCOMPLETE)
    return text.partition(". ")[0] if is_about_peer and result.next is not None else text


def _format_rows(rows: Sequence[_Row]) -> Iterator[Line]:
    width = max(len(row.name) for row in rows) + 1
    for row in rows:
        yield (f"{row.state:{_STATE_WIDTH}}", _STATES[row.state]), f"{row.name:{width}} ", row.texts[0]
        for text in row.texts[1:]:
            yield " " * (_STATE_WIDTH + width + 1), text


def make_strict(result: PeerResult) -> PeerResult:
    """Return *result* with the exit code of an incomplete peer if it is flagged."""
    exit_code = max(result.exit, ExitCode.INCOMPLETE) if result.flags else result.exit
    return dataclasses.replace(result, exit=exit_code)


def format_seconds(seconds: float) -> str:
    """Return a duration in at most two units: ``41 s``, ``3 min 20 s``, ``2 h 45 min``, ``3 d 4 h``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min" + (f" {whole % 60} s" if whole % 60 else "")
    if whole < 86_400:
        return f"{whole // 3600} h" + (f" {whole % 3600 // 60} min" if whole % 3600 // 60 else "")
    return f"{whole // 86_400} d" + (f" {whole % 86_400 // 3600} h" if whole % 86_400 // 3600 else "")

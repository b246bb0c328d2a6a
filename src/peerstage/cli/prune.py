"""The verb ``prune``, and its result."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from peerstage.cli import options
from peerstage.cli.output import Output, print_error
from peerstage.cli.results import Line, Result, failure_to_json, format_count, format_size
from peerstage.cli.signals import cancel_on_signal
from peerstage.errors import TargetError
from peerstage.exit_codes import ExitCode, code_of
from peerstage.fleet.plan_file import DEFAULT_PLAN, read_plan
from peerstage.fleet.prune import prune
from peerstage.fleet.prune.report import KeptDay, Kind, PruneReport
from peerstage.printable import escape

_STYLES = {"removed": "green", "would remove": "yellow", "kept": "dim", "failed": "red"}


def prune_verb(
    *,
    plan: options.Plan = DEFAULT_PLAN,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="List what would be removed; write nothing.")
    ] = False,
    output: Output,
) -> int:
    """Remove the daily directories that are older than the plan's keep_days.

    The newest keep_days days on which any peer was staged completely are kept. Of the days before them, those go whole
    that runs made and that hold nothing else; but not the last complete night of any peer. Each old day that is kept
    is listed with the reason.

    The exit status is 75 if a run uses the staging directory.
    """
    fleet = read_plan(plan)
    cancelled = threading.Event()
    with cancel_on_signal(cancelled.set):
        report = prune(fleet, dry_run=dry_run, is_cancelled=cancelled.is_set)
        result = PruneResult(report)
        output.show(result)
        if result.error is not None:
            print_error(result.error)
    return result.exit


@dataclass(frozen=True, slots=True)
class PruneResult(Result):
    """The result of ``prune``."""

    report: PruneReport

    @property
    def error(self) -> TargetError | None:
        """The error of the first day that could not be removed; None if there is no such day."""
        return self.report.failure()

    @property
    def exit(self) -> ExitCode:
        """The exit code."""
        return ExitCode.DONE if self.error is None else code_of(self.error)

    def to_json(self) -> list[dict[str, Any]]:
        return [{"verb": "prune", **self.report.to_dict(), **failure_to_json(self.error), "exit": self.exit}]

    def to_lines(self) -> Iterator[Line]:
        report = self.report
        label = "would remove" if report.dry_run else "removed"
        rows = [(day.day, "failed", day.why) for day in report.failed]
        rows += [(day.day, "kept", day.why) for day in report.kept if day.kind is not Kind.UNKNOWN]
        rows += _describe_unknown([day for day in report.kept if day.kind is Kind.UNKNOWN])
        for day in report.removed:
            rest = ", the rest of an interrupted removal" if day.is_rest else ""
            rows.append((day.day, label, f"{format_count(day.files, 'file')}, {format_size(day.bytes)} freed{rest}"))
        for name, status, text in sorted(rows):
            yield (f"{status:>14}", _STYLES[status]), f" {name}  {text}"
        yield (f"{escape(report.staging)}: {self._summary()}",)

    def _summary(self) -> str:
        report = self.report
        verb = "would be removed" if report.dry_run else "removed"
        parts = [f"{format_count(len(report.removed), 'day')} {verb}, {format_size(report.bytes)} freed"]
        parts += [
            f"{len(days)} {status}" for status, days in (("kept", report.kept), ("failed", report.failed)) if days
        ]
        end = "; not finished: prune again to continue" if report.is_unfinished else ""
        return f"{', '.join(parts)}{end}"


def _describe_unknown(days: list[KeptDay]) -> list[tuple[str, str, str]]:
    """Return one row for all days that no run made: there may be years of them."""
    if len(days) < 2:
        return [(day.day, "kept", day.why) for day in days]
    text = f"and {len(days) - 1} later days until {days[-1].day}: no record says that runs made them"
    return [(days[0].day, "kept", text)]

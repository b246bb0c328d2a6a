"""The verb ``verify``, and its result."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from peerstage.cli.named_peers import PlanNames
from peerstage.cli.output import Output, print_error
from peerstage.cli.results import Line, Result, failure_to_json
from peerstage.errors import StageError
from peerstage.exit_codes import ExitCode, code_of
from peerstage.fleet.pool.history import find_latest_night
from peerstage.printable import escape
from peerstage.reasons import Reason
from peerstage.target.verify import CHANGED, EXTRA, MISSING, UNREADABLE, VerifyReport, verify

_STYLES = {MISSING: "red", CHANGED: "red", UNREADABLE: "red", EXTRA: "yellow"}


def verify_verb(
    directories: Annotated[
        list[str],
        typer.Argument(
            metavar="DIR|PEER",
            help="Directories that were staged into with --manifest; or names in the plan, for the latest night.",
        ),
    ],
    *,
    plan_names: PlanNames,
    output: Output,
) -> int:
    """Compare staged files with their manifest.

    Each DIR has a manifest if it was staged into with --manifest, or by run. A PEER of the plan stands for the
    directory of its latest night; write ./PEER for a directory of that name. Every file is read.
    """
    highest = ExitCode.DONE
    for directory in directories:
        report: VerifyReport | None = None
        try:
            found = plan_names.find(directory)
            if found is not None:
                plan, job = found
                directory = find_latest_night(plan.staging, job.name)
            with output.progress("verifying") as on_progress:
                report = verify(directory, on_progress=on_progress)
            error = _failure(report)
        except StageError as exc:
            error = exc
        output.show(VerifyResult(directory=directory, report=report, error=error))
        if error is not None:
            print_error(error)
            highest = max(highest, code_of(error))
    return highest


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyResult(Result):
    """The result of ``verify`` for one directory.

    Attributes:
        directory: The directory, as given.
        report: What was found; None if the files were not compared.
        error: Why the directory is not verified; None if it is intact.
    """

    directory: str
    report: VerifyReport | None
    error: StageError | None

    def to_json(self) -> list[dict[str, Any]]:
        return [
            {
                "verb": "verify",
                "directory": self.directory,
                "status": "failed" if self.report is None else "different" if self.error else "intact",
                **failure_to_json(self.error),
                "exit": ExitCode.DONE if self.error is None else code_of(self.error),
                "report": None if self.report is None else json.loads(self.report.to_json()),
            }
        ]

    def to_lines(self) -> Iterator[Line]:
        report = self.report
        if report is None:
            return
        for difference in report.differences:
            error = "" if difference.error is None else f": {difference.error}"
            yield (f"{difference.kind:>14}", _STYLES[difference.kind]), f" {escape(difference.name)}{error}"
        rate = report.bytes / 1e6 / max(report.seconds, 1e-3)
        yield (
            f"{escape(self.directory)}: {report.files} files in the manifest, {report.bytes} bytes read "
            f"in {report.seconds:.1f} s ({rate:.1f} MB/s), {_count(report) or 'all intact'}",
        )


def _failure(report: VerifyReport) -> StageError | None:
    """Return the error for a directory that differs from its manifest; None for one that is intact."""
    if report.is_intact:
        return None
    if report.is_unfinished:
        advice = "A stage into it is running, or was killed: stage again, then verify again."
    elif {difference.kind for difference in report.differences} == {EXTRA}:
        advice = "Move away what does not belong there."
    else:
        advice = "If the peer still has the files, stage again; otherwise restore them from another copy."
    message = f"It differs from its manifest: {_count(report)}. {advice}"
    return StageError(message, path=report.directory, reason=Reason.VERIFICATION_FAILED)


def _count(report: VerifyReport) -> str:
    """Return how many files differ in which way."""
    counts = Counter(difference.kind for difference in report.differences)
    return ", ".join(f"{counts[kind]} {kind}" for kind in _STYLES if counts[kind])

"""Convert what check, stage and mark of a peer returned or raised to its result."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from peerstage.errors import IncompleteStage, NothingToStage, StageError
from peerstage.exit_codes import reason_of
from peerstage.fleet.plan import PeerJob
from peerstage.fleet.results import Flag, PeerResult, StageSummary, Verdict, code_of_reason
from peerstage.printable import escape
from peerstage.reasons import Reason
from peerstage.records import Indicators, StageReport
from peerstage.system_errors import resource_error

_SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class NotReady:
    """Why a peer cannot be staged yet. It may be asked again.

    Attributes:
        peer: The peer's name in the plan.
        reason: `Reason.NOT_READY` or `Reason.STALE`.
        error: The same as a printable sentence.
    """

    peer: str
    reason: Reason
    error: str

    def to_result(self) -> PeerResult:
        """Return the result of a peer that is not asked again."""
        return PeerResult(
            peer=self.peer,
            verdict=Verdict.NOT_READY,
            reason=self.reason,
            error=self.error,
            exit=code_of_reason(self.reason),
        )


def check_indicators(job: PeerJob, indicators: Indicators, *, may_repeat: bool, now: float) -> NotReady | None:
    """Return why the peer cannot be staged; None if it can.

    Args:
        job: The peer.
        indicators: Its indicators.
        may_repeat: Whether files that were staged before may be staged again.
        now: The time by this machine's clock, for `PeerJob.indicator_max_age`.
    """
    found = indicators.collect
    if found is None:
        return NotReady(job.name, Reason.NOT_READY, f"There is no {escape(job.collect_indicator)}.")
    if job.indicator_max_age is not None and found.mtime is not None and now - found.mtime > job.indicator_max_age:
        age, maximum = _hours(now - found.mtime), _hours(job.indicator_max_age)
        text = f"{escape(job.collect_indicator)} is {age} old; the maximum is {maximum}."
        return NotReady(job.name, Reason.STALE, text)
    if indicators.stage_is_newer and not may_repeat:
        names = escape(job.stage_indicator), escape(job.collect_indicator)
        text = "{} is newer than {}: the peer has not collected since it was staged.".format(*names)
        return NotReady(job.name, Reason.STALE, text)
    return None


def result_of_report(job: PeerJob, report: StageReport | None, target: str) -> PeerResult:
    """Return the result of a stage that raised nothing, before the peer is marked.

    Args:
        job: The peer.
        report: The report; None if there was nothing to stage, which `PeerJob.allow_empty` allows.
        target: The peer's directory, as its path reads for people.
    """
    summary = None if report is None else _summarize(job, report, target)
    files, size = (0, 0) if summary is None else (summary.files, summary.bytes)
    is_small = job.min_bytes is not None and size < job.min_bytes
    flags = (Flag.SMALLER,) if is_small else ()
    if size == 0 and not job.allow_empty:
        text = f"All {files} files are empty." if files else "There are no files but the indicators."
        return PeerResult(
            peer=job.name,
            verdict=Verdict.INCOMPLETE,
            flags=(Flag.EMPTY, *flags),
            reason=Reason.NOTHING_TO_STAGE,
            error=text,
            exit=code_of_reason(Reason.NOTHING_TO_STAGE),
            report=summary,
        )
    return PeerResult(peer=job.name, verdict=Verdict.STAGED, flags=flags, report=summary)


def result_of_error(
    job: PeerJob, error: BaseException, target: str = "", *, report: StageReport | None = None
) -> PeerResult:
    """Return the result of a peer for which *error* was raised, whatever it is.

    Args:
        job: The peer.
        error: The error.
        target: The peer's directory, as its path reads for people.
        report: The report of the stage, if it was complete, and something after it failed.
    """
    error = resource_error(error) or error
    if isinstance(error, StageError):
        report = report or error.report
    reason = reason_of(error)
    is_incomplete = isinstance(error, (IncompleteStage, NothingToStage))
    return PeerResult(
        peer=job.name,
        verdict=Verdict.INCOMPLETE if is_incomplete else Verdict.FAILED,
        flags=(Flag.EMPTY,) if isinstance(error, NothingToStage) else (),
        reason=reason,
        error=_describe(error),
        exit=code_of_reason(reason),
        report=None if report is None else _summarize(job, report, target),
    )


def result_of_not_started(peer: str, reason: Reason, error: str) -> PeerResult:
    """Return the result of a peer that was not asked, because the run ended before, or could not start it."""
    return PeerResult(peer=peer, verdict=Verdict.NOT_STARTED, reason=reason, error=error, exit=code_of_reason(reason))


def _summarize(job: PeerJob, report: StageReport, target: str) -> StageSummary:
    return StageSummary.of(report, target, (job.collect_indicator, job.stage_indicator))


def _describe(error: BaseException) -> str:
    """Return *error* as printable text, without the peer's name."""
    if isinstance(error, StageError):
        path = "" if error.path is None else f"{escape(error.path)}: "
        return path + escape(error.message)
    if isinstance(error, ValueError):
        return escape(str(error))
    text = ""
    with contextlib.suppress(Exception):  # that of another library may have any text, or none
        text = f": {error}"
    return escape(f"Unexpected {type(error).__name__}{text}")


def _hours(seconds: float) -> str:
    return f"{seconds / _SECONDS_PER_HOUR:.1f} h"

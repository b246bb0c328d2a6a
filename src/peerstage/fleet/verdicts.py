"""Convert what check, stage and mark of a peer returned or raised to its result."""

from __future__ import annotations

import contextlib

from peerstage.errors import IncompleteStage, NothingToStage, StageError
from peerstage.exit_codes import reason_of
from peerstage.fleet.plan import PeerJob
from peerstage.fleet.results import Flag, PeerResult, StageSummary, Verdict
from peerstage.printable import escape
from peerstage.reasons import Reason
from peerstage.records import Indicators, StageReport
from peerstage.system_errors import resource_error

_SECONDS_PER_HOUR = 3600.0


def check_indicators(job: PeerJob, indicators: Indicators, *, may_repeat: bool, now: float) -> PeerResult | None:
    """Return the result of a peer that is not ready; None if it can be staged.

    Args:
        job: The peer.
        indicators: Its indicators.
        may_repeat: Whether files that were staged before may be staged again.
        now: The time by this machine's clock, for `PeerJob.indicator_max_age`.
    """
    found = indicators.collect
    if found is None:
        text = f"There is no {escape(job.collect_indicator)}."
        return PeerResult.unstaged(job.name, Verdict.NOT_READY, Reason.NOT_READY, text)
    if job.indicator_max_age is not None and found.mtime is not None and now - found.mtime > job.indicator_max_age:
        age, maximum = _hours(now - found.mtime), _hours(job.indicator_max_age)
        text = f"{escape(job.collect_indicator)} is {age} old; the maximum is {maximum}."
        return PeerResult.unstaged(job.name, Verdict.NOT_READY, Reason.STALE, text)
    if indicators.stage_is_newer and not may_repeat:
        names = escape(job.stage_indicator), escape(job.collect_indicator)
        text = "{} is newer than {}: the peer has not collected since it was staged.".format(*names)
        return PeerResult.unstaged(job.name, Verdict.NOT_READY, Reason.STALE, text)
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
        flags = (Flag.EMPTY, *flags)
        reason = Reason.NOTHING_TO_STAGE
        return PeerResult.unstaged(job.name, Verdict.INCOMPLETE, reason, text, flags=flags, report=summary)
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
    is_incomplete = isinstance(error, (IncompleteStage, NothingToStage))
    return PeerResult.unstaged(
        job.name,
        Verdict.INCOMPLETE if is_incomplete else Verdict.FAILED,
        reason_of(error),
        _describe(error),
        flags=(Flag.EMPTY,) if isinstance(error, NothingToStage) else (),
        report=None if report is None else _summarize(job, report, target),
    )


def result_of_not_started(peer: str, reason: Reason, error: str) -> PeerResult:
    """Return the result of a peer that was not asked, because the run ended before, or could not start it."""
    return PeerResult.unstaged(peer, Verdict.NOT_STARTED, reason, error)


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

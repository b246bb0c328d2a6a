"""What a check, a stage or a mark returned or raised, as the verdict of the peer."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from peerstage import Indicators, PeerJob, PeerResult, Reason, Verdict
from peerstage.errors import (
    Cancelled,
    ConfigurationError,
    ConnectError,
    IncompleteStage,
    LoginError,
    NothingToStage,
    RemoteError,
    StageError,
    TargetError,
)
from peerstage.exit_codes import ExitCode
from peerstage.fleet.results import Flag
from peerstage.fleet.verdicts import (
    check_indicators,
    result_of_error,
    result_of_not_started,
    result_of_report,
)
from peerstage.records import FileResult, RemoteFile, StageReport

HOUR = 3600


def job(**options: Any) -> PeerJob:
    return PeerJob(name="db1", collect_dir="/collect", user="backup", **options)


def report(*sizes: int, failed: int = 0) -> StageReport:
    """Return the report of files of these sizes, and of the indicator."""
    files = [FileResult("cback.collect", 7), *(FileResult(f"f{number}", size) for number, size in enumerate(sizes))]
    bad = [FileResult(f"bad{number}", error="It is a directory.", reason=Reason.NOT_A_FILE) for number in range(failed)]
    return StageReport("db1", "sftp", "/anchored", files=tuple(files), refused=tuple(bad))


# Readiness


def judge(
    collect: RemoteFile | None, stage: RemoteFile | None = None, *, may_repeat: bool = False, **options: Any
) -> PeerResult | None:
    return check_indicators(job(**options), Indicators(collect, stage), may_repeat=may_repeat, now=100 * HOUR)


def test_a_peer_with_its_indicator_is_ready() -> None:
    assert judge(RemoteFile(0, 10)) is None
    assert judge(RemoteFile()) is None


def test_a_peer_without_its_indicator_is_not() -> None:
    found = judge(None, collect_indicator="done")
    assert found == PeerResult(
        peer="db1",
        verdict=Verdict.NOT_READY,
        reason=Reason.NOT_READY,
        error="There is no done.",
        exit=ExitCode.NOT_READY,
    )


def test_a_peer_that_was_staged_since_it_collected_is_stale() -> None:
    found = judge(RemoteFile(0, 10), RemoteFile(0, 11))
    assert found is not None
    assert found.reason is Reason.STALE
    assert found.verdict is Verdict.NOT_READY
    assert judge(RemoteFile(0, 10), RemoteFile(0, 10)) is None, "within a second, nobody knows"
    assert judge(RemoteFile(0, 10), RemoteFile(0, 9)) is None


def test_unknown_times_are_never_stale() -> None:
    assert judge(RemoteFile(), RemoteFile(0, 11), indicator_max_age=1) is None
    assert judge(RemoteFile(0, 100 * HOUR), RemoteFile()) is None


def test_what_was_staged_before_is_staged_again_on_request() -> None:
    assert judge(RemoteFile(0, 10), RemoteFile(0, 11), may_repeat=True) is None


@pytest.mark.parametrize(("age", "is_stale"), [(19.9, False), (20, False), (20.1, True)])
def test_an_indicator_has_a_maximum_age(age: float, is_stale: bool) -> None:
    found = judge(RemoteFile(0, int((100 - age) * HOUR)), indicator_max_age=20 * HOUR, may_repeat=True)
    assert (found is not None) == is_stale
    if found is not None:
        assert found.error == "cback.collect is 20.1 h old; the maximum is 20.0 h."


# What was staged


def test_a_good_stage_is_staged_and_yet_to_be_marked() -> None:
    result = result_of_report(job(), report(3, 4), "/pool/db1")
    assert (result.verdict, result.flags, result.reason, result.exit) == (Verdict.STAGED, (), None, 0)
    assert not result.marked
    assert result.report is not None
    assert (result.report.files, result.report.bytes, result.report.target) == (2, 7, "/pool/db1")


@pytest.mark.parametrize("sizes", [(), (0,), (0, 0)])
def test_a_stage_of_nothing_but_empty_files_is_incomplete(sizes: tuple[int, ...]) -> None:
    result = result_of_report(job(), report(*sizes), "/pool/db1")
    assert (result.verdict, result.flags, result.reason) == (Verdict.INCOMPLETE, (Flag.EMPTY,), Reason.NOTHING_TO_STAGE)
    assert result.exit is ExitCode.INCOMPLETE
    assert result.report is not None


@pytest.mark.parametrize("found", [None, report(), report(0)])
def test_it_is_complete_where_that_is_allowed(found: StageReport | None) -> None:
    result = result_of_report(job(allow_empty=True), found, "/pool/db1")
    assert (result.verdict, result.flags, result.exit) == (Verdict.STAGED, (), 0)


@pytest.mark.parametrize(("size", "flags"), [(9, (Flag.SMALLER,)), (10, ())])
def test_a_small_stage_is_flagged_and_counts_as_staged(size: int, flags: tuple[Flag, ...]) -> None:
    result = result_of_report(job(min_bytes=10), report(size), "/pool/db1")
    assert (result.verdict, result.flags, result.exit) == (Verdict.STAGED, flags, 0)


# Errors


@pytest.mark.parametrize(
    ("error", "verdict", "exit_code"),
    [
        (ConnectError("It failed.", reason=Reason.CONNECTION_REFUSED), Verdict.FAILED, 4),
        (LoginError("It failed.", reason=Reason.LOGIN_REFUSED), Verdict.FAILED, 4),
        (RemoteError("It failed.", reason=Reason.PERMISSION_DENIED), Verdict.FAILED, 4),
        (IncompleteStage("It failed.", report=report(1, failed=1)), Verdict.INCOMPLETE, 5),
        (NothingToStage("It failed."), Verdict.INCOMPLETE, 5),
        (TargetError("It failed.", reason=Reason.NO_SPACE), Verdict.FAILED, 6),
        (ConfigurationError("It failed."), Verdict.FAILED, 2),
        (ValueError("wrong"), Verdict.FAILED, 2),
        (MemoryError(), Verdict.FAILED, 6),
        (RuntimeError("can't start new thread"), Verdict.FAILED, 6),
        (KeyError("bug"), Verdict.FAILED, 1),
        (SystemExit(3), Verdict.FAILED, 1),
        (UnicodeDecodeError("utf-8", b"", 0, 1, "bug"), Verdict.FAILED, 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_every_error_is_a_verdict(error: BaseException, verdict: Verdict, exit_code: int) -> None:
    result = result_of_error(job(), error, "/pool/db1")
    assert (result.verdict, result.exit, result.marked) == (verdict, exit_code, False)
    assert result.error


def test_the_text_of_an_error_names_the_path_and_not_the_peer() -> None:
    error = RemoteError("Permission denied.", peer="db1", path=b"/collect\n", reason=Reason.PERMISSION_DENIED)
    assert result_of_error(job(), error).error == "/collect\\n: Permission denied."
    assert result_of_error(job(), LookupError("x\n")).error == "Unexpected LookupError: x\\n"


def test_an_error_whose_text_cannot_be_made_is_still_a_verdict() -> None:
    class Broken(Exception):
        def __str__(self) -> str:
            raise KeyError

    result = result_of_error(job(), Broken())
    assert result.verdict is Verdict.FAILED
    assert result.error == "Unexpected Broken"


def test_what_was_published_before_an_error_is_in_the_result() -> None:
    half = TargetError("I/O error", errno=errno.EIO, reason=Reason.LOCAL_IO_ERROR, report=report(5))
    assert summary_of(result_of_error(job(), half)) == (1, 5)
    assert summary_of(result_of_error(job(), Cancelled(""), report=report(6))) == (1, 6)
    assert result_of_error(job(), StageError("", reason=Reason.STALLED)).report is None


def summary_of(result: PeerResult) -> tuple[int, int]:
    assert result.report is not None
    return result.report.files, result.report.bytes


def test_a_peer_that_was_not_started_says_why() -> None:
    result = result_of_not_started("db1", Reason.CANCELLED, "The run was cancelled before.")
    assert (result.verdict, result.attempts, result.started) == (Verdict.NOT_STARTED, 0, 0.0)
    assert result.error == "The run was cancelled before."

"""What the end of an ``scp -f DIRECTORY/*`` means, by exit status, stderr and messages."""

from __future__ import annotations

import itertools

import pytest

from peerstage.errors import RemoteError
from peerstage.reasons import Reason
from peerstage.transport.scp.outcome import Received, Verdict, exit_error, judge, refusal_error

NO_SUCH_FILE = "scp: /c/*: No such file or directory"
DENIED = "scp: /c/*: Permission denied"


@pytest.mark.parametrize(
    ("received", "exit_status", "stderr", "verdict"),
    [
        # files and warnings
        (Received(files=2), 0, b"", Verdict.COMPLETE),
        (Received(files=2), 1, b"", Verdict.FAILED),
        (Received(files=2, warnings=1), 1, b"", Verdict.COMPLETE),
        (Received(files=2, warnings=1, ends_with_warning=True), 1, b"", Verdict.COMPLETE),
        (Received(warnings=1, ends_with_warning=True), 1, b"", Verdict.COMPLETE),
        (Received(files=2, warnings=1), 0, b"", Verdict.COMPLETE),
        (Received(files=2, warnings=1, ends_with_warning=True), 0, b"", Verdict.MAYBE_INCOMPLETE),
        (Received(warnings=1, ends_with_warning=True), 0, b"", Verdict.MAYBE_INCOMPLETE),
        (Received(files=2, warnings=1), 2, b"", Verdict.FAILED),
        (Received(files=1), 255, b"", Verdict.FAILED),
        (Received(files=1), 1, b"no match", Verdict.FAILED),
        # files that were declined
        (Received(files=2, declined=1), 1, b"", Verdict.COMPLETE),
        (Received(files=2, declined=2), 0, b"", Verdict.COMPLETE),
        (Received(files=2, declined=2), 2, b"", Verdict.FAILED),
        # nothing at all
        (Received(), 0, b"", Verdict.COMPLETE),
        (Received(), 0, b"noise", Verdict.COMPLETE),
        (Received(), 1, b"", Verdict.REFUSED),
        (Received(), 127, b"sh: scp: not found", Verdict.REFUSED),
        (Received(), 1, b"scp: No match.", Verdict.NO_MATCH),
        (Received(), 1, b"zsh:1: no matches found: /c/*", Verdict.NO_MATCH),
        # nothing but a warning about the glob
        (Received(warnings=1, ends_with_warning=True, glob_warning=NO_SUCH_FILE), 1, b"", Verdict.NO_MATCH),
        (Received(warnings=1, ends_with_warning=True, glob_warning=NO_SUCH_FILE), 0, b"", Verdict.NO_MATCH),
        (Received(warnings=1, ends_with_warning=True, glob_warning=DENIED), 1, b"", Verdict.UNREADABLE),
        (Received(warnings=1, ends_with_warning=True, glob_warning=DENIED), 0, b"", Verdict.UNREADABLE),
    ],
)
def test_the_end_is_judged_by_messages_status_and_stderr(
    received: Received, exit_status: int, stderr: bytes, verdict: Verdict
) -> None:
    assert judge(received, exit_status, stderr) is verdict


@pytest.mark.parametrize(
    ("files", "warnings", "glob_warning"), list(itertools.product([0, 1], [0, 1], [None, NO_SUCH_FILE, DENIED]))
)
def test_without_an_exit_status_the_connection_is_lost(files: int, warnings: int, glob_warning: str | None) -> None:
    received = Received(files=files, warnings=warnings, glob_warning=glob_warning)
    assert judge(received, None, b"no match") is Verdict.CONNECTION_LOST


@pytest.mark.parametrize(
    ("error", "reason", "words"),
    [
        (exit_error(b"", 127, b"/c"), Reason.NO_SCP, "Install OpenSSH"),
        (exit_error(b"sh: Argument list too long", 126, b"/c"), Reason.COMMAND_TOO_LONG, "fewer files"),
        (exit_error(b"denied", 126, b"/c"), Reason.COMMAND_REFUSED, "printed 'denied'"),
        (exit_error(b"", None, b"/c", reason=Reason.COMMAND_FAILED), Reason.COMMAND_FAILED, "without an exit status"),
        (refusal_error("x: Permission denied", b"/c/f"), Reason.PERMISSION_DENIED, "read permission"),
        (refusal_error("x: Permission denied.", b"/c/f", is_write=True), Reason.WRITE_DENIED, "chmod u+w /c"),
        (refusal_error("lost", b"/c/f"), Reason.REMOTE_FAILURE, "refused: lost."),
    ],
)
def test_an_error_has_its_reason_and_advice(error: RemoteError, reason: Reason, words: str) -> None:
    assert error.reason is reason
    assert words in str(error)

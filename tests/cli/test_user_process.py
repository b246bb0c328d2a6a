"""Results of a child process are validated."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from typing import Any

import pytest

from cli.host_keys import OTHER
from peerstage.cli.arguments import PeerSpec
from peerstage.cli.doctor_results import DoctorResult, StepResult
from peerstage.cli.host_scan import HostScan, ScanOutcome
from peerstage.cli.results import Line, Table
from peerstage.cli.trust_results import HostKeyResult, PresentedKeys
from peerstage.cli.user_process import MAX_RESULT, ResultReader
from peerstage.errors import ConnectError, ProtocolError, StageError, UnknownHostKey
from peerstage.exit_codes import ExitCode
from peerstage.reasons import Reason

PRESENTED = base64.b64decode(OTHER)
STEP = StepResult(step="login", state="failed", seen="a\nb", cause="c", remedy="d", reason=Reason.LOGIN_REFUSED)
SCAN = HostScan(
    names=[("db1", 22), ("192.0.2.1", 22)],
    port=22,
    new_keys_file="/home/backup/.ssh/known_hosts",
    presented=PRESENTED,
    error=UnknownHostKey("no key is known"),
    is_new_host=True,
    unwanted_keys=(PRESENTED,),
)


def through_a_pipe(message: dict[str, Any]) -> Any:
    received: list[Any] = []
    reader = ResultReader(received.append)
    line = json.dumps(message).encode() + b"\n"
    for at in range(0, len(line), 7):
        reader.feed(line[at : at + 7])
    return received[0]


def test_a_step_arrives_as_it_was_sent() -> None:
    assert StepResult.from_message(through_a_pipe(STEP.to_message())) == STEP


def test_a_scan_arrives_as_it_was_sent() -> None:
    outcome = ScanOutcome.from_message(through_a_pipe(ScanOutcome(SCAN, None).to_message()))
    assert outcome.scan is not None
    assert str(outcome.scan.error) == str(SCAN.error)
    for name in ("names", "port", "new_keys_file", "presented", "basis", "is_new_host", "unwanted_keys"):
        assert getattr(outcome.scan, name) == getattr(SCAN, name)


@pytest.mark.parametrize("error", [ConnectError("refused", reason=Reason.CONNECTION_REFUSED), RuntimeError("boom")])
def test_an_error_arrives_with_its_message(error: Exception) -> None:
    outcome = ScanOutcome.from_message(through_a_pipe(ScanOutcome(None, error).to_message()))
    assert isinstance(outcome.error, StageError)
    assert str(error) in str(outcome.error)
    assert (outcome.error.reason is Reason.CHILD_ENDED) is not isinstance(error, ConnectError)


@pytest.mark.parametrize(
    "message",
    [
        None,
        [],
        {},
        "x",
        {**STEP.to_message(), "reason": "no-such"},
        {**STEP.to_message(), "reason": None},
        {**STEP.to_message(), "state": "\x1b[2Jok"},
        {**STEP.to_message(), "state": ["ok"]},
    ],
)
def test_an_invalid_step_is_a_violation(message: Any) -> None:
    with pytest.raises(ProtocolError):
        StepResult.from_message(message)


def texts_of(items: Iterable[Line | Table]) -> list[str]:
    """Return what is printed, line by line, without the styles."""
    lines = [item for item in items if not isinstance(item, Table)]
    return ["".join(part if isinstance(part, str) else part[0] for part in line) for line in lines]


@pytest.mark.parametrize("name", ["step", "seen", "cause", "remedy"])
def test_a_step_of_a_child_process_cannot_forge_lines_or_control_the_terminal(name: str) -> None:
    message = {**STEP.to_message(), "seen": "", name: "x\n\x1b[2Jok\u202e"}
    step = StepResult.from_message(through_a_pipe(message))
    verdict = DoctorResult(peer=PeerSpec("u", "db1"), steps=[step])
    for items in (step.to_lines(), step.to_terminal(), verdict.to_lines()):
        assert all(text.isprintable() for text in texts_of(items))


def test_a_key_type_of_a_child_process_cannot_control_the_terminal() -> None:
    host = HostKeyResult(host="db1", key_type="x\n\x1b[2J", fingerprint="SHA256:x", state="new", exit=ExitCode.DONE)
    for items in (PresentedKeys([host]).to_lines(), PresentedKeys([host]).to_terminal()):
        assert all(text.isprintable() for text in texts_of(items))


_SCAN = ScanOutcome(SCAN, None).to_message()


@pytest.mark.parametrize(
    "message",
    [
        None,
        {},
        {**_SCAN, "scan": None},
        {**_SCAN, "scan": {}},
        {**_SCAN, "scan": {**_SCAN["scan"], "presented": "AAAA"}},
        {**_SCAN, "scan": {**_SCAN["scan"], "presented": "%"}},
        {**_SCAN, "scan": {**_SCAN["scan"], "names": [["db1"]]}},
        {**_SCAN, "scan": {**_SCAN["scan"], "error": {"kind": "NoSuch", "message": "x"}}},
        {**_SCAN, "error": {"kind": "ConnectError", "message": "x", "reason": "connect-failed"}},
    ],
)
def test_an_invalid_scan_is_a_violation(message: Any) -> None:
    with pytest.raises(ProtocolError):
        ScanOutcome.from_message(message)


@pytest.mark.parametrize("data", [b"{\n", b"\xff\n", b"x" * (MAX_RESULT + 1), b"[" * 100_000 + b"\n"])
def test_invalid_json_is_a_violation(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        ResultReader(lambda message: None).feed(data)

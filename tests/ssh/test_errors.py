"""Errors: a documented tree, pickling, printable messages, and a translation for every exception of paramiko."""

from __future__ import annotations

import copy
import copyreg
import inspect
import json
import pickle
from typing import Any

import paramiko
import pytest
from paramiko import ssh_exception

from peerstage import errors
from peerstage.errors import ConnectError, ConnectionLost, LimitExceeded, Location, LoginAttempt, LoginError, StageError
from peerstage.peer.local import IncompleteLocalStage
from peerstage.printable import escape
from peerstage.reasons import Reason
from peerstage.records import FileResult, Limits, StageReport
from peerstage.ssh._paramiko.exceptions import PeerViolation
from peerstage.ssh.paramiko_errors import translate_exception

#: Context that only one class has.
DETAILS: dict[type[StageError], dict[str, Any]] = {
    ConnectError: {"algorithm_kind": "cipher"},
    LimitExceeded: {"limit": "stall_timeout"},
    LoginError: {"attempts": (LoginAttempt("~/.ssh/id", Reason.PASSPHRASE_MISSING, "it has one", "/root/.ssh/id"),)},
}
OURS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, StageError)]


@pytest.mark.parametrize("kind", [*OURS, IncompleteLocalStage])
def test_errors_pickle_with_their_context(kind: type[StageError]) -> None:
    details = DETAILS.get(kind, {})
    report = StageReport("peer", "sftp", "/t", files=(FileResult("a", 1),))
    error = kind(
        "What.",
        peer="peer",
        path=b"/x/\xff",
        transient=True,
        report=report,
        errno=28,
        reason=Reason.STALLED,
        hop="jump:22",
        location=Location("/etc/ssh/ssh_config", 7),
        **details,
    )
    copied: Any = pickle.loads(pickle.dumps(error))
    assert type(copied) is kind
    assert {name: getattr(copied, name) for name in details} == details
    assert (copied.reason, copied.hop, str(copied.location)) == (Reason.STALLED, "jump:22", "/etc/ssh/ssh_config:7")
    assert (copied.message, copied.peer, copied.path, copied.transient, copied.report, copied.errno) == (
        "What.",
        "peer",
        b"/x/\xff",
        True,
        report,
        28,
    )
    assert str(copied) == str(error) == "peer /x/\\xff: What."
    assert isinstance(copied, OSError)


def test_a_copy_has_no_traceback_whatever_other_libraries_do_to_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """As tblib does, which Dask loads."""

    def reduce(error: ConnectError) -> tuple[Any, ...]:
        return lambda: error, ()

    monkeypatch.setitem(copyreg.dispatch_table, ConnectError, reduce)
    try:
        raise ConnectError("What.", reason=Reason.STALLED) from ValueError()
    except ConnectError as exc:
        copied = copy.copy(exc)
    assert (copied.message, copied.reason) == ("What.", Reason.STALLED)
    assert copied.__traceback__ is copied.__cause__ is copied.__context__ is None


def test_docstring_shows_the_exception_tree() -> None:
    drawn = errors.__doc__ or ""
    for kind in OURS:
        assert kind.__name__ in drawn
    assert ConnectionLost("x").transient
    assert not StageError("x", reason=Reason.STALLED).transient


@pytest.mark.parametrize(
    "text", ["a\nb", "a\x1b[2Jb", "a\u202eb", "a\u2028b", "a\x85b", "a\udcffb", b"a\xff\nb", "\x7f"]
)
def test_text_of_a_peer_becomes_one_printable_line(text: str | bytes) -> None:
    assert escape(text).isprintable()
    assert str(StageError("x", peer="p", path=text, reason=Reason.STALLED)).isprintable()


def test_printable_text_is_unchanged() -> None:
    assert escape("/srv/größe ☃") == "/srv/größe ☃"


#: Arguments of paramiko's exceptions; a new exception needs a line here, and a row in paramiko_errors.
KEY = paramiko.ECDSAKey.generate()
THEIRS: dict[str, tuple[Any, ...]] = {
    "SSHException": ("boom\nboom",),
    "AuthenticationException": ("x",),
    "PasswordRequiredException": ("x",),
    "BadAuthenticationType": ("x", ["publickey"]),
    "PartialAuthentication": (["password"],),
    "UnableToAuthenticate": ("x",),
    "ChannelException": (2, "Connect failed"),
    "BadHostKeyException": ("host", KEY, KEY),
    "IncompatiblePeer": ("no acceptable ciphers",),
    "ProxyCommandFailure": ("nc", "x"),
    "NoValidConnectionsError": ({("127.0.0.1", 22): OSError(111, "Connection refused")},),
    "CouldNotCanonicalize": ("host",),
    "ConfigParseError": ("x",),
    "MessageOrderError": ("x",),
}
OTHERS = [
    EOFError(),
    TimeoutError(),
    ConnectionResetError(104, "Connection reset by peer"),
    KeyError(99),
    ValueError("x"),
]


def foreign() -> list[BaseException]:
    """Return an instance of every exception that paramiko and sockets raise."""
    kinds = {
        name: kind
        for name, kind in inspect.getmembers(ssh_exception, inspect.isclass)
        if issubclass(kind, Exception) and kind.__module__ == ssh_exception.__name__
    }
    return [*(kind(*THEIRS[name]) for name, kind in kinds.items()), *OTHERS]


@pytest.mark.parametrize("logged_in", [True, False])
@pytest.mark.parametrize("exc", foreign(), ids=lambda exc: type(exc).__name__)
def test_every_exception_of_paramiko_is_translated(exc: BaseException, logged_in: bool) -> None:
    ours = translate_exception(exc, logged_in=logged_in)
    assert isinstance(ours, StageError)
    assert str(ours).isprintable()
    if not logged_in:
        assert not ours.transient


@pytest.mark.parametrize("exc", [paramiko.SSHException("x"), PeerViolation("x"), ConnectionResetError(104, "reset")])
def test_the_port_is_doubted_only_until_the_server_has_identified_itself(exc: BaseException) -> None:
    assert "listens on this port" in translate_exception(exc, logged_in=False).message
    identified = translate_exception(exc, logged_in=False, has_identified_itself=True)
    assert identified.message.endswith("See the log of its sshd.")


def test_connection_without_an_exception_is_lost() -> None:
    assert isinstance(translate_exception(None, logged_in=True), ConnectionLost)


@pytest.mark.parametrize(
    "values",
    [
        {"entries": 0},
        {"entries": True},
        {"deadline": -1},
        {"stall_timeout": float("inf")},
        {"stall_timeout": "1"},
        {"min_rate": None},
        {"packet_bytes": 1e6},
        {"total_bytes": None},
        {"total_bytes": 0},
        {"file_bytes": 0},
        {"free_bytes": -1},
        {"free_bytes": None},
    ],
)
def test_limits_must_be_finite_and_positive_and_those_on_bytes_and_entries_integers(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="Limits"):
        Limits(**values)


def test_report_survives_json_and_rejects_anything_else() -> None:
    files = (
        FileResult("a\udcff", 3),
        FileResult("b", error="no", reason=Reason.VANISHED),
        FileResult("c", 4, outcome="resumed"),
        FileResult("d", 5, outcome="linked"),
        FileResult("e", 6, outcome="left-out"),
    )
    left_out = (FileResult("f", 7, error="no", outcome="left-out", reason=Reason.EXCLUDED),)
    report = StageReport("p", "sftp", "/t", files=files, left_out=left_out)
    assert StageReport.from_json(report.to_json()) == report
    assert (report.count, report.bytes, len(report.failed)) == (3, 12, 1)
    assert json.loads(report.to_json())["schema"] == 1
    assert [one["outcome"] for one in json.loads(report.to_json())["files"]] == [
        "staged", "failed", "resumed", "linked", "left-out",
    ]  # fmt: skip
    for text in ("", "[]", "{}", '{"peer": 1}', "nonsense"):
        with pytest.raises(ValueError, match="report"):
            StageReport.from_json(text)


def test_report_of_a_later_version_can_be_read() -> None:
    report = StageReport("p", "sftp", "/t", files=(FileResult("a", error="no", reason=Reason.VANISHED),))
    later = json.loads(report.to_json())
    later.update(schema=2, encrypted=True)
    later["files"][0].update(reason="eaten-by-a-grue", checksum="x")
    read = StageReport.from_json(json.dumps(later))
    assert read.schema == 2
    assert read.files == (FileResult("a", error="no", outcome="failed", reason=None),)


def test_report_of_an_earlier_version_can_be_read() -> None:
    earlier = json.loads(StageReport("p", "sftp", "/t").to_json())
    del earlier["left_out"]
    assert StageReport.from_json(json.dumps(earlier)) == StageReport("p", "sftp", "/t")


@pytest.mark.parametrize("schema", ["1", None, True, []])
def test_report_with_an_invalid_schema_is_rejected(schema: object) -> None:
    text = json.dumps({**json.loads(StageReport("p", "sftp", "/t").to_json()), "schema": schema})
    with pytest.raises(ValueError, match="schema"):
        StageReport.from_json(text)

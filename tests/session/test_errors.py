"""Errors: the tree is whole, they travel, they are one line, and nothing foreign stays unmapped."""

from __future__ import annotations

import inspect
import pickle
from typing import Any

import paramiko
import pytest
from paramiko import ssh_exception

from peerstage import errors
from peerstage.errors import ConnectionLost, StageError, escape
from peerstage.peer.local import IncompleteLocalStage
from peerstage.records import FileResult, Limits, StageReport
from peerstage.session.mapping import translate

OURS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, StageError)]


@pytest.mark.parametrize("kind", [*OURS, IncompleteLocalStage])
def test_errors_travel_with_all_they_carry(kind: type[StageError]) -> None:
    report = StageReport("peer", "sftp", "/t", files=(FileResult("a", 1),))
    error = kind("What.", peer="peer", path=b"/x/\xff", transient=True, report=report, errno=28)
    copy: Any = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert (copy.message, copy.peer, copy.path, copy.transient, copy.report, copy.errno) == (
        "What.",
        "peer",
        b"/x/\xff",
        True,
        report,
        28,
    )
    assert str(copy) == str(error) == "peer /x/\\xff: What."
    assert isinstance(copy, OSError)


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = errors.__doc__ or ""
    for kind in OURS:
        assert kind.__name__ in drawn
    assert ConnectionLost("x").transient
    assert not StageError("x").transient


@pytest.mark.parametrize(
    "text", ["a\nb", "a\x1b[2Jb", "a\u202eb", "a\u2028b", "a\x85b", "a\udcffb", b"a\xff\nb", "\x7f"]
)
def test_what_a_peer_says_becomes_one_printable_line(text: str | bytes) -> None:
    assert escape(text).isprintable()
    assert str(StageError("x", peer="p", path=text)).isprintable()


def test_what_is_printable_stays_as_it_is() -> None:
    assert escape("/srv/größe ☃") == "/srv/größe ☃"


#: How each of paramiko's exceptions is made; a new one has to get its line here, and its row in the mapping.
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
    """One of everything that paramiko and sockets raise."""
    kinds = {
        name: kind
        for name, kind in inspect.getmembers(ssh_exception, inspect.isclass)
        if issubclass(kind, Exception) and kind.__module__ == ssh_exception.__name__
    }
    return [*(kind(*THEIRS[name]) for name, kind in kinds.items()), *OTHERS]


@pytest.mark.parametrize("logged_in", [True, False])
@pytest.mark.parametrize("exc", foreign(), ids=lambda exc: type(exc).__name__)
def test_nothing_that_paramiko_raises_stays_unmapped(exc: BaseException, logged_in: bool) -> None:
    ours = translate(exc, logged_in=logged_in)
    assert isinstance(ours, StageError)
    assert str(ours).isprintable()
    if not logged_in:
        assert not ours.transient


def test_a_connection_that_just_ended_is_lost() -> None:
    assert isinstance(translate(None, logged_in=True), ConnectionLost)


@pytest.mark.parametrize(
    "values", [{"entries": 0}, {"deadline": -1}, {"stall_timeout": float("inf")}, {"min_rate": None}]
)
def test_limits_are_finite_and_positive(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="Limits"):
        Limits(**values)


def test_a_report_reads_back_what_it_wrote_and_refuses_anything_else() -> None:
    report = StageReport("p", "sftp", "/t", files=(FileResult("a\udcff", 3), FileResult("b", error="no")))
    assert StageReport.from_json(report.to_json()) == report
    assert (report.count, report.bytes, len(report.failed)) == (1, 3, 1)
    for text in ("", "[]", "{}", '{"peer": 1}', "nonsense"):
        with pytest.raises(ValueError, match="report"):
            StageReport.from_json(text)

"""Errors that a child reports: all that they carry arrives, and nothing that a child may not say."""

from __future__ import annotations

import json
from typing import Any

import pytest

from peerstage.errors import (
    ConfigurationError,
    ConnectError,
    LimitExceeded,
    Location,
    LoginAttempt,
    LoginError,
    NotRegular,
    ProtocolError,
    RemoteError,
    StageError,
)
from peerstage.isolation.frames import MOST_BODY, Fail, FrameParser, encode
from peerstage.isolation.messages import error_from, error_to
from peerstage.reasons import Reason

ERRORS: list[StageError] = [
    ConnectError("No.", reason=Reason.NO_COMMON_ALGORITHM, algorithm="host key", hop="user@[::1]:22"),
    ConfigurationError("No.", reason=Reason.UNKNOWN_KEYWORD, location=Location("/home/u/.ssh/config", 7)),
    LimitExceeded("No.", reason=Reason.STALLED, limit="stall_timeout"),
    NotRegular("No.", reason=Reason.VANISHED, path=b"/x/\xff"),
    RemoteError("No.", reason=Reason.REMOTE_NO_SPACE, errno=28),
    LoginError(
        "No.",
        reason=Reason.AGENT_SILENT,
        attempts=(
            LoginAttempt("agent at /run/a", Reason.AGENT_SILENT, "no answer within 2 s", "/run/a"),
            LoginAttempt("~/.ssh/id", Reason.PASSPHRASE_MISSING, "it has a passphrase", "/home/u/.ssh/id", "ssh-rsa"),
        ),
    ),
]


def context_of(error: StageError) -> dict[str, Any]:
    return {name: getattr(error, name) for name in error.context}


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_what_an_error_carries_arrives_whole(error: StageError) -> None:
    (arrived,) = FrameParser().feed(memoryview(encode(Fail(0, error))))
    assert isinstance(arrived, Fail)
    assert type(arrived.error) is type(error)
    assert context_of(arrived.error) == context_of(error)


def said(**changes: object) -> dict[str, object]:
    return {"kind": "RemoteError", "reason": "remote-failure", "message": "No.", "path": None, "errno": None, **changes}


def of_login(*attempts: object) -> dict[str, object]:
    return said(kind="LoginError", reason="login-refused", attempts=attempts and list(attempts))


@pytest.mark.parametrize(
    "raw",
    [
        said(reason=None),
        said(reason="because"),
        said(reason=["stalled"]),
        said(reason="incomplete-stage"),
        said(reason="not-ready"),
        said(hop=22),
        said(location=["/etc/x"]),
        said(location=["/etc/x", -1]),
        said(location=[None, 1]),
        said(location="/etc/x:1"),
        said(kind="LimitExceeded", limit="patience"),
        said(kind="LimitExceeded", limit=None),
        said(kind="ConnectError", algorithm="\x1b[31m"),
        of_login("x"),
        of_login(["x", "because", "y", "", ""]),
        of_login(["x", "login-refused", "y", ""]),
        of_login(["x", "login-refused", None, "", ""]),
        of_login(*[["x", "login-refused", "y", "", ""]] * 17),
        said(kind="LoginError", attempts={}),
    ],
)
def test_what_a_child_may_not_say_is_refused(raw: dict[str, object]) -> None:
    with pytest.raises(ProtocolError) as caught:
        error_from(json.loads(json.dumps(raw)))
    assert caught.value.reason is Reason.CHILD_VIOLATION


def test_what_belongs_to_another_kind_of_error_is_not_looked_at() -> None:
    error = error_from(said(limit="patience", algorithm=7, attempts=7))
    assert context_of(error) == context_of(RemoteError("No.", reason=Reason.REMOTE_FAILURE))


def test_the_longest_error_fits_into_a_frame() -> None:
    wide = "\U0001f600" * 100_000  # twelve bytes each in JSON
    attempts = (LoginAttempt(wide, Reason.LOGIN_REFUSED, wide, "\U0001f600" * 512, wide),) * 100
    location = Location("\U0001f600" * 512, 2**31 - 1)
    error = LoginError(
        wide, reason=Reason.LOGIN_REFUSED, path=b"\xff" * 100_000, hop=wide, location=location, attempts=attempts
    )
    frame = encode(Fail(0, error))
    assert len(frame) < MOST_BODY
    (arrived,) = FrameParser().feed(memoryview(frame))
    assert isinstance(arrived, Fail)
    assert isinstance(arrived.error, LoginError)
    assert len(arrived.error.attempts) == 16


def test_a_path_that_is_too_long_is_left_out_and_not_cut() -> None:
    attempt = LoginAttempt("x", Reason.KEY_FILE_PERMISSIONS, "y", "/" * 513)
    error = error_from(
        error_to(LoginError("No.", reason=Reason.LOGIN_REFUSED, location=Location("/" * 513), attempts=(attempt,)))
    )
    assert (error.location, error.attempts[0].path) == (None, "")

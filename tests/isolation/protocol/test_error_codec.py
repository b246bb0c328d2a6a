"""Errors that a child reports arrive with all their attributes; invalid ones are rejected."""

from __future__ import annotations

import json
from typing import Any

import pytest

from peerstage.errors import (
    ConfigurationError,
    ConnectError,
    ConnectionLost,
    LimitExceeded,
    Location,
    LoginAttempt,
    LoginError,
    NotRegular,
    ProtocolError,
    RemoteError,
    StageError,
)
from peerstage.isolation.protocol.error_codec import decode_error, encode_error
from peerstage.isolation.protocol.frames import (
    MAX_BODY,
    Fail,
    FrameParser,
    encode_frame,
)
from peerstage.reasons import Reason

ERRORS: list[StageError] = [
    ConnectError("No.", reason=Reason.NO_COMMON_ALGORITHM, algorithm_kind="host key", hop="user@[::1]:22"),
    ConfigurationError("No.", reason=Reason.UNKNOWN_KEYWORD, location=Location("/home/u/.ssh/config", 7)),
    LimitExceeded("No.", reason=Reason.STALLED, limit="stall_timeout", transient=True),
    ConnectionLost("No.", transient=False),
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
def test_an_error_arrives_with_all_its_attributes(error: StageError) -> None:
    (arrived,) = FrameParser().feed(memoryview(encode_frame(Fail(0, error))))
    assert isinstance(arrived, Fail)
    assert type(arrived.error) is type(error)
    assert context_of(arrived.error) == context_of(error)


def fields(**changes: object) -> dict[str, object]:
    return {"kind": "RemoteError", "reason": "remote-failure", "message": "No.", "path": None, "errno": None, **changes}


def login_error(*attempts: object) -> dict[str, object]:
    return fields(kind="LoginError", reason="login-refused", attempts=attempts and list(attempts))


@pytest.mark.parametrize(
    "raw",
    [
        fields(reason=None),
        fields(reason="because"),
        fields(reason=["stalled"]),
        fields(reason="incomplete-stage"),
        fields(reason="not-ready"),
        fields(transient=None),
        fields(transient=1),
        fields(hop=22),
        fields(location=["/etc/x"]),
        fields(location=["/etc/x", -1]),
        fields(location=[None, 1]),
        fields(location="/etc/x:1"),
        fields(kind="LimitExceeded", limit="patience"),
        fields(kind="LimitExceeded", limit=None),
        fields(kind="ConnectError", algorithm_kind="\x1b[31m"),
        login_error("x"),
        login_error(["x", "because", "y", "", ""]),
        login_error(["x", "login-refused", "y", ""]),
        login_error(["x", "login-refused", None, "", ""]),
        login_error(*[["x", "login-refused", "y", "", ""]] * 17),
        fields(kind="LoginError", attempts={}),
    ],
)
def test_an_invalid_error_is_rejected(raw: dict[str, object]) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode_error(json.loads(json.dumps(raw)))
    assert caught.value.reason is Reason.CHILD_VIOLATION


def test_attributes_of_another_class_of_error_are_ignored() -> None:
    error = decode_error(fields(limit="patience", algorithm_kind=7, attempts=7))
    assert context_of(error) == context_of(RemoteError("No.", reason=Reason.REMOTE_FAILURE))


def test_the_longest_error_fits_into_a_frame() -> None:
    wide = "\U0001f600" * 100_000  # twelve bytes each in JSON
    attempts = (LoginAttempt(wide, Reason.LOGIN_REFUSED, wide, "\U0001f600" * 512, wide),) * 100
    location = Location("\U0001f600" * 512, 2**31 - 1)
    error = LoginError(
        wide, reason=Reason.LOGIN_REFUSED, path=b"\xff" * 100_000, hop=wide, location=location, attempts=attempts
    )
    frame = encode_frame(Fail(0, error))
    assert len(frame) < MAX_BODY
    (arrived,) = FrameParser().feed(memoryview(frame))
    assert isinstance(arrived, Fail)
    assert isinstance(arrived.error, LoginError)
    assert len(arrived.error.attempts) == 16


def test_a_local_path_that_is_too_long_is_omitted_and_not_truncated() -> None:
    attempt = LoginAttempt("x", Reason.KEY_FILE_PERMISSIONS, "y", "/" * 513)
    error = decode_error(
        encode_error(LoginError("No.", reason=Reason.LOGIN_REFUSED, location=Location("/" * 513), attempts=(attempt,)))
    )
    assert (error.location, error.attempts[0].path) == (None, "")

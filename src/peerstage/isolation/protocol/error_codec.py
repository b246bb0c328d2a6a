"""Errors as JSON: a child reports them; the parent checks and truncates every field."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from peerstage import errors
from peerstage.errors import LoginAttempt, StageError
from peerstage.isolation.protocol.values import (
    bytes_to_text,
    child_violation,
    parse_bool,
    parse_bytes,
    parse_choice,
    parse_int,
    parse_items,
    parse_text,
)
from peerstage.reasons import Reason
from peerstage.records import Limits

#: Characters of a message, of a path on the peer, and of a label or a short description.
_MAX_MESSAGE = 4096
_MAX_PATH = 4096
_MAX_LABEL = 200
#: Characters of a local path; a longer one is omitted, as a truncated path would name another file.
_MAX_LOCAL_PATH = 512
_MAX_ATTEMPTS = 16

#: Errors that a child may report; an `IncompleteStage` is for the parent to raise, which has the report.
_CLASSES: dict[str, type[Exception]] = {
    name: value
    for name, value in vars(errors).items()
    if isinstance(value, type) and issubclass(value, StageError) and value is not errors.IncompleteStage
}
_CLASSES["ValueError"] = ValueError
_REASONS = frozenset(reason.value for reason in Reason) - {Reason.INCOMPLETE_STAGE, Reason.NOT_READY}
_LIMITS = frozenset({"", *(field.name for field in dataclasses.fields(Limits))})


def encode_error(error: Exception) -> dict[str, Any]:
    """Return *error* as the fields that a child sends."""
    if not isinstance(error, StageError):
        return {"kind": "ValueError", "message": str(error)[:_MAX_MESSAGE]}
    fields: dict[str, Any] = {
        "kind": type(error).__name__,
        "reason": error.reason,
        "message": error.message[:_MAX_MESSAGE],
        "path": None if error.path is None else bytes_to_text(os.fsencode(error.path)[:_MAX_PATH]),
        "errno": error.errno,
        "transient": error.transient,
    }
    if error.hop:
        fields["hop"] = error.hop[:_MAX_LABEL]
    if error.location is not None and len(error.location.path) <= _MAX_LOCAL_PATH:
        fields["location"] = error.location
    if isinstance(error, errors.ConnectError) and error.algorithm_kind:
        fields["algorithm_kind"] = error.algorithm_kind
    if isinstance(error, errors.LimitExceeded) and error.limit:
        fields["limit"] = error.limit
    if isinstance(error, errors.LoginError) and error.attempts:
        fields["attempts"] = [
            [
                attempt.label[:_MAX_LABEL],
                attempt.reason,
                attempt.outcome[:_MAX_LABEL],
                attempt.path if len(attempt.path) <= _MAX_LOCAL_PATH else "",
                attempt.key_type[:_MAX_LABEL],
            ]
            for attempt in error.attempts[:_MAX_ATTEMPTS]
        ]
    return fields


def decode_error(fields: Any) -> Any:
    """Return the error that a child reports, with every field checked and truncated.

    Raises:
        ProtocolError: If it is not an error that a child may report.
    """
    if not isinstance(fields, dict):
        raise child_violation("The child process sent an invalid error.")
    kind = _CLASSES.get(str(fields.get("kind")))
    message = parse_text(fields.get("message"), "message", _MAX_MESSAGE)
    if kind is None:
        raise child_violation(f"The child process reported an error of an invalid kind: {message[:200]}")
    if not issubclass(kind, StageError):
        return kind(message)
    path, number, location = fields.get("path"), fields.get("errno"), fields.get("location")
    return kind(
        message,
        reason=_parse_reason(fields.get("reason")),
        path=None if path is None else parse_bytes(path, "path", _MAX_PATH),
        errno=None if number is None else parse_int(number, "errno", 0, 4096),
        transient=parse_bool(fields.get("transient", kind.transient), "transience"),
        hop=parse_text(fields.get("hop", ""), "jump host", _MAX_LABEL),
        location=None if location is None else _parse_location(location),
        **_decode_details(kind, fields),
    )


def _decode_details(kind: type[StageError], fields: dict[str, Any]) -> dict[str, Any]:
    """Return the attributes that only errors of class *kind* have."""
    if kind is errors.ConnectError:
        algorithm_kind = fields.get("algorithm_kind", "")
        return {"algorithm_kind": parse_choice(algorithm_kind, "algorithm kind", errors.ALGORITHM_KINDS)}
    if kind is errors.LimitExceeded:
        return {"limit": parse_choice(fields.get("limit", ""), "limit", _LIMITS)}
    if kind is errors.LoginError:
        attempts = parse_items(fields.get("attempts", []), _MAX_ATTEMPTS)
        return {"attempts": tuple(_parse_attempt(attempt) for attempt in attempts)}
    return {}


def _parse_attempt(value: Any) -> LoginAttempt:
    label, reason, outcome, path, key_type = parse_items(value, 5, exactly=True)
    return LoginAttempt(
        parse_text(label, "label", _MAX_LABEL),
        _parse_reason(reason),
        parse_text(outcome, "outcome", _MAX_LABEL),
        parse_text(path, "path", _MAX_LOCAL_PATH),
        parse_text(key_type, "key type", _MAX_LABEL),
    )


def _parse_location(value: Any) -> errors.Location:
    path, line = parse_items(value, 2, exactly=True)
    return errors.Location(parse_text(path, "file", _MAX_LOCAL_PATH), parse_int(line, "line", 0, 2**31 - 1))


def _parse_reason(value: Any) -> Reason:
    return Reason(parse_choice(value, "reason", _REASONS))

"""What is said in JSON: settings and jobs down to a child; errors and results up, which are taken as a stranger's."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Collection
from typing import Any

from peerstage import errors
from peerstage.errors import (
    ALGORITHMS,
    ConfigurationError,
    ConnectError,
    LimitExceeded,
    Location,
    LoginAttempt,
    LoginError,
    ProtocolError,
    StageError,
)
from peerstage.reasons import Reason
from peerstage.records import Limits
from peerstage.session.options import SSHOptions
from peerstage.transport.choose import Route
from peerstage.transport.retry import Retry

#: Characters of a message that a child may have shown.
MOST_MESSAGE = 4096
_MOST_PATH = 4096

_FINGERPRINT = re.compile(r"SHA256:[A-Za-z0-9+/]{43}")

#: Characters of a label or a sentence in an error, and of a local file's path, which is left out if it is longer;
#: attempts to log in.
_MOST_LABEL = 200
_MOST_FILE = 512
_MOST_ATTEMPTS = 16

#: The errors that a child may raise here. What only this side can know of (a report) is not among them.
_KINDS: dict[str, type[Exception]] = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, StageError) and kind is not errors.IncompleteStage
}
_KINDS["ValueError"] = ValueError
#: Likewise, the reasons.
_REASONS = frozenset(reason.value for reason in Reason) - {Reason.INCOMPLETE_STAGE, Reason.NOT_READY}
_LIMITS = frozenset({"", *(field.name for field in dataclasses.fields(Limits))})

#: Options whose paths stand for themselves wherever the child's working directory is.
_PATHS = frozenset({"identity", "certificate", "config", "known_hosts", "agent"})


def encode_json(value: object) -> bytes:
    """Return *value* as JSON, ASCII alone."""
    return json.dumps(value).encode("ascii")


def decode_json(data: bytes) -> Any:
    """Return what *data* holds.

    Raises:
        ProtocolError: It is no JSON.
    """
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise ProtocolError(
            "The child process sent what is no JSON; it is not listened to any more.", reason=Reason.CHILD_VIOLATION
        ) from exc


def text_of(data: bytes) -> str:
    """Return bytes as JSON can carry them."""
    return data.decode("latin-1")


def bytes_of(text: str) -> bytes:
    """Return the bytes that `text_of` was given."""
    return text.encode("latin-1")


# Down. What comes out of these is believed: a child has nobody else to believe.


def settings(route: Route, limits: Limits, retry: Retry) -> dict[str, Any]:
    """Return all that a child has to know to assemble a stack of transports.

    Raises:
        ConfigurationError: Something in it can not be sent to another process.
    """
    options = {}
    for field in dataclasses.fields(route.ssh):
        value = getattr(route.ssh, field.name)
        options[field.name] = _pack(value, field.name, paths=field.name in _PATHS)
    plain = {field.name: getattr(route, field.name) for field in dataclasses.fields(route) if field.name != "ssh"}
    return {
        "route": {**plain, "ssh": options},
        "limits": dataclasses.asdict(limits),
        "retry": dataclasses.asdict(retry),
    }


def route_of(said: dict[str, Any]) -> Route:
    """Return the route in `settings`."""
    options = {name: _unpack(value) for name, value in said["route"]["ssh"].items()}
    return Route(**{**said["route"], "ssh": SSHOptions(**options)})


def _pack(value: Any, option: str, *, paths: bool) -> Any:
    if isinstance(value, (tuple, list)):
        return {"several": [_pack(one, option, paths=paths) for one in value]}
    if isinstance(value, os.PathLike) or (isinstance(value, bytes) and paths and option != "known_hosts"):
        value = os.fsdecode(value)
    if isinstance(value, bytes):
        return {"bytes": text_of(value)}
    if isinstance(value, str) and paths and not value.startswith("~"):
        value = _absolute(value, option)
    if value is None or isinstance(value, (str, int, float)):
        return value
    raise ConfigurationError(
        f"SSHOptions({option}=...) holds an object of this process ({type(value).__name__}), which can not be sent to "
        "the child that localUser and isolated work in. Give it as a path or as bytes."
    )


def _absolute(path: str, option: str) -> str:
    try:
        return os.path.abspath(path)
    except OSError as exc:
        raise ConfigurationError(
            f"The option {option} is the relative path {path!r}, and the current directory cannot be found "
            f"({exc.strerror}). Give an absolute path."
        ) from exc


def _unpack(value: Any) -> Any:
    if isinstance(value, dict):
        return bytes_of(value["bytes"]) if "bytes" in value else tuple(_unpack(one) for one in value["several"])
    return value


# Up.


def error_to(error: Exception) -> dict[str, Any]:
    """Return *error* as a child says it."""
    if not isinstance(error, StageError):
        return {"kind": "ValueError", "message": str(error)[:MOST_MESSAGE]}
    path = error.path
    said: dict[str, Any] = {
        "kind": type(error).__name__,
        "reason": error.reason,
        "message": error.message[:MOST_MESSAGE],
        "path": None if path is None else text_of(os.fsencode(path)[:_MOST_PATH]),
        "errno": error.errno,
    }
    if error.hop:
        said["hop"] = error.hop[:_MOST_LABEL]
    if error.location is not None and len(error.location.path) <= _MOST_FILE:
        said["location"] = error.location
    if isinstance(error, ConnectError) and error.algorithm:
        said["algorithm"] = error.algorithm
    if isinstance(error, LimitExceeded) and error.limit:
        said["limit"] = error.limit
    if isinstance(error, LoginError) and error.attempts:
        said["attempts"] = [
            [
                one.label[:_MOST_LABEL],
                one.reason,
                one.outcome[:_MOST_LABEL],
                one.path if len(one.path) <= _MOST_FILE else "",
                one.key_type[:_MOST_LABEL],
            ]
            for one in error.attempts[:_MOST_ATTEMPTS]
        ]
    return said


def error_from(raw: Any) -> Any:
    """Return the error that a child says it met: one of ours, its words cut and not believed.

    Raises:
        ProtocolError: If it is no error that a child may meet.
    """
    if not isinstance(raw, dict):
        raise _violation("error")
    kind = _KINDS.get(str(raw.get("kind")))
    message = _text(raw.get("message"), "message", MOST_MESSAGE)
    if kind is None:
        raise ProtocolError(
            f"The child process met an error of a kind that it can not meet: {message[:200]}",
            reason=Reason.CHILD_VIOLATION,
        )
    if not issubclass(kind, StageError):
        return kind(message)
    path, number, location = raw.get("path"), raw.get("errno"), raw.get("location")
    return kind(
        message,
        reason=_reason(raw.get("reason")),
        path=None if path is None else _bytes(_text(path, "path", _MOST_PATH)),
        errno=None if number is None else integer(number, "errno", 0, 4096),
        hop=_text(raw.get("hop", ""), "jump host", _MOST_LABEL),
        location=None if location is None else _location(location),
        **_details(kind, raw),
    )


def _details(kind: type[StageError], raw: dict[str, Any]) -> dict[str, Any]:
    """Return what only errors of one kind carry."""
    if kind is ConnectError:
        return {"algorithm": _one_of(raw.get("algorithm", ""), "kind of algorithm", ALGORITHMS)}
    if kind is LimitExceeded:
        return {"limit": _one_of(raw.get("limit", ""), "limit", _LIMITS)}
    if kind is LoginError:
        return {"attempts": tuple(_attempt(one) for one in _items(raw.get("attempts", []), _MOST_ATTEMPTS))}
    return {}


def _attempt(raw: Any) -> LoginAttempt:
    label, reason, outcome, path, key_type = _items(raw, 5, exactly=True)
    return LoginAttempt(
        _text(label, "label", _MOST_LABEL),
        _reason(reason),
        _text(outcome, "outcome", _MOST_LABEL),
        _text(path, "path", _MOST_FILE),
        _text(key_type, "type of key", _MOST_LABEL),
    )


def _location(raw: Any) -> Location:
    path, line = _items(raw, 2, exactly=True)
    return Location(_text(path, "file", _MOST_FILE), integer(line, "line", 0, 2**31 - 1))


def _items(raw: Any, most: int, *, exactly: bool = False) -> list[Any]:
    if not isinstance(raw, list) or len(raw) > most or (exactly and len(raw) < most):
        raise _violation("list")
    return raw


def _reason(value: Any) -> Reason:
    return Reason(_one_of(value, "reason", _REASONS))


def _one_of(value: Any, what: str, known: Collection[str]) -> str:
    if not isinstance(value, str) or value not in known:
        raise _violation(what)
    return value


def integer(value: Any, what: str, lowest: int, most: int) -> int:
    """Return *value*, a number within bounds.

    Raises:
        ProtocolError: It is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= most:
        raise _violation(what)
    return value


def fingerprint_of(value: Any) -> str | None:
    """Return *value*, the fingerprint of a host key or None.

    Raises:
        ProtocolError: It is neither.
    """
    if value is not None and not (isinstance(value, str) and _FINGERPRINT.fullmatch(value)):
        raise _violation("host key's fingerprint")
    return value


def _text(value: Any, what: str, most: int) -> str:
    if not isinstance(value, str):
        raise _violation(what)
    return value[:most]


def _bytes(text: str) -> bytes:
    try:
        return bytes_of(text)
    except UnicodeError as exc:
        raise _violation("path") from exc


def _violation(what: str) -> ProtocolError:
    return ProtocolError(f"The child process sent an invalid {what}.", reason=Reason.CHILD_VIOLATION)

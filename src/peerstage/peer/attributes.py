"""The properties of peers: typed descriptors that check every assignment."""

from __future__ import annotations

import contextlib
import os
import posixpath
import re
from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

from peerstage.paths import validate_path

T = TypeVar("T")

#: CedarBackup2's modes of ignoring failures.
FAILURE_MODES = (None, "none", "all", "daily", "weekly")

#: What a shell or an option parser would not take as part of a name.
_UNSAFE_IN_NAME = re.compile(r"[^\w.:%-]|\A-")
_UNSAFE_IN_USER = re.compile(r"[\s\x00-\x1f\x7f;&|<>()`\"'*?!{}\[\]#~]|\A-")
_BRACKETED = re.compile(r"\A\[([0-9A-Fa-f:.]+(?:%\w+)?)\]\Z")


class Checked(Generic[T]):
    """An attribute whose value is checked and normalized at every assignment.

    Args:
        check: Returns the normalized value, or raises `ValueError`.
    """

    def __init__(self, check: Callable[[Any], T]) -> None:
        self._check = check

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = "_" + name

    @overload
    def __get__(self, instance: None, owner: type) -> Checked[T]: ...
    @overload
    def __get__(self, instance: object, owner: type) -> T: ...
    def __get__(self, instance: object | None, owner: type) -> Checked[T] | T:
        if instance is None:
            return self
        value: T = getattr(instance, self._name)
        return value

    def __set__(self, instance: object, value: Any) -> None:
        setattr(instance, self._name, self._check(value))


def validate_peer_name(value: Any) -> str:
    """Return *value* if it is a host name, an address (IPv6 also in brackets), or an alias of ssh_config."""
    name = require_text(value, "Peer name")
    return name if _BRACKETED.match(name) else _require_safe(name, _UNSAFE_IN_NAME, "Peer name")


def validate_user_name(value: Any) -> str:
    """Return *value* if it is a login name."""
    return _require_safe(require_text(value, "Remote user"), _UNSAFE_IN_USER, "Remote user")


def path_validator(what: str, *, required: bool = False) -> Callable[[Any], Any]:
    """Return a function that validates a path: absolute here or on a POSIX peer; it need not exist.

    Args:
        what: The attribute, as error messages name it.
        required: Whether None is refused.
    """

    def validate(value: Any) -> str | None:
        if value is None and not required:
            return None
        path = validate_path(value, what)
        if not (os.path.isabs(path) or posixpath.isabs(path)):
            raise ValueError(f"{what} must be an absolute path: {path!r}")
        return path

    return validate


def options_validator(name: str, kind: type[T]) -> Callable[[Any], T]:
    """Return a function that accepts an instance of *kind*, and None, for which it returns ``kind()``.

    Args:
        name: The attribute, as error messages name it.
        kind: The class of its values.
    """

    def validate(value: Any) -> T:
        if value is None:
            return kind()
        if not isinstance(value, kind):
            raise ValueError(f"{name} must be of type {kind.__name__}: {value!r}")
        return value

    return validate


def text_validator(what: str) -> Callable[[Any], str | None]:
    """Return a function that accepts None and strings that are not blank; error messages call them *what*."""
    return lambda value: None if value is None else require_text(value, what)


def validate_failure_mode(value: Any) -> str | None:
    """Return *value* if it is one of `FAILURE_MODES`."""
    if value not in FAILURE_MODES:
        raise ValueError(f"Ignore failure mode must be one of {FAILURE_MODES}: {value!r}")
    return None if value is None else str(value)


def validate_indicator_name(value: Any, default: str) -> bytes:
    """Return *value*, a plain file name, as bytes; None means *default*.

    Raises:
        ValueError: If it is not a plain file name.
    """
    name = validate_path(default if value is None else value, "Indicator")
    if "/" in name or os.sep in name or name in (".", ".."):
        raise ValueError(f"Indicator must be a plain file name: {name!r}")
    return os.fsencode(name)


def strip_brackets(name: str) -> str:
    """Return the host of a peer's *name*: an IPv6 address without its brackets."""
    bracketed = _BRACKETED.match(name)
    return bracketed.group(1) if bracketed else name


def require_text(value: Any, what: str) -> str:
    """Return *value* if it is a string that is not blank, and that the operating system can take as an argument.

    Raises:
        ValueError: If it is not; the message calls it *what*.
    """
    if isinstance(value, str) and value.strip() and "\0" not in value:
        with contextlib.suppress(UnicodeError):
            os.fsencode(value)
            return value
    raise ValueError(f"{what} must be a non-blank string without NUL: {value!r}")


def _require_safe(name: str, unsafe: re.Pattern[str], what: str) -> str:
    if unsafe.search(name):
        raise ValueError(f"{what} must not begin with a dash or contain spaces, control or shell characters: {name!r}")
    return name

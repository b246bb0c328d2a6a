"""The original's properties as typed descriptors: a line each in the classes, checked at every assignment."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

from peerstage.staging import encodable_path

T = TypeVar("T")

FAILURE_MODES = (None, "none", "all", "daily", "weekly")

#: What a shell, or a program that takes options, would read as something else than a name (PARITY 2).
_UNSAFE_IN_NAME = re.compile(r"[^\w.:%-]|\A-")
_UNSAFE_IN_USER = re.compile(r"[\s\x00-\x1f\x7f;&|<>()`\"'*?!{}\[\]#~]|\A-")
_BRACKETED = re.compile(r"\A\[([0-9A-Fa-f:.]+(?:%\w+)?)\]\Z")


class Checked(Generic[T]):
    """An attribute whose value is checked, and brought into its final form, whenever it is assigned.

    Args:
        check: Returns the value to keep.

    Raises:
        ValueError: On assignment, if *check* refuses.
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


def peer_name(value: Any) -> str:
    """A host name, an address, or an alias of ssh_config; an IPv6 address may stand in brackets."""
    name = _text(value, "Peer name")
    if _UNSAFE_IN_NAME.search(name) and not _BRACKETED.match(name):
        raise ValueError(f"Peer name may not begin with a dash or hold spaces, control or shell characters: {name!r}")
    return name


def user_name(value: Any) -> str:
    """A login name."""
    name = _text(value, "Remote user")
    if _UNSAFE_IN_USER.search(name):
        raise ValueError(f"Remote user may not begin with a dash or hold spaces, control or shell characters: {name!r}")
    return name


def absolute_path(what: str, *, required: bool = False) -> Callable[[Any], Any]:
    """A path that is absolute, here or on a POSIX peer; it need not exist. None passes unless it is *required*."""

    def check(value: Any) -> str | None:
        if value is None and not required:
            return None
        path = encodable_path(value, what)
        if not (os.path.isabs(path) or posixpath.isabs(path)):
            raise ValueError(f"{what} must be an absolute path: {path!r}")
        return path

    return check


def optional_text(what: str) -> Callable[[Any], str | None]:
    """None, or a string that is not empty and not of white space alone."""

    def check(value: Any) -> str | None:
        return None if value is None else _text(value, what)

    return check


def failure_mode(value: Any) -> str | None:
    """One of the original's modes of ignoring failures."""
    if value not in FAILURE_MODES:
        raise ValueError(f"Ignore failure mode must be one of {FAILURE_MODES}: {value!r}")
    return None if value is None else str(value)


def indicator_name(value: Any, default: str) -> bytes:
    """Return the name of an indicator file: a plain file name; None is *default* (PARITY 18)."""
    name = encodable_path(default if value is None else value, "Indicator")
    if "/" in name or os.sep in name or name in (".", ".."):
        raise ValueError(f"Indicator must be a plain file name: {name!r}")
    return os.fsencode(name)


def host_of(name: str) -> str:
    """Return the host that a peer's name stands for: an IPv6 address without its brackets."""
    bracketed = _BRACKETED.match(name)
    return bracketed.group(1) if bracketed else name


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{what} must be a non-empty string.")
    return encodable_path(value, what)

"""Values of ssh_config(5): where each stands, and what it says as a number, a time, a choice.

What ssh refuses of a keyword that is honoured, is refused, with file and line; in blocks that do not apply, too.
"""

from __future__ import annotations

import contextlib
import math
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, TypeVar

from peerstage.errors import ConfigurationError, Location
from peerstage.reasons import Reason

T = TypeVar("T")

_ELSE = "or read no ssh_config and say by options how the peer is reached."
ADVICE = f"Let this user read it, {_ELSE}"
_CORRECT = f"Correct or remove that line, {_ELSE}"

FLAGS = {"yes": True, "true": True, "no": False, "false": False}
FAMILIES = {"any": socket.AF_UNSPEC, "inet": socket.AF_INET, "inet6": socket.AF_INET6}
#: StrictHostKeyChecking; nobody is there to be asked, and nobody's key is taken unseen.
_LAX = "taken as yes"
HOST_KEY_CHECKS = {
    "yes": "yes",
    "true": "yes",
    "accept-new": "accept-new",
    **dict.fromkeys(("no", "false", "off", "ask"), _LAX),
}
_CANONICAL = {**FLAGS, "always": True}

_MOST = (1 << 31) - 1
_TIME = re.compile(r"([0-9]+)([smhdw]?)", re.IGNORECASE)
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_SIZE = re.compile(r"([+-]?)([0-9]+)(?:\.([0-9]*))?([bkmgtpe]?)", re.IGNORECASE)


class Setting(NamedTuple):
    """One value of a keyword, and where it stands."""

    words: tuple[str, ...]
    path: str
    number: int


class Rekey(NamedTuple):
    """RekeyLimit: bytes, 0 for the default; seconds, 0 for never, infinite for "none", None where there are none."""

    size: int
    seconds: float | None


@contextlib.contextmanager
def standing_at(setting: Setting) -> Iterator[None]:
    """Raise a `ValueError` from inside as one that names where *setting* stands."""
    try:
        yield
    except ValueError as exc:
        raise complaint(setting, str(exc)) from None


def complaint(setting: Setting, what: str, reason: Reason = Reason.INVALID_CONFIGURATION) -> ConfigurationError:
    """Return an error that names where a setting stands."""
    return ConfigurationError(
        f"{setting.path}:{setting.number}: {what}. {_CORRECT}",
        location=Location(setting.path, setting.number),
        reason=reason,
    )


def port_of(setting: Setting) -> int:
    """Return a setting as a TCP port: a number, or the name of a service.

    Raises:
        ConfigurationError: It is neither; as for all functions here, with file and line.
    """
    text = setting.words[0]
    if text.isascii() and text.isdigit() and 1 <= int(text) <= 65535:
        return int(text)
    try:
        return socket.getservbyname(text, "tcp")
    except (OSError, UnicodeError):
        raise complaint(setting, "Port must be a number from 1 to 65535") from None


def number_of(setting: Setting) -> int:
    """Return a setting that is a count."""
    text = setting.words[0]
    if not (text.isascii() and text.isdigit() and int(text) <= _MOST):
        raise complaint(setting, f"{text[:60]!r} must be a number")
    return int(text)


def seconds_of(setting: Setting) -> float:
    """Return a setting that is a time, as ``90`` or ``1m30s``."""
    return _seconds(setting, setting.words[0])


def choice_of(setting: Setting, choices: Mapping[str, T]) -> T:
    """Return a setting that is one of several words, whatever their case."""
    text = setting.words[0].lower()
    if text not in choices:
        raise complaint(setting, f"{text[:60]!r} must be one of {', '.join(choices)}")
    return choices[text]


def rekey_of(setting: Setting) -> Rekey:
    """Return a RekeyLimit: bytes with a scale (1024 each), or ``default``; then a time, or ``none``."""
    text, *times = setting.words
    if len(times) > 1:
        raise complaint(setting, "RekeyLimit takes a size and a time")
    size = 0 if text == "default" else _size(setting, text)
    if not times:
        return Rekey(size, None)
    return Rekey(size, math.inf if times[0] == "none" else _seconds(setting, times[0]))


def _seconds(setting: Setting, text: str) -> float:
    parts = _TIME.findall(text)
    total = sum(int(number) * _SECONDS[unit.lower()] for number, unit in parts)
    if not parts or "".join(number + unit for number, unit in parts) != text or total > _MOST:
        raise complaint(setting, f"{text[:60]!r} must be a time in seconds, or as 1m30s")
    return float(total)


def _size(setting: Setting, text: str) -> int:
    match = _SIZE.fullmatch(text)
    if match is None:
        raise complaint(setting, f"{text[:60]!r} must be a size, as 512M")
    sign, whole, part, unit = match.groups()
    scale: int = 1024 ** "bkmgtpe".index((unit or "b").lower())
    part = (part or "")[:9]  # enough for a byte of a gigabyte
    size = int(whole) * scale + (int(part) * scale // 10 ** len(part) if part else 0)
    if sign == "-" or 0 < size < 16 or size >= 1 << 63:
        raise complaint(setting, "RekeyLimit must be 0, or 16 bytes or more")
    return size


def _names(setting: Setting) -> None:
    text = setting.words[0]
    if text.startswith(("+", "^")) and len(text) == 1:
        raise complaint(setting, f"{text!r} must be followed by names")


def _time(setting: Setting) -> None:
    if setting.words[0] != "none":
        seconds_of(setting)


#: What is looked at as soon as a line is read, whether it applies or not.
CHECKS: Mapping[str, Callable[[Setting], object]] = {
    "port": port_of,
    **dict.fromkeys(("connectionattempts", "serveralivecountmax", "requiredrsasize"), number_of),
    **dict.fromkeys(("connecttimeout", "serveraliveinterval"), _time),
    **dict.fromkeys(
        ("identitiesonly", "hashknownhosts", "nohostauthenticationforlocalhost", "proxyusefdpass", "checkhostip"),
        lambda one: choice_of(one, FLAGS),
    ),
    **dict.fromkeys(
        ("ciphers", "macs", "kexalgorithms", "hostkeyalgorithms", "pubkeyacceptedalgorithms", "casignaturealgorithms"),
        _names,
    ),
    "addressfamily": lambda one: choice_of(one, FAMILIES),
    "stricthostkeychecking": lambda one: choice_of(one, HOST_KEY_CHECKS),
    "canonicalizehostname": lambda one: choice_of(one, _CANONICAL),
    "rekeylimit": rekey_of,
}

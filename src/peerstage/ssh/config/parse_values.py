"""Parse the arguments of ssh_config(5) keywords as numbers, times, sizes and choices.

Every function raises `ConfigurationError`, with file and line number, for an argument that ssh rejects.
"""

from __future__ import annotations

import math
import re
import socket
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

from peerstage.ssh.config.config_line import ConfigLine, config_error

T = TypeVar("T")

YES_NO = {"yes": True, "true": True, "no": False, "false": False}
ADDRESS_FAMILIES = {"any": socket.AF_UNSPEC, "inet": socket.AF_INET, "inet6": socket.AF_INET6}
#: StrictHostKeyChecking. "lax" is treated as "yes": nobody can be asked, and no key is accepted unverified.
HOST_KEY_CHECKING = {
    "yes": "yes",
    "true": "yes",
    "accept-new": "accept-new",
    **dict.fromkeys(("no", "false", "off", "ask"), "lax"),
}
_CANONICALIZE = {**YES_NO, "always": True}

_MAX_INT = (1 << 31) - 1
#: Digits that every Python converts.
_MAX_DIGITS = 640
#: Characters of an invalid argument that an error shows.
_MAX_SHOWN = 60
_TIME = re.compile(r"([0-9]+)([smhdw]?)", re.IGNORECASE)
_UNIT_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_SIZE = re.compile(r"([+-]?)([0-9]+)(?:\.([0-9]*))?([bkmgtpe]?)", re.IGNORECASE)


class RekeyLimit(NamedTuple):
    """Arguments of RekeyLimit.

    Attributes:
        size: Bytes; 0 for the default.
        seconds: Seconds; 0 for never; infinite for "none", which a later line may replace; None if the argument is
            absent.
    """

    size: int
    seconds: float | None


def parse_port(line: ConfigLine) -> int:
    """Return a TCP port, given as a number or as the name of a service."""
    text = line.arguments[0]
    if text.isascii() and text.isdigit() and 1 <= _to_int(text) <= 65535:
        return _to_int(text)
    try:
        return socket.getservbyname(text, "tcp")
    except (OSError, UnicodeError):
        raise config_error(line, "Port must be a number from 1 to 65535") from None


def parse_number(line: ConfigLine) -> int:
    """Return a count."""
    text = line.arguments[0]
    if not (text.isascii() and text.isdigit() and _to_int(text) <= _MAX_INT):
        raise config_error(line, f"{line.keyword}: {text[:_MAX_SHOWN]!r} is not a number")
    return _to_int(text)


def parse_seconds(line: ConfigLine) -> float:
    """Return a time such as ``90`` or ``1m30s``, in seconds."""
    return _parse_time(line, line.arguments[0])


def parse_choice(line: ConfigLine, choices: Mapping[str, T]) -> T:
    """Return the value that *choices* gives to the argument; the case of the argument is ignored."""
    text = line.arguments[0].lower()
    if text not in choices:
        raise config_error(line, f"{line.keyword}: {text[:_MAX_SHOWN]!r} is not one of {', '.join(choices)}")
    return choices[text]


def parse_rekey_limit(line: ConfigLine) -> RekeyLimit:
    """Return a RekeyLimit: a size in bytes (with a scale of 1024) or ``default``, then a time or ``none``."""
    text, *times = line.arguments
    if len(times) > 1:
        raise config_error(line, "RekeyLimit takes a size and a time")
    size = 0 if text == "default" else _parse_size(line, text)
    if not times:
        return RekeyLimit(size, None)
    return RekeyLimit(size, math.inf if times[0] == "none" else _parse_time(line, times[0]))


def _to_int(digits: str) -> int:
    """Return *digits* as a number, or one beyond every bound if they are more than Python may convert."""
    return int(digits) if len(digits) <= _MAX_DIGITS else 10**_MAX_DIGITS


def _parse_time(line: ConfigLine, text: str) -> float:
    parts = _TIME.findall(text)
    total = sum(_to_int(number) * _UNIT_SECONDS[unit.lower()] for number, unit in parts)
    if not parts or "".join(number + unit for number, unit in parts) != text or total > _MAX_INT:
        raise config_error(line, f"{line.keyword}: {text[:_MAX_SHOWN]!r} is not a time such as 90 or 1m30s")
    return float(total)


def _parse_size(line: ConfigLine, text: str) -> int:
    match = _SIZE.fullmatch(text)
    if match is None:
        raise config_error(line, f"RekeyLimit: {text[:_MAX_SHOWN]!r} is not a size such as 512M")
    sign, whole, fraction, unit = match.groups()
    scale: int = 1024 ** "bkmgtpe".index((unit or "b").lower())
    fraction = (fraction or "")[:9]  # enough for one byte of a gigabyte
    size = _to_int(whole) * scale + (int(fraction) * scale // 10 ** len(fraction) if fraction else 0)
    if sign == "-" or 0 < size < 16 or size >= 1 << 63:
        raise config_error(line, "RekeyLimit must be 0, or at least 16 bytes")
    return size


def _check_algorithms(line: ConfigLine) -> None:
    text = line.arguments[0]
    if text in ("+", "^"):
        raise config_error(line, f"{line.keyword}: no algorithm follows {text!r}")


def _check_seconds(line: ConfigLine) -> None:
    if line.arguments[0] != "none":
        parse_seconds(line)


#: By keyword: the check of a line as it is read, even in a block that does not match.
VALIDATORS: Mapping[str, Callable[[ConfigLine], object]] = {
    "port": parse_port,
    **dict.fromkeys(("connectionattempts", "serveralivecountmax", "requiredrsasize"), parse_number),
    **dict.fromkeys(("connecttimeout", "serveraliveinterval"), _check_seconds),
    **dict.fromkeys(
        ("identitiesonly", "hashknownhosts", "nohostauthenticationforlocalhost", "proxyusefdpass", "checkhostip"),
        lambda line: parse_choice(line, YES_NO),
    ),
    **dict.fromkeys(
        ("ciphers", "macs", "kexalgorithms", "hostkeyalgorithms", "pubkeyacceptedalgorithms", "casignaturealgorithms"),
        _check_algorithms,
    ),
    "addressfamily": lambda line: parse_choice(line, ADDRESS_FAMILIES),
    "stricthostkeychecking": lambda line: parse_choice(line, HOST_KEY_CHECKING),
    "canonicalizehostname": lambda line: parse_choice(line, _CANONICALIZE),
    "rekeylimit": parse_rekey_limit,
}

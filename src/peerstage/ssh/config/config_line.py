"""One line of ssh_config(5): split it into arguments as OpenSSH does (misc.c: argv_split, strdelim), and report errors
with its file and line number.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import NamedTuple

from peerstage.errors import ConfigurationError, Location
from peerstage.reasons import Reason

_INSTEAD = "or read no ssh configuration and give options instead."
MAKE_READABLE = f"Make it readable for this user, {_INSTEAD}"
_CORRECT = f"Correct or remove the line, {_INSTEAD}"


class ConfigLine(NamedTuple):
    """A keyword, its arguments, and where they come from."""

    keyword: str
    arguments: tuple[str, ...]
    location: Location

    def __str__(self) -> str:
        return f"{self.keyword} in {self.location}"


def config_error(line: ConfigLine, problem: str, reason: Reason = Reason.INVALID_CONFIGURATION) -> ConfigurationError:
    """Return an error about *line*, with its file and line number."""
    return ConfigurationError(f"{line.location}: {problem}. {_CORRECT}", location=line.location, reason=reason)


@contextlib.contextmanager
def located(line: ConfigLine) -> Iterator[None]:
    """Convert a `ValueError` raised in the block to a `ConfigurationError` about *line*."""
    try:
        yield
    except ValueError as exc:
        raise config_error(line, str(exc)) from None


def split_arguments(text: str) -> list[str]:
    """Return the arguments of a keyword.

    Single and double quotes group; a backslash escapes quotes, itself and a space. An argument that begins with ``#``
    ends the line.

    Raises:
        ValueError: If a quote is not closed.
    """
    arguments: list[str] = []
    position = 0
    while position < len(text):
        if text[position] in " \t":
            position += 1
            continue
        if text[position] == "#":
            break
        argument, position = _parse_argument(text, position)
        arguments.append(argument)
    return arguments


def _parse_argument(text: str, position: int) -> tuple[str, int]:
    argument, quote = "", ""
    while position < len(text):
        char = text[position]
        following = text[position + 1 : position + 2]
        if char == "\\" and following and (following in "'\"\\" or (not quote and following == " ")):
            position += 1
            argument += text[position]
        elif not quote and char in " \t":
            break
        elif not quote and char in "'\"":
            quote = char
        elif quote and char == quote:
            quote = ""
        else:
            argument += char
        position += 1
    if quote:
        raise ValueError("a quote is not closed")
    return argument, position


def next_argument(text: str) -> tuple[str, str]:
    """Return the first argument of a Match line and the rest; double quotes group, one ``=`` may replace a space."""
    text = text.lstrip(" \t\r\n")
    if text.startswith('"'):
        argument, quote, rest = text[1:].partition('"')
        return (argument, rest.lstrip(" \t\r\n")) if quote else ("", "")
    match = re.match(r"([^ \t\r\n\"=]*)([ \t\r\n]*=?[ \t\r\n]*)(.*)", text, re.DOTALL)
    return (match.group(1), match.group(3)) if match else ("", "")

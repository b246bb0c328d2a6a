"""Expand the TOKENS of ssh_config(5) and environment variables."""

from __future__ import annotations

import getpass
import os
import re
from collections.abc import Mapping

from peerstage.system_errors import require_free_descriptor

_TOKEN = re.compile(r"%(.?)", re.DOTALL)
_VARIABLE = re.compile(r"\$\{([^}]*)(\}?)")


def local_user_name() -> str:
    """Return the name of the user who runs this process (``%u``).

    Raises:
        ValueError: If the user has none.
    """
    try:
        import pwd

        return pwd.getpwuid(os.getuid()).pw_name
    except (ImportError, KeyError):
        pass
    require_free_descriptor("The name of this user cannot be looked up")
    try:
        return getpass.getuser()
    except (ImportError, KeyError, OSError):
        raise ValueError(f"user {os.getuid()} has no name on this machine") from None


def expand_tokens(text: str, values: Mapping[str, str]) -> str:
    """Return *text* with each token replaced by its value, and ``%%`` by a percent sign.

    Raises:
        ValueError: If *text* has a token without a value.
    """

    def expand(match: re.Match[str]) -> str:
        letter = match.group(1)
        if letter == "%":
            return "%"
        if not letter or letter not in values:
            raise ValueError(f"unknown token %{letter} in {text!r}")
        return values[letter]

    return _TOKEN.sub(expand, text)


def expand_variables(text: str) -> str:
    """Return *text* with each ``${VARIABLE}`` replaced by its value in the environment.

    Raises:
        ValueError: If a variable is not set.
    """

    def expand(match: re.Match[str]) -> str:
        value = os.environ.get(match.group(1))
        if not match.group(2) or value is None:
            raise ValueError(f"the environment variable in {text!r} is not set")
        return value

    return _VARIABLE.sub(expand, text)

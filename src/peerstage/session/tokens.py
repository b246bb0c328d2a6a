"""The tokens of ssh_config(5): ``%h`` and its kin, ``${VARIABLES}`` of the environment, and ``~``."""

from __future__ import annotations

import getpass
import hashlib
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from peerstage.system_errors import require_descriptors

_TOKEN = re.compile(r"%(.?)", re.DOTALL)
_VARIABLE = re.compile(r"\$\{([^}]*)(\}?)")


def local_user() -> str:
    """Return who runs this process (``%u``).

    Raises:
        ValueError: Nobody knows; the message is fit to follow a file and a line.
    """
    try:
        import pwd

        return pwd.getpwuid(os.getuid()).pw_name
    except (ImportError, KeyError):
        pass
    require_descriptors("The name of this user cannot be looked up")
    try:
        return getpass.getuser()
    except (ImportError, KeyError, OSError):
        raise ValueError(f"user {os.getuid()} has no name on this machine") from None


@dataclass(frozen=True, slots=True)
class Tokens:
    """What tokens stand for.

    Attributes:
        name: The host as it was given (``%n``).
        host: The host to connect to (``%h``).
        port: ``%p``.
        user: Who logs in there (``%r``).
        alias: HostKeyAlias, or the host as it was given (``%k``).
        jump: ProxyJump (``%j``).
    """

    name: str
    host: str
    port: int
    user: str
    alias: str
    jump: str = ""

    def values(self, text: str) -> dict[str, str]:
        """Return the value of every token that may be in *text*.

        Raises:
            ValueError: One is not known.
        """
        local = socket.gethostname()
        hashed = hashlib.sha1(
            f"{local}{self.host}{self.port}{self.user}{self.jump}".encode("utf-8", "surrogateescape"),
            usedforsecurity=False,
        )
        return {
            "C": hashed.hexdigest(),
            "d": os.path.expanduser("~"),
            "h": self.host,
            "i": str(os.getuid()),
            "j": self.jump,
            "k": self.alias,
            "L": local.partition(".")[0],
            "l": local,
            "n": self.name,
            "p": str(self.port),
            "r": self.user,
            **({"u": local_user()} if "%u" in text else {}),
        }

    def expand(self, text: str) -> str:
        """Return *text* with its tokens expanded.

        Raises:
            ValueError: A token is unknown; the message is fit to follow a file and a line.
        """
        return self.replace(text, self.values(text))

    def expand_proxy(self, text: str) -> str:
        """Return a ProxyCommand or ProxyJump with its tokens expanded, of which it knows fewer.

        Raises:
            ValueError: A token is unknown there.
        """
        values = self.values("")
        return self.replace(text, {letter: values[letter] for letter in "hknpr"})

    def expand_path(self, text: str) -> str:
        """Return a path with ``~``, tokens and variables of the environment expanded.

        Raises:
            ValueError: A token is unknown, or a variable is not set.
        """

        def variable(match: re.Match[str]) -> str:
            value = os.environ.get(match.group(1))
            if not match.group(2) or value is None:
                raise ValueError(f"the variable in {text!r} is not set")
            return value

        return _VARIABLE.sub(variable, self.expand(os.path.expanduser(text)))

    @staticmethod
    def replace(text: str, known: Mapping[str, str]) -> str:
        """Return *text* with the tokens *known* expanded, and ``%%`` as a percent sign.

        Raises:
            ValueError: It has another one.
        """

        def token(match: re.Match[str]) -> str:
            letter = match.group(1)
            if letter == "%":
                return "%"
            if letter not in known or not letter:
                raise ValueError(f"the token %{letter} in {text!r} is unknown here")
            return known[letter]

        return _TOKEN.sub(token, text)

"""The lines of ssh_config(5) that apply to one destination, and their arguments as typed values."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from peerstage.errors import ConfigurationError
from peerstage.peer_log import PeerLog
from peerstage.ssh.config.config_line import ConfigLine, located
from peerstage.ssh.config.parse_values import YES_NO, parse_choice, parse_number, parse_port, parse_seconds
from peerstage.ssh.config.proxy_jump import parse_jump
from peerstage.ssh.config.tokens import expand_tokens, expand_variables, local_user_name

T = TypeVar("T")

#: Keywords whose lines accumulate; for any other, the first line wins. RekeyLimit keeps all lines: the first size and
#: the first time win, perhaps from different lines.
_ACCUMULATED = frozenset({"identityfile", "certificatefile", "rekeylimit"})
#: Keywords for which "none" is the same as no line.
_NONE_IS_UNSET = frozenset({"connecttimeout", "serveraliveinterval"})


@dataclass
class SSHConfig:
    """The lines in effect for one destination. While files are read, those found so far.

    Methods that return a value raise `ConfigurationError`, with file and line number, if it is invalid. Keywords are in
    lower case.

    Attributes:
        name: The host name as given.
        given_user: The user to log in as, None for the configured one.
        given_port: The port, None for the configured one.
        lines: The lines by keyword.
        files: Paths of the files that were read.
        log: Logs for this destination.
        final_host: The host to connect to once the first pass is over, for ``Match final``.
    """

    name: str
    given_user: str | None
    given_port: int | None = None
    lines: dict[str, list[ConfigLine]] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    log: PeerLog = field(default_factory=lambda: PeerLog("peerstage.ssh"))
    final_host: str | None = None

    def add(self, keyword: str, line: ConfigLine) -> None:
        """Add *line*, unless an earlier one wins."""
        if keyword in _NONE_IS_UNSET and line.arguments == ("none",):
            return
        if keyword == "proxyjump" and line.arguments[0].lower() != "none":
            # As in ssh's parse_jump: the first of ProxyJump and ProxyCommand wins, even "ProxyCommand none"; but
            # "ProxyJump none" does not disable a later ProxyCommand.
            if "proxyjump" in self.lines or "proxycommand" in self.lines:
                return
            self.lines["proxycommand"] = [line._replace(arguments=("none",))]
        lines = self.lines.setdefault(keyword, [])
        if not lines or (keyword in _ACCUMULATED and line.arguments not in [other.arguments for other in lines]):
            lines.append(line)

    @property
    def host(self) -> str:
        """The host to connect to, in lower case: HostName with its tokens expanded, or the name as given."""
        if self.final_host is not None:
            return self.final_host
        line = self.first("hostname")
        if line is None:
            return self.name.lower()
        with located(line):
            return expand_tokens(line.arguments[0], {"h": self.name}).lower()

    @property
    def user(self) -> str:
        """The user to log in as."""
        if self.given_user is not None:
            return self.given_user
        configured = self.text("user")
        if configured:
            return configured
        try:
            return local_user_name()
        except ValueError as exc:
            raise ConfigurationError(f"No user is configured, and {exc}. Name the user to log in as.") from None

    @property
    def port(self) -> int | None:
        """The port, None if neither given nor configured."""
        line = self.first("port")
        return self.given_port if self.given_port is not None or line is None else parse_port(line)

    def first(self, keyword: str) -> ConfigLine | None:
        """Return the first line with *keyword* that applies; None if no line has it."""
        lines = self.lines.get(keyword)
        return lines[0] if lines else None

    def text(self, keyword: str, default: str = "") -> str:
        """Return the first argument as it stands."""
        line = self.first(keyword)
        return default if line is None else line.arguments[0]

    def seconds(self, keyword: str, default: float) -> float:
        """Return a time in seconds."""
        line = self.first(keyword)
        return default if line is None else parse_seconds(line)

    def number(self, keyword: str, default: int) -> int:
        """Return a count."""
        line = self.first(keyword)
        return default if line is None else parse_number(line)

    def flag(self, keyword: str) -> bool:
        """Return whether the argument is "yes"."""
        return self.choice(keyword, YES_NO, False)

    def choice(self, keyword: str, choices: Mapping[str, T], default: T) -> T:
        """Return the value to which *choices* maps the argument."""
        line = self.first(keyword)
        return default if line is None else parse_choice(line, choices)

    def paths(self, keyword: str) -> list[str]:
        """Return the arguments of all lines, expanded as paths."""
        return [self.expand_path(line, path) for line in self.lines.get(keyword, []) for path in line.arguments]

    def expand_path(self, line: ConfigLine, argument: str) -> str:
        """Return an *argument* of *line* with ``~``, tokens and environment variables expanded."""
        with located(line):
            return expand_variables(self.expand_all_tokens(os.path.expanduser(argument)))

    def expand_proxy(self, line: ConfigLine) -> str:
        """Return the argument of a ProxyCommand or ProxyJump with the tokens expanded that these keywords accept."""
        with located(line):
            return expand_tokens(line.arguments[0], self._proxy_tokens())

    def expand_all_tokens(self, text: str) -> str:
        """Return *text* with every token expanded that paths and the commands of ``Match exec`` accept.

        Raises:
            ValueError: If a token is unknown, or is ``%u`` and the local user has no name.
            ConfigurationError: If ProxyJump, which ``%j`` and ``%C`` depend on, is invalid.
        """
        local, jump, tokens = socket.gethostname(), self._jump_host(), self._proxy_tokens()
        hashed = f"{local}{tokens['h']}{tokens['p']}{tokens['r']}{jump}".encode("utf-8", "surrogateescape")
        tokens |= {
            "C": hashlib.sha1(hashed, usedforsecurity=False).hexdigest(),
            "d": os.path.expanduser("~"),
            "i": str(os.getuid()),
            "j": jump,
            "L": local.partition(".")[0],
            "l": local,
        }
        if "%u" in text:
            tokens["u"] = local_user_name()
        return expand_tokens(text, tokens)

    def _jump_host(self) -> str:
        """Return the host of the last jump host (``%j``); "" if there is none.

        Raises:
            ConfigurationError: If ProxyJump is invalid.
        """
        line = self.first("proxyjump")
        if line is None:
            return ""
        with located(line):
            hops = parse_jump(line.arguments[0])
        return hops[-1].host if hops else ""

    def _proxy_tokens(self) -> dict[str, str]:
        alias = self.text("hostkeyalias", self.name)
        return {"h": self.host, "k": alias, "n": self.name, "p": str(self.port or 22), "r": self.user}

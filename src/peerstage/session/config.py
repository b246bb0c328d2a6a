"""How a peer is reached: `SSHOptions` over ssh's configuration, settled before anything is connected.

The configuration is evaluated by paramiko's parser. What that reads differently from ssh is refused first, by line.
"""

from __future__ import annotations

import io
import logging
import os
import re
import shlex
import socket
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import paramiko

from peerstage.errors import ConfigurationError, escape
from peerstage.session.files import read_regular
from peerstage.session.options import SSHOptions, expand, several

T = TypeVar("T")

log = logging.getLogger("peerstage.session")

_MOST_BYTES = 1 << 20
_DEFAULT_KEYS = ("id_rsa", "id_ecdsa", "id_ed25519")
_USER_KNOWN_HOSTS = ("~/.ssh/known_hosts", "~/.ssh/known_hosts2")
_GLOBAL_KNOWN_HOSTS = ("/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2")
_FAMILIES = {"any": socket.AF_UNSPEC, "inet": socket.AF_INET, "inet6": socket.AF_INET6}
_ADVICE = "Or give SSHOptions(config=()) and say there how the peer is reached."

#: Criteria of Match that paramiko evaluates as ssh does.
_MATCH = frozenset({"all", "host", "originalhost", "localuser"})

#: Keywords that change who is reached or trusted and are not honoured yet, and the values with which they do not.
_NOT_YET = {
    "proxyjump": ("none",),
    "proxycommand": ("none",),
    "hostkeyalias": (),
    "certificatefile": ("none",),
    "canonicalizehostname": ("no",),
    "knownhostscommand": ("none",),
    "revokedhostkeys": ("none",),
    "nohostauthenticationforlocalhost": ("no",),
    "proxyusefdpass": ("no",),
    "bindaddress": (),
    "bindinterface": (),
    "pkcs11provider": ("none",),
    "securitykeyprovider": ("none", "internal"),
}
#: Fields of `SSHOptions` that are not honoured yet.
_OPTIONS_NOT_YET = ("certificate", "jump", "elevate", "keepalive_interval", "keepalive_count")

_NOT_HONOURED = "not_honoured_"
#: Stands for a percent sign where paramiko would expand a token in another way than ssh.
_PERCENT = "\ue000"

_LINE = re.compile(r"\A(\w+)(?:\s*=\s*|\s+)(.*)\Z", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """Where a peer is and what is shown to it.

    Attributes:
        name: The peer's name, as given.
        user: Who logs in.
        host: Name or address to connect to, after HostName.
        port: TCP port.
        identities: Paths of private keys, in the order in which they are tried.
        explicit_identities: Whether they were given by `SSHOptions`.
        identities_only: Whether the agent may only offer keys that `identities` name.
        agent: Path of the agent's socket, None for no agent.
        known_hosts: Paths of known_hosts files, or their content, in order.
        family: Address family to connect with.
        connect_timeout: Seconds for name, address and connection.
        pinned: The fingerprint that the host must show, None where known_hosts decides.
    """

    name: str
    user: str
    host: str
    port: int
    identities: tuple[str, ...]
    explicit_identities: bool
    identities_only: bool
    agent: str | None
    known_hosts: tuple[str | bytes, ...]
    family: socket.AddressFamily
    connect_timeout: float
    pinned: str | None


class Line(NamedTuple):
    """One setting of a configuration file."""

    number: int
    keyword: str
    value: str


def resolve_destination(name: str, user: str, options: SSHOptions) -> Destination:
    """Return how *user* at *name* is reached; options win over the configuration. Nothing is connected.

    Raises:
        ConfigurationError: Something that the configuration or the options ask for can not be honoured; the message
            names file and line.
    """
    for field in _OPTIONS_NOT_YET:
        if getattr(options, field) is not None:
            raise ConfigurationError(f"SSHOptions({field}=...) is not honoured yet. Leave it out.")
    if options.host_key == "accept-new":
        raise ConfigurationError(
            'SSHOptions(host_key="accept-new") is not honoured yet. Add the key to known_hosts (ssh-keyscan), or pin '
            'it with host_key="SHA256:...".'
        )
    found = _Settings.read(options).for_host(name)
    host = found.host_name(name)
    pinned = options.host_key if options.host_key and options.host_key.startswith("SHA256:") else None
    if found.text("stricthostkeychecking", "yes").lower() not in ("yes", "true"):
        log.info("%s: StrictHostKeyChecking is taken as yes; unknown host keys are refused.", escape(name))
    return Destination(
        name=name,
        user=user,
        host=host,
        port=options.port if options.port is not None else found.number("port", 22, 65535),
        identities=_identities(options, found),
        explicit_identities=options.identity is not None,
        identities_only=found.flag("identitiesonly"),
        agent=_agent(options, found),
        known_hosts=_known_hosts(options, found),
        family=found.choice("addressfamily", _FAMILIES, socket.AF_UNSPEC),
        connect_timeout=options.connect_timeout or found.seconds("connecttimeout") or 15.0,
        pinned=pinned,
    )


def scan(text: str, source: str) -> list[Line]:
    """Return the settings of a configuration file, and refuse what paramiko reads differently from ssh.

    Raises:
        ConfigurationError: With *source*, line and keyword.
    """
    lines = []
    for number, raw in enumerate(text.split("\n"), 1):
        stripped = raw.strip()
        if not stripped or stripped.startswith("#"):
            continue
        match = _LINE.match(stripped)
        if match is None:
            raise _refused(source, number, stripped.split()[0], "can not be read")
        line = Line(number, match.group(1).lower(), match.group(2).strip())
        _check_line(line, source)
        lines.append(line)
    return lines


def _check_line(line: Line, source: str) -> None:
    keyword, value = line.keyword, line.value
    if keyword == "include":
        raise _refused(source, line.number, "Include", "is not honoured yet")
    if keyword == "match":
        words = value.replace("=", " ").split()
        single = [word.lower() for word in words]
        criteria = single[:1] if single[:1] == ["all"] else single[::2]
        if not set(criteria) <= _MATCH or '"' in value or "#" in value or (single[:1] != ["all"] and len(single) % 2):
            raise _refused(source, line.number, "Match", "with these criteria is not evaluated yet as ssh does")
    if keyword == "host" and re.search(r"[\[\]\"'#\\]", value):
        raise _refused(source, line.number, "Host", "with brackets, quotes or a comment is not read yet as ssh does")
    if re.search(r"\s#", value) or value.startswith("#"):
        raise _refused(source, line.number, keyword, "with a comment behind it is not read yet as ssh does")


def _refuse_match_of_changed_host(lines: list[tuple[str, Line]]) -> None:
    """Refuse ``Match host`` beside a HostName: paramiko goes over the files twice, and then knows what ssh does not."""
    if not any(line.keyword == "hostname" for _, line in lines):
        return
    for path, line in lines:
        if line.keyword == "match" and re.search(r"(?i)(?<!\S)!?host(?!\S)", line.value.replace("=", " ")):
            raise _refused(path, line.number, "Match", "host beside a HostName is not evaluated yet as ssh does")


class _Settings:
    """The settings of all files, and what is in effect for one host."""

    def __init__(self, parsed: list[tuple[str, list[Line], paramiko.SSHConfig]]) -> None:
        self._parsed = parsed
        self._found: dict[str, object] = {}
        self._from: dict[str, str] = {}

    @classmethod
    def read(cls, options: SSHOptions) -> _Settings:
        """Parse the files that *options* name, or the user's own if it is there."""
        default = expand("~/.ssh/config")
        paths = [default] if options.config is None else [expand(path) for path in several(options.config)]
        parsed = []
        for path in paths:
            try:
                text = read_regular(path, _MOST_BYTES).decode("utf-8", "surrogateescape")
            except FileNotFoundError:
                if options.config is None:
                    continue
                raise ConfigurationError(f"The ssh configuration {path} is not there.") from None
            except OSError as exc:
                raise ConfigurationError(f"The ssh configuration {path} can not be read: {exc.strerror}.") from exc
            lines = scan(text, path)
            plain = "".join(f"{_alias(line.keyword)} {line.value.replace('%', _PERCENT)}\n" for line in lines)
            try:
                parsed.append((path, lines, paramiko.SSHConfig.from_file(io.StringIO(plain))))
            except Exception as exc:
                raise ConfigurationError(f"The ssh configuration {path} can not be parsed: {exc}. {_ADVICE}") from exc
        _refuse_match_of_changed_host([(path, line) for path, lines, _ in parsed for line in lines])
        return cls(parsed)

    def for_host(self, name: str) -> _Settings:
        """Look up what is in effect for *name*: the first value wins, but IdentityFile adds up."""
        for path, lines, config in self._parsed:
            try:
                found = dict(config.lookup(name))
            except Exception as exc:
                raise ConfigurationError(
                    f"The ssh configuration {path} can not be evaluated: {exc}. {_ADVICE}"
                ) from exc
            named = {line.keyword for line in lines}
            for alias, raw in found.items():
                keyword = alias.removeprefix(_NOT_HONOURED)
                if keyword not in named:
                    continue  # what paramiko adds of its own
                value = [one.replace(_PERCENT, "%") for one in raw] if isinstance(raw, list) else _restored(raw)
                if keyword == "identityfile":
                    self._found[keyword] = [*_strings(self._found.get(keyword)), *_strings(value)]
                else:
                    self._found.setdefault(keyword, value)
                self._from.setdefault(keyword, path)
        for keyword, harmless in _NOT_YET.items():
            set_to = self._found.get(keyword)
            if set_to is not None and str(set_to).strip('"').lower() not in harmless:
                raise self.complaint(keyword, "is not honoured yet")
        return self

    def host_name(self, name: str) -> str:
        """Return HostName with its tokens expanded (``%h`` and ``%%``), or *name* itself."""
        text = self.text("hostname") or name
        expanded = re.sub(r"%[h%]", lambda token: name if token.group() == "%h" else "%", text)
        if "%" in re.sub(r"%[h%]", "", text) and "hostname" in self._found:
            raise self.complaint("hostname", "has tokens that are not expanded yet")
        return expanded if "hostname" in self._found else name

    def text(self, keyword: str, default: str = "") -> str:
        """Return a setting as it stands, without quotes."""
        value = self._found.get(keyword)
        return default if value is None else str(value).strip('"')

    def words(self, keyword: str) -> list[str]:
        """Return a setting of several words, each of which may be quoted."""
        try:
            return shlex.split(
                self.text(keyword) if '"' not in str(self._found.get(keyword)) else str(self._found[keyword])
            )
        except ValueError:
            raise self.complaint(keyword, "has unbalanced quotes") from None

    def paths(self, keyword: str) -> list[str]:
        """Return the values of a repeated setting."""
        return [value.strip('"') for value in _strings(self._found.get(keyword))]

    def number(self, keyword: str, default: int, most: int) -> int:
        """Return a setting from 1 to *most*."""
        text = self.text(keyword)
        if not text:
            return default
        if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= most:
            raise self.complaint(keyword, f"must be a number from 1 to {most}")
        return int(text)

    def seconds(self, keyword: str) -> float | None:
        """Return a setting in seconds, None where it is "none" or 0; ssh's time formats (1m30s) are understood."""
        text = self.text(keyword).lower()
        if text in ("", "none"):
            return None
        parts = re.findall(r"(\d+)([smhdw]?)", text)
        if "".join(number + unit for number, unit in parts) != text:
            raise self.complaint(keyword, "must be a time in seconds")
        total = sum(
            int(number) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}[unit] for number, unit in parts
        )
        return float(total) or None

    def flag(self, keyword: str) -> bool:
        """Return a setting that is yes or no."""
        return self.choice(keyword, {"yes": True, "true": True, "no": False, "false": False}, False)

    def choice(self, keyword: str, choices: dict[str, T], default: T) -> T:
        """Return a setting that is one of several words."""
        text = self.text(keyword).lower()
        if text and text not in choices:
            raise self.complaint(keyword, f"must be one of {', '.join(choices)}")
        return choices[text] if text else default

    def complaint(self, keyword: str, what: str) -> ConfigurationError:
        """Return an error that names the first line that sets *keyword* in the file that it comes from."""
        path = self._from[keyword]
        lines = next(lines for source, lines, _ in self._parsed if source == path)
        number = next(line.number for line in lines if line.keyword == keyword)
        return _refused(path, number, keyword, what)


def _identities(options: SSHOptions, found: _Settings) -> tuple[str, ...]:
    if options.pkey is not None:
        return ()
    if options.identity is not None:
        return tuple(expand(path) for path in several(options.identity))
    configured = found.paths("identityfile")
    if any("%" in path or "$" in path for path in configured):
        raise found.complaint("identityfile", "has tokens that are not expanded yet")
    if configured:
        return tuple(dict.fromkeys(expand(path) for path in configured if path.lower() != "none"))
    defaults = (expand(f"~/.ssh/{name}") for name in _DEFAULT_KEYS)
    return tuple(path for path in defaults if os.path.exists(path))


def _agent(options: SSHOptions, found: _Settings) -> str | None:
    if options.pkey is not None or options.agent is False:
        return None
    if isinstance(options.agent, str):
        return expand(options.agent)
    configured = found.text("identityagent")
    if options.agent is None and configured:
        if configured.lower() == "none":
            return None
        if configured.startswith("$"):
            return os.environ.get(configured[1:].strip("{}")) or None
        if "%" in configured:
            raise found.complaint("identityagent", "has tokens that are not expanded yet")
        if configured != "SSH_AUTH_SOCK":
            return expand(configured)
    return os.environ.get("SSH_AUTH_SOCK") or None


def _known_hosts(options: SSHOptions, found: _Settings) -> tuple[str | bytes, ...]:
    if options.known_hosts is not None:
        return tuple(one if isinstance(one, bytes) else expand(one) for one in several(options.known_hosts))
    paths: list[str | bytes] = []
    for keyword, defaults in (("userknownhostsfile", _USER_KNOWN_HOSTS), ("globalknownhostsfile", _GLOBAL_KNOWN_HOSTS)):
        words = found.words(keyword) or defaults
        if any("%" in word or "$" in word for word in words):
            raise found.complaint(keyword, "has tokens that are not expanded yet")
        paths.extend(expand(word) for word in words if word.lower() != "none")
    return tuple(paths)


def _alias(keyword: str) -> str:
    """Hide from paramiko what it would act upon, and what we refuse anyhow."""
    return _NOT_HONOURED + keyword if keyword in _NOT_YET else keyword


def _restored(value: object) -> object:
    return value.replace(_PERCENT, "%") if isinstance(value, str) else value


def _strings(value: object) -> list[str]:
    return [str(one) for one in value] if isinstance(value, list) else []


def _refused(source: str, number: int, keyword: str, what: str) -> ConfigurationError:
    return ConfigurationError(f"{source}:{number}: {keyword} {what}. {_ADVICE}")

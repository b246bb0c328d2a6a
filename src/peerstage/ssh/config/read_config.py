"""Read ssh_config(5) files as OpenSSH does (readconf.c), for one destination.

The first line with a keyword wins; a few keywords add up. ``Host`` matches the host name as given, ``Match`` what is
known so far. ``Match final`` causes a second pass, in which ``Host`` and ``Match host`` compare the host to connect to.
"""

from __future__ import annotations

import glob
import os
import re
import shlex
import stat
from collections.abc import Callable, Sequence
from typing import NamedTuple

from peerstage.bounded_files import glob_paths, read_file_and_status
from peerstage.errors import ConfigurationError, Location, StageError
from peerstage.peer_log import PeerLog
from peerstage.printable import escape
from peerstage.reasons import Reason
from peerstage.ssh.config.config_line import (
    MAKE_READABLE,
    ConfigLine,
    config_error,
    located,
    next_argument,
    split_arguments,
)
from peerstage.ssh.config.keywords import describe_unknown, is_known, spell
from peerstage.ssh.config.match_exec import command_succeeds
from peerstage.ssh.config.parse_values import VALIDATORS
from peerstage.ssh.config.ssh_config import SSHConfig
from peerstage.ssh.config.tokens import local_user_name
from peerstage.ssh.patterns import match_hostname, match_pattern_list, match_patterns
from peerstage.system_errors import is_machine_wide, system_error
from peerstage.watchdog import Watchdog

_MAX_BYTES = 1 << 20
_MAX_INCLUDE_DEPTH = 16
#: Seconds that the command of a ``Match exec`` may take; ssh itself has no limit.
_EXEC_TIMEOUT = 15.0
#: Where unknown keywords are ignored: one that a vendor added must not stop every backup.
_VENDOR_DIRECTORY = "/etc/"

_ALIASES = {
    "identityfile2": "identityfile",
    "pubkeyacceptedkeytypes": "pubkeyacceptedalgorithms",
    "rsaminsize": "requiredrsasize",  # Red Hat's
    **dict.fromkeys(("protocolkeepalives", "setuptimeout"), "serveraliveinterval"),  # Debian's
}
#: Keywords with exactly one argument. The others may have more, or are not evaluated.
_ONE_ARGUMENT = {
    *("identityfile", "certificatefile", "hostname", "hostkeyalias", "identityagent", "bindaddress", "user"),
    "ignoreunknown",
    *(keyword for keyword in VALIDATORS if keyword != "rekeylimit"),
}
#: Keywords with no empty argument.
_NEVER_EMPTY = {*_ONE_ARGUMENT, "proxyjump", "rekeylimit", "userknownhostsfile", "globalknownhostsfile"}
#: Keywords whose argument is the rest of the line, quotes included.
_REST_OF_LINE = frozenset({"proxycommand", "localcommand", "remotecommand", "knownhostscommand", "match"})

_LINE = re.compile(r"\A([^\s=\"]+)(?:[ \t\r\f]*=[ \t\r\f]*|[ \t\r\f]+|\Z)(.*)\Z", re.DOTALL)


class ConfigFile(NamedTuple):
    """A configuration file to read.

    Attributes:
        path: Its path.
        is_required: Whether it must exist.
        is_private: Whether only this user and root may own or write it, as ssh requires of the user's file and of
            included files.
        include_base: The directory that relative ``Include`` paths start from.
    """

    path: str
    is_required: bool
    is_private: bool
    include_base: str


def read_ssh_config(
    files: Sequence[ConfigFile],
    name: str,
    user: str | None,
    port: int | None = None,
    jump: str | None = None,
    watchdog: Watchdog | None = None,
    label: str = "",
) -> SSHConfig:
    """Return the lines of *files* that apply to *name*.

    Args:
        files: The files, the user's before the system's.
        name: The host name as given.
        user: The user to log in as, None for the configured one, or else the user who runs this process.
        port: The port, None for the configured one.
        jump: A ProxyJump, None for the configured one.
        watchdog: Interrupts the commands of ``Match exec``.
        label: The name at the start of each log line, if not *name*.

    Raises:
        ConfigurationError: If a file is unreadable, writable by others, or holds what ssh would reject; with file and
            line number.
        LimitExceeded, Cancelled: If the watchdog interrupted a command.
        StageError: If this process or machine is out of descriptors or memory, or its disk fails.
    """
    config = SSHConfig(name, user, port, log=PeerLog("peerstage.ssh", label or name))
    if jump is not None:
        config.add("proxyjump", ConfigLine("ProxyJump", (jump,), Location("SSHOptions(jump=...)")))
    reader = _Reader(config, watchdog)
    for file in files:
        reader.read_file(file)
    config.final_host = config.host
    if reader.wants_final_pass:
        reader.is_final_pass = True
        for file in files:
            reader.read_file(file)
    return config


class _Reader:
    """Adds the lines that apply to *config*."""

    def __init__(self, config: SSHConfig, watchdog: Watchdog | None) -> None:
        self._config = config
        self._watchdog = watchdog
        self.wants_final_pass = False
        self.is_final_pass = False

    def read_file(self, file: ConfigFile, *, is_active: bool = True, depth: int = 0) -> None:
        """Read a file; its lines apply only if it *is_active*, that is, not included by a block that does not match."""
        data = _read(file)
        if data is None:
            return
        if file.path not in self._config.files:
            self._config.files.append(file.path)
        is_block_active = is_active
        for number, raw in enumerate(data.decode("utf-8", "surrogateescape").split("\n"), 1):
            text = raw.strip(" \t\r\f")
            if not text or text.startswith("#"):
                continue
            location = Location(file.path, number)
            match = _LINE.match(text)
            if match is None or not match.group(1).isascii():  # such as a byte order mark
                raise config_error(ConfigLine("", (), location), f"cannot parse the line {text[:60]!r}")
            spelling, value = match.groups()
            if not self._is_accepted(spelling, location):
                continue
            keyword = _ALIASES.get(spelling.lower(), spelling.lower())
            line = _parse_line(keyword, value, location)
            if keyword == "host":
                # In the final pass ssh compares the host to connect to, as if it had been given.
                host = self._config.host if self.is_final_pass else self._config.name
                is_block_active = is_active and match_patterns(host, line.arguments)
            elif keyword == "match":
                matches = self._matches_criteria(line, may_run=is_active)
                is_block_active = is_active and matches
            elif keyword == "include":
                self._include(line, file, is_active=is_block_active, depth=depth)
            elif is_block_active:
                self._config.add(keyword, line)

    def _is_accepted(self, spelling: str, location: Location) -> bool:
        """Return whether to evaluate a line with the keyword *spelling*; False for an unknown one in a file below /etc.

        Raises:
            ConfigurationError: If it is unknown in any other file, even in a block that does not match.
        """
        if is_known(spelling.lower(), self._config.text("ignoreunknown")):
            return True
        if not os.path.normpath(location.path).startswith(_VENDOR_DIRECTORY):
            raise config_error(
                ConfigLine(spelling, (), location),
                f"{describe_unknown(spelling)} An earlier IgnoreUnknown line that lists it makes ssh ignore it",
                Reason.UNKNOWN_KEYWORD,
            )
        if not self.is_final_pass:  # the first pass has logged it
            self._config.log.warning("%s: %s The line is ignored.", escape(str(location)), describe_unknown(spelling))
        return False

    def _include(self, line: ConfigLine, file: ConfigFile, *, is_active: bool, depth: int) -> None:
        if depth >= _MAX_INCLUDE_DEPTH:
            raise config_error(line, f"Include is nested more than {_MAX_INCLUDE_DEPTH} levels deep")
        for argument in line.arguments:
            pattern = self._config.expand_path(line, argument)
            if not os.path.isabs(pattern):
                pattern = os.path.join(glob.escape(file.include_base), pattern)
            for path in glob_paths(pattern):
                included = ConfigFile(path, is_required=False, is_private=True, include_base=file.include_base)
                self.read_file(included, is_active=is_active, depth=depth + 1)

    def _matches_criteria(self, line: ConfigLine, *, may_run: bool) -> bool:
        """Evaluate the criteria of a Match line from left to right; exec runs only while its result matters."""
        matches, rest, count = True, line.arguments[0], 0
        while rest:
            word, rest = next_argument(rest)
            if not word or word.startswith("#"):
                break
            is_negated, criterion = word.startswith("!"), word.lstrip("!").lower()
            if criterion == "all":
                following, _ = next_argument(rest)
                if count > 1 or (following and not following.startswith("#")):  # ssh permits it after a single one
                    raise config_error(line, "Match all cannot be combined with other criteria")
                return matches and not is_negated
            count += 1
            if criterion in ("final", "canonical"):
                self.wants_final_pass |= criterion == "final"
                criterion_matches = self.is_final_pass
            else:
                argument, rest = next_argument(rest)
                if not argument or argument.startswith("#"):
                    raise config_error(line, f"Match {criterion} needs an argument")
                criterion_matches = self._matches_criterion(criterion, argument, line, may_run=may_run and matches)
            matches &= criterion_matches != is_negated
        if not count:
            raise config_error(line, "Match needs at least one criterion")
        return matches

    def _matches_criterion(self, criterion: str, argument: str, line: ConfigLine, *, may_run: bool) -> bool:
        config = self._config
        tests: dict[str, Callable[[], bool]] = {
            "host": lambda: match_hostname(config.host, argument),
            "originalhost": lambda: match_hostname(config.name, argument),
            "user": lambda: match_pattern_list(config.user, argument),
            "localuser": lambda: match_pattern_list(local_user_name(), argument),
            "exec": lambda: may_run and self._exec_succeeds(argument, line),
        }
        if criterion not in tests:
            raise config_error(line, f"Match {criterion} is not supported", Reason.UNSUPPORTED_KEYWORD)
        with located(line):
            return tests[criterion]()

    def _exec_succeeds(self, command: str, line: ConfigLine) -> bool:
        try:
            return command_succeeds(self._config.expand_all_tokens(command), _EXEC_TIMEOUT, self._watchdog)
        except StageError:
            raise
        except TimeoutError:
            raise config_error(line, f"Match exec took more than {_EXEC_TIMEOUT:g} s") from None
        except OSError as exc:
            if is_machine_wide(exc):
                raise system_error("Match exec cannot be run", exc, path=line.location.path) from exc
            raise config_error(line, f"Match exec cannot be run: {exc.strerror}") from None


def _read(file: ConfigFile) -> bytes | None:
    """Return the content of *file*; None if it does not exist and is not required."""

    def error(message: str, reason: Reason = Reason.CONFIGURATION_UNREADABLE) -> ConfigurationError:
        return ConfigurationError(message, reason=reason, location=Location(file.path))

    try:
        data, status = read_file_and_status(file.path, _MAX_BYTES)
    except FileNotFoundError:
        if not file.is_required:
            return None
        raise error(f"The ssh configuration {file.path} does not exist. Correct the option config.") from None
    except OSError as exc:
        if is_machine_wide(exc):
            raise system_error("The ssh configuration cannot be read", exc, path=file.path) from exc
        raise error(f"The ssh configuration {file.path} cannot be read: {exc.strerror}. {MAKE_READABLE}") from exc
    is_foreign = status.st_uid not in (0, os.geteuid())
    if file.is_private and (is_foreign or stat.S_IMODE(status.st_mode) & 0o022):
        quoted = shlex.quote(file.path)
        chown = f"chown {os.geteuid()} {quoted} && " if is_foreign else ""
        raise error(
            f"Bad owner or permissions on the ssh configuration {file.path}: only you and root may own or write it. "
            f"Run `{chown}chmod go-w {quoted}`.",
            Reason.INSECURE_CONFIGURATION,
        )
    return data


def _parse_line(keyword: str, value: str, location: Location) -> ConfigLine:
    """Split and check the arguments of a line.

    Raises:
        ConfigurationError: If ssh would reject the line.
    """
    line = ConfigLine(spell(keyword), (value,), location)
    if value and keyword in _REST_OF_LINE:
        return line
    with located(line):
        try:
            arguments = split_arguments(value)
        except ValueError:
            raise ValueError(f"{line.keyword} has a quote that is not closed") from None
        if not arguments:
            raise ValueError(f"{line.keyword} needs an argument")
        if keyword in _NEVER_EMPTY and "" in arguments:
            raise ValueError(f"{line.keyword} has an empty argument")
        if keyword in _ONE_ARGUMENT and len(arguments) > 1:
            raise ValueError(f"{line.keyword} takes one argument, not {len(arguments)}")
    line = line._replace(arguments=tuple(arguments))
    if keyword in VALIDATORS:
        VALIDATORS[keyword](line)
    return line

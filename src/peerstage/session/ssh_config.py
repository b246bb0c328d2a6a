"""ssh_config(5), read as OpenSSH reads it: which settings are in effect for one destination, and where they stand.

The first value of a keyword wins; of a few keywords all values count. ``Host`` compares the name that was given,
``Match`` what is known so far. ``Match final`` asks for a second reading, in which the host name is known.
"""

from __future__ import annotations

import glob
import os
import re
import shlex
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from peerstage.errors import ConfigurationError, Location, StageError, escape
from peerstage.peer_log import PeerLog
from peerstage.reasons import Reason
from peerstage.session.files import matching_paths, read_with_status
from peerstage.session.keywords import describe_unknown, is_known
from peerstage.session.match_exec import succeeds
from peerstage.session.patterns import match_hostname, match_pattern, match_pattern_list
from peerstage.session.tokens import Tokens, local_user
from peerstage.session.values import ADVICE, CHECKS, Setting, complaint, port_of, standing_at
from peerstage.session.watchdog import Watchdog
from peerstage.session.words import next_word, split_words
from peerstage.system_errors import is_of_this_machine, system_error

_MOST_BYTES = 1 << 20
_MOST_DEPTH = 16
#: Seconds that the command of a ``Match exec`` may take; ssh itself would wait for ever.
_EXEC_SECONDS = 15.0

#: Other names of keywords.
_ALIASES = {
    "identityfile2": "identityfile",
    "pubkeyacceptedkeytypes": "pubkeyacceptedalgorithms",
    "rsaminsize": "requiredrsasize",  # Red Hat's
    **dict.fromkeys(("protocolkeepalives", "setuptimeout"), "serveraliveinterval"),  # Debian's
}
#: Vendors' files: an unknown keyword in one must not stop every backup.
_SYSTEM = "/etc/"
#: Keywords whose values add up. Of RekeyLimit the first size counts, and the first time.
_ADD_UP = frozenset({"identityfile", "certificatefile", "rekeylimit"})
#: Keywords that take one word; the others may take more, or are not looked at.
_ONE_WORD = {
    *("identityfile", "certificatefile", "hostname", "hostkeyalias", "identityagent", "bindaddress", "user"),
    "ignoreunknown",
    *(keyword for keyword in CHECKS if keyword != "rekeylimit"),
}
#: Keywords of which no word may be empty.
_NEVER_EMPTY = {*_ONE_WORD, "proxyjump", "rekeylimit", "userknownhostsfile", "globalknownhostsfile"}
#: Keywords whose value "none" is as good as no line.
_NONE_IS_UNSET = frozenset({"connecttimeout", "serveraliveinterval"})
#: Keywords whose value is the rest of the line, as it stands.
_COMMANDS = frozenset({"proxycommand", "localcommand", "remotecommand", "knownhostscommand"})

_LINE = re.compile(r"\A([^\s=\"]+)(?:[ \t\r\f]*=[ \t\r\f]*|[ \t\r\f]+|\Z)(.*)\Z", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Source:
    """A configuration file.

    Attributes:
        path: Where it is.
        required: Whether it is an error if it is not there.
        checked: Whether ssh would refuse it if others could write it.
        base: Where relative names of ``Include`` begin.
    """

    path: str
    required: bool
    checked: bool
    base: str


@dataclass
class SSHConfig:
    """What is in effect for one destination.

    Attributes:
        name: The host as it was given.
        given_user: Who logs in there, None for whom the configuration names.
        given_port: The port, None for the one that is configured.
        found: Keyword, in lower case, to its values.
        files: Paths of the files that were read.
        log: For what is left out of account.
    """

    name: str
    given_user: str | None
    given_port: int | None = None
    found: dict[str, list[Setting]] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    log: PeerLog = field(default_factory=lambda: PeerLog("peerstage.session"))
    _final: bool = False
    _wants_final: bool = False
    _host: str | None = None
    _watchdog: Watchdog | None = None

    @classmethod
    def read(
        cls,
        sources: Sequence[Source],
        name: str,
        user: str | None,
        port: int | None = None,
        jump: str | None = None,
        watchdog: Watchdog | None = None,
        label: str = "",
    ) -> SSHConfig:
        """Read *sources*, the user's before the system's, for *user* at *name* and *port*, through *jump*.

        Without a *user* it is the one that is configured, or else whoever runs this process; without a *port* or a
        *jump*, those that are configured. The *watchdog* ends the commands of ``Match exec``. Without a *label*, the
        *name* begins each line of the log.

        Raises:
            ConfigurationError: A file can not be read, is open to others, or holds what ssh would refuse; with file and
                line.
            LimitExceeded, Cancelled: If the watchdog ended a command.
        """
        config = cls(name, user, port, log=PeerLog("peerstage.session", label or name), _watchdog=watchdog)
        if jump is not None:
            config._set("proxyjump", Setting((jump,), "SSHOptions(jump=...)", 0))
        for source in sources:
            config._read_file(source)
        config._host = config.host
        if config._wants_final:
            config._final = True
            for source in sources:
                config._read_file(source)
        return config

    @property
    def host(self) -> str:
        """The host to connect to: HostName with its tokens expanded, or the name that was given; in lower case."""
        if self._host is not None:
            return self._host
        setting = self.first("hostname")
        if setting is None:
            return self.name.lower()
        with standing_at(setting):
            return Tokens.replace(setting.words[0], {"h": self.name}).lower()

    @property
    def user(self) -> str:
        """Who logs in, as far as that is known."""
        if self.given_user is not None:
            return self.given_user
        setting = self.first("user")
        if setting is not None:
            return setting.words[0]
        try:
            return local_user()
        except ValueError as exc:
            raise ConfigurationError(f"Nobody says who logs in, and {exc}. Name the user.") from None

    @property
    def port(self) -> int | None:
        """The port, as far as one was given or is configured."""
        if self.given_port is not None:
            return self.given_port
        setting = self.first("port")
        return None if setting is None else port_of(setting)

    @property
    def tokens(self) -> Tokens:
        """The tokens of ssh_config(5), as far as they are known."""
        alias, jump = self.first("hostkeyalias"), self.first("proxyjump")
        return Tokens(
            name=self.name,
            host=self.host,
            port=self.port or 22,
            user=self.user,
            alias=alias.words[0] if alias is not None else self.name,
            jump=jump.words[0] if jump is not None else "",
        )

    def first(self, keyword: str) -> Setting | None:
        """Return the value that counts, None where nothing is configured."""
        settings = self.found.get(keyword)
        return settings[0] if settings else None

    def expanded(self, setting: Setting, word: str) -> str:
        """Return *word* of a setting with ``~``, tokens and ``${VARIABLES}`` expanded."""
        with standing_at(setting):
            return self.tokens.expand_path(word)

    # Files.

    def _read_file(self, source: Source, *, active: bool = True, depth: int = 0) -> None:
        """Read a file, of which nothing counts unless it is *active*."""
        try:
            data, status = read_with_status(source.path, _MOST_BYTES)
        except FileNotFoundError:
            if not source.required:
                return
            raise ConfigurationError(
                f"The ssh configuration {source.path} is not there. Correct the option config.",
                reason=Reason.CONFIGURATION_UNREADABLE,
                location=Location(source.path),
            ) from None
        except OSError as exc:
            if is_of_this_machine(exc):
                raise system_error("The ssh configuration cannot be read", exc, path=source.path) from exc
            raise ConfigurationError(
                f"The ssh configuration {source.path} can not be read: {exc.strerror}. {ADVICE}",
                reason=Reason.CONFIGURATION_UNREADABLE,
                location=Location(source.path),
            ) from exc
        if source.checked and (status.st_uid not in (0, os.geteuid()) or stat.S_IMODE(status.st_mode) & 0o022):
            quoted = shlex.quote(source.path)
            chown = "" if status.st_uid in (0, os.geteuid()) else f"chown {os.geteuid()} {quoted} && "
            raise ConfigurationError(
                f"The ssh configuration {source.path} can be written by others than you and root, so that ssh would "
                f"refuse it. Run `{chown}chmod go-w {quoted}`.",
                reason=Reason.INSECURE_CONFIGURATION,
                location=Location(source.path),
            )
        if source.path not in self.files:
            self.files.append(source.path)
        never = not active
        for number, raw in enumerate(data.decode("utf-8", "surrogateescape").split("\n"), 1):
            line = raw.strip(" \t\r\f")
            if not line or line.startswith("#"):
                continue
            match = _LINE.match(line)
            if match is None or not match.group(1).isascii():  # as behind a byte order mark
                raise complaint(Setting((), source.path, number), f"{line[:60]!r} can not be read")
            keyword, value = match.group(1).lower(), match.group(2)
            if not self._is_accepted(match.group(1), Setting((value,), source.path, number)):
                continue
            keyword = _ALIASES.get(keyword, keyword)
            setting = _setting(keyword, value, source.path, number)
            if keyword == "host":
                active = self._host_block(setting) and not never
            elif keyword == "match":
                active = self._match_block(value, setting, skip=never) and not never
            elif keyword == "include":
                self._include(setting, source, active=active, depth=depth)
            elif active:
                self._set(keyword, setting)

    def _is_accepted(self, keyword: str, line: Setting) -> bool:
        """Return whether to evaluate a line with this *keyword*; False for an unknown one in a system's file.

        Raises:
            ConfigurationError: If it is unknown in any other file, even in a block that does not match.
        """
        ignored = self.first("ignoreunknown")
        if is_known(keyword.lower(), "" if ignored is None else ignored.words[0]):
            return True
        if not os.path.normpath(line.path).startswith(_SYSTEM):
            raise complaint(
                line,
                f"{describe_unknown(keyword)} If not, name it with IgnoreUnknown in a line above",
                Reason.UNKNOWN_KEYWORD,
            )
        if not self._final:  # the first reading has logged it
            what = describe_unknown(keyword)
            self.log.warning("%s:%d: %s The line is ignored.", escape(line.path), line.number, what)
        return False

    def _set(self, keyword: str, setting: Setting) -> None:
        if keyword in _NONE_IS_UNSET and setting.words == ("none",):
            return
        if keyword == "proxyjump" and setting.words[0].lower() != "none":
            # Of these two the first counts, and it may be "none"; behind ProxyJump none there may be a ProxyCommand.
            if "proxyjump" in self.found or "proxycommand" in self.found:
                return
            self.found["proxycommand"] = [setting._replace(words=("none",))]
        values = self.found.setdefault(keyword, [])
        if not values or (keyword in _ADD_UP and setting.words not in [value.words for value in values]):
            values.append(setting)

    def _include(self, setting: Setting, source: Source, *, active: bool, depth: int) -> None:
        if depth >= _MOST_DEPTH:
            raise complaint(setting, f"more than {_MOST_DEPTH} files include each other")
        for word in setting.words:
            pattern = self.expanded(setting, word)
            if not os.path.isabs(pattern):
                pattern = os.path.join(glob.escape(source.base), pattern)
            for path in matching_paths(pattern):
                inner = Source(path, required=False, checked=True, base=source.base)
                self._read_file(inner, active=active, depth=depth + 1)

    # Blocks.

    def _host_block(self, setting: Setting) -> bool:
        matched = False
        for word in setting.words:
            if word.startswith("!"):
                if match_pattern(self.name, word[1:]):
                    return False
            elif match_pattern(self.name, word):
                matched = True
        return matched

    def _match_block(self, line: str, setting: Setting, *, skip: bool) -> bool:
        """Evaluate the criteria of a Match line, left to right, as far as they have to be."""
        result, rest, count = True, line, 0
        while rest:
            word, rest = next_word(rest)
            if not word or word.startswith("#"):
                break
            negated, criterion = word.startswith("!"), word.lstrip("!").lower()
            if criterion == "all":
                following, _ = next_word(rest)
                if count > 1 or (following and not following.startswith("#")):  # behind a single one ssh lets it pass
                    raise complaint(setting, "Match all can not be combined with other criteria")
                return result and not negated
            count += 1
            if criterion in ("final", "canonical"):
                self._wants_final |= criterion == "final"
                holds = self._final
            else:
                argument, rest = next_word(rest)
                if not argument or argument.startswith("#"):
                    raise complaint(setting, f"Match {criterion} needs an argument")
                holds = self._holds(criterion, argument, setting, run=result and not skip)
            result &= holds != negated
        if not count:
            raise complaint(setting, "Match needs at least one criterion")
        return result

    def _holds(self, criterion: str, argument: str, setting: Setting, *, run: bool) -> bool:
        tests: dict[str, Callable[[], bool]] = {
            "host": lambda: match_hostname(self.host, argument),
            "originalhost": lambda: match_hostname(self.name, argument),
            "user": lambda: match_pattern_list(self.user, argument),
            "localuser": lambda: match_pattern_list(local_user(), argument),
            "exec": lambda: run and self._run(argument, setting),
        }
        if criterion not in tests:
            raise complaint(setting, f"Match {criterion} is not evaluated", Reason.UNSUPPORTED_KEYWORD)
        with standing_at(setting):
            return tests[criterion]()

    def _run(self, command: str, setting: Setting) -> bool:
        """Run the command of a Match exec by the user's shell, as ssh does; it holds if the command succeeds."""
        with standing_at(setting):
            line = self.tokens.expand(command)
        try:
            return succeeds(line, _EXEC_SECONDS, self._watchdog)
        except StageError:
            raise
        except TimeoutError:
            raise complaint(setting, f"Match exec took more than {_EXEC_SECONDS:g} s") from None
        except OSError as exc:
            if is_of_this_machine(exc):
                raise system_error("Match exec cannot be run", exc, path=setting.path) from exc
            raise complaint(setting, f"Match exec can not be run: {exc.strerror}") from None


def _setting(keyword: str, value: str, path: str, number: int) -> Setting:
    setting = Setting((value,), path, number)
    if not value:
        raise complaint(setting, f"{keyword} has no value")
    if keyword in _COMMANDS or keyword == "match":
        return setting
    try:
        words = split_words(value)
    except ValueError:
        raise complaint(setting, f"{keyword} has a quote that is not closed") from None
    setting = Setting(tuple(words), path, number)
    if not words:
        raise complaint(setting, f"{keyword} has no value")
    if keyword in _NEVER_EMPTY and "" in words:
        raise complaint(setting, f"{keyword} has an empty value")
    if keyword in _ONE_WORD and len(words) > 1:
        raise complaint(setting, f"{keyword} takes one value, and here are {len(words)}")
    if keyword in CHECKS:
        CHECKS[keyword](setting)
    return setting

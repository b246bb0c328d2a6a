"""The settings of one destination as values of the right kind, and what of ssh's configuration is not honoured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple, TypeVar

from peerstage.errors import ConfigurationError, Location, escape
from peerstage.reasons import Reason
from peerstage.session._paramiko.transport import supported
from peerstage.session.algorithms import REKEY_BYTES, REKEY_SECONDS, Algorithms, select
from peerstage.session.jump import Hop, parse_jump
from peerstage.session.keywords import spelled
from peerstage.session.ssh_config import SSHConfig
from peerstage.session.values import FLAGS, choice_of, complaint, number_of, rekey_of, seconds_of, standing_at

T = TypeVar("T")

#: Keywords that change who is reached or trusted and are not honoured, and the values with which they do not.
_REFUSED = {
    "canonicalizehostname": ("no", "false"),
    "knownhostscommand": ("none",),
    "revokedhostkeys": ("none",),
    "nohostauthenticationforlocalhost": ("no", "false"),
    "proxyusefdpass": ("no", "false"),
    "bindinterface": (),
}
#: Keywords that would bring further keys to log in by.
_FURTHER_KEYS = {"pkcs11provider": ("none",), "securitykeyprovider": ("none", "internal", "$ssh_sk_provider")}
#: Most bytes that the same keys may serve: as ssh for AES, 2^32 blocks (RFC 4344, 3.2).
_MOST_BYTES = 1 << 36
#: Attempts that are made at most; ssh knows no bound.
_MOST_ATTEMPTS = 1000


class NamedPath(NamedTuple):
    """A path in the configuration, the keyword that it is the value of, and the line."""

    keyword: str
    path: str
    location: Location

    def __str__(self) -> str:
        return f"{self.keyword} in {self.location}"


class Settings:
    """The settings that are in effect for one destination."""

    def __init__(self, config: SSHConfig) -> None:
        self._config = config

    def refuse_what_is_not_honoured(self) -> None:
        """Refuse what changes who is reached or trusted, and is not honoured; say of what else is passed over.

        Raises:
            ConfigurationError: There is such a setting; with file and line.
        """
        refused = self._config.first("refuseconnection")
        if refused is not None:
            raise complaint(refused, f"RefuseConnection: {' '.join(refused.words)!r}")
        for keyword, harmless in _REFUSED.items():
            if not self._is(keyword, harmless):
                raise self._complaint(spelled(keyword), "is not honoured", Reason.UNSUPPORTED_KEYWORD)
        for keyword, harmless in _FURTHER_KEYS.items():
            if not self._is(keyword, harmless):
                self._config.log.info("%s is ignored; its keys are not used.", keyword)

    def _is(self, keyword: str, harmless: tuple[str, ...]) -> bool:
        setting = self._config.first(keyword)
        return setting is None or " ".join(setting.words).lower() in harmless

    def text(self, keyword: str, default: str = "") -> str:
        """Return a setting of one word."""
        setting = self._config.first(keyword)
        return default if setting is None else setting.words[0]

    def words(self, keyword: str) -> tuple[str, ...]:
        """Return the words of a setting."""
        setting = self._config.first(keyword)
        return () if setting is None else setting.words

    def path(self, keyword: str) -> str:
        """Return a setting that is a path, expanded."""
        setting = self._config.first(keyword)
        return "" if setting is None else self._config.expanded(setting, setting.words[0])

    def paths(self, keyword: str) -> list[str]:
        """Return the paths of a setting that adds up, expanded."""
        return [one.path for one in self.named_paths(keyword)]

    def named_paths(self, keyword: str) -> list[NamedPath]:
        """Return the paths of a setting of one word, which may add up, expanded and with their lines."""
        settings = self._config.found.get(keyword.lower(), [])
        return [
            NamedPath(keyword, self._config.expanded(one, one.words[0]), Location(one.path, one.number))
            for one in settings
        ]

    def list_of_paths(self, keyword: str) -> list[str]:
        """Return the paths of a setting of several words, expanded."""
        setting = self._config.first(keyword)
        return [] if setting is None else [self._config.expanded(setting, word) for word in setting.words]

    def hops(self) -> tuple[Hop, ...]:
        """Return the hosts to jump through."""
        setting = self._config.first("proxyjump")
        if setting is None:
            return ()
        with standing_at(setting):
            return parse_jump(self._config.tokens.expand_proxy(setting.words[0]))

    def command(self) -> str | None:
        """Return the ProxyCommand, expanded; None if there is none."""
        setting = self._config.first("proxycommand")
        if setting is None or setting.words[0].lower() == "none":
            return None
        with standing_at(setting):
            return self._config.tokens.expand_proxy(setting.words[0])

    def seconds(self, keyword: str, default: float) -> float:
        """Return a setting in seconds, 0 included."""
        setting = self._config.first(keyword)
        return default if setting is None else seconds_of(setting)

    def count(self, keyword: str, default: int) -> int:
        """Return a setting that is a number, 0 included."""
        setting = self._config.first(keyword)
        return default if setting is None else number_of(setting)

    def attempts(self) -> int:
        """Return how often a connection is tried."""
        number = self.count("connectionattempts", 1)
        if not number:
            raise self._complaint("connectionattempts", "must be 1 or more")
        return min(number, _MOST_ATTEMPTS)

    def flag(self, keyword: str) -> bool:
        """Return a setting that is yes or no."""
        return self.choice(keyword, FLAGS, False)

    def choice(self, keyword: str, choices: Mapping[str, T], default: T) -> T:
        """Return a setting that is one of several words."""
        setting = self._config.first(keyword)
        return default if setting is None else choice_of(setting, choices)

    def algorithms(self) -> Algorithms:
        """Return what is offered in the key exchange and may sign, and for how long keys serve.

        Raises:
            ConfigurationError: A list names nothing that there is.
        """
        ours = supported()
        limits = [rekey_of(setting) for setting in self._config.found.get("rekeylimit", [])]
        size = limits[0].size if limits else 0
        times = [one.seconds for one in limits if one.seconds is not None] or [REKEY_SECONDS]
        seconds = next(
            (one for one in times if one < math.inf), 0.0
        )  # "none" is no time, and a later line may have one
        return Algorithms(
            ciphers=self._names("ciphers", ours.ciphers),
            macs=self._names("macs", ours.macs),
            kex=self._names("kexalgorithms", ours.kex),
            host_keys=self._names("hostkeyalgorithms", ours.host_keys, patterns=True),
            host_keys_fixed=not self.text("hostkeyalgorithms", "+").startswith(("+", "-")),
            authorities=self._names("casignaturealgorithms", ours.authorities, patterns=True),
            public_keys=self._names("pubkeyacceptedalgorithms", ours.public_keys, patterns=True),
            rekey_bytes=min(size or REKEY_BYTES, _MOST_BYTES),
            rekey_seconds=seconds or None,
        )

    def _names(self, keyword: str, ours: tuple[str, ...], *, patterns: bool = False) -> tuple[str, ...]:
        setting = self._config.first(keyword)
        if setting is None:
            return ours
        taken, passed_over = select(setting.words[0], ours, patterns=patterns)
        if not taken:
            raise complaint(setting, f"{keyword} leaves nothing that there is here: {', '.join(ours)}")
        if passed_over:
            self._config.log.info(
                "%s at %s:%d: passed over what there is not, or is weak: %s.",
                *(keyword, escape(setting.path), setting.number, escape(", ".join(passed_over))),
            )
        return taken

    def _complaint(self, keyword: str, what: str, reason: Reason = Reason.INVALID_CONFIGURATION) -> ConfigurationError:
        setting = self._config.first(keyword.lower())
        return (
            ConfigurationError(f"{keyword} {what}.", reason=reason)
            if setting is None
            else complaint(setting, f"{keyword} {what}", reason)
        )

"""What is known about the way to a host when one of its steps fails: how it was asked for, and where settings stand."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from dataclasses import dataclass
from typing import NamedTuple

from peerstage.errors import Location, StageError
from peerstage.session.config import Destination, hop_options, read_config, resolve_destination
from peerstage.session.host_key import trust_command
from peerstage.session.options import SSHOptions, expand, several
from peerstage.session.ssh_config import SSHConfig
from peerstage.session.watchdog import Watchdog

#: Options of the command line, by the keywords of ssh_config(5) that they take the place of.
_OPTIONS = {"Port": "port", "IdentityFile": "identity", "UserKnownHostsFile": "known_hosts", "ProxyJump": "jump"}
_OPTION = re.compile(r"SSHOptions\((\w+)=")


class Remedy(NamedTuple):
    """The likely cause of a failure, and the next step.

    Attributes:
        cause: What is likely wrong, as a clause.
        action: A command, or a line and the file that it belongs to, as an imperative clause. What is to be typed
            stands in backquotes.
    """

    cause: str
    action: str


@dataclass
class Diagnosis:
    """What is known about the way to one host.

    Attributes:
        host: The host, as the command line names it.
        user: Who logs in, as the command line says; None for whom the configuration names.
        options: How the host is reached, where ssh's configuration does not say it.
        watchdog: Bounds what the configuration runs (``Match exec``).
        directory: The collect directory; "" for a jump host.
        step: The step that failed, as `peerstage.cli.examine` names it.
        config: What the configuration says; None if it could not be read.
        destination: What that comes to; None if it is not honoured.
        transport: The transport that answers, "SFTP" or "SCP"; "" if none has yet.
        works_over: The ``--transport`` with which the peer answers after all; None if none is known.
        behind: What is known about the peer, if this is about a jump host on the way to it.
    """

    host: str
    user: str | None
    options: SSHOptions
    watchdog: Watchdog
    directory: str = ""
    step: str = ""
    config: SSHConfig | None = None
    destination: Destination | None = None
    transport: str = ""
    works_over: str | None = None
    behind: Diagnosis | None = None

    def read(self) -> tuple[SSHConfig, Destination]:
        """Read the configuration, and return what it says and what that comes to.

        Raises:
            ConfigurationError: If it cannot be read, or is not honoured.
            LimitExceeded, Cancelled: If the watchdog ended a command of it.
        """
        self.config = read_config(self.host, self.user, self.options, watchdog=self.watchdog)
        self.destination = resolve_destination(self.host, self.user, self.options, watchdog=self.watchdog)
        return self.config, self.destination

    def of_hop(self, name: str) -> Diagnosis | None:
        """Return what is known about the jump host *name*; None if it is none of the peer's own."""
        hops = () if self.destination is None else self.destination.hops
        at = next((number for number, hop in enumerate(hops) if str(hop) == name), None)
        if at is None:
            return None
        theirs = hop_options(self.options, hops[at], hops[:at])
        found = Diagnosis(hops[at].host, hops[at].user, theirs, self.watchdog, step=self.step, behind=self)
        with contextlib.suppress(StageError):  # it may be what failed
            found.read()
        return found

    @property
    def machine(self) -> str:
        """The host in a sentence."""
        return "the peer" if self.behind is None else f"the jump host {self.host}"

    @property
    def sshd_config(self) -> str:
        """The configuration of the host's SSH server."""
        return f"/etc/ssh/sshd_config on {self.machine}"

    def sshd_setting(self, line: str) -> str:
        """Return how to have the host's SSH server use *line*; of a keyword, it uses the first."""
        return f"set `{line}` in {self.sshd_config}, and restart its sshd"

    @property
    def login(self) -> str:
        """Who logs in, as far as it is known."""
        return self.destination.user if self.destination is not None else self.user or "the user"

    @property
    def authorized_keys(self) -> str:
        """The file with the keys that the host accepts."""
        return f"~{self.login}/.ssh/authorized_keys on {self.machine}"

    # Where settings come from, and where they belong.

    def setting(self, keyword: str) -> str:
        """Return where *keyword* is configured; "" if it is not."""
        setting = None if self.config is None else self.config.first(keyword.lower())
        if setting is None or not setting.number:
            return ""
        return f"`{keyword} {' '.join(setting.words)}` in {setting.path}:{setting.number}"

    def correction(self, keyword: str, value: str = "VALUE") -> str:
        """Return how to give *keyword* another value: where it was given, or else where it belongs.

        Args:
            keyword: A keyword of ssh_config(5).
            value: Stands for the value in a line that is to be added.
        """
        field = _OPTIONS.get(keyword, "")
        given = several(getattr(self.options, field)) if field else ()
        if given and self.behind is not None and field in ("port", "jump"):  # they are part of the jump
            return self.another_hop
        if given:
            return f"give another --{field.replace('_', '-')} than {' '.join(map(str, given))}"
        configured = self.setting(keyword)
        if configured:
            return f"correct {configured}"
        if self.config_file is None and field:
            return f"give --{field.replace('_', '-')} {value}"
        return f"add `{keyword} {value}` {self.host_block}"

    @property
    def config_file(self) -> str | None:
        """The file to which a line for this host may be added; None if none is read."""
        if self.options.config is None:
            return "~/.ssh/config"
        return next((os.fspath(path) for path in several(self.options.config)), None)

    @property
    def host_block(self) -> str:
        """Where in that file such a line belongs."""
        return f"below `Host {self.host}` in {self.config_file or 'a file of your own, given with --config'}"

    @property
    def another_user(self) -> str:
        """How to log in as somebody else."""
        if self.behind is None:
            return f"give another user than {self.login} before the @"
        return self.correction("User", "NAME") if self.user is None else self.another_hop

    @property
    def another_hop(self) -> str:
        """How to jump through another host, or by another port or user of it."""
        return "" if self.behind is None else self.behind.correction("ProxyJump", "HOST")

    def identity(self, path: str) -> str:
        """Return how to name another key than that in the file *path*."""
        if self.options.identity is None and self.config is not None:
            for setting in self.config.found.get("identityfile", []):
                if self.config.expanded(setting, setting.words[0]) == path:
                    return f"correct `IdentityFile {setting.words[0]}` in {setting.path}:{setting.number}"
        return self.correction("IdentityFile", "FILE")

    def place(self, location: Location | None) -> str:
        """Return *location* as the user knows it: the option of the command line, or file and line; "" for None."""
        option = None if location is None else _OPTION.match(location.path)
        return f"--{option[1].replace('_', '-')}" if option else str(location or "")

    @property
    def trust(self) -> str:
        """The command that adds the host's key to known_hosts; "" where there is no file to add it to."""
        return "" if self.destination is None else trust_command(self.destination)

    @property
    def trust_as_usual(self) -> str:
        """The same for the user's own known_hosts file, whatever the configuration names."""
        if self.destination is None:
            return ""
        return trust_command(dataclasses.replace(self.destination, learns_into=expand("~/.ssh/known_hosts")))

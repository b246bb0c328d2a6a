"""What is known about a host when a step fails: how it was to be reached, and where settings come from."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shlex
from dataclasses import dataclass

from peerstage.errors import Location, StageError
from peerstage.ssh.config.destination import Destination
from peerstage.ssh.config.resolve import hop_options, read_config, resolve_destination
from peerstage.ssh.config.ssh_config import SSHConfig
from peerstage.ssh.hostkeys.verifier import trust_command
from peerstage.ssh.options import SSHOptions, as_tuple, expand_home
from peerstage.watchdog import Watchdog

#: Options of the command line, by the keywords of ssh_config(5) that they override.
_OPTIONS = {"Port": "port", "IdentityFile": "identity", "UserKnownHostsFile": "known_hosts", "ProxyJump": "jump"}
_OPTION = re.compile(r"SSHOptions\((\w+)=")


@dataclass
class Diagnosis:
    """What is known about one host.

    Attributes:
        host: The host, as the command line names it.
        user: Who logs in; None for the configured user.
        options: How the host is reached, where ssh's configuration does not say it.
        watchdog: Limits the commands that the configuration runs (``Match exec``).
        directory: The collect directory; "" for a jump host, or if none was given.
        local_user: The local user whose keys and configuration are used; None for the caller.
        step: The step that failed, as `peerstage.cli.checks` names it.
        config: The configuration; None if it could not be read.
        destination: The destination that the configuration leads to; None if it is invalid.
        transport: The transport that works, "SFTP" or "SCP"; "" if none is known to.
        works_over: The value of ``--transport`` that works after all; None if none is known.
        peer: The peer's diagnosis, if this host is a jump host on the way to it.
    """

    host: str
    user: str | None
    options: SSHOptions
    watchdog: Watchdog
    directory: str = ""
    local_user: str | None = None
    step: str = ""
    config: SSHConfig | None = None
    destination: Destination | None = None
    transport: str = ""
    works_over: str | None = None
    peer: Diagnosis | None = None

    def read(self) -> tuple[SSHConfig, Destination]:
        """Read the configuration; return it and the destination.

        Raises:
            ConfigurationError: If it cannot be read, or is invalid.
            LimitExceeded, Cancelled: If the watchdog ended a command that it runs.
        """
        self.config = read_config(self.host, self.user, self.options, watchdog=self.watchdog)
        self.destination = resolve_destination(self.host, self.user, self.options, watchdog=self.watchdog)
        return self.config, self.destination

    def for_hop(self, name: str) -> Diagnosis | None:
        """Return the diagnosis of the jump host *name*; None if the peer is not reached through it."""
        hops = () if self.destination is None else self.destination.hops
        index = next((number for number, hop in enumerate(hops) if str(hop) == name), None)
        if index is None:
            return None
        hop, options = hops[index], hop_options(self.options, hops[index], hops[:index])
        diagnosis = Diagnosis(hop.host, hop.user, options, self.watchdog, "", self.local_user, self.step, peer=self)
        with contextlib.suppress(StageError):  # the configuration may be what failed
            diagnosis.read()
        return diagnosis

    def terms(self, error: StageError) -> dict[str, str]:
        """Return the fields of `Remedy` templates; ``owner``, ``path`` and ``directory`` are quoted for a shell."""
        hops = () if self.destination is None else self.destination.hops
        gateway = f"the jump host {hops[-1]}" if hops else "the jump host"
        return {
            "machine": self.machine,
            "host": self.host,
            "login": self.login,
            "owner": shlex.quote(self.login),
            "directory": shlex.quote(self.directory),
            "another_directory": f"give another DIR than {self.directory}",
            "parent": os.path.dirname(self.directory.rstrip("/")) or "/",
            "path": shlex.quote(os.fsdecode(error.path or b"")),
            "location": self.location(error.location) or "the option or the line above",
            "sshd_config": self.sshd_config,
            "enable_sftp": self.sshd_setting("Subsystem sftp internal-sftp"),
            "log": f"see the log of sshd on {self.machine}",
            "port": self.correction("Port", "NUMBER"),
            "address": self.correction("HostName", "ADDRESS"),
            "bind_address": self.correction("BindAddress", "ADDRESS"),
            "proxy_command": self.correction("ProxyCommand", "COMMAND"),
            "gateway": gateway,
            "or_gateway": f", or {gateway} cannot reach it" if hops else "",
            "new_keys_file": (self.destination and self.destination.new_keys_file) or "known_hosts",
            "then_trust": f", and run `{self.trust}`" if self.trust else "",
        }

    @property
    def machine(self) -> str:
        """The host in a sentence."""
        return "the peer" if self.peer is None else f"the jump host {self.host}"

    @property
    def sshd_config(self) -> str:
        """The configuration of the host's sshd."""
        return f"/etc/ssh/sshd_config on {self.machine}"

    def sshd_setting(self, line: str) -> str:
        """Return how to set *line* in it; sshd uses the first line of a keyword."""
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
        line = None if self.config is None else self.config.first(keyword.lower())
        if line is None or not line.location.line:
            return ""
        return f"`{keyword} {' '.join(line.arguments)}` in {line.location}"

    def correction(self, keyword: str, value: str = "VALUE") -> str:
        """Return how to change *keyword* of ssh_config(5): where it is set, or else where it belongs.

        Args:
            value: A placeholder for the value in a new line or option.
        """
        field = _OPTIONS.get(keyword, "")
        given = as_tuple(getattr(self.options, field)) if field else ()
        if given and self.peer is not None and field in ("port", "jump"):  # they are part of the jump
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
        """The ssh_config file that a line for this host may be added to; None if none is read."""
        if self.options.config is None:
            return "~/.ssh/config"
        return next((os.fspath(path) for path in as_tuple(self.options.config)), None)

    @property
    def host_block(self) -> str:
        """Where in that file such a line belongs."""
        return f"below `Host {self.host}` in {self.config_file or 'a file of your own, given with --config'}"

    @property
    def another_user(self) -> str:
        """How to log in as another user."""
        if self.peer is None:
            return f"give another user than {self.login} before the @"
        return self.correction("User", "NAME") if self.user is None else self.another_hop

    @property
    def another_hop(self) -> str:
        """How to use another jump host, or another port or user of it."""
        return "" if self.peer is None else self.peer.correction("ProxyJump", "HOST")

    def identity(self, path: str) -> str:
        """Return how to name another key than that in the file *path*."""
        if self.options.identity is None and self.config is not None:
            for line in self.config.lines.get("identityfile", []):
                if self.config.expand_path(line, line.arguments[0]) == path:
                    return f"correct `IdentityFile {line.arguments[0]}` in {line.location}"
        return self.correction("IdentityFile", "FILE")

    def location(self, location: Location | None) -> str:
        """Return *location* as the user knows it: an option of the command line, or file and line; "" for None."""
        option = None if location is None else _OPTION.match(location.path)
        return f"--{option[1].replace('_', '-')}" if option else str(location or "")

    @property
    def trust(self) -> str:
        """The command that adds the host's key to known_hosts; "" if there is no file to add it to."""
        return "" if self.destination is None else self._trust_command(self.destination)

    @property
    def trust_in_default_file(self) -> str:
        """The command that adds it to the user's default known_hosts file."""
        if self.destination is None:
            return ""
        return self._trust_command(
            dataclasses.replace(self.destination, new_keys_file=expand_home("~/.ssh/known_hosts"))
        )

    def _trust_command(self, destination: Destination) -> str:
        command, name = trust_command(destination), "peerstage trust"
        if self.local_user is None:
            return command
        return command.replace(name, f"{name} --local-user {shlex.quote(self.local_user)}", 1)

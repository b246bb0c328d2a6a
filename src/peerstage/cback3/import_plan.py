"""Make a plan of peerstage from cback3's configuration, and from peerstage's settings beside it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from peerstage.cback3.settings import PeerSettings, Settings
from peerstage.cback3.staging_plan import read_peers, require_text
from peerstage.fleet.plan import LOCAL
from peerstage.fleet.plan_file.new_plan import NewPlan
from peerstage.printable import join_first
from peerstage.sizes import format_size_exactly
from peerstage.transport.rcp.command_line import split_command_line

_MAX_NAMES = 10
#: Options of an rcp-like command that peerstage has no use for.
_USUAL_OPTIONS = {"-B", "-q", "-C", "-p"}
#: Settings that a plan in TOML has no key for, and their values that are not the default.
_LOST: dict[str, Callable[[PeerSettings], object]] = {
    "host_key": lambda found: found.ssh.host_key,
    "ssh_config": lambda found: found.ssh.config,
    "connect_timeout": lambda found: found.ssh.connect_timeout,
    "elevate": lambda found: found.ssh.elevate,
    "durable": lambda found: None if found.stage.durable else "no",
    "preserve_times": lambda found: "yes" if found.stage.preserve_times else None,
    "max_size": lambda found: found.stage.max_size,
    "partial_dir": lambda found: found.stage.partial_dir,
    "deadline": lambda found: found.limits.deadline,
}
_LOST_FOR_LOCAL = ("durable", "preserve_times", "max_size", "partial_dir", "deadline")


def import_plan(config: Any, settings: Settings) -> NewPlan:
    """Return the plan that stages what cback3's stage action does with *config*.

    As cback3 does, it sets owners and connects as ``backup_user`` only if this process is root.

    Args:
        config: The configuration: cback3's own object, or what `read_config` returns.
        settings: The settings, which have been read.

    Raises:
        ValueError: If a section or an option is missing, or two peers have the same name.
        ConfigurationError: If the settings file has a section for an unknown peer.
    """
    options, stage = getattr(config, "options", None), getattr(config, "stage", None)
    if options is None or stage is None:
        raise ValueError("The configuration has no <options> or no <stage>.")
    user = require_text(options, "backupUser", "backup_user")
    group = require_text(options, "backupGroup", "backup_group")
    local, remote = read_peers(stage) or read_peers(getattr(config, "peers", None)) or ((), ())
    settings.require_known_peers({str(peer.name) for peer in remote})
    is_root = hasattr(os, "geteuid") and os.geteuid() == 0
    common = {"local_user": user} if is_root and user != "root" else {}
    plan = _Import(settings, options)
    for peer in local:
        plan.add(peer, {"transport": LOCAL, **plan.stage_keys(settings.of_peer(None))}, _LOST_FOR_LOCAL)
    for peer in remote:
        plan.add(peer, {**common, **plan.remote_keys(peer)}, tuple(_LOST))
    pool = {
        "staging": require_text(stage, "targetDir", "staging_dir"),
        "starting_day": require_text(options, "startingDay", "starting_day").lower(),
        **({"owner": f"{user}:{group}"} if is_root else {}),
        **({"parallel": settings.parallel} if settings.parallel > 1 else {}),
        **plan.bandwidth(),
    }
    return NewPlan(peers=plan.peers, settings=pool, notes=plan.notes())


class _Import:
    """Collects peers, and the settings that a plan has no key for.

    Attributes:
        peers: The keys of each peer, by its name.
    """

    def __init__(self, settings: Settings, options: Any) -> None:
        self.peers: dict[str, dict[str, Any]] = {}
        self._settings = settings
        self._options = options
        self._lost: dict[tuple[str, str], list[str]] = {}

    def add(self, peer: Any, keys: dict[str, Any], lost: tuple[str, ...]) -> None:
        """Add a peer with *keys* and those of every peer; *lost* are the settings to note if they are set."""
        name = require_text(peer, "name", "name")
        if name in self.peers:
            raise ValueError(f"Two peers have the name {name!r}.")
        self.peers[name] = {**keys, "collect_dir": require_text(peer, "collectDir", "collect_dir")}
        if peer.ignoreFailureMode is not None:
            self.peers[name]["ignore_failures"] = str(peer.ignoreFailureMode)
        found = self._settings.of_peer(None if keys.get("transport") == LOCAL else name)
        for setting in lost:
            value = _LOST[setting](found)
            if value is not None:
                self._note_loss(f"The setting {setting} = {value!r} of", name, "can be made only in Python")

    def stage_keys(self, found: PeerSettings) -> dict[str, Any]:
        """Return the keys that say what is staged."""
        values = {name: getattr(found.stage, name) for name in ("include", "exclude", "checksums")}
        return {name: value for name, value in values.items() if value}

    def remote_keys(self, peer: Any) -> dict[str, Any]:
        """Return the keys that say how a remote peer is reached, and what is staged."""
        name = require_text(peer, "name", "name")
        found = self._settings.of_peer(name)
        command = getattr(peer, "rcpCommand", None) or getattr(self._options, "rcpCommand", None)
        keys = {"user": getattr(peer, "remoteUser", None) or self._options.backupUser}
        if found.transport != "auto":
            keys["transport"] = found.transport
        if found.transport == "rcp" and command:
            keys["rcp_command"] = command
        elif command and not _is_usual(command):
            what = f"cback3 runs {command!r}, and peerstage does not; set the port or key that it names for"
            self._note_loss(what, name)
        for key in ("port", "identity", "known_hosts", "jump"):
            if getattr(found.ssh, key) is not None:
                keys[key] = getattr(found.ssh, key)
        limit = found.stage.bwlimit
        if limit is not None and limit != self._common_limit:
            self._note_loss(f"The setting bwlimit = {limit} of", name, "can be made only in Python")
        return {**keys, **self.stage_keys(found)}

    def bandwidth(self) -> dict[str, str]:
        """Return the limit for all peers together, which a peer's limit amounts to."""
        limit = self._common_limit
        return {} if limit is None else {"bwlimit": format_size_exactly(limit * self._settings.parallel)}

    def notes(self) -> list[str]:
        """Return what the plan does not contain."""
        return [
            f"{before} {join_first(names, _MAX_NAMES)} {after}".rstrip() + "."
            for (before, after), names in self._lost.items()
        ]

    @property
    def _common_limit(self) -> int | None:
        return self._settings.of_peer(None).stage.bwlimit

    def _note_loss(self, before: str, peer: str, after: str = "") -> None:
        """Note what is lost: a sentence with the names of all peers concerned between *before* and *after*."""
        self._lost.setdefault((before, after), []).append(peer)


def _is_usual(command: str) -> bool:
    """Return whether an rcp-like command is scp, with no option that tells how a peer is reached."""
    try:
        words = split_command_line(command)
    except ValueError:
        return False
    return words[:1] != [] and os.path.basename(words[0]) == "scp" and set(words[1:]) <= _USUAL_OPTIONS

"""Read cback3's configuration objects, without changing them, into a staging plan."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

from peerstage.cback3.settings import PeerSettings, Settings
from peerstage.errors import ConfigurationError
from peerstage.paths import validate_path
from peerstage.peer.base import BackupPeer
from peerstage.peer.local import LocalPeer
from peerstage.peer.remote import RemotePeer
from peerstage.records import Ownership
from peerstage.transport.factory import GUARDED, TransportName
from peerstage.util import getUidGid

_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")


@dataclass(frozen=True, slots=True)
class StagingPlan:
    """What to stage.

    Attributes:
        staging_directory: The staging directory, an absolute path.
        ownership: Owner and group of everything staged; None leaves it to this process.
        starting_day: The first day of a backup week, as `time.struct_time.tm_wday`; -1 for an unknown day.
        peers: The local peers, then the remote ones.
    """

    staging_directory: str
    ownership: Ownership | None
    starting_day: int
    peers: tuple[BackupPeer, ...]


def read_plan(config: Any, settings: Settings) -> StagingPlan:
    """Return the plan for *config*, without connecting.

    Raises:
        ValueError: If the stage section, the options or a peer are incomplete or invalid.
        ConfigurationError: If the settings file has a section for an unknown peer.
    """
    options, stage = getattr(config, "options", None), getattr(config, "stage", None)
    if options is None or stage is None:
        raise ValueError("Stage configuration is not properly filled in: <options> and <stage> are required.")
    user = require_text(options, "backupUser", "backup_user")
    group = require_text(options, "backupGroup", "backup_group")
    staging_directory = validate_path(require_text(stage, "targetDir", "staging_dir"), "staging_dir")
    if not os.path.isabs(staging_directory):
        raise ValueError(f"staging_dir must be an absolute path: {staging_directory!r}")
    is_root = hasattr(os, "geteuid") and os.geteuid() == 0
    local, remote = read_peers(stage) or read_peers(getattr(config, "peers", None)) or ((), ())
    settings.require_known_peers({str(getattr(peer, "name", "")) for peer in remote})
    day = require_text(options, "startingDay", "starting_day").lower()
    return StagingPlan(
        staging_directory=staging_directory,
        ownership=Ownership(*getUidGid(user, group)) if is_root else None,
        starting_day=_DAYS.index(day) if day in _DAYS else -1,
        peers=(
            *(_build_local_peer(peer, settings.of_peer(None)) for peer in local),
            *(_build_remote_peer(peer, options, settings, local_user=user if is_root else None) for peer in remote),
        ),
    )


def read_peers(section: Any) -> tuple[Iterable[Any], Iterable[Any]] | None:
    """Return the local and the remote peers of a section, or None if it has no peers."""
    local, remote = getattr(section, "localPeers", None) or (), getattr(section, "remotePeers", None) or ()
    return (local, remote) if local or remote else None


def _build_local_peer(peer: Any, settings: PeerSettings) -> LocalPeer:
    stage = dataclasses.replace(settings.stage, bwlimit=None)  # it is for connections
    return LocalPeer(peer.name, peer.collectDir, _read_failure_mode(peer), stage=stage, limits=settings.limits)


def _build_remote_peer(peer: Any, options: Any, settings: Settings, *, local_user: str | None) -> RemotePeer:
    peer_settings = settings.of_peer(peer.name)
    is_guarded = peer_settings.transport == GUARDED
    rcp_command = None
    if peer_settings.transport == "rcp":
        rcp_command = getattr(peer, "rcpCommand", None) or getattr(options, "rcpCommand", None)
    remote_peer = RemotePeer(
        peer.name,
        peer.collectDir,
        options.workingDir,
        getattr(peer, "remoteUser", None) or options.backupUser,
        rcpCommand=rcp_command,
        localUser=local_user,
        ignoreFailureMode=_read_failure_mode(peer),
        ssh=peer_settings.ssh,
        transport="scp" if is_guarded else cast(TransportName, peer_settings.transport),
        guarded=is_guarded,
        stage=peer_settings.stage,
        limits=peer_settings.limits,
    )
    try:
        remote_peer.validate()
    except ValueError as exc:
        raise ConfigurationError(f"{peer.name}: {exc}", path=settings.path) from exc
    return remote_peer


def _read_failure_mode(peer: Any) -> str | None:
    mode = getattr(peer, "ignoreFailureMode", None)
    return None if mode is None else str(mode)


def require_text(section: Any, attribute: str, option: str) -> str:
    """Return the *attribute* of a section.

    Raises:
        ValueError: If it is not a string, or empty; the message calls it *option*.
    """
    value = getattr(section, attribute, None)
    if not isinstance(value, str) or not value:
        raise ValueError(f"The option {option} must be filled in.")
    return value

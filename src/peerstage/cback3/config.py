"""What cback3's configuration says of staging, read off the objects that it hands over: they are only looked at."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

from peerstage.cback3.settings import GUARDED, Settings
from peerstage.errors import ConfigurationError
from peerstage.peer.base import BackupPeer
from peerstage.peer.local import LocalPeer
from peerstage.peer.remote import RemotePeer
from peerstage.records import Ownership
from peerstage.staging import encodable_path
from peerstage.transport.choose import TransportName
from peerstage.util import getUidGid

_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be staged.

    Attributes:
        staging: The staging directory, absolute.
        ownership: Owner and group of what is staged; None leaves them to this process.
        starting_day: The day on which a week of backups begins, as in `time.struct_time.tm_wday`; -1 if it is none.
        peers: Local and remote peers, in their order.
    """

    staging: str
    ownership: Ownership | None
    starting_day: int
    peers: tuple[BackupPeer, ...]


def read_plan(config: Any, settings: Settings) -> Plan:
    """Return what is to be staged. Nothing is connected.

    Raises:
        ValueError: The stage section, the options or a peer are not filled in, or can not be meant.
        ConfigurationError: Our own file has a section for a peer that is none.
    """
    options, stage = getattr(config, "options", None), getattr(config, "stage", None)
    if options is None or stage is None:
        raise ValueError("Stage configuration is not properly filled in: there must be <options> and <stage>.")
    user, group = _text(options, "backupUser", "backup_user"), _text(options, "backupGroup", "backup_group")
    staging = encodable_path(_text(stage, "targetDir", "staging_dir"), "staging_dir")
    if not os.path.isabs(staging):
        raise ValueError(f"staging_dir must be an absolute path: {staging!r}")
    as_root = hasattr(os, "geteuid") and os.geteuid() == 0
    local, remote = _peers_of(stage) or _peers_of(getattr(config, "peers", None)) or ((), ())
    settings.require_known({str(getattr(peer, "name", "")) for peer in remote})
    day = _text(options, "startingDay", "starting_day").lower()
    return Plan(
        staging=staging,
        ownership=Ownership(*getUidGid(user, group)) if as_root else None,
        starting_day=_DAYS.index(day) if day in _DAYS else -1,
        peers=(
            *(_local_peer(peer) for peer in local),
            *(_remote_peer(peer, options, settings, local_user=user if as_root else None) for peer in remote),
        ),
    )


def _peers_of(section: Any) -> tuple[Iterable[Any], Iterable[Any]] | None:
    """Return the local and the remote peers of a section, None if it has none of either."""
    local, remote = getattr(section, "localPeers", None) or (), getattr(section, "remotePeers", None) or ()
    return (local, remote) if local or remote else None


def _local_peer(peer: Any) -> LocalPeer:
    return LocalPeer(peer.name, peer.collectDir, _ignored(peer))


def _remote_peer(peer: Any, options: Any, settings: Settings, *, local_user: str | None) -> RemotePeer:
    one = settings.of(peer.name)
    copied_by = None
    if one.transport == "rcp":
        copied_by = getattr(peer, "rcpCommand", None) or getattr(options, "rcpCommand", None)
    made = RemotePeer(
        peer.name,
        peer.collectDir,
        options.workingDir,
        getattr(peer, "remoteUser", None) or options.backupUser,
        rcpCommand=copied_by,
        localUser=local_user,
        ignoreFailureMode=_ignored(peer),
        ssh=one.ssh,
        transport="scp" if one.transport == GUARDED else cast(TransportName, one.transport),
        guarded=one.transport == GUARDED,
        limits=one.limits,
    )
    try:
        made.validate()
    except ValueError as exc:
        raise ConfigurationError(f"{peer.name}: {exc}", path=settings.path) from exc
    return made


def _ignored(peer: Any) -> str | None:
    mode = getattr(peer, "ignoreFailureMode", None)
    return None if mode is None else str(mode)


def _text(section: Any, attribute: str, option: str) -> str:
    value = getattr(section, attribute, None)
    if not isinstance(value, str) or not value:
        raise ValueError(f"The option {option} must be filled in.")
    return value

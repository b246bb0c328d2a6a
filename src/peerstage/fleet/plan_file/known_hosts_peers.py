"""Peers for a new plan from the hosts of a known_hosts file."""

from __future__ import annotations

import ipaddress
from typing import Any

from peerstage.fleet.plan import PeerJob
from peerstage.fleet.plan_file.new_plan import COMMON_KEYS, NewPlan
from peerstage.printable import escape
from peerstage.ssh.hostkeys.known_hosts import KnownHosts

_DEFAULT_PORT = 22


def plan_known_hosts(data: bytes, keys: dict[str, Any]) -> NewPlan:
    """Return a plan with the hosts in *data*, the content of a known_hosts file.

    A line's first name that is not an address is the peer's. A host that only has an address is left out if its key is
    also known by a name. Hashed names and patterns name no host.

    Args:
        data: The content of the file; lines that are not valid are logged and left out.
        keys: Further keys of each peer.

    Raises:
        ValueError: If no host is named.
    """
    listed = list(KnownHosts.read([data]).listed_keys())
    named = {key.blob for key in listed if any(not _is_address(host) for host, _ in key.hosts)}
    peers: dict[str, dict[str, Any]] = {}
    notes: list[str] = []
    owners: dict[bytes, str] = {}
    for key in listed:
        if not key.hosts:
            continue
        host, port = next((name for name in key.hosts if not _is_address(name[0])), key.hosts[0])
        if _is_address(host) and key.blob in named:
            continue
        name = host if port == _DEFAULT_PORT else f"{host}-{port}"
        if name in peers:
            continue
        own: dict[str, Any] = {} if port == _DEFAULT_PORT else {"host": host, "port": port}
        try:
            PeerJob(name=name, user="x", collect_dir="/x", host=own.get("host"))
        except ValueError:
            notes.append(f"{escape(host)} in line {key.location.line} cannot be the name of a peer.")
            continue
        if (other := owners.setdefault(key.blob, name)) != name:
            notes.append(f"{name} and {other} have the same host key, and may be the same host.")
        peers[name] = {**own, **COMMON_KEYS, **keys}
    unnamed = sum(not key.hosts for key in listed)
    if unnamed:
        lines = "1 line is" if unnamed == 1 else f"{unnamed} lines are"
        notes.append(f"{lines} hashed, or hold patterns, and name no host.")
    if not peers:
        hint = f": {notes[-1]}" if notes else "."
        raise ValueError(f"The known_hosts file names no host{hint}")
    return NewPlan(peers=peers, notes=notes)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True

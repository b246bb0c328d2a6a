"""Peers that are reached as another local user than the one who runs the tests: one that every Debian has."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from peerstage.session.options import SSHOptions
from support.programs import rcp_command
from support.sshd import Sshd

#: A user without a shell and without anything in its home.
LOCAL_USER = "games"


def by_value(server: Sshd, **changes: object) -> SSHOptions:
    """How to reach a server without reading any file: what a user needs who can read none of ours."""
    values = {"identity": None, "pkey": server.identity.read_bytes(), "known_hosts": server.known_hosts.read_bytes()}
    return server.options(**{**values, **changes})


def rcp_as(user: str, server: Sshd, place: Path) -> str:
    """Return OpenSSH's scp as an rcp-like command for *user*, with a key of theirs in *place*, which all can reach."""
    home = place / f"ssh-of-{user}"
    if not home.exists():
        home.mkdir()
        for path in (server.identity, server.known_hosts):
            shutil.copy(path, home)
            shutil.chown(home / path.name, user)
    return rcp_command([part.replace(str(server.home), str(home)) for part in server.ssh_arguments()])


def apart(over: str, server: Sshd, place: Path) -> dict[str, Any]:
    """Return how a peer is told to be reached through a child: of another user where we are root."""
    if os.geteuid() != 0:
        way = {"rcpCommand": rcp_command(server.ssh_arguments())} if over == "rcp" else {"transport": over}
        return {"isolated": True, "ssh": server.options(), **way}
    way = {"rcpCommand": rcp_as(LOCAL_USER, server, place)} if over == "rcp" else {"transport": over}
    return {"localUser": LOCAL_USER, "ssh": by_value(server), **way}

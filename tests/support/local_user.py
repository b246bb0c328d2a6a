"""Peers that are reached as another local user, one that every Debian has."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from peerstage.ssh.options import SSHOptions
from support.programs import rcp_command
from support.sshd import Sshd

#: A user without a shell and with an empty home directory.
LOCAL_USER = "games"


def options_by_value(server: Sshd, **changes: object) -> SSHOptions:
    """Return options that need no file: for a local user who cannot read the files of the tests."""
    values = {"identity": None, "pkey": server.identity.read_bytes(), "known_hosts": server.known_hosts.read_bytes()}
    return server.options(**{**values, **changes})


def rcp_command_as(user: str, server: Sshd, directory: Path) -> str:
    """Return OpenSSH's scp as an rcp-like command for *user*, with a key in *directory*, which every user can enter."""
    home = directory / f"ssh-of-{user}"
    if not home.exists():
        home.mkdir()
        for path in (server.identity, server.known_hosts):
            shutil.copy(path, home)
            shutil.chown(home / path.name, user)
    return rcp_command([part.replace(str(server.home), str(home)) for part in server.ssh_arguments()])


def isolated_options(transport: str, server: Sshd, directory: Path) -> dict[str, Any]:
    """Return arguments of a `RemotePeer` that uses a child process, of another user if the tests run as root."""
    if os.geteuid() == 0:
        options: dict[str, Any] = {"localUser": LOCAL_USER, "ssh": options_by_value(server)}
        command = rcp_command_as(LOCAL_USER, server, directory)
    else:
        options = {"isolated": True, "ssh": server.options()}
        command = rcp_command(server.ssh_arguments())
    return {**options, **({"rcpCommand": command} if transport == "rcp" else {"transport": transport})}

"""Remote peers over every transport, in this process and in a child."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from peerstage import RemotePeer
from support.every_transport import CONNECTIONS, OptionsFor
from support.local_user import isolated_options
from support.programs import rcp_command
from support.sshd import Sshd


@pytest.fixture(params=CONNECTIONS)
def connection(request: pytest.FixtureRequest) -> str:
    """One of `CONNECTIONS`."""
    return str(request.param)


@pytest.fixture
def transport(connection: str) -> str:
    """The transport of the connection: sftp, scp or rcp."""
    return connection.partition("-")[0]


@pytest.fixture
def options_for(connection: str, transport: str, public_path: Path) -> OptionsFor:
    """Returns how a server is reached over the connection; for rcp, by OpenSSH's scp with the SCP protocol."""

    def options(server: Sshd) -> dict[str, Any]:
        if connection.endswith("-isolated"):
            return isolated_options(transport, server, public_path)
        if transport == "rcp":
            return {"ssh": server.options(), "rcpCommand": rcp_command(server.ssh_arguments())}
        return {"ssh": server.options(), "transport": transport}

    return options


@pytest.fixture
def peer(sshd: Sshd, collect: Path, options_for: OptionsFor) -> RemotePeer:
    """A remote peer on the real server."""
    return RemotePeer(sshd.host, str(collect), "/tmp", sshd.user, **options_for(sshd))


@pytest.fixture
def unprivileged(unprivileged_sshd: Sshd, public_path: Path, options_for: OptionsFor) -> RemotePeer:
    """A remote peer whose login is not root, with an empty collect directory of its own."""
    server = unprivileged_sshd
    return RemotePeer(server.host, str(public_path / "collect"), "/tmp", server.user, **options_for(server))

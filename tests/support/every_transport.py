"""The connections over which the tests in peer/every_transport run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from support.sshd import Sshd

#: Returns the keyword arguments of a `RemotePeer` that reaches a server.
OptionsFor: TypeAlias = Callable[[Sshd], dict[str, Any]]

#: Transport, and whether it works in a child process (as root: of another local user). SCP in a child process differs
#: from SFTP there only as the transport contract tests.
CONNECTIONS = ["sftp-direct", "scp-direct", "rcp-direct", "sftp-isolated", "rcp-isolated"]

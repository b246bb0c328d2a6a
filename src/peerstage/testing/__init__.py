"""For the tests of whoever uses peerstage, as for its own: an SSH server, peers in memory, the transport contract.

The pytest plugin `pytest_peerstage` has fixtures for the first two.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peerstage.testing.contract import DirectorySource, Source, TransportContract
    from peerstage.testing.faults import Faults
    from peerstage.testing.memory import MemoryFile, MemoryTransport
    from peerstage.testing.peers import MemoryHost, MemoryPeer, memory_peer, memory_peers
    from peerstage.testing.sample import digests, make_sample
    from peerstage.testing.server import EmbeddedServer, ssh_server

_HOMES = {
    "DirectorySource": "contract",
    "EmbeddedServer": "server",
    "Faults": "faults",
    "MemoryFile": "memory",
    "MemoryHost": "peers",
    "MemoryPeer": "peers",
    "MemoryTransport": "memory",
    "Source": "contract",
    "TransportContract": "contract",
    "digests": "sample",
    "make_sample": "sample",
    "memory_peer": "peers",
    "memory_peers": "peers",
    "ssh_server": "server",
}

__all__ = [
    "DirectorySource",
    "EmbeddedServer",
    "Faults",
    "MemoryFile",
    "MemoryHost",
    "MemoryPeer",
    "MemoryTransport",
    "Source",
    "TransportContract",
    "digests",
    "make_sample",
    "memory_peer",
    "memory_peers",
    "ssh_server",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

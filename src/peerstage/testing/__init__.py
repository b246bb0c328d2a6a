"""Test helpers, for users of peerstage and for its own tests: an SSH server, peers in memory, the transport contract.

The pytest plugin `pytest_peerstage` provides fixtures for the first two.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peerstage.testing.contract import DirectorySource, Source, TransportContract
    from peerstage.testing.faults import Faults
    from peerstage.testing.fleet import MemoryJob, memory_job
    from peerstage.testing.memory import MemoryFile, MemoryTransport
    from peerstage.testing.peers import MemoryHost, MemoryPeer, memory_peer, memory_peers
    from peerstage.testing.sample import hash_files, make_sample
    from peerstage.testing.server import EmbeddedServer, ssh_server

_MODULES = {
    "contract": ("DirectorySource", "Source", "TransportContract"),
    "faults": ("Faults",),
    "fleet": ("MemoryJob", "memory_job"),
    "memory": ("MemoryFile", "MemoryTransport"),
    "peers": ("MemoryHost", "MemoryPeer", "memory_peer", "memory_peers"),
    "sample": ("hash_files", "make_sample"),
    "server": ("EmbeddedServer", "ssh_server"),
}

__all__ = [
    "DirectorySource",
    "EmbeddedServer",
    "Faults",
    "MemoryFile",
    "MemoryHost",
    "MemoryJob",
    "MemoryPeer",
    "MemoryTransport",
    "Source",
    "TransportContract",
    "hash_files",
    "make_sample",
    "memory_job",
    "memory_peer",
    "memory_peers",
    "ssh_server",
]


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

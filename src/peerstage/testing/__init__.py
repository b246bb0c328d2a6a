"""For the tests of whoever uses peerstage, as for its own: an SSH server, a peer in memory, the transport contract."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peerstage.testing.contract import DirectorySource, Source, TransportContract
    from peerstage.testing.memory import MemoryFile, MemoryTransport
    from peerstage.testing.sample import digests, make_sample
    from peerstage.testing.server import EmbeddedServer, ssh_server

_HOMES = {
    "DirectorySource": "contract",
    "EmbeddedServer": "server",
    "MemoryFile": "memory",
    "MemoryTransport": "memory",
    "Source": "contract",
    "TransportContract": "contract",
    "digests": "sample",
    "make_sample": "sample",
    "ssh_server": "server",
}

__all__ = [
    "DirectorySource",
    "EmbeddedServer",
    "MemoryFile",
    "MemoryTransport",
    "Source",
    "TransportContract",
    "digests",
    "make_sample",
    "ssh_server",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

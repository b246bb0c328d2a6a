"""Stages the files that backup peers have collected: a master pulls them over SSH, in pure Python.

Importing this package loads neither paramiko nor anything optional; a name is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from peerstage.errors import StageError
    from peerstage.landing.leftovers import sweep
    from peerstage.peer.base import BackupPeer
    from peerstage.peer.local import LocalPeer
    from peerstage.peer.remote import RemotePeer
    from peerstage.reasons import Reason
    from peerstage.records import Limits, Progress, StageReport
    from peerstage.session.options import SSHOptions
    from peerstage.transport.retry import Retry

_HOMES = {
    "BackupPeer": "peerstage.peer.base",
    "Limits": "peerstage.records",
    "LocalPeer": "peerstage.peer.local",
    "Progress": "peerstage.records",
    "Reason": "peerstage.reasons",
    "RemotePeer": "peerstage.peer.remote",
    "Retry": "peerstage.transport.retry",
    "SSHOptions": "peerstage.session.options",
    "StageError": "peerstage.errors",
    "StageReport": "peerstage.records",
    "sweep": "peerstage.landing.leftovers",
}

__all__ = [
    "BackupPeer",
    "Limits",
    "LocalPeer",
    "Progress",
    "Reason",
    "RemotePeer",
    "Retry",
    "SSHOptions",
    "StageError",
    "StageReport",
    "sweep",
]


def __getattr__(name: str) -> Any:
    if name == "util":
        return importlib.import_module("peerstage.util")
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

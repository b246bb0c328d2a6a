"""Stage the files that backup peers have collected: the master pulls them over SSH, in pure Python.

Importing this package loads neither paramiko nor an optional package. A name is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from peerstage.errors import StageError
    from peerstage.fleet.dask import dask_executor
    from peerstage.fleet.plan import FleetPlan, PeerJob
    from peerstage.fleet.plan_file import read_plan
    from peerstage.fleet.results import FleetReport, PeerResult, Verdict
    from peerstage.fleet.runner import FleetRun, stage_fleet
    from peerstage.fleet.secrets import Secret
    from peerstage.peer.base import BackupPeer
    from peerstage.peer.local import LocalPeer
    from peerstage.peer.remote import RemotePeer
    from peerstage.rates import BandwidthLimit
    from peerstage.reasons import Reason
    from peerstage.records import Indicators, Limits, Progress, RemoteFile, StageReport
    from peerstage.ssh.options import SSHOptions
    from peerstage.stage_options import StageOptions
    from peerstage.target.sweep import sweep
    from peerstage.target.verify import VerifyReport, verify
    from peerstage.transport.retry import Retry

_MODULES = {
    "BackupPeer": "peerstage.peer.base",
    "BandwidthLimit": "peerstage.rates",
    "FleetPlan": "peerstage.fleet.plan",
    "FleetReport": "peerstage.fleet.results",
    "FleetRun": "peerstage.fleet.runner",
    "Indicators": "peerstage.records",
    "Limits": "peerstage.records",
    "LocalPeer": "peerstage.peer.local",
    "PeerJob": "peerstage.fleet.plan",
    "PeerResult": "peerstage.fleet.results",
    "Progress": "peerstage.records",
    "Reason": "peerstage.reasons",
    "RemoteFile": "peerstage.records",
    "RemotePeer": "peerstage.peer.remote",
    "Retry": "peerstage.transport.retry",
    "SSHOptions": "peerstage.ssh.options",
    "Secret": "peerstage.fleet.secrets",
    "StageError": "peerstage.errors",
    "StageOptions": "peerstage.stage_options",
    "StageReport": "peerstage.records",
    "Verdict": "peerstage.fleet.results",
    "VerifyReport": "peerstage.target.verify",
    "read_plan": "peerstage.fleet.plan_file",
    "dask_executor": "peerstage.fleet.dask",
    "stage_fleet": "peerstage.fleet.runner",
    "sweep": "peerstage.target.sweep",
    "verify": "peerstage.target.verify",
}

__all__ = [
    "BackupPeer",
    "BandwidthLimit",
    "FleetPlan",
    "FleetReport",
    "FleetRun",
    "Indicators",
    "Limits",
    "LocalPeer",
    "PeerJob",
    "PeerResult",
    "Progress",
    "Reason",
    "RemoteFile",
    "RemotePeer",
    "Retry",
    "SSHOptions",
    "Secret",
    "StageError",
    "StageOptions",
    "StageReport",
    "Verdict",
    "VerifyReport",
    "dask_executor",
    "read_plan",
    "stage_fleet",
    "sweep",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name == "util":
        return importlib.import_module("peerstage.util")
    if name in _MODULES:
        value = getattr(importlib.import_module(_MODULES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

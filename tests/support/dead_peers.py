"""Jobs of peers that fail, each kind in another way: servers of this process that refuse, hang or misbehave."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import paramiko

from peerstage import Limits, PeerJob, Retry, SSHOptions
from peerstage.testing import memory_job
from support.broken_peers import RefusesLogin
from support.file_server import Files, ServesFiles, new_identity, serves_files
from support.fleet import READY
from support.ssh_server import Handler, listening, options_for, paramiko_handler, sends_nothing
from support.sshd import free_port

#: The result of a peer of each kind.
DEAD = {
    "down": "failed: connection-refused",
    "silent": "failed: banner-timeout",
    "impostor": "failed: host-key-changed",
    "locked": "failed: login-refused",
    "hung": "failed: stalled",
    "greedy": "failed: protocol-violation",
    "lost": "failed: connection-lost",
}

#: Returns a job, by its name.
JobFactory = Callable[[str], PeerJob]


class _Reads(Files):
    """The local file system, but for what it answers to reads."""

    def __init__(self, server: paramiko.ServerInterface, read: Callable[[int, int], Any]) -> None:
        super().__init__(server)
        self._read = read

    def open(self, path: str, flags: int, attr: Any) -> Any:
        handle = super().open(path, flags, attr)
        if not isinstance(handle, int):
            handle.read = self._read
        return handle


@contextlib.contextmanager
def dead_peers(home: Path) -> Iterator[dict[str, JobFactory]]:
    """Serve peers of each kind of `DEAD`, and yield what makes their jobs.

    Args:
        home: An empty directory.
    """
    key, identity, collect = paramiko.ECDSAKey.generate(), new_identity(home / "id"), home / "collect"
    is_over = threading.Event()
    collect.mkdir()
    for name in ("cback.collect", "dump"):
        (collect / name).write_bytes(b"content")

    def serves(read: Callable[[int, int], Any]) -> Handler:
        def prepare(transport: paramiko.Transport) -> None:
            transport.set_subsystem_handler("sftp", paramiko.SFTPServer, _Reads, read)

        return paramiko_handler(ServesFiles, key=key, prepare=prepare)

    handlers = {
        "silent": sends_nothing,
        "impostor": serves_files(paramiko.ECDSAKey.generate()),
        "locked": serves_files(key, RefusesLogin),
        "hung": serves(lambda offset, length: is_over.wait() and paramiko.SFTP_FAILURE),
        "greedy": serves(lambda offset, length: bytes(length + 1)),
    }
    limits: dict[str, dict[str, Any]] = {"silent": {"connect_timeout": 0.5}}
    with contextlib.ExitStack() as served:
        ports = {kind: served.enter_context(listening(handler)) for kind, handler in handlers.items()}
        served.callback(is_over.set)
        ports["down"] = free_port()
        options = {
            kind: options_for(port, key, identity=str(identity), **limits.get(kind, {})) for kind, port in ports.items()
        }
        remote = {kind: partial(_remote_job, str(collect), ssh) for kind, ssh in options.items()}
        yield remote | {"lost": _lost_job}


def _remote_job(collect: str, ssh: SSHOptions, name: str) -> PeerJob:
    limits, retry = Limits(stall_timeout=1), Retry(tries=1)
    return PeerJob(name=name, host="127.0.0.1", user="backup", collect_dir=collect, ssh=ssh, limits=limits, retry=retry)


def _lost_job(name: str) -> PeerJob:
    return memory_job(name, READY, lose_after=1, retry=Retry(tries=1))

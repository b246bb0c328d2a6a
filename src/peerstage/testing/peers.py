"""Remote peers in memory: scripts that check, stage and mark peers are tested without a network."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

from peerstage.documented import Documented
from peerstage.errors import ConnectError, ConnectionLost, RemoteError, StageError, escape
from peerstage.isolation.users import LocalUser
from peerstage.peer.remote import RemotePeer
from peerstage.reasons import Reason
from peerstage.records import StrOrBytesPath
from peerstage.session.known_hosts import fingerprint
from peerstage.session.watchdog import Watchdog
from peerstage.testing.memory import MemoryFile, MemoryTransport
from peerstage.transport.base import Transport
from peerstage.transport.choose import Route
from peerstage.transport.observe import Observing
from peerstage.transport.retry import Retrying

#: A directory's entries by name, `str` or `bytes`; bytes are the content of a regular file.
Files: TypeAlias = "Mapping[Any, bytes | MemoryFile]"

_COLLECT = "/collect"
_PIECE = 64 * 1024


class MemoryHost(metaclass=Documented):
    """A machine in memory, for `memory_peers` and `MemoryPeer`.

    Args:
        directories: Its directories: for each absolute path the entries by name, as bytes (content) or `MemoryFile`.
            ``MemoryFile(mode=stat.S_IFDIR | 0o755)`` is a sub-directory, and ``MemoryFile(error=RemoteError("Permission
            denied.", reason=Reason.PERMISSION_DENIED))`` cannot be read: both make a stage incomplete.
        error: What every connection fails with, such as ``ConnectError("Connection refused.",
            reason=Reason.CONNECTION_REFUSED)`` or ``LoginError("No key is accepted.", reason=Reason.LOGIN_REFUSED)``;
            None for none.
        lose_after: Bytes of files after which a connection is lost, at the end of the piece that reaches them; 0 loses
            it before the first; None never does.
        connections: How many connections, the first ones, have this `error` or `lose_after`; None for all.
        writable: Whether the stage indicator can be written.

    Attributes:
        directories: The same, with paths and names as bytes and all contents as `MemoryFile`: what peers write is found
            here, and what is changed here is what they find.
        connected: How many connections were made or tried.
    """

    def __init__(
        self,
        directories: Mapping[Any, Files],
        *,
        error: StageError | None = None,
        lose_after: int | None = None,
        connections: int | None = None,
        writable: bool = True,
    ) -> None:
        self.directories = {os.fsencode(path): _entries(files) for path, files in directories.items()}
        self.error = error
        self.lose_after = lose_after
        self.connections = connections
        self.writable = writable
        self.connected = 0

    def connect(self) -> Transport:
        """Return a new connection.

        Raises:
            StageError: If this one is to fail.
        """
        self.connected += 1
        is_faulty = self.connections is None or self.connected <= self.connections
        if is_faulty and self.error is not None:
            raise copy.copy(self.error)
        return _Connection(self, self.lose_after if is_faulty else None)


class MemoryPeer(RemotePeer):
    """A `RemotePeer` that reaches a host in memory, whatever its name is; made by `memory_peer`, too.

    All that needs no network is as for any remote peer: arguments, retries (without their delays), limits, progress,
    what is published and when. Files belong to this process, and `localUser` is not looked up. No commands are run.

    Args:
        host: What it reaches.
        name: Its name, as in messages.
        directory: Its collect directory, one of the host's.
        options: Everything that a `RemotePeer` takes by keyword.

    Attributes:
        host: What it reaches.
    """

    def __init__(
        self, host: MemoryHost, name: str = "peer", directory: StrOrBytesPath = _COLLECT, **options: Any
    ) -> None:
        super().__init__(name, directory, None, "backup", **options)
        self.host = host

    @property
    def files(self) -> dict[bytes, MemoryFile]:
        """The entries of its collect directory by name; ``cback.stage`` is among them once it is marked."""
        return self.host.directories[os.fsencode(self.collectDir or "")]

    def _assemble(self, user: LocalUser | None, route: Route, watchdog: Watchdog) -> Transport:
        return _assemble_in_memory(self, route, watchdog, self.host.connect)

    def _copying_user(self) -> None:
        return None


def memory_peer(
    files: Files = {},  # noqa: B006 - it is copied
    *,
    name: str = "peer",
    directory: StrOrBytesPath = _COLLECT,
    error: StageError | None = None,
    lose_after: int | None = None,
    connections: int | None = None,
    writable: bool = True,
    **options: Any,
) -> MemoryPeer:
    """Return a `RemotePeer` whose collect directory is in memory::

        peer = memory_peer({"cback.collect": b"", "data.tar.gz": b"content"})
        assert peer.checkCollectIndicator() and peer.stagePeer(tmp_path) == 2

    Args:
        files: The entries of its collect directory by name; without ``cback.collect`` the peer is not ready.
        name: Its name, as in messages.
        directory: The path of its collect directory.
        error: As for `MemoryHost`.
        lose_after: Likewise.
        connections: Likewise.
        writable: Likewise.
        options: Everything that a `RemotePeer` takes by keyword, such as ``retry`` and ``on_progress``.
    """
    host = MemoryHost(
        {directory: files}, error=error, lose_after=lose_after, connections=connections, writable=writable
    )
    return MemoryPeer(host, name, directory, **options)


@contextlib.contextmanager
def memory_peers(hosts: Mapping[str, MemoryHost]) -> Iterator[None]:
    """While the block runs, let every `RemotePeer` of this process reach a host in memory, and never the network.

    So a script is tested that makes its peers itself. They behave as a `MemoryPeer` does.

    Args:
        hosts: The hosts by the names of the peers. Every connection looks there, so that hosts may be added. To any
            other name no connection can be made.
    """

    def assemble(peer: RemotePeer, user: LocalUser | None, route: Route, watchdog: Watchdog) -> Transport:
        def connect() -> Transport:
            if peer.name not in hosts:
                raise ConnectError(
                    f"There is no such host in memory_peers, which holds {escape(', '.join(hosts)) or 'none'}.",
                    reason=Reason.NAME_NOT_RESOLVED,
                )
            return hosts[peer.name].connect()

        return _assemble_in_memory(peer, route, watchdog, connect)

    methods: dict[str, Any] = {"_assemble": assemble, "_copying_user": lambda peer: None}
    before = {name: vars(RemotePeer)[name] for name in methods}
    try:
        for name, method in methods.items():
            setattr(RemotePeer, name, method)
        yield
    finally:
        for name, method in before.items():
            setattr(RemotePeer, name, method)


class _Connection(MemoryTransport):
    """A connection to a host in memory."""

    def __init__(self, host: MemoryHost, lose_after: int | None) -> None:
        super().__init__(
            host.directories, piece=min(lose_after or _PIECE, _PIECE), before_piece=lambda written: self._pass(written)
        )
        self.host_key = fingerprint(b"a host in memory")
        self._host = host
        self._lose_after = lose_after

    def touch(self, path: bytes) -> None:
        if not self._host.writable:
            raise RemoteError(
                "The peer refuses to write it: Permission denied.", path=path, reason=Reason.PERMISSION_DENIED
            )
        super().touch(path)

    def _pass(self, written: int) -> None:
        if self._lose_after is not None and written >= self._lose_after:
            raise ConnectionLost("The connection was lost: the peer closed it.")


def _entries(files: Files) -> dict[bytes, MemoryFile]:
    return {
        os.fsencode(name): file if isinstance(file, MemoryFile) else MemoryFile(file) for name, file in files.items()
    }


def _assemble_in_memory(
    peer: RemotePeer, route: Route, watchdog: Watchdog, connect: Callable[[], Transport]
) -> Transport:
    """Return the stack of transports that *peer* would have, without the one that reaches out."""
    route.check()
    retry = dataclasses.replace(peer.retry, delay=0.0)
    stack = Retrying(connect, MemoryTransport.capabilities, retry, watchdog, peer=route.name)
    return stack if peer.on_progress is None else Observing(stack, peer.on_progress)

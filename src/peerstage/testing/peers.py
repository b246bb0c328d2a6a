"""Remote peers in memory, for tests of scripts that check, stage and mark peers."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

from peerstage.documented import Documented
from peerstage.errors import ConnectError, ConnectionLost, RemoteError, StageError
from peerstage.isolation.users import LocalUser
from peerstage.peer.remote import RemotePeer
from peerstage.printable import escape
from peerstage.reasons import Reason
from peerstage.records import StrOrBytesPath
from peerstage.ssh.keys.public_keys import fingerprint
from peerstage.testing.memory import MemoryFile, MemoryTransport
from peerstage.transport.base import Transport
from peerstage.transport.factory import TransportOptions
from peerstage.transport.progress import ProgressTransport
from peerstage.transport.retry import RetryingTransport
from peerstage.watchdog import Watchdog

#: The entries of a directory by name (`str` or `bytes`); bytes are the content of a regular file.
Files: TypeAlias = "Mapping[Any, bytes | MemoryFile]"

_COLLECT = "/collect"
_CHUNK_SIZE = 64 * 1024


class MemoryHost(metaclass=Documented):
    """A machine in memory, for `memory_peers` and `MemoryPeer`.

    Args:
        directories: Its directories: for each absolute path the entries by name, as bytes (content) or `MemoryFile`.
            ``MemoryFile(mode=stat.S_IFDIR | 0o755)`` is a subdirectory, and ``MemoryFile(error=RemoteError("Permission
            denied.", reason=Reason.PERMISSION_DENIED))`` cannot be read: both make a stage incomplete.
        error: The error of every connection, such as ``ConnectError("Connection refused.",
            reason=Reason.CONNECTION_REFUSED)`` or ``LoginError("No key is accepted.", reason=Reason.LOGIN_REFUSED)``;
            None if they succeed.
        lose_after: The number of bytes of file data after which a connection is lost, at the end of the chunk that
            reaches it; 0 loses it before the first byte; None never.
        faulty_connections: How many connections, counted from the first, have this `error` or `lose_after`; None for
            all.
        writable: Whether the stage indicator can be written.

    Attributes:
        directories: The same with paths and names as bytes and every file as `MemoryFile`. Peers read and write this.
        connection_count: The number of connections made or tried.
    """

    def __init__(
        self,
        directories: Mapping[Any, Files],
        *,
        error: StageError | None = None,
        lose_after: int | None = None,
        faulty_connections: int | None = None,
        writable: bool = True,
    ) -> None:
        self.directories = {os.fsencode(path): _entries(files) for path, files in directories.items()}
        self.error = error
        self.lose_after = lose_after
        self.faulty_connections = faulty_connections
        self.writable = writable
        self.connection_count = 0

    def connect(self) -> Transport:
        """Return a new connection.

        Raises:
            StageError: If `error` applies to this connection.
        """
        self.connection_count += 1
        is_faulty = self.faulty_connections is None or self.connection_count <= self.faulty_connections
        if is_faulty and self.error is not None:
            raise copy.copy(self.error)
        return _Connection(self, self.lose_after if is_faulty else None)


class MemoryPeer(RemotePeer):
    """A `RemotePeer` that always reaches one `MemoryHost`; its name is not resolved.

    Everything that needs no network works as for any remote peer: arguments, retries (without delay), limits, the
    bandwidth limit, progress, `cancel` and publication. Staged files are owned by the user of this process, `localUser`
    is not looked up, and no commands are run.

    Args:
        host: The host that it reaches.
        name: Its name, for messages.
        directory: Its collect directory on the host.
        options: Keyword arguments of `RemotePeer`.

    Attributes:
        host: The host that it reaches.
    """

    def __init__(
        self, host: MemoryHost, name: str = "peer", directory: StrOrBytesPath = _COLLECT, **options: Any
    ) -> None:
        super().__init__(name, directory, **{"remoteUser": "backup", **options})
        self.host = host

    @property
    def files(self) -> dict[bytes, MemoryFile]:
        """The entries of its collect directory by name, with ``cback.stage`` once it is marked."""
        return self.host.directories[os.fsencode(self.collectDir or "")]

    def _build_transport(
        self, user: LocalUser | None, transport_options: TransportOptions, watchdog: Watchdog
    ) -> Transport:
        return _build_memory_transport(self, transport_options, watchdog, self.host.connect)

    def _find_local_user(self) -> None:
        return None


def memory_peer(
    files: Files = {},  # noqa: B006 - it is copied
    *,
    name: str = "peer",
    directory: StrOrBytesPath = _COLLECT,
    error: StageError | None = None,
    lose_after: int | None = None,
    faulty_connections: int | None = None,
    writable: bool = True,
    **options: Any,
) -> MemoryPeer:
    """Return a `RemotePeer` whose collect directory is in memory::

        peer = memory_peer({"cback.collect": b"", "data.tar.gz": b"content"})
        assert peer.checkCollectIndicator() and peer.stagePeer(tmp_path) == 2

    Args:
        files: The entries of its collect directory by name; without ``cback.collect``, the peer is not ready.
        name: Its name, for messages.
        directory: The path of its collect directory.
        error: As for `MemoryHost`.
        lose_after: As for `MemoryHost`.
        faulty_connections: As for `MemoryHost`.
        writable: As for `MemoryHost`.
        options: Keyword arguments of `RemotePeer`, such as ``retry`` and ``on_progress``.
    """
    host = MemoryHost(
        {directory: files},
        error=error,
        lose_after=lose_after,
        faulty_connections=faulty_connections,
        writable=writable,
    )
    return MemoryPeer(host, name, directory, **options)


@contextlib.contextmanager
def memory_peers(hosts: Mapping[str, MemoryHost]) -> Iterator[None]:
    """While the block runs, connect every `RemotePeer` of this process to a host in memory, and never to the network.

    This is for tests of scripts that create their own peers, which then behave as a `MemoryPeer` does.

    Args:
        hosts: The hosts by the names of the peers, looked up at every connection; they may change during the block.
            Connections to other names fail.
    """

    def build_transport(
        peer: RemotePeer, user: LocalUser | None, transport_options: TransportOptions, watchdog: Watchdog
    ) -> Transport:
        def connect() -> Transport:
            if peer.name not in hosts:
                raise ConnectError(
                    f"memory_peers has no host of this name; it has {escape(', '.join(hosts)) or 'none'}.",
                    reason=Reason.NAME_NOT_RESOLVED,
                )
            return hosts[peer.name].connect()

        return _build_memory_transport(peer, transport_options, watchdog, connect)

    methods: dict[str, Any] = {"_build_transport": build_transport, "_find_local_user": lambda peer: None}
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
            host.directories,
            chunk_size=min(lose_after or _CHUNK_SIZE, _CHUNK_SIZE),
            before_write=self._lose_connection_if_due,
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

    def _lose_connection_if_due(self, written: int) -> None:
        if self._lose_after is not None and written >= self._lose_after:
            raise ConnectionLost("The connection was lost: the peer closed it.")


def _entries(files: Files) -> dict[bytes, MemoryFile]:
    return {
        os.fsencode(name): file if isinstance(file, MemoryFile) else MemoryFile(file) for name, file in files.items()
    }


def _build_memory_transport(
    peer: RemotePeer, transport_options: TransportOptions, watchdog: Watchdog, connect: Callable[[], Transport]
) -> Transport:
    """Return the transport that *peer* would use, with the innermost one replaced."""

    def receive(size: int) -> None:
        watchdog.raise_if_final()
        watchdog.throttle(size)

    def connect_and_watch() -> Transport:
        connection = connect()
        if isinstance(connection, MemoryTransport):
            connection.on_received = receive
        return connection

    transport_options.validate()
    retry = dataclasses.replace(peer.retry, delay=0.0)
    transport: Transport = RetryingTransport(
        connect_and_watch, MemoryTransport.capabilities, retry, watchdog, peer=transport_options.name
    )
    return transport if peer.on_progress is None else ProgressTransport(transport, peer.on_progress)

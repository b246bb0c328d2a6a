"""`SFTPTransport`: files over one SFTP channel of a session."""

from __future__ import annotations

import contextlib
import logging
import stat
from collections.abc import Callable, Iterator

from peerstage.errors import NoSFTP, NotRegular, RemoteError, RemoteNotFound
from peerstage.paths import parent_directory
from peerstage.printable import escape
from peerstage.reasons import Reason
from peerstage.records import RemoteFile
from peerstage.ssh.data_types import pack_string
from peerstage.ssh.session import Session
from peerstage.ssh.stream import Stream
from peerstage.target.base import Buffer, Target
from peerstage.transport import capabilities
from peerstage.transport.base import Transport
from peerstage.transport.execute import execute_on_session
from peerstage.transport.names import check_path_length
from peerstage.transport.refusals import with_advice
from peerstage.transport.sftp import wire
from peerstage.transport.sftp.client import SFTPClient
from peerstage.transport.sftp.elevate import start_elevated
from peerstage.transport.sftp.fetch import Fetcher
from peerstage.transport.sftp.listing import list_directory, list_files, require_directory
from peerstage.transport.stability import fetch_stable, find_racy_time
from peerstage.watchdog import Watchdog

log = logging.getLogger("peerstage.transport")

#: Seconds between two checks whether the server has closed a channel, and the number of checks: two seconds in all.
_CLOSE_CHECK_INTERVAL = 0.01
_CLOSE_CHECKS = 200


class SFTPTransport(Transport):
    """SFTP version 3 (draft-ietf-secsh-filexfer-02), pipelined. It owns its session.

    Args:
        session: A session that is logged in. The first operation opens the channel.
        watchdog: The session's watchdog, with the limits of the transport.
        elevate: A command line on the peer that runs an SFTP server, instead of the subsystem.
        peer: The peer's name, for the log.
    """

    capabilities = capabilities.SFTP

    def __init__(self, session: Session, watchdog: Watchdog, *, elevate: str | None = None, peer: str = "") -> None:
        self._peer = peer
        self.host_key = session.fingerprint
        self._session = session
        self._watchdog = watchdog
        self._elevate = elevate
        self._client: SFTPClient | None = None

    def pull(self, directory: bytes, target: Target) -> None:
        client = self._connected_client()
        listing = list_directory(client, directory)
        if listing.hidden:
            names = ", ".join(map(escape, listing.hidden))
            more = listing.hidden_count - len(listing.hidden)
            rest = f", and {more} more" if more else ""
            log.info("%s: hidden entries are not staged: %s%s.", escape(self._peer), names, rest)
        for name, (reason, message) in listing.refused:
            target.refuse(name, NotRegular(message, path=name, reason=reason))
        racy_from = find_racy_time(listing.entries) if target.verifies_stability else None
        fetch_stable(
            target,
            listing.entries,
            fetch=Fetcher(client, directory, racy_from=racy_from).run,
            relist=lambda: list_files(client, directory),
        )

    def stat(self, path: bytes) -> RemoteFile | None:
        client = self._client_for(path)
        try:
            size, mode, mtime = client.stat(path)
        except RemoteNotFound:
            require_directory(client, parent_directory(path))
            return None
        if mode is not None and stat.S_IFMT(mode) and not stat.S_ISREG(mode):
            return None
        return RemoteFile(size, mtime or None)  # a server that does not know the time may send 0

    def touch(self, path: bytes) -> None:
        self._write_empty(path, wire.FXF_TRUNC)

    def execute(self, command: bytes, on_output: Callable[[Buffer], object]) -> int | None:
        client, self._client = self._client, None
        if client is not None:  # sshd may allow one channel at a time (MaxSessions); the next operation opens another
            client.close()
        return execute_on_session(self._session, command, on_output, self._watchdog)

    def open_channel(self) -> None:
        """Open the SFTP channel now rather than with the first operation.

        Raises:
            NoSFTP: If the peer has no SFTP server.
            ProtocolError: If the program behind the subsystem does not speak SFTP.
        """
        self._connected_client()

    def create_file(self, path: bytes) -> None:
        """Create *path* as an empty file.

        Raises:
            RemoteError: If the peer refuses, or *path* exists.
        """
        self._write_empty(path, wire.FXF_EXCL)

    def remove_file(self, path: bytes) -> None:
        """Remove the file *path*; of a symlink, the link itself.

        Raises:
            RemoteError: If the peer refuses; `RemoteNotFound` if *path* does not exist.
        """
        with _writing(path):
            self._client_for(path).expect_ok(wire.FXP_REMOVE, pack_string(path), path)

    def close(self) -> None:
        self._session.close()

    def _write_empty(self, path: bytes, flag: int) -> None:
        """Open *path* for writing with FXF_TRUNC or FXF_EXCL, and close it."""
        client = self._client_for(path)
        with _writing(path):
            try:
                handle = client.request_handle(
                    wire.FXP_OPEN, wire.pack_open(path, wire.FXF_WRITE | wire.FXF_CREAT | flag), path
                )
            except RemoteNotFound:
                require_directory(client, parent_directory(path))
                raise
            client.expect_ok(wire.FXP_CLOSE, pack_string(handle), path)

    def _client_for(self, path: bytes) -> SFTPClient:
        check_path_length(path, self._watchdog.limits)
        return self._connected_client()

    def _connected_client(self) -> SFTPClient:
        self._session.require_same_process()
        if self._client is None and self._elevate is not None:
            self._client = start_elevated(self._session, self._elevate, self._watchdog)
        elif self._client is None:
            stream = self._session.open_subsystem("sftp")
            client = SFTPClient(stream, self._watchdog)
            try:
                client.negotiate()
            except NoSFTP:
                self._await_close(stream)
                raise
            self._client = client
        return self._client

    def _await_close(self, stream: Stream) -> None:
        """Wait a while until the server closes the channel of a subsystem whose program has ended, then close it.

        dropbear closes it once it has reaped the program, and confuses a channel that is opened earlier with it.
        """
        stream.send_eof()
        for _ in range(_CLOSE_CHECKS):
            if stream.is_closed:
                break
            self._watchdog.sleep(_CLOSE_CHECK_INTERVAL)
        stream.close()


@contextlib.contextmanager
def _writing(path: bytes) -> Iterator[None]:
    """Turn a permission that is denied inside into `Reason.WRITE_DENIED` of *path*."""
    try:
        yield
    except RemoteError as exc:
        if exc.reason is Reason.PERMISSION_DENIED:
            exc.reason = Reason.WRITE_DENIED
            exc.message = with_advice("The peer denies permission to write it.", exc.reason, path)
        raise

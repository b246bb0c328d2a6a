"""`SFTPTransport`: a directory over one SFTP channel of a session."""

from __future__ import annotations

import contextlib
import logging
import stat
from collections.abc import Callable, Iterator

from peerstage.errors import NotRegular, RemoteError, RemoteNotFound, escape
from peerstage.landing.base import Buffer, Landing
from peerstage.reasons import Reason
from peerstage.records import Limits
from peerstage.session.session import Session
from peerstage.session.watchdog import Watchdog
from peerstage.transport import capabilities
from peerstage.transport.base import Transport
from peerstage.transport.execute import execute_over
from peerstage.transport.names import check_path
from peerstage.transport.refusals import parent, with_step
from peerstage.transport.sftp import wire
from peerstage.transport.sftp.client import SFTPClient
from peerstage.transport.sftp.elevate import start_elevated
from peerstage.transport.sftp.fetch import Fetch
from peerstage.transport.sftp.listing import list_directory, require_directory

log = logging.getLogger("peerstage.transport")


class SFTPTransport(Transport):
    """SFTP version 3 (draft-ietf-secsh-filexfer-02) with our own pipelined client. Closes its session.

    Args:
        session: Logged in; the subsystem is asked for when the first operation needs it.
        limits: Bounds for what the peer may send.
        watchdog: The session's.
        elevate: A command line of the peer that speaks SFTP, in the place of the subsystem.
        peer: The peer's name, for the log.
    """

    capabilities = capabilities.SFTP

    def __init__(
        self, session: Session, limits: Limits, watchdog: Watchdog, *, elevate: str | None = None, peer: str = ""
    ) -> None:
        self._peer = peer
        self.host_key = session.fingerprint
        self._session = session
        self._limits = limits
        self._watchdog = watchdog
        self._elevate = elevate
        self._client: SFTPClient | None = None

    def pull(self, directory: bytes, landing: Landing) -> None:
        client = self._started()
        listing = list_directory(client, directory, self._limits)
        if listing.hidden:
            names = ", ".join(map(escape, listing.hidden))
            more = listing.hidden_count - len(listing.hidden)
            rest = f", and {more} more" if more else ""
            log.info("%s: hidden entries are not staged: %s%s.", escape(self._peer), names, rest)
        for name, (reason, why) in listing.refused:
            landing.refuse(name, NotRegular(why, path=name, reason=reason))
        landing.expect(len(listing.entries), sum(entry.size for entry in listing.entries))
        Fetch(client, directory, landing, self._limits).run(listing.entries)

    def exists(self, path: bytes) -> bool:
        check_path(path, self._limits)
        try:
            mode = self._started().stat(path).mode
        except RemoteNotFound:
            require_directory(self._started(), parent(path))
            return False
        return mode is None or not stat.S_IFMT(mode) or stat.S_ISREG(mode)

    def touch(self, path: bytes) -> None:
        check_path(path, self._limits)
        self._make(path, wire.FXF_TRUNC)

    def execute(self, command: bytes, said: Callable[[Buffer], object]) -> int | None:
        client, self._client = self._client, None
        if client is not None:  # a peer may allow one channel at a time (MaxSessions); the next operation opens another
            client.close()
        return execute_over(self._session, command, said, self._limits, self._watchdog)

    def start(self) -> None:
        """Ask for the subsystem now rather than with the first operation.

        Raises:
            NoSFTP: There is none.
            ProtocolError: What answers there is no SFTP server.
        """
        self._started()

    def stat(self, path: bytes) -> wire.Attributes:
        """Return the attributes of *path*, links followed.

        Raises:
            RemoteError: The peer refuses; `RemoteNotFound` if it is not there.
        """
        check_path(path, self._limits)
        return self._started().stat(path)

    def create(self, path: bytes) -> None:
        """Make *path* an empty file; one that is there is left alone, and an error.

        Raises:
            RemoteError: The peer refuses.
        """
        check_path(path, self._limits)
        self._make(path, wire.FXF_EXCL)

    def remove(self, path: bytes) -> None:
        """Remove the file *path* (6.5); a link is removed itself.

        Raises:
            RemoteError: The peer refuses; `RemoteNotFound` if it is not there.
        """
        check_path(path, self._limits)
        with _writing(path):
            self._started().done(wire.REMOVE, wire.string(path), path)

    def close(self) -> None:
        self._session.close()

    def _make(self, path: bytes, flag: int) -> None:
        """Make *path* an empty file; *flag* says what becomes of one that is there."""
        client = self._started()
        with _writing(path):
            try:
                handle = client.handle(wire.OPEN, wire.open_file(path, wire.FXF_WRITE | wire.FXF_CREAT | flag), path)
            except RemoteNotFound:
                require_directory(client, parent(path))
                raise
            client.done(wire.CLOSE, wire.string(handle), path)

    def _started(self) -> SFTPClient:
        self._session.require_same_process()
        if self._client is None and self._elevate is not None:
            self._client = start_elevated(self._session, self._elevate, self._limits, self._watchdog)
        elif self._client is None:
            client = SFTPClient(self._session.open_subsystem("sftp"), self._limits, self._watchdog)
            client.start()
            self._client = client
        return self._client


@contextlib.contextmanager
def _writing(path: bytes) -> Iterator[None]:
    """Let a denied permission inside be one to write *path*."""
    try:
        yield
    except RemoteError as exc:
        if exc.reason is Reason.PERMISSION_DENIED:
            exc.reason = Reason.WRITE_DENIED
            exc.message = with_step("The peer denies permission to write it.", exc.reason, path)
        raise

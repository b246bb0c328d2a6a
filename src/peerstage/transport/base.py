"""The seam: what every way to reach a peer can do. A transport moves files; what becomes visible is not its matter."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from peerstage.errors import NotAvailable

if TYPE_CHECKING:
    from typing_extensions import Self

    from peerstage.landing.base import Buffer, Landing
    from peerstage.records import Capabilities


class Transport(ABC):
    """A way to move the files of one peer. The unit of work is a directory, so that transfers can be pipelined.

    After `ConnectionLost` the same operation may be called again on another transport to the same peer; `pull` then
    goes on with the landing that it was given before. After any other error only `close` is useful.

    Attributes:
        capabilities: What this transport can do.
        host_key: SHA-256 fingerprint of the host key that the peer showed, None where there is none.
        retries: How often a lost connection was made anew.
    """

    capabilities: Capabilities
    host_key: str | None = None
    retries: int = 0

    @abstractmethod
    def pull(self, directory: bytes, landing: Landing) -> None:
        """Bring every regular file of *directory* whose name does not begin with a dot; links to files are followed.

        What is there and is no regular file, or can not be read, is refused or fails on the landing, and the others are
        brought all the same. May be called again on the same landing: what is complete there is left alone.

        Raises:
            RemoteError: The directory is missing or can not be listed.
            ProtocolError: The peer broke the protocol.
            LandingError: The local side failed.
            ConnectionLost, LimitExceeded, Cancelled: The run was cut off.
        """

    @abstractmethod
    def exists(self, path: bytes) -> bool:
        """Whether *path* is a regular file, links followed.

        Where it is not there, the peer is asked for its directory, too, if that costs no more than a request.

        Raises:
            RemoteNotFound: If its directory is not there.
            RemoteError: The peer refuses to tell.
            ConnectionLost, LimitExceeded, Cancelled, ProtocolError: As `pull`.
        """

    @abstractmethod
    def touch(self, path: bytes) -> None:
        """Make *path* an empty file; one that is there is truncated. May be repeated.

        Raises:
            RemoteError: The peer refuses.
            ConnectionLost, LimitExceeded, Cancelled, ProtocolError: As `pull`.
        """

    def execute(self, command: bytes, said: Callable[[Buffer], object]) -> int | None:
        """Let the login's shell on the peer run *command*, without input, where there is a way to that.

        It is run once or not at all: a lost connection is not made anew for it, since nobody could tell whether it has
        run. It may be silent for as long as it likes; it ends at `Limits.seconds_for_command` at the latest.

        Args:
            command: A command line, sent as it is.
            said: Called with what it says, stdout and stderr as they come, in pieces of any size.

        Returns:
            Its exit status; None if it ended without one, as after a signal.

        Raises:
            NotAvailable: This transport runs no commands.
            RemoteError: The peer lets this login run none.
            ConnectionLost, LimitExceeded, Cancelled: It was cut off, and may go on on the peer.
        """
        raise NotAvailable(f"No command can be run over {self.capabilities.name}.")

    @abstractmethod
    def close(self) -> None:
        """Let go of the peer, after a failure too. Closing again is allowed."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def join(directory: bytes, name: bytes) -> bytes:
    """Return the path of *name* in *directory*."""
    return directory + name if directory.endswith(b"/") else directory + b"/" + name

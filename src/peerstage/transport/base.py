"""Interface of every transport. A transport moves files; its target decides what becomes visible."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from peerstage.errors import NotAvailable
from peerstage.records import Capabilities, RemoteFile
from peerstage.target.base import Buffer, Target

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")


class Transport(ABC):
    """Moves the files of one peer. The unit of work is a directory, so that transfers can be pipelined.

    After `ConnectionLost` the same operation may be repeated on another transport to the same peer; `pull` then resumes
    on the target that it was given before. After any other error but a `RemoteError`, only `close` is allowed.

    Attributes:
        capabilities: What this transport can do.
        host_key: SHA-256 fingerprint of the presented host key; None without a host key.
        retries: Number of reconnects after a lost connection.
    """

    capabilities: Capabilities
    host_key: str | None = None
    retries: int = 0

    @abstractmethod
    def pull(self, directory: bytes, target: Target) -> None:
        """Deliver the regular files of *directory* that *target* admits; symlinks to files are followed.

        Hidden files are left out. Any other entry, and any file that cannot be read, is refused or failed on the
        target; the rest are delivered. May be repeated on the same target: complete files are not fetched again.

        Raises:
            RemoteError: If the directory is missing or cannot be listed.
            ProtocolError: If the peer broke the protocol.
            TargetError: If the local side failed.
            ConnectionLost, LimitExceeded, Cancelled: If the run was cut off.
        """

    @abstractmethod
    def stat(self, path: bytes) -> RemoteFile | None:
        """Return what the peer tells about the regular file *path*, symlinks followed; None if there is no such file.

        If it is missing, its directory is checked too, if that costs only one more request.

        Raises:
            RemoteNotFound: If its directory is missing.
            RemoteError: If the peer refuses to answer.
            ConnectionLost, LimitExceeded, Cancelled, ProtocolError: As `pull`.
        """

    @abstractmethod
    def touch(self, path: bytes) -> None:
        """Create *path* as an empty file, or truncate it. May be repeated.

        Raises:
            RemoteError: If the peer refuses.
            ConnectionLost, LimitExceeded, Cancelled, ProtocolError: As `pull`.
        """

    def execute(self, command: bytes, on_output: Callable[[Buffer], object]) -> int | None:
        """Run *command* in the login shell on the peer, without input, and return its exit status.

        It runs at most once: after a lost connection it is not repeated, since nobody can tell whether it has run. It
        may be silent for any time; `Limits.command_deadline` bounds it.

        Args:
            command: A command line, sent unchanged.
            on_output: Called with its output, stdout and stderr as they arrive, in pieces of any size.

        Returns:
            The exit status; None if the command ended without one, as after a signal.

        Raises:
            NotAvailable: If this transport runs no commands.
            RemoteError: If the peer does not allow this login to run commands.
            ConnectionLost, LimitExceeded, Cancelled: If it was cut off; it may still be running on the peer.
        """
        raise NotAvailable(f"No command can be run over {self.capabilities.name}.")

    @abstractmethod
    def close(self) -> None:
        """Close the connection. May be called after a failure, and more than once."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class TransportWrapper(Transport):
    """Delegates each operation to another transport through `_run`; a subclass overrides what it changes.

    Args:
        transport: The wrapped transport.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    @property
    def capabilities(self) -> Capabilities:  # type: ignore[override]
        return self._transport.capabilities

    @property
    def host_key(self) -> str | None:  # type: ignore[override]
        return self._transport.host_key

    @property
    def retries(self) -> int:  # type: ignore[override]
        return self._transport.retries

    def pull(self, directory: bytes, target: Target) -> None:
        self._run(lambda transport: transport.pull(directory, target))

    def stat(self, path: bytes) -> RemoteFile | None:
        return self._run(lambda transport: transport.stat(path))

    def touch(self, path: bytes) -> None:
        self._run(lambda transport: transport.touch(path))

    def execute(self, command: bytes, on_output: Callable[[Buffer], object]) -> int | None:
        return self._run(lambda transport: transport.execute(command, on_output))

    def close(self) -> None:
        self._transport.close()

    def _run(self, operation: Callable[[Transport], T]) -> T:
        """Run *operation* on the wrapped transport, and return its result."""
        return operation(self._transport)

"""What wraps another transport and does each operation its own way."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TypeVar

from peerstage.landing.base import Buffer, Landing
from peerstage.transport.base import Transport

T = TypeVar("T")


class Wrapper(Transport):
    """A transport whose every operation is one of another transport, done by `_attempt`."""

    def pull(self, directory: bytes, landing: Landing) -> None:
        self._attempt(lambda transport: transport.pull(directory, landing))

    def exists(self, path: bytes) -> bool:
        return self._attempt(lambda transport: transport.exists(path))

    def touch(self, path: bytes) -> None:
        self._attempt(lambda transport: transport.touch(path))

    def execute(self, command: bytes, said: Callable[[Buffer], object]) -> int | None:
        return self._attempt(lambda transport: transport.execute(command, said))

    @abstractmethod
    def _attempt(self, operation: Callable[[Transport], T]) -> T:
        """Do *operation* on the transport inside."""

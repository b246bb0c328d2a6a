"""Progress: what lands is counted on its way, and told to whoever asked, ten times a second at most."""

from __future__ import annotations

import time
from collections.abc import Callable

from peerstage.landing.base import Buffer, Landing
from peerstage.records import Capabilities, Progress
from peerstage.transport.base import Transport
from peerstage.transport.counting import CountingLanding

_INTERVAL = 0.1


class Observing(Transport):
    """Tells *on_progress* how far a pull has come, in the thread that called it.

    What *on_progress* raises ends the run and comes out as it is.
    """

    def __init__(
        self,
        transport: Transport,
        on_progress: Callable[[Progress], object],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._transport = transport
        self._on_progress = on_progress
        self._clock = clock

    @property
    def capabilities(self) -> Capabilities:  # type: ignore[override]
        return self._transport.capabilities

    @property
    def host_key(self) -> str | None:  # type: ignore[override]
        return self._transport.host_key

    @property
    def retries(self) -> int:  # type: ignore[override]
        return self._transport.retries

    def pull(self, directory: bytes, landing: Landing) -> None:
        telling = _TellingLanding(landing, self._on_progress, self._clock)
        self._transport.pull(directory, telling)
        telling.tell()

    def exists(self, path: bytes) -> bool:
        return self._transport.exists(path)

    def touch(self, path: bytes) -> None:
        self._transport.touch(path)

    def execute(self, command: bytes, said: Callable[[Buffer], object]) -> int | None:
        return self._transport.execute(command, said)

    def close(self) -> None:
        self._transport.close()


class _TellingLanding(CountingLanding):
    """Tells what it counts, at most ten times a second."""

    def __init__(self, landing: Landing, on_progress: Callable[[Progress], object], clock: Callable[[], float]) -> None:
        super().__init__(landing, self._tell_in_time)
        self._on_progress = on_progress
        self._clock = clock
        self._next = clock()
        self._expected: tuple[int | None, int | None] = (None, None)

    def expect(self, files: int, size: int) -> None:
        super().expect(files, size)
        self._expected = (files, size)
        self.tell()

    def tell(self) -> None:
        """Tell now."""
        self._next = self._clock() + _INTERVAL
        self._on_progress(Progress(self.files, self._expected[0], self.bytes, self._expected[1]))

    def _tell_in_time(self) -> None:
        if self._clock() >= self._next:
            self.tell()

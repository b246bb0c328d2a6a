"""The events of a run, in the order in which they happen."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field
from typing import Any, ClassVar

from peerstage.documented import Documented
from peerstage.fleet.results import SCHEMA, FleetReport, PeerResult
from peerstage.reasons import Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Event(metaclass=Documented):
    """Something that happened in a run.

    Attributes:
        run: The run's id.
        time: When, in seconds since the epoch.
    """

    name: ClassVar[str]

    run: str
    time: float = field(default_factory=time.time)

    def to_dict(self) -> dict[str, Any]:
        """Return the event as values that `json` can encode: ``v``, ``time``, ``run``, ``event``, and its own."""
        return {"v": SCHEMA, "time": round(self.time, 3), "run": self.run, "event": self.name, **self.details()}

    def details(self) -> dict[str, Any]:
        """Return the values that only this kind of event has."""
        names = [item.name for item in dataclasses.fields(self)]
        return {name: getattr(self, name) for name in names if name not in ("run", "time")}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted(Event):
    """A run begins: it holds the pool's lock.

    Attributes:
        plan: The file of the plan; None if it was made in Python.
        target: The daily directory.
        peers: The number of selected peers.
    """

    name = "run-started"

    plan: str | None
    target: str
    peers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerStarted(Event):
    """A peer is asked.

    Attributes:
        peer: The peer's name.
        attempt: How often it has been asked, from 1.
    """

    name = "peer-started"

    peer: str
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerWaiting(Event):
    """A peer is not ready, and will be asked again.

    Attributes:
        peer: The peer's name.
        reason: `Reason.NOT_READY` or `Reason.STALE`.
        error: The same as a printable sentence.
        until: When it is asked for the last time, in seconds since the epoch.
    """

    name = "peer-waiting"

    peer: str
    reason: Reason | None
    error: str | None
    until: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerFinished(Event):
    """A peer has its verdict. There is exactly one such event for each selected peer.

    Attributes:
        result: The peer's result.
    """

    name = "peer-finished"

    result: PeerResult

    def details(self) -> dict[str, Any]:
        return self.result.to_dict()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFinished(Event):
    """The run is over, and its record is written.

    Attributes:
        report: The report of the run.
    """

    name = "run-finished"

    report: FleetReport

    def details(self) -> dict[str, Any]:
        report = self.report
        end = {"ended_by": report.ended_by, "error": report.error, "reason": report.reason}
        return {**report.totals(), "seconds": round(report.seconds, 3), **end, "exit": report.exit}

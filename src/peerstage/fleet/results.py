"""`PeerResult` and `FleetReport`: what became of each peer of a run, and of the run."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any, get_args, get_type_hints

from peerstage.documented import Documented
from peerstage.exit_codes import CODES, ExitCode
from peerstage.reasons import Reason
from peerstage.records import FileResult, StageReport, known_fields

#: The version of the JSON form of results, reports, records and events. It changes if a key is removed or changes its
#: meaning, not if one is added.
SCHEMA = 1
#: Types of fields that are checked when they are read.
_SCALARS = {int, str, float, bool, type(None)}
#: Seconds from the epoch to the last year that `datetime` and `time.localtime` know.
_MAX_SECONDS = 253_402_300_799
#: Failed entries that a summary names.
_MAX_FAILURES = 20


class Verdict(str, Enum):
    """What became of a peer in a run; exactly one for each selected peer."""

    STAGED = "staged"
    INCOMPLETE = "incomplete"
    NOT_READY = "not-ready"
    FAILED = "failed"
    NOT_STARTED = "not-started"

    def __str__(self) -> str:
        return str(self.value)


class Flag(str, Enum):
    """What a person should look at, on top of a verdict."""

    EMPTY = "empty"
    SMALLER = "smaller"

    def __str__(self) -> str:
        return str(self.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSummary(metaclass=Documented):
    """A `StageReport` without its files, small enough for a fleet of thousands.

    Attributes:
        transport: The transport used.
        target: The peer's directory below the daily directory.
        started: Start time, in seconds since the epoch.
        seconds: Duration in seconds.
        files: Files staged, without the indicators.
        bytes: Their bytes.
        linked: Files of them that were taken from an earlier night.
        received: Bytes of files that were received.
        left_out: Entries left out on request.
        failed: Entries that could not be staged.
        failures: The first of them, 20 at most.
        notes: What the user should know although nothing failed, as sentences.
        retries: How many times a lost connection was re-established.
        resumed_bytes: Bytes that survived a lost connection and were not sent again.
        host_key: The SHA-256 fingerprint of the peer's host key, or None.
    """

    transport: str
    target: str
    started: float = 0.0
    seconds: float = 0.0
    files: int = 0
    bytes: int = 0
    linked: int = 0
    received: int = 0
    left_out: int = 0
    failed: int = 0
    failures: tuple[FileResult, ...] = ()
    notes: tuple[str, ...] = ()
    retries: int = 0
    resumed_bytes: int = 0
    host_key: str | None = None

    @classmethod
    def of(cls, report: StageReport, target: str, indicators: Iterable[str]) -> StageSummary:
        """Return the summary of *report*.

        Args:
            report: The report.
            target: The peer's directory, as its path reads for people.
            indicators: Names of the indicator files, which do not count.
        """
        ignored = frozenset(indicators)
        staged = [file for file in report.files if file.is_staged]
        counted = [file for file in staged if file.name not in ignored]
        linked = [file for file in counted if file.outcome == "linked"]
        return cls(
            transport=report.transport,
            target=target,
            started=report.started,
            seconds=report.seconds,
            files=len(counted),
            bytes=sum(file.size for file in counted),
            linked=len(linked),
            received=sum(file.size for file in staged if file.outcome != "linked"),
            left_out=len(report.left_out),
            failed=len(report.failed),
            failures=report.failed[:_MAX_FAILURES],
            notes=report.notes,
            retries=report.retries,
            resumed_bytes=report.resumed_bytes,
            host_key=report.host_key,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerResult(metaclass=Documented):
    """The result of one peer in a run.

    Attributes:
        peer: The peer's name in the plan.
        verdict: What became of it.
        flags: What a person should look at.
        reason: Why it was not staged, or not completely; None if it was.
        error: The same as one printable sentence or more; None if it was staged.
        next: The command or step that helps; None if no action is needed.
        marked: Whether the stage indicator was written on the peer, by this run or, with *earlier_run*, by that one.
        ignored: Whether it does not count in the exit status.
        exit: Its exit code, as if it counted.
        attempts: How often the peer was asked.
        started: When it was first asked, in seconds since the epoch; 0 if it was not.
        seconds: Seconds from then until its result.
        earlier_run: The run that staged it on the same day, so that this one did not ask it; None otherwise.
        report: The summary of its stage; None if no file was published.
    """

    peer: str
    verdict: Verdict
    flags: tuple[Flag, ...] = ()
    reason: Reason | None = None
    error: str | None = None
    next: str | None = None
    marked: bool = False
    ignored: bool = False
    exit: ExitCode = ExitCode.DONE
    attempts: int = 0
    started: float = 0.0
    seconds: float = 0.0
    earlier_run: str | None = None
    report: StageSummary | None = None

    @classmethod
    def unstaged(cls, peer: str, verdict: Verdict, reason: Reason | None, error: str, **values: Any) -> PeerResult:
        """Return the result of a peer that was not staged, or not completely; its exit code follows from *reason*."""
        return cls(peer=peer, verdict=verdict, reason=reason, error=error, exit=code_of_reason(reason), **values)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as values that `json` can encode."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> PeerResult:
        """Return the result that `to_dict` encoded, in this version or another.

        Unknown keys, flags and reasons are ignored.

        Raises:
            ValueError: If it is not such a result.
        """
        try:
            known = _known(cls, raw)
            known["verdict"] = Verdict(known["verdict"])
            known["flags"] = tuple(Flag(flag) for flag in known.get("flags", ()) if flag in set(Flag))
            known["exit"] = ExitCode(known.get("exit", 0))
            if known.get("report") is not None:
                report = _known(StageSummary, known["report"])
                failures = [_known(FileResult, failure) for failure in report.get("failures", ())]
                report["failures"] = tuple(map(FileResult.from_dict, failures))
                report["notes"] = tuple(map(str, report.get("notes", ())))
                known["report"] = StageSummary(**report)
            return cls(**known)
        except (AttributeError, KeyError, TypeError, ValueError) as exc:
            raise ValueError(f"Not the result of a peer: {exc}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetReport(metaclass=Documented):
    """The report of one run of a fleet.

    Attributes:
        run: The run's id, which sorts by time.
        plan: The file that the plan was read from; None if it was made in Python.
        staging: The staging pool.
        target: The daily directory.
        day: The daily directory relative to the pool, ``YYYY/MM/DD``.
        started: Start time, in seconds since the epoch.
        seconds: Duration in seconds.
        results: One result for each selected peer, in the plan's order.
        ended_by: "signal" if the run was cancelled, "killed" if it ended without a report of its own; None otherwise.
        error: What kept the run from starting, or failed at its end, as a sentence; None for nothing.
        reason: The reason of *error*; None for none.
        schema: The version of the JSON form.
    """

    run: str
    plan: str | None
    staging: str
    target: str
    day: str
    started: float
    seconds: float = 0.0
    results: tuple[PeerResult, ...] = ()
    ended_by: str | None = None
    error: str | None = None
    reason: Reason | None = None
    schema: int = SCHEMA

    @property
    def counts(self) -> dict[str, int]:
        """The number of peers for each verdict that occurs."""
        found = Counter(result.verdict for result in self.results)
        return {verdict.value: found[verdict] for verdict in Verdict if found[verdict]}

    @property
    def flagged(self) -> int:
        """The number of peers with a flag."""
        return sum(1 for result in self.results if result.flags)

    @property
    def files(self) -> int:
        """The number of files that this run staged."""
        return sum(result.report.files for result in self.results if result.report and not result.earlier_run)

    @property
    def bytes(self) -> int:
        """The number of bytes of these files."""
        return sum(result.report.bytes for result in self.results if result.report and not result.earlier_run)

    @property
    def exit(self) -> ExitCode:
        """The exit code of the run: the highest of those peers that count, and of the run's own error."""
        own = ExitCode.DONE if self.error is None else code_of_reason(self.reason)
        return max([own, *(result.exit for result in self.results if not result.ignored)])

    def totals(self) -> dict[str, Any]:
        """Return the figures of the run by name."""
        return {"counts": self.counts, "flagged": self.flagged, "files": self.files, "bytes": self.bytes}

    def with_error(self, message: str, reason: Reason) -> FleetReport:
        """Return the report with another error: its message follows an earlier one, whose reason is kept."""
        if self.error is not None:
            return dataclasses.replace(self, error=f"{self.error} {message}")
        return dataclasses.replace(self, error=message, reason=reason)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as values that `json` can encode."""
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        results = [result.to_dict() for result in self.results]
        return {**values, "results": results, **self.totals(), "exit": self.exit}

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> FleetReport:
        """Return the report that `to_dict` encoded, in this version or another; unknown keys are ignored.

        Raises:
            ValueError: If it is not such a report.
        """
        try:
            known = _known(cls, raw)
            known["results"] = tuple(map(PeerResult.from_dict, known.get("results", ())))
            return cls(**known)
        except (AttributeError, KeyError, TypeError, ValueError) as exc:
            raise ValueError(f"Not the report of a run: {exc}") from None


def code_of_reason(reason: Reason | None) -> ExitCode:
    """Return the exit code for *reason*; `ExitCode.UNEXPECTED` for None, a bug."""
    return ExitCode.UNEXPECTED if reason is None else CODES[reason]


def _known(kind: Any, raw: dict[str, Any]) -> dict[str, Any]:
    """Return `known_fields`.

    Raises:
        ValueError: If a number, text or flag has another type than its field.
    """
    for name, types in _scalar_fields(kind).items():
        if name in raw and not _is_one_of(types, raw[name]):
            raise ValueError(f"its {name} is invalid")
    return known_fields(kind, raw)


@functools.cache
def _scalar_fields(kind: type) -> dict[str, set[type]]:
    hints = get_type_hints(kind)
    types = {item.name: set(get_args(hints[item.name])) or {hints[item.name]} for item in dataclasses.fields(kind)}
    return {name: some for name, some in types.items() if some <= _SCALARS}


def _is_one_of(types: set[type], value: object) -> bool:
    if float in types and type(value) in (int, float):
        return isinstance(value, (int, float)) and abs(value) <= _MAX_SECONDS
    return type(value) in types

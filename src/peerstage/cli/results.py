"""Results of the verbs, each with the forms in which `peerstage.cli.output` prints it.

Text that a peer had a part in passes through `escape`; in JSON, control characters are escaped already.
"""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from peerstage.cli.arguments import PeerSpec
from peerstage.cli.option_names import name_options
from peerstage.cli.preview import Preview
from peerstage.errors import StageError
from peerstage.exit_codes import ExitCode, code_of, reason_of
from peerstage.printable import escape
from peerstage.reasons import Reason
from peerstage.records import FileResult, StageReport

#: Text, or a pair of text and the style that it has on a terminal.
Part: TypeAlias = str | tuple[str, str]
Line: TypeAlias = tuple[Part, ...]

_STATUS_STYLES = {"ready": "green", "marked": "green", "not ready": "yellow"}


class Table(NamedTuple):
    """A table for a terminal; the last column takes the width that is left."""

    title: str
    rows: Iterable[Sequence[Part]]
    header: Sequence[str] = ()


class Result(ABC):
    """A result of a verb."""

    @abstractmethod
    def to_json(self) -> list[dict[str, Any]]:
        """Return the JSON objects that ``--json`` prints; none for an intermediate result."""

    @abstractmethod
    def to_lines(self) -> Iterator[Line]:
        """Yield the lines for a file or pipe."""

    def to_terminal(self) -> Iterator[Line | Table]:
        """Yield the lines and tables for a terminal."""
        return self.to_lines()


@dataclass(frozen=True, slots=True)
class Note(Result):
    """What happens next, in printable text."""

    text: str

    def to_json(self) -> list[dict[str, Any]]:
        return []

    def to_lines(self) -> Iterator[Line]:
        yield ((self.text, "dim"),)


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerStatus(Result):
    """The result of ``check`` or ``mark`` for one peer.

    Attributes:
        verb: "check" or "mark".
        peer: The peer.
        indicator: The name of the indicator file.
        status: "ready", "not ready", "marked" or "failed".
        error: Why it failed.
    """

    verb: str
    peer: PeerSpec
    indicator: str
    status: str
    error: Exception | None = None

    @property
    def exit(self) -> ExitCode:
        """The exit code of this peer alone."""
        if self.error is not None:
            return code_of(self.error)
        return ExitCode.NOT_READY if self.status == "not ready" else ExitCode.DONE

    def to_json(self) -> list[dict[str, Any]]:
        failure = failure_to_json(self.error)
        if self.status == "not ready":
            failure["reason"] = Reason.NOT_READY
        peer = peer_to_json(self.peer)
        head = {"verb": self.verb, **peer, "indicator": self.indicator, "status": self.status}
        return [{**head, **failure, "exit": self.exit}]

    def to_lines(self) -> Iterator[Line]:
        if self.error is None:
            missing = f": {escape(self.indicator)} does not exist" if self.status == "not ready" else ""
            yield f"{self.peer.location}: ", (self.status, _STATUS_STYLES[self.status]), missing


@dataclass(frozen=True, slots=True, kw_only=True)
class StageResult(Result):
    """The result of ``stage``.

    Attributes:
        peer: The peer.
        target: The target directory.
        report: What was staged; None if the stage was cut off before its commit.
        error: Why it failed, wholly or in part.
    """

    peer: PeerSpec
    target: str
    report: StageReport | None
    error: StageError | None

    def to_json(self) -> list[dict[str, Any]]:
        is_partial = self.report is not None and self.report.count > 0
        return [
            {
                "verb": "stage",
                **peer_to_json(self.peer),
                "target": self.target,
                "dry_run": False,
                "status": "done" if self.error is None else "incomplete" if is_partial else "failed",
                **failure_to_json(self.error),
                "exit": ExitCode.DONE if self.error is None else code_of(self.error),
                "report": None if self.report is None else json.loads(self.report.to_json()),
            }
        ]

    def to_lines(self) -> Iterator[Line]:
        report = self.report
        if report is not None:
            yield from _refused_lines(report.failed)
            yield from ((f"{self.peer.location}: note: {note}",) for note in report.notes)
            linked = f" ({report.linked} of them linked)" if report.linked else ""
            yield (
                f"{self.peer.location} -> {escape(self.target)}: {report.count} files{linked}, {report.bytes} bytes "
                f"in {report.seconds:.1f} s ({format_rate(report)} MB/s), {len(report.failed)} not staged"
                f"{_format_left_out(report.left_out)}",
            )

    def to_terminal(self) -> Iterator[Line | Table]:
        if self.report is not None:
            yield Table(f"{self.peer.location} -> {escape(self.target)}", self._rows(self.report))

    def _rows(self, report: StageReport) -> Iterator[Line]:
        yield ("files", "dim"), str(report.count)
        yield ("bytes", "dim"), format_size(report.bytes)
        yield ("seconds", "dim"), f"{report.seconds:.2f}"
        yield ("rate", "dim"), f"{format_rate(report)} MB/s"
        yield ("host key", "dim"), escape(report.host_key or "")
        if report.retries:
            yield ("retries", "dim"), f"{report.retries}, {format_size(report.resumed_bytes)} not sent again"
        if report.linked:
            yield ("linked", "dim"), f"{report.linked} files"
        for note in report.notes:
            yield ("note", "yellow"), note
        if report.left_out:
            yield ("left out", "dim"), str(len(report.left_out))
        for file in report.failed:
            yield ("not staged", "yellow"), describe_entry_failure(file)


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviewResult(Result):
    """The result of ``stage --dry-run``."""

    peer: PeerSpec
    target: str
    preview: Preview

    def to_json(self) -> list[dict[str, Any]]:
        preview = self.preview
        failure = preview.failure(b"")
        return [
            {
                "verb": "stage",
                **peer_to_json(self.peer),
                "target": self.target,
                "dry_run": True,
                "count": len(preview.files),
                "bytes": preview.size,
                "opened": preview.opened,
                "files": [dataclasses.asdict(file) for file in preview.files],
                "refused": [dataclasses.asdict(file) for file in preview.refused],
                "left_out": [dataclasses.asdict(file) for file in preview.left_out],
                "reason": None if failure is None else failure.reason,
            }
        ]

    def to_lines(self) -> Iterator[Line]:
        for file in self.preview.files:
            yield (f"{file.size:>14} {escape(file.name)}",)
        for file in self.preview.left_out:
            yield (f"{'left out':>14} {describe_entry_failure(file)}",)
        yield from _refused_lines(self.preview.refused)
        yield (f"{self.peer.location} -> {escape(self.target)}: {self._summary(f'{self.preview.size} bytes')}",)

    def to_terminal(self) -> Iterator[Line | Table]:
        files = ((format_size(file.size), escape(file.name)) for file in self.preview.files)
        left_out = ((("left out", "dim"), describe_entry_failure(file)) for file in self.preview.left_out)
        refused = ((("refused", "yellow"), describe_entry_failure(file)) for file in self.preview.refused)
        yield Table(f"{self.peer.location} -> {escape(self.target)}", [*files, *left_out, *refused], ("size", "name"))
        yield (self._summary(format_size(self.preview.size)),)

    def _summary(self, size: str) -> str:
        return (
            f"{len(self.preview.files)} files, {size} would be staged, {len(self.preview.refused)} would be refused"
            f"{_format_left_out(self.preview.left_out)}; nothing was written; {self.preview.opened_files}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepResult(Result):
    """The result of ``sweep``: the private directories that were removed below *root*."""

    root: str
    removed: list[str]

    def to_json(self) -> list[dict[str, Any]]:
        return [{"verb": "sweep", "root": self.root, "removed": self.removed}]

    def to_lines(self) -> Iterator[Line]:
        for path in self.removed:
            yield ("removed", "yellow"), f" {escape(path)}"
        yield (f"{escape(self.root)}: {len(self.removed)} removed",)


@dataclass(frozen=True, slots=True)
class Failure(Result):
    """The error that ended a run before it had a result; in text it goes to standard error alone."""

    error: BaseException

    def to_json(self) -> list[dict[str, Any]]:
        return [{**failure_to_json(self.error), "exit": code_of(self.error)}]

    def to_lines(self) -> Iterator[Line]:
        return iter(())


def format_size(size: int) -> str:
    """Return a number of bytes with a decimal unit."""
    units = iter(("kB", "MB", "GB", "TB"))
    number, unit = float(size), "bytes"
    while number >= 1000 and (larger := next(units, "")):
        number, unit = number / 1000, larger
    return format_count(size, "byte") if unit == "bytes" else f"{number:,.1f} {unit}"


def format_count(number: int, what: str) -> str:
    """Return a number of things: ``1 file``, ``1,204 files``."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def _format_left_out(left_out: Sequence[FileResult]) -> str:
    return f", {len(left_out)} left out" if left_out else ""


def _refused_lines(refused: Iterable[FileResult]) -> Iterator[Line]:
    for file in refused:
        yield (f"{'refused':>14} {describe_entry_failure(file)}",)


def describe_entry_failure(file: FileResult) -> str:
    """Return the name of an entry that was not staged, and why."""
    return f"{escape(file.name)}: {escape(file.error or '')}"


def format_rate(report: StageReport) -> str:
    """Return megabytes per second."""
    return f"{report.bytes / 1e6 / max(report.seconds, 1e-3):.1f}"


def peer_to_json(peer: PeerSpec) -> dict[str, str | None]:
    """Return the keys that name a peer."""
    return {"peer": peer.label or peer.name, "user": peer.user, "directory": peer.directory}


def failure_to_json(error: BaseException | None) -> dict[str, str | None]:
    """Return the keys that describe an error; None stands for none."""
    if error is None:
        return {"error": None, "kind": None, "reason": None}
    return {"error": name_options(str(error)), "kind": type(error).__name__, "reason": reason_of(error)}

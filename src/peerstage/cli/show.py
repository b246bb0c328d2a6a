"""What the verbs say: one interface, and its plain and JSON forms. The form for terminals is in `terminal`.

What a peer had a say in is printed through `escape`, or as a string of JSON, which knows no control characters.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from peerstage.cli.exits import Exit, code_of, reason_of
from peerstage.cli.preview import Preview
from peerstage.cli.results import Finding, Seen
from peerstage.cli.spec import Spec
from peerstage.errors import StageError, escape
from peerstage.reasons import Reason
from peerstage.records import FileResult, Progress, StageReport

OnProgress = Callable[[Progress], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one peer said to ``check`` or ``mark``.

    Attributes:
        verb: Which of the two.
        spec: The peer.
        indicator: The name of the indicator file.
        status: "ready", "not ready", "marked" or "failed".
        error: Why it failed.
    """

    verb: str
    spec: Spec
    indicator: str
    status: str
    error: Exception | None = None

    @property
    def exit(self) -> Exit:
        """What this answer alone means for the exit status."""
        if self.error is not None:
            return code_of(self.error)
        return Exit.NOT_READY if self.status == "not ready" else Exit.DONE


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a demonstration came to.

    Attributes:
        source: The directory that was served.
        target: Where the staged files lie.
        kept: Whether they still do.
        report: What the stage did.
        compared: Files whose SHA-256 was compared.
        different: Those that are not equal, or not there.
        left_out: What was not done, and why.
    """

    source: str
    target: str
    kept: bool
    report: StageReport
    compared: int
    different: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def equal(self) -> int:
        """Files whose SHA-256 is that of the original."""
        return self.compared - len(self.different)

    @property
    def exit(self) -> Exit:
        """Whether every file arrived as it was."""
        return Exit.INCOMPLETE if self.different else Exit.DONE


class Show(ABC):
    """Where the results of the verbs go."""

    @abstractmethod
    def answered(self, answer: Answer) -> None:
        """Show what one peer said; called as soon as it has."""

    @abstractmethod
    def previewed(self, spec: Spec, target: str, preview: Preview) -> None:
        """Show what a stage would bring."""

    @abstractmethod
    def staged(self, spec: Spec, target: str, report: StageReport | None, error: StageError | None) -> None:
        """Show what a stage did, or why it did not."""

    @abstractmethod
    def swept(self, root: str, removed: list[str]) -> None:
        """Show what a sweep removed."""

    @abstractmethod
    def found(self, finding: Finding) -> None:
        """Show what was found at one step; called as soon as it is done."""

    @abstractmethod
    def examined(self, spec: Spec, findings: list[Finding], status: Exit) -> None:
        """Show what all steps came to."""

    @abstractmethod
    def keys_seen(self, seen: list[Seen]) -> None:
        """Show what the hosts have shown, before anybody is asked about it."""

    @abstractmethod
    def keys_settled(self, seen: list[Seen]) -> None:
        """Show what became of it."""

    @abstractmethod
    def told(self, text: str) -> None:
        """Tell what happens next; *text* holds nothing that would have to be escaped."""

    @abstractmethod
    def demonstrated(self, outcome: Outcome) -> None:
        """Show what the demonstration came to."""

    def progress(self) -> AbstractContextManager[OnProgress | None]:
        """While this is entered, what it gave shows how far a stage has come; None shows nothing."""
        return contextlib.nullcontext()


class PlainShow(Show):
    """Lines of text, for files and pipes."""

    def answered(self, answer: Answer) -> None:
        if answer.status == "not ready":
            print(f"{answer.spec.place}: not ready: {escape(answer.indicator)} is not there", flush=True)
        elif answer.error is None:
            print(f"{answer.spec.place}: {answer.status}", flush=True)

    def previewed(self, spec: Spec, target: str, preview: Preview) -> None:
        for file in preview.files:
            print(f"{file.size:>14} {escape(file.name)}")
        _print_refused(preview.refused)
        print(
            f"{spec.place} -> {escape(target)}: {len(preview.files)} files, {preview.size} bytes would come, "
            f"{len(preview.refused)} entries would be refused; nothing was written; {preview.trials}"
        )

    def staged(self, spec: Spec, target: str, report: StageReport | None, error: StageError | None) -> None:
        if report is not None:
            _print_refused(report.failed)
            print(
                f"{spec.place} -> {escape(target)}: {report.count} files, {report.bytes} bytes "
                f"in {report.seconds:.1f} s ({rate_of(report)}), {len(report.failed)} not staged"
            )

    def swept(self, root: str, removed: list[str]) -> None:
        for path in removed:
            print(f"removed {escape(path)}")
        print(f"{escape(root)}: {len(removed)} leftovers removed")

    def found(self, finding: Finding) -> None:
        print(f"{finding.state:8}{finding.step:14}{escape(finding.seen)}".rstrip(), flush=True)
        for label, text in (("cause", finding.cause), ("remedy", finding.remedy)):
            if text:
                print(f"{'':8}{label + ':':14}{escape(text)}", flush=True)

    def examined(self, spec: Spec, findings: list[Finding], status: Exit) -> None:
        failed = [one.step for one in findings if one.state == "failed"]
        print(f"{spec.place}: {'failed: ' + ', '.join(failed) if failed else 'all is well'}")

    def keys_seen(self, seen: list[Seen]) -> None:
        widths = [max(len(cell) for cell in column) for column in zip(*map(_cells, seen), strict=True)]
        for one in seen:
            host, kind, shown = (cell.ljust(width) for cell, width in zip(_cells(one), widths, strict=True))
            print(f"{host}  {kind}  {shown}  {one.remark}", flush=True)

    def keys_settled(self, seen: list[Seen]) -> None:
        for path in dict.fromkeys(one.added_to for one in seen if one.added_to is not None):
            print(f"{escape(path)}: {sum(one.added_to == path for one in seen)} added", flush=True)

    def told(self, text: str) -> None:
        print(text, flush=True)

    def demonstrated(self, outcome: Outcome) -> None:
        for label, value in rows_of(outcome):
            print(f"{label}: {value}")


class JsonShow(Show):
    """One JSON object a peer, or a verb, on a line of its own."""

    def answered(self, answer: Answer) -> None:
        failure = _failure(answer.error)
        if answer.status == "not ready":
            failure["reason"] = Reason.NOT_READY
        _print_json(
            verb=answer.verb,
            **_peer(answer.spec),
            indicator=answer.indicator,
            status=answer.status,
            **failure,
            exit=answer.exit,
        )

    def previewed(self, spec: Spec, target: str, preview: Preview) -> None:
        unless_empty = None if preview.files else Reason.NOTHING_TO_STAGE
        _print_json(
            verb="stage",
            **_peer(spec),
            target=target,
            dry_run=True,
            count=len(preview.files),
            bytes=preview.size,
            opened=preview.opened,
            files=[dataclasses.asdict(file) for file in preview.files],
            refused=[dataclasses.asdict(file) for file in preview.refused],
            reason=Reason.INCOMPLETE_STAGE if preview.refused else unless_empty,
        )

    def staged(self, spec: Spec, target: str, report: StageReport | None, error: StageError | None) -> None:
        _print_json(
            verb="stage",
            **_peer(spec),
            target=target,
            dry_run=False,
            status="done" if error is None else "incomplete" if report is not None and report.count else "failed",
            **_failure(error),
            exit=Exit.DONE if error is None else code_of(error),
            report=None if report is None else json.loads(report.to_json()),
        )

    def swept(self, root: str, removed: list[str]) -> None:
        _print_json(verb="sweep", root=root, removed=removed)

    def found(self, finding: Finding) -> None:
        """All steps are in one object."""

    def examined(self, spec: Spec, findings: list[Finding], status: Exit) -> None:
        failed = next((one for one in findings if one.state == "failed"), None)
        _print_json(
            verb="doctor",
            **_peer(spec),
            steps=[dataclasses.asdict(one) for one in findings],
            failed=None if failed is None else failed.step,
            reason=None if failed is None else failed.reason,
            exit=status,
        )

    def keys_seen(self, seen: list[Seen]) -> None:
        """What became of it says it all."""

    def keys_settled(self, seen: list[Seen]) -> None:
        for one in seen:
            _print_json(
                verb="trust",
                host=one.host,
                port=one.port,
                type=one.key_type or None,
                fingerprint=one.fingerprint or None,
                authority=one.authority,
                state=one.state,
                why=one.why,
                listed=one.listed,
                listed_as=one.listed_as or None,
                added_to=one.added_to,
                **_failure(one.error),
                exit=one.exit,
            )

    def told(self, text: str) -> None:
        """Only results are shown."""

    def demonstrated(self, outcome: Outcome) -> None:
        _print_json(
            verb="demo",
            source=outcome.source,
            target=outcome.target,
            kept=outcome.kept,
            compared=outcome.compared,
            equal=outcome.equal,
            different=outcome.different,
            left_out=outcome.left_out,
            exit=outcome.exit,
            report=json.loads(outcome.report.to_json()),
        )


def choose_show(*, as_json: bool) -> Show:
    """Return the form that fits: JSON if asked for, else by whether standard output is a terminal."""
    if as_json:
        return JsonShow()
    if sys.stdout.isatty():
        from peerstage.cli.terminal import TerminalShow

        return TerminalShow()
    return PlainShow()


def complain(error: BaseException, peer: str = "") -> None:
    """Say on standard error, in one line, what went wrong, and with which peer unless the error names it itself."""
    code = code_of(error)
    text = str(error)
    if code is Exit.UNEXPECTED:
        text = f"unexpected error: {type(error).__name__}: {text}"
    if peer and not isinstance(error, StageError):
        text = f"{peer}: {text}"
    print(f"peerstage: {escape(text)}", file=sys.stderr, flush=True)


def print_error(error: BaseException) -> None:
    """Print a JSON object about a run that ended before there was a result."""
    _print_json(**_failure(error), exit=code_of(error))


def rows_of(outcome: Outcome) -> Iterator[tuple[str, str]]:
    """Yield what a demonstration came to, as labels and printable values."""
    report = outcome.report
    yield "files", str(report.count)
    yield "bytes", str(report.bytes)
    yield "seconds", f"{report.seconds:.2f}"
    yield "MB/s", rate_of(report).removesuffix(" MB/s")
    yield "SHA-256", f"{outcome.equal} of {outcome.compared} equal"
    for name in outcome.different:
        yield "different", escape(name)
    for file in report.failed:
        yield "not staged", f"{escape(file.name)}: {escape(file.error or '')}"
    for one in outcome.left_out:
        yield "left out", one
    yield "staged in", escape(outcome.target) + ("" if outcome.kept else " (removed)")


def rate_of(report: StageReport) -> str:
    """Return how fast the bytes came."""
    return f"{report.bytes / 1e6 / max(report.seconds, 1e-3):.1f} MB/s"


def log_to_stderr(*, verbose: bool) -> None:
    """Send what the library logs to standard error, a line each: warnings, or with *verbose* all but paramiko's."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(lambda record: record.name != "peerstage.ssh")
    handler.setFormatter(_OneLine("peerstage: %(message)s" if not verbose else "%(name)s: %(message)s"))
    ours = logging.getLogger("peerstage")
    ours.handlers[:] = [handler]
    ours.propagate = False
    ours.setLevel(logging.DEBUG if verbose else logging.WARNING)


class _OneLine(logging.Formatter):
    """Messages that are one printable line; the traceback of a bug is shown as it is."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return escape(super().formatMessage(record))


def _cells(seen: Seen) -> tuple[str, str, str]:
    return escape(seen.host), seen.key_type or "-", seen.fingerprint or "-"


def _print_refused(refused: tuple[FileResult, ...]) -> None:
    for file in refused:
        print(f"{'refused':>14} {escape(file.name)}: {escape(file.error or '')}")


def _print_json(**values: Any) -> None:
    print(json.dumps(values).replace("\x7f", "\\u007f"), flush=True)


def _peer(spec: Spec) -> dict[str, str]:
    return {"peer": spec.host, "user": spec.user, "directory": spec.directory}


def _failure(error: BaseException | None) -> dict[str, str | None]:
    if error is None:
        return {"error": None, "kind": None, "reason": None}
    return {"error": str(error), "kind": type(error).__name__, "reason": reason_of(error)}

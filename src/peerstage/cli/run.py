"""``peerstage run``: check, stage and mark the peers of a plan."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable
from typing import Annotated

import typer

from peerstage.cli import options
from peerstage.cli.output import Output, PlainOutput, log_only_errors, print_error
from peerstage.cli.results import Note, format_count
from peerstage.cli.run_results import MAX_NAMED, EventResult, RunSummary, make_strict
from peerstage.cli.signals import cancel_on_signal
from peerstage.errors import StageError
from peerstage.fleet.dask import dask_executor
from peerstage.fleet.events import Event, PeerFinished, PeerStarted, PeerWaiting, RunFinished, RunStarted
from peerstage.fleet.plan_file import DEFAULT_PLAN, read_plan
from peerstage.fleet.results import FleetReport
from peerstage.fleet.runner import FleetRun
from peerstage.printable import escape, join_first


def run_verb(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="PEER|GROUP", help="Only these peers and groups of the plan.", show_default=False),
    ] = None,
    *,
    plan: options.Plan = DEFAULT_PLAN,
    again: Annotated[bool, typer.Option("--again", help="Also stage peers that were staged today.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="For cron: print nothing unless somebody has to act.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 5 if a peer that was staged looks suspect.")
    ] = False,
    parallel: Annotated[int | None, options.option("N", "Peers at a time.", "as the plan says", min=1, max=256)] = None,
    dask: Annotated[
        str | None,
        options.option("ADDRESS", "Stage on the workers of this Dask scheduler: tcp://scheduler:8786.", "here"),
    ] = None,
    output: Output,
) -> int:
    """Check, stage and mark the peers of a plan, several at a time.

    Files go to STAGING/YYYY/MM/DD/PEER. A peer that was staged today is not asked again, so that running it again
    only does what is missing. Peers that are not ready are asked again until the plan's time. SIGTERM and Ctrl-C end
    the run in an orderly way: nothing half-written is left.

    The exit status is the highest of the peers that count: those for which the plan ignores failures do not. It is 75
    if another run uses the staging directory.
    """
    if quiet and not output.is_for_people:
        raise ValueError("--quiet and --json exclude each other.")
    fleet = read_plan(plan)
    if parallel is not None:
        fleet = dataclasses.replace(fleet, parallel=parallel)
    if quiet:
        output = PlainOutput()
        log_only_errors()
    workers = contextlib.nullcontext() if dask is None else dask_executor(dask)
    with workers as executor, contextlib.ExitStack() as stack:
        show = _EventPrinter(output, stack, is_quiet=quiet, is_strict=strict)
        run = FleetRun(fleet, executor, peers=tuple(names or ()), again=again, on_event=show)
        with cancel_on_signal(run.cancel):
            report = show.adapt(run.run())
            stack.close()
            show.end(RunSummary(report=report, plan=fleet, is_quiet=quiet, is_again=again))
            if report.error is not None:
                print_error(_error_of(report))
    show.raise_failure()
    return report.exit


class _EventPrinter:
    """Prints the events of a run. If that fails, the run continues, and fails at its end.

    Args:
        output: Where to print.
        stack: Closes the status line of a terminal.
        is_quiet: Whether events are not printed.
        is_strict: Whether flagged peers count as incomplete.
    """

    def __init__(self, output: Output, stack: contextlib.ExitStack, *, is_quiet: bool, is_strict: bool) -> None:
        self._output = output
        self._stack = stack
        self._is_quiet = is_quiet
        self._is_strict = is_strict
        self._peers = self._finished = 0
        self._waiting: dict[str, float] = {}
        self._has_told_waiting = False
        self._set_status: Callable[[str], object] = lambda text: None
        self._failure: OSError | None = None

    def __call__(self, event: Event) -> None:
        if not self._is_quiet:
            self._attempt(lambda: self._print(event))

    def end(self, summary: RunSummary) -> None:
        """Print the end of the run."""
        self._attempt(lambda: self._output.show(summary))

    def adapt(self, report: FleetReport) -> FleetReport:
        """Return *report* with the exit codes that ``--strict`` wants."""
        if not self._is_strict:
            return report
        return dataclasses.replace(report, results=tuple(map(make_strict, report.results)))

    def raise_failure(self) -> None:
        """Raise the error of printing, if there was one."""
        if self._failure is not None:
            raise self._failure

    def _attempt(self, show: Callable[[], object]) -> None:
        """Call *show*, unless printing has failed before."""
        if self._failure is None:
            try:
                show()
            except OSError as exc:  # such as EPIPE
                self._failure = exc

    def _print(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self._peers = event.peers
            self._output.show(Note(f"{format_count(event.peers, 'peer')} -> {escape(event.target)}"))
            self._set_status = self._stack.enter_context(self._output.status(self._describe()))
        elif isinstance(event, PeerStarted):
            self._waiting.pop(event.peer, None)
        elif isinstance(event, PeerWaiting):
            self._waiting[event.peer] = event.until
            self._tell_waiting()
        elif isinstance(event, PeerFinished):
            self._waiting.pop(event.result.peer, None)
            self._finished += 1
            self._set_status(self._describe())
            self._tell_waiting()
            event = dataclasses.replace(event, result=make_strict(event.result)) if self._is_strict else event
        elif isinstance(event, RunFinished):
            event = dataclasses.replace(event, report=self.adapt(event.report))
        self._output.show(EventResult(event))

    def _tell_waiting(self) -> None:
        """Say for whom the run waits, once nothing else is left to do: that may take hours."""
        if not self._waiting or self._finished + len(self._waiting) < self._peers or self._has_told_waiting:
            return
        self._has_told_waiting = True
        until = time.strftime("%H:%M", time.localtime(max(self._waiting.values())))
        names = join_first([*self._waiting], MAX_NAMED)
        self._output.show(Note(f"Not ready, and asked again until {until}: {names}"))

    def _describe(self) -> str:
        return f"{self._finished} of {format_count(self._peers, 'peer')} done"


def _error_of(report: FleetReport) -> Exception:
    """Return the error that the report tells."""
    message = report.error or ""
    return RuntimeError(message) if report.reason is None else StageError(message, reason=report.reason)

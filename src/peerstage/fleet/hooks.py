"""Hooks: the commands of a plan that run before a run, after each peer, and after the run."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

from peerstage.errors import Cancelled, LimitExceeded, NotAvailable, StageError
from peerstage.fleet.plan import FleetPlan
from peerstage.fleet.results import FleetReport, PeerResult, Verdict
from peerstage.peer_log import PeerLog
from peerstage.printable import describe_exit, escape
from peerstage.reasons import Reason
from peerstage.records import KIB, Limits
from peerstage.system_errors import resource_error
from peerstage.transport.execute import CommandOutput
from peerstage.transport.rcp.run_command import run_command
from peerstage.watchdog import Watchdog

log = PeerLog("peerstage.fleet")

#: The prefix of the variables that a hook gets; others with it are not passed on.
_PREFIX = "PEERSTAGE_"
#: Seconds that `after` has at most once the run is cancelled: a service manager kills it soon.
_SECONDS_AFTER_CANCEL = 30.0
#: Bytes of a hook's output that are logged, and characters of a text in a variable: execve(2) takes 128 KiB.
_MAX_LOGGED = 64 * KIB
_MAX_TEXT = 4 * KIB


class Hooks:
    """Runs the hooks of one run: one at a time, each bounded in time, in a process group of its own, without a shell.

    A hook has this process's environment without the variables that hold secrets of the plan, and the variables
    ``PEERSTAGE_*`` that the guide's page every-night lists. Its output is logged line by line. A failing `before`
    keeps the run from starting. Failures of the others are collected, and `finish` adds them to the report.

    Args:
        plan: The plan.
        run: The run's id.
        target: The daily directory.
        day: The daily directory relative to the pool.
    """

    def __init__(self, plan: FleetPlan, *, run: str, target: str, day: str) -> None:
        self._plan = plan
        common = {"RUN": run, "PLAN": plan.source or "", "STAGING": plan.staging, "TARGET": target, "DAY": day}
        self._environment = {**_inherited_environment(plan), **_prefixed(common)}
        self._lock = threading.Lock()
        self._watchdog: Watchdog | None = None
        self._is_cancelled = False
        self._has_begun = not plan.before
        self._executor: ThreadPoolExecutor | None = None
        self._failures: list[StageError] = []

    def run_before(self) -> None:
        """Run `before`, if the plan has it.

        Raises:
            StageError: If it failed: the run must not start.
            Cancelled: If the run was cancelled.
        """
        if self._plan.before:
            self._run("before", self._plan.before, {}, self._plan.hook_timeout)
            self._has_begun = True

    def run_after_peer(self, result: PeerResult) -> None:
        """Run `after_peer` in the background, after those of earlier results. A peer that was not asked has none."""
        if not self._plan.after_peer or result.verdict is Verdict.NOT_STARTED or result.earlier_run:
            return
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="peerstage-hooks")
        try:
            self._executor.submit(self._run_after_peer, result)
        except RuntimeError as exc:  # the system refuses a thread
            self._failures.append(_as_failure(exc, result.peer))

    def finish(self, report: FleetReport) -> FleetReport:
        """Wait for the hooks of all peers, and run `after`. Return *report* with the failures of hooks in it.

        `after` also runs if the run was cancelled, for 30 seconds at most; not if `before` failed.
        """
        if self._executor is not None:
            self._executor.shutdown()
        if self._failures:
            first, count = self._failures[0], len(self._failures)
            message = f"after_peer failed for {count} peers; {first}" if count > 1 else str(first)
            report = report.with_error(message, first.reason)
        if self._plan.after and self._has_begun:
            limit = _SECONDS_AFTER_CANCEL if self._is_cancelled else self._plan.hook_timeout
            try:
                self._run("after", self._plan.after, describe_run(report), min(limit, self._plan.hook_timeout))
            except Cancelled:
                log.info("after was ended by the cancellation.")
            except StageError as exc:
                report = report.with_error(str(exc), exc.reason)
        return report

    def cancel(self) -> None:
        """End the hook that is running, and start no further hooks of peers. May be called from any thread."""
        with self._lock:
            self._is_cancelled = True
            watchdog = self._watchdog
        if watchdog is not None:
            watchdog.cancel()

    def _run_after_peer(self, result: PeerResult) -> None:
        try:
            self._run("after_peer", self._plan.after_peer, describe_peer(result), self._plan.hook_timeout, result.peer)
        except Cancelled:
            pass
        except Exception as exc:
            self._failures.append(_as_failure(exc, result.peer))

    def _run(
        self, hook: str, argv: tuple[str, ...], variables: Mapping[str, object], seconds: float, peer: str = ""
    ) -> None:
        """Run one hook. No process of its process group is left.

        Raises:
            StageError: If it failed.
            Cancelled: If it was cancelled.
        """
        environment = {**self._environment, **_prefixed({"HOOK": hook.replace("_", "-"), **variables})}
        output = CommandOutput(f"{hook} {peer}".rstrip(), _MAX_LOGGED)
        failed = f"{hook}: {escape(argv[0])}"
        with self._watch(may_begin=hook == "after") as watchdog, watchdog.command_deadline(seconds):
            try:
                done = run_command(argv, watchdog=watchdog, log=log, on_output=output.write, environment=environment)
            except LimitExceeded as exc:
                message = f"{failed} did not end within {seconds:g} s (FleetPlan.hook_timeout), and was killed."
                raise StageError(message, peer=peer, reason=Reason.HOOK_FAILED) from exc
            except NotAvailable as exc:
                raise StageError(f"{hook}: {exc.message}", peer=peer, reason=Reason.HOOK_FAILED) from exc
            finally:
                output.close()
        if done.exit_status:
            last_line = output.tail.rpartition("\n")[2]
            message = f"{failed} {describe_exit(done.exit_status, last_line)}."
            raise StageError(message, peer=peer, reason=Reason.HOOK_FAILED)

    @contextlib.contextmanager
    def _watch(self, *, may_begin: bool) -> Iterator[Watchdog]:
        """Yield the watchdog of a hook, which `cancel` cancels; already cancelled unless it *may_begin* after that."""
        watchdog = Watchdog(Limits())
        with self._lock:
            self._watchdog = watchdog
            is_cancelled = self._is_cancelled and not may_begin
        try:
            with contextlib.closing(watchdog), watchdog.operation():
                if is_cancelled:
                    raise Cancelled("Cancelled.")
                yield watchdog
        finally:
            self._watchdog = None


def _as_failure(exc: Exception, peer: str) -> StageError:
    """Return *exc* as an error that a report can hold."""
    if isinstance(exc, StageError):
        return exc
    log.debug("A hook could not be run.", exc_info=exc)
    message = f"after_peer could not be run: {type(exc).__name__}: {exc}"
    return resource_error(exc) or StageError(message, peer=peer, reason=Reason.HOOK_FAILED)


def _inherited_environment(plan: FleetPlan) -> dict[str, str]:
    """Return the environment of this process, without its ``PEERSTAGE_*`` variables and those that hold secrets."""
    secrets = {secret.env for peer in plan.peers for secret in (peer.password, peer.passphrase) if secret is not None}
    return {key: value for key, value in os.environ.items() if key not in secrets and not key.startswith(_PREFIX)}


def describe_peer(result: PeerResult) -> dict[str, object]:
    """Return the variables of `after_peer`, without their prefix."""
    report = result.report
    return {
        "PEER": result.peer,
        "VERDICT": result.verdict,
        "REASON": result.reason or "",
        "ERROR": _one_line(result.error),
        "FLAGS": " ".join(map(str, result.flags)),
        "FILES": 0 if report is None else report.files,
        "BYTES": 0 if report is None else report.bytes,
        "MARKED": int(result.marked),
        "IGNORED": int(result.ignored),
        "EXIT": int(result.exit),
    }


def describe_run(report: FleetReport) -> dict[str, object]:
    """Return the variables of `after`, without their prefix."""
    counts = {verdict.name: report.counts.get(verdict, 0) for verdict in Verdict}
    return {
        **counts,
        "PEERS": len(report.results),
        "FLAGGED": report.flagged,
        "FILES": report.files,
        "BYTES": report.bytes,
        "SECONDS": round(report.seconds),
        "ENDED_BY": report.ended_by or "",
        "REASON": report.reason or "",
        "ERROR": _one_line(report.error),
        "EXIT": int(report.exit),
    }


def _one_line(text: str | None) -> str:
    return escape(text or "")[:_MAX_TEXT]


def _prefixed(variables: Mapping[str, object]) -> dict[str, str]:
    return {_PREFIX + name: str(value) for name, value in variables.items()}

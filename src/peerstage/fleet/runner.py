"""`stage_fleet` and `FleetRun`: check, stage and mark the peers of a plan, and leave a record of it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor

from peerstage.documented import Documented
from peerstage.errors import Cancelled, StageError, TargetError
from peerstage.fleet.coordinator import Coordinator
from peerstage.fleet.events import Event, PeerFinished, PeerStarted, PeerWaiting, RunFinished, RunStarted
from peerstage.fleet.executor_workers import ExecutorWorkers
from peerstage.fleet.hooks import Hooks
from peerstage.fleet.next_steps import next_step
from peerstage.fleet.plan import FleetPlan, PeerJob, ignores_failures
from peerstage.fleet.pool.claims import RunClaims
from peerstage.fleet.pool.daily_directories import DailyDirectories
from peerstage.fleet.pool.free_space import PoolSweep, require_free_space
from peerstage.fleet.pool.history import History, read_history
from peerstage.fleet.pool.latest_link import update_latest
from peerstage.fleet.pool.locked_pool import LockedPool
from peerstage.fleet.pool.run_id import day_of, new_run_id
from peerstage.fleet.pool.run_journal import RunJournal
from peerstage.fleet.pool.run_records import RunRecords
from peerstage.fleet.pool.runs_directory import RunsDirectory
from peerstage.fleet.prune import prune_after_run, reclaimable_bytes
from peerstage.fleet.results import FleetReport, PeerResult, Verdict
from peerstage.fleet.run_peer import PeerWork
from peerstage.fleet.schedule import Clock, Schedule, find_end
from peerstage.fleet.shares import share_out
from peerstage.fleet.slots import Slots
from peerstage.fleet.thread_workers import ThreadWorkers
from peerstage.fleet.verdicts import result_of_not_started
from peerstage.fleet.workers import Inbox, Workers
from peerstage.printable import escape
from peerstage.reasons import Reason
from peerstage.system_errors import max_open_files

log = logging.getLogger("peerstage.fleet")
#: For a line about each peer, which the command line leaves out: its summary tells the same.
_results_log = logging.getLogger("peerstage.fleet.results")

#: Seconds to wait at the end for a sweep of the pool that takes longer than the run.
_SECONDS_FOR_SWEEP = 5.0


def stage_fleet(
    plan: FleetPlan,
    executor: Executor | None = None,
    *,
    peers: Sequence[str] = (),
    again: bool = False,
    on_event: Callable[[Event], object] | None = None,
) -> FleetReport:
    """Check, stage and mark the peers of *plan*, several at a time, and return when each has its result.

    One peer's failure is in its result, and costs the others nothing. The run leaves a record in the pool. Run it again
    to continue: a peer that was staged on the same day is not asked again.

    Args:
        plan: The plan.
        executor: Where peers are staged: None and a `ThreadPoolExecutor` stand for threads of this process, which share
            the bandwidth; any other executor for processes, here or elsewhere, that see the pool under the same path
            and the keys and configuration that ssh needs. With any executor, a peer that does not answer keeps its
            place among `FleetPlan.parallel`; only the run's own threads lend it to others. One process that is killed
            breaks a whole `ProcessPoolExecutor`: the peers that are left end with the reason worker-lost. It is not
            shut down.
        peers: Names of peers and groups of the plan; all peers if it is empty.
        again: Whether peers that were staged today are asked again, and stale ones are staged.
        on_event: Called with each event, in the calling thread. If it raises, that is logged.

    Raises:
        ValueError: If *peers* names what the plan does not have.
        RunLocked: If another run holds the lock of the pool. Nothing was done.
        StageError: If the pool cannot be used. Nothing was done.
    """
    return FleetRun(plan, executor, peers, again, on_event).run()


class FleetRun(metaclass=Documented):
    """One run of a plan, which another thread may cancel. See `stage_fleet` for the arguments.

    Args:
        plan: The plan.
        executor: Where peers are staged.
        peers: Names of peers and groups.
        again: Whether peers that were staged today are asked again.
        on_event: Called with each event.
        clock: The clock that the run follows.

    Raises:
        ValueError: If *peers* names what the plan does not have.
    """

    def __init__(
        self,
        plan: FleetPlan,
        executor: Executor | None = None,
        peers: Sequence[str] = (),
        again: bool = False,
        on_event: Callable[[Event], object] | None = None,
        *,
        clock: Clock | None = None,
    ) -> None:
        self._plan = plan
        self._jobs = {job.name: job for job in plan.select(tuple(peers))}
        self._executor = executor
        self._again = again
        self._clock = clock or Clock()
        self._inbox: Inbox = queue.SimpleQueue()
        self._cancelled = threading.Event()
        self._has_run = False
        started = self._clock.time()
        self._started_at = self._clock.monotonic()
        run, day = new_run_id(started), day_of(started)  # once: a run may last beyond midnight
        target = os.path.join(plan.staging, day)
        self._report = FleetReport(
            run=run, plan=plan.source, staging=plan.staging, target=target, day=day, started=started
        )
        self._is_start_of_week = time.localtime(started).tm_wday == plan.starting_day
        self._hooks = Hooks(plan, run=run, target=target, day=day)
        self._on_event = on_event
        self._results: dict[str, PeerResult] = {}
        self._history = History()
        self._journal: RunJournal | None = None
        self._claims: RunClaims | None = None

    def cancel(self) -> None:
        """End the run soon: peers that are being staged are cancelled, the others are not started.

        May be called from any thread, also before `run`.
        """
        self._cancelled.set()
        self._inbox.put(None)
        self._hooks.cancel()

    def run(self) -> FleetReport:
        """Run the plan, once.

        Returns:
            The report, with one result for each selected peer.

        Raises:
            RunLocked: If another run holds the lock of the pool. Nothing was done.
            StageError: If the pool cannot be used. Nothing was done.
        """
        if self._has_run:
            raise StageError("This FleetRun has run. Make another one.", reason=Reason.IN_USE)
        self._has_run = True
        with LockedPool(self._plan.staging, self._report.run) as pool:
            plan, target, count = self._report.plan, self._report.target, len(self._jobs)
            self._send(RunStarted(run=self._report.run, plan=plan, target=target, peers=count))
            try:
                self._hooks.run_before()
                pool.follow_mount()
                self._stage_peers(pool.runs)
            except Cancelled:
                pass
            except StageError as exc:
                self._report = self._report.with_error(str(exc), exc.reason)
            except BaseException as exc:  # KeyboardInterrupt, or a bug
                self.cancel()
                if isinstance(exc, Exception):
                    self._report = dataclasses.replace(self._report, error=f"Unexpected {type(exc).__name__}.")
                self._end(pool)
                raise
            return self._end(pool)

    def _stage_peers(self, runs: RunsDirectory) -> None:
        """Have every peer asked that was not staged on the same day; the others have their results from then."""
        plan, day = self._plan, self._report.day
        swept = PoolSweep(plan.staging)
        swept.start()
        now = self._clock.time()
        require_free_space(
            plan.staging, plan.min_free, swept, self._cancelled, lambda: reclaimable_bytes(plan, runs, now)
        )
        with contextlib.ExitStack() as opened:
            self._journal = journal = RunJournal(runs, self._report, list(self._jobs))
            opened.callback(journal.close)
            records = RunRecords(runs)
            records.close_killed()
            linking = [name for name, job in self._jobs.items() if job.link_dest]
            self._history = read_history(records, plan.staging, day, [job.name for job in plan.peers], linking)
            for name in self._jobs if not self._again else ():
                if name in self._history.staged:
                    self._add_result(self._history.staged[name])
            # It is created here, and not only by the workers, so that an error of the disk is that of the run.
            opened.enter_context(DailyDirectories(plan.staging, day, plan.ownership, mode=plan.directory_mode))
            self._claims = claims = opened.enter_context(RunClaims(runs, self._report.run, clock=self._clock.monotonic))
            self._ask_peers(claims)
        swept.wait(self._cancelled, _SECONDS_FOR_SWEEP)

    def _ask_peers(self, claims: RunClaims) -> None:
        jobs = [job for name, job in self._jobs.items() if name not in self._results]
        jobs.sort(key=lambda job: job.name in self._history.unreachable)  # last, so that they delay no other
        executor = self._executor
        uses_threads = executor is None or isinstance(executor, ThreadPoolExecutor)
        shares = share_out(self._plan, jobs, open_files=max_open_files() if uses_threads else None)
        slots = Slots(shares.parallel, self._clock, may_lend=executor is None)
        bwlimit = None
        workers: Workers
        if executor is None or isinstance(executor, ThreadPoolExecutor):
            workers = ThreadWorkers(self._inbox, slots, bwlimit=self._plan.bwlimit, executor=executor)
        else:
            workers = ExecutorWorkers(self._inbox, executor, claims, self._clock)
            bwlimit = shares.bwlimit
        end = find_end(self._plan.until, self._report.started)
        Coordinator(
            {job.name: self._work_for(job, bwlimit, shares.in_flight) for job in jobs},
            workers,
            self._inbox,
            Schedule((job.name for job in jobs), end=end, clock=self._clock),
            slots,
            self._clock,
            on_assign=claims.assign,
            on_started=self._note_started,
            on_waiting=functools.partial(self._note_waiting, end or 0.0),
            on_result=self._add_result,
            cancelled=self._cancelled,
        ).run()

    def _work_for(self, job: PeerJob, bwlimit: int | None, in_flight: int) -> PeerWork:
        return PeerWork(
            job=job,
            run=self._report.run,
            staging=self._plan.staging,
            day=self._report.day,
            ownership=self._plan.ownership,
            directory_mode=self._plan.directory_mode,
            earlier=self._history.nights.get(job.name),
            again=self._again,
            bwlimit=bwlimit,
            in_flight=in_flight,
            free_bytes=self._plan.min_free,
        )

    def _note_started(self, peer: str, attempt: int) -> None:
        if self._journal is not None:
            self._journal.add_started(peer)
        self._send(PeerStarted(run=self._report.run, peer=peer, attempt=attempt))

    def _note_waiting(self, end: float, found: PeerResult) -> None:
        run, peer, reason, error = self._report.run, found.peer, found.reason, found.error
        self._send(PeerWaiting(run=run, peer=peer, reason=reason, error=error, until=end))

    def _add_result(self, result: PeerResult) -> None:
        """Keep the only result of a peer: in the report, the journal and the log, and for the hook and the event."""
        job = self._jobs[result.peer]
        if self._claims is not None:
            self._claims.release(result.peer)  # from now on, no late worker publishes or marks anything
        counts = result.verdict is Verdict.STAGED and not result.flags
        result = dataclasses.replace(result, ignored=not counts and self._ignores(job))
        result = dataclasses.replace(result, next=next_step(result, job, self._plan))
        self._results[result.peer] = result
        if self._journal is not None:
            self._journal.add_result(result)
        _log_result(result)
        self._hooks.run_after_peer(result)
        self._send(PeerFinished(run=self._report.run, result=result))

    def _ignores(self, job: PeerJob) -> bool:
        return ignores_failures(job.ignore_failures, is_start_of_week=self._is_start_of_week)

    def _end(self, pool: LockedPool) -> FleetReport:
        """Give the run its end: results for those that have none, the pool's own files, the record, and the hooks."""
        reason, why = Reason.CANCELLED, "The run was cancelled before."
        if self._report.error is not None and self._report.reason is not None:
            reason, why = self._report.reason, "The run did not start, or ended before."
        for name in self._jobs:
            if name not in self._results:
                self._add_result(result_of_not_started(name, reason, why))
        is_cancelled = self._cancelled.is_set()
        report = dataclasses.replace(
            self._report,
            seconds=self._clock.monotonic() - self._started_at,
            results=tuple(self._results[name] for name in self._jobs),
            ended_by="signal" if is_cancelled else None,
        )
        if not is_cancelled and report.error is None:
            report = self._complete_day(pool.runs, report)
        report = self._write_record(pool.runs, report)
        pruned = self._prune(pool.runs, report)
        if pruned != report:
            report = self._write_record(pool.runs, pruned)
        pool.leave()  # so that the hooks may start other commands on the pool, or unmount it
        finished = self._hooks.finish(report)
        runs = pool.find_again() if finished != report else None
        if runs is not None:
            with runs:
                finished = self._write_record(runs, finished)
        self._send(RunFinished(run=finished.run, report=finished))
        return finished

    def _complete_day(self, runs: RunsDirectory, report: FleetReport) -> FleetReport:
        """Write the master's stage indicator and the link to the day."""
        plan = self._plan
        try:
            if any(result.report is not None for result in report.results):
                note = update_latest(runs, report.day)
                if note is not None:
                    log.warning("%s", note)
            if not plan.complete_only or all(self._is_complete(job) for job in plan.peers):
                with DailyDirectories(plan.staging, report.day, plan.ownership) as daily:
                    daily.write_indicator_file()
        except TargetError as exc:
            return report.with_error(str(exc), exc.reason)
        return report

    def _prune(self, runs: RunsDirectory, report: FleetReport) -> FleetReport:
        """Remove old days, if the run came to its end and a peer is staged; otherwise no more days are old than before.

        Peers that failed do not matter: one that is dead for long would let the disk fill up.
        """
        is_staged = any(result.verdict is Verdict.STAGED for result in report.results)
        if report.ended_by is not None or report.error is not None or not is_staged:
            return report
        failure = prune_after_run(self._plan, runs, self._cancelled.is_set, self._clock.time())
        return report if failure is None else report.with_error(str(failure), failure.reason)

    def _is_complete(self, job: PeerJob) -> bool:
        """Return whether a peer of the plan was staged on this day, or does not count."""
        result = self._results.get(job.name) or self._history.staged.get(job.name)
        is_staged = result is not None and result.verdict is Verdict.STAGED
        return is_staged or self._ignores(job)

    def _write_record(self, runs: RunsDirectory, report: FleetReport) -> FleetReport:
        records = RunRecords(runs)
        try:
            records.write(report)
            records.remove_old()
        except TargetError as exc:
            return report.with_error(str(exc), exc.reason)
        return report

    def _send(self, event: Event) -> None:
        if self._on_event is None:
            return
        try:
            self._on_event(event)
        except Exception:
            log.error("on_event failed for %s.", event.name, exc_info=True)


def _log_result(result: PeerResult) -> None:
    if result.verdict is Verdict.STAGED:
        _results_log.info("%s: %s.", escape(result.peer), result.verdict)
    else:
        _results_log.warning("%s: %s: %s [%s]", escape(result.peer), result.verdict, result.error, result.reason)

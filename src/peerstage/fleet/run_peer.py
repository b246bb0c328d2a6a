"""`stage_peer`: check, stage and mark one peer of a run, in one login. This is what threads, processes and Dask run."""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from peerstage.errors import Cancelled, NothingToStage, TargetError
from peerstage.fleet.plan import PeerJob
from peerstage.fleet.pool.daily_directories import DailyDirectories
from peerstage.fleet.pool.peer_claim import PeerClaim
from peerstage.fleet.results import PeerResult, Verdict
from peerstage.fleet.verdicts import check_indicators, result_of_error, result_of_report
from peerstage.paths import MANIFEST_NAMES
from peerstage.peer.base import BackupPeer
from peerstage.peer.remote import RemotePeer
from peerstage.peer_log import PeerLog
from peerstage.records import Ownership, StageReport

#: The share by which pauses between retries are shortened at random, so that peers do not come back together.
_JITTER = 0.5


@dataclass(frozen=True, kw_only=True)
class PeerWork:
    """What a worker needs to stage one peer. It pickles, and holds no secret.

    Attributes:
        job: The peer.
        run: The id of the run.
        staging: The staging pool.
        day: The daily directory relative to it.
        ownership: Owner and group of directories and staged files.
        directory_mode: Mode of new directories.
        earlier: The day of the peer's last complete night, for links; None for none.
        again: Whether files that were staged before are staged again.
        bwlimit: Bytes per second that the peer may send; None for no limit, or if workers share one.
        in_flight: Bytes that may be in flight.
        free_bytes: Bytes that must remain free on the disk.
    """

    job: PeerJob
    run: str
    staging: str
    day: str
    ownership: Ownership | None = None
    directory_mode: int | None = None
    earlier: str | None = None
    again: bool = False
    bwlimit: int | None = None
    in_flight: int
    free_bytes: int = 0

    @property
    def target(self) -> str:
        """The peer's directory."""
        return os.path.join(self.staging, self.day, self.job.name)


class RunThreads(Protocol):
    """What the threads of a run share."""

    def registered(self, peer: BackupPeer, job: PeerJob) -> AbstractContextManager[object]:
        """Limit *peer*, which is not connected yet, together with the others; cancel it in the block if the run is."""

    def wait_for_slot(self, job: PeerJob) -> None:
        """Wait until the peer, which has answered, may be staged."""


def stage_peer(work: PeerWork, threads: RunThreads | None = None) -> PeerResult:
    """Check, stage and mark one peer. It never raises: whatever happens is the peer's result.

    Args:
        work: What to do.
        threads: What it shares with other threads of the run; None in another process.
    """
    return _PeerStage(work, threads).run()


class _PeerStage:
    def __init__(self, work: PeerWork, threads: RunThreads | None) -> None:
        self._work = work
        self._job = work.job
        self._threads = threads
        self._log = PeerLog("peerstage.fleet", work.job.name)
        self._peer: BackupPeer | None = None
        self._report: StageReport | None = None

    def run(self) -> PeerResult:
        try:
            on_stop = self._cancel if self._threads is None else None
            with PeerClaim(self._work.staging, self._work.run, self._job.name, on_stop=on_stop) as claim:
                return self._check_stage_and_mark(claim)
        except BaseException as exc:
            # KeyboardInterrupt: Ctrl-C reaches the processes of a pool, too. SystemExit: that of a callback.
            error = Cancelled("It was interrupted.") if isinstance(exc, KeyboardInterrupt) else exc
            if not isinstance(exc, (OSError, ValueError)):
                self._log.debug("A bug, or a problem of this machine.", exc_info=True)
            return result_of_error(self._job, error, self._work.target, report=self._report)

    def _cancel(self) -> None:
        if self._peer is not None:
            self._peer.cancel()

    def _check_stage_and_mark(self, claim: PeerClaim) -> PeerResult:
        with contextlib.ExitStack() as opened:
            work = self._work
            daily = opened.enter_context(
                DailyDirectories(work.staging, work.day, work.ownership, mode=work.directory_mode)
            )
            target = opened.enter_context(daily.peer_directory(self._job.name))
            is_continued = os.path.lexists(os.path.join(target, MANIFEST_NAMES[1]))
            link_dest = opened.enter_context(self._open_link_dest(target, is_continued=is_continued))
            self._peer = peer = self._build_peer(link_dest)
            peer.on_commit = claim.require_current
            if self._threads is not None:
                opened.enter_context(self._threads.registered(peer, work.job))
            if isinstance(peer, RemotePeer):
                opened.enter_context(peer)
            claim.require_current()
            not_ready = self._check(peer, is_continued=is_continued)
            if not_ready is not None:
                return not_ready
            if self._threads is not None:
                self._threads.wait_for_slot(work.job)
            result = self._stage(peer, target)
            if result.verdict is not Verdict.STAGED or not self._job.mark:
                return result
            claim.require_current()
            peer.writeStageIndicator(self._job.stage_indicator)
            return dataclasses.replace(result, marked=True)

    def _check(self, peer: BackupPeer, *, is_continued: bool) -> PeerResult | None:
        indicators = peer.readIndicators(self._job.collect_indicator, self._job.stage_indicator)
        # A run that was killed may have marked the peer without a record. Its manifest remains.
        may_repeat = self._work.again or is_continued
        if indicators.stage_is_newer:  # it was not collected
            indicator = glob.escape(self._job.stage_indicator)
            peer.stage = dataclasses.replace(peer.stage, exclude=(*peer.stage.exclude, indicator))
        return check_indicators(self._job, indicators, may_repeat=may_repeat, now=time.time())

    def _stage(self, peer: BackupPeer, target: str) -> PeerResult:
        try:
            peer.stagePeer(target, self._work.ownership, self._job.permissions)
        except NothingToStage:
            if not self._job.allow_empty:
                raise
        self._report = peer.last_report
        return result_of_report(self._job, self._report, self._work.target)

    def _build_peer(self, link_dest: str | None) -> BackupPeer:
        work, job = self._work, self._job
        bwlimits = (job.stage.bwlimit, work.bwlimit if job.can_limit_bandwidth else None)
        bwlimit = min(filter(None, bwlimits), default=None)
        stage = dataclasses.replace(job.stage, manifest=True, link_dest=link_dest, bwlimit=bwlimit)
        limits = dataclasses.replace(
            job.limits,
            free_bytes=max(work.free_bytes, job.limits.free_bytes),
            in_flight_bytes=min(work.in_flight, job.limits.in_flight_bytes),
        )
        peer = job.build_peer(stage=stage, limits=limits, reads_secrets=True)
        if isinstance(peer, RemotePeer):
            peer.retry = dataclasses.replace(job.retry, jitter=job.retry.jitter or _JITTER)
        return peer

    @contextlib.contextmanager
    def _open_link_dest(self, target: str, *, is_continued: bool) -> Iterator[str | None]:
        """Yield the directory to link to: this one if it was staged to today, else that of the last complete night."""
        job, earlier = self._job, self._work.earlier
        if not job.can_link:
            yield None
        elif is_continued:
            yield target
        elif not job.link_dest or earlier is None:
            yield job.stage.link_dest
        else:
            with contextlib.ExitStack() as opened:
                path = None
                with contextlib.suppress(TargetError):  # pruned, or replaced: then every file is fetched
                    daily = opened.enter_context(DailyDirectories(self._work.staging, earlier, create=False))
                    path = opened.enter_context(daily.peer_directory(job.name))
                yield path

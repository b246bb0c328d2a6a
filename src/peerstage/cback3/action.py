"""Stage all peers, several at a time; one peer's failure does not stop the rest."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

from peerstage.cback3.cback_log import CbackLogHandler, log_to_cback
from peerstage.cback3.settings import Settings, settings_path
from peerstage.cback3.staging_directories import StagingDirectories
from peerstage.cback3.staging_plan import StagingPlan, read_plan
from peerstage.errors import StageError, format_log_line
from peerstage.fleet.plan import ignores_failures
from peerstage.peer.base import BackupPeer
from peerstage.peer.remote import RemotePeer
from peerstage.printable import escape
from peerstage.target.sweep import sweep

log = logging.getLogger("peerstage.cback3")

#: Seconds between two attempts to cancel the peers that are still being staged.
_CANCEL_INTERVAL = 0.2


def stage_all(config_path: str, config: Any, *, full: bool) -> None:
    """Stage all peers of *config*; see `peerstage.cback3.executeAction`."""
    settings = Settings(settings_path(config_path))
    settings.read()
    plan = read_plan(config, settings)
    names = [peer.name for peer in plan.peers]
    with log_to_cback(names) as cback_log:
        now = time.localtime()  # once: a run may last beyond midnight
        day = time.strftime("%Y/%m/%d", now)
        is_start_of_week = full or now.tm_wday == plan.starting_day
        with StagingDirectories(plan.staging_directory, day, names, plan.ownership) as directories:
            _sweep(plan.staging_directory)
            _StageRun(plan, directories, is_start_of_week, cback_log).stage_peers(settings.parallel)
            directories.write_indicator_file()
        log.info("The stage action is done.")


@dataclass
class _StageRun:
    plan: StagingPlan
    directories: StagingDirectories
    is_start_of_week: bool
    cback_log: CbackLogHandler
    cancelled: threading.Event = field(default_factory=threading.Event)

    def stage_peers(self, parallel: int) -> None:
        """Stage every peer, *parallel* at a time. An interrupt of the main thread cancels them all."""
        if parallel == 1:
            for peer in self.plan.peers:
                self.stage_peer(peer)
            return
        with ThreadPoolExecutor(parallel, thread_name_prefix="peerstage-stage") as pool:
            futures = [pool.submit(self.stage_peer, peer) for peer in self.plan.peers]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                self._cancel(futures)
                raise

    def _cancel(self, futures: list[Future[None]]) -> None:
        self.cancelled.set()
        while wait(futures, _CANCEL_INTERVAL).not_done:
            for peer in self.plan.peers:
                peer.cancel()

    def stage_peer(self, peer: BackupPeer) -> None:
        """Check, stage and mark one peer; log a failure."""
        if self.cancelled.is_set():
            return
        name = escape(peer.name)
        with self.cback_log.in_turn(peer.name):
            log.info("Staging peer %s.", name)
            is_ignored = ignores_failures(peer.ignoreFailureMode, is_start_of_week=self.is_start_of_week)
            level = logging.INFO if is_ignored else logging.ERROR
            try:
                with peer if isinstance(peer, RemotePeer) else contextlib.nullcontext():  # one login for all calls
                    with self.cback_log.limited_to(level, peer.name):
                        is_ready = peer.checkCollectIndicator()
                    if not is_ready:
                        log.log(level, "Peer %s was not ready to be staged.", name)
                        return
                    with self.directories.peer_directory(peer.name) as directory:
                        count = peer.stagePeer(directory, self.plan.ownership)
                    log.info("Staged %d files for peer %s.", count, name)
                    peer.writeStageIndicator()
            except (ValueError, OSError) as exc:
                log.error("Error staging %s: %s", name, format_log_line(exc))
            except Exception as exc:  # a bug must not cost the other peers their backup
                log.error("Error staging %s: unexpected %s: %s", name, type(exc).__name__, escape(str(exc)))
                log.debug("%s: traceback of the unexpected error.", name, exc_info=True)


def _sweep(staging_directory: str) -> None:
    """Remove what killed runs have left on any day; log a failure and continue."""
    try:
        sweep(staging_directory)
    except StageError as exc:
        log.warning("%s", format_log_line(exc))

"""The action itself: every peer of the plan, a few at a time, whatever becomes of the others (PARITY 24, 26)."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

from peerstage.cback3.config import Plan, read_plan
from peerstage.cback3.log import CbackLog, logging_to_cback
from peerstage.cback3.places import Places
from peerstage.cback3.settings import Settings, beside
from peerstage.errors import StageError, escape, log_line
from peerstage.landing.leftovers import sweep
from peerstage.peer.base import BackupPeer
from peerstage.peer.remote import RemotePeer

log = logging.getLogger("peerstage.cback3")

#: Seconds between two attempts to end peers that are still under way.
_AGAIN = 0.2


def run(config_path: str, config: Any, *, full: bool) -> None:
    """See `peerstage.cback3.executeAction`."""
    settings = Settings(beside(config_path))
    settings.read()
    plan = read_plan(config, settings)
    names = [peer.name for peer in plan.peers]
    with logging_to_cback(names) as cback_log:
        now = time.localtime()  # once: a run may last beyond midnight
        day = time.strftime("%Y/%m/%d", now)
        week_begins = full or now.tm_wday == plan.starting_day
        with Places(plan.staging, day, names, plan.ownership) as places:
            _sweep(plan.staging)
            _Run(plan, places, week_begins, cback_log).all_peers(settings.parallel)
            places.write_indicator()
        log.info("The stage action is done.")


def ignores_failures(mode: str | None, *, week_begins: bool) -> bool:
    """Whether a peer of this mode may be missing today without being an error.

    Args:
        mode: None, "none", "all", "daily" or "weekly".
        week_begins: Whether this is the first backup of a week, or a full one.
    """
    return mode == "all" or mode == ("weekly" if week_begins else "daily")


@dataclass
class _Run:
    plan: Plan
    places: Places
    week_begins: bool
    cback_log: CbackLog
    stopped: threading.Event = field(default_factory=threading.Event)

    def all_peers(self, parallel: int) -> None:
        """Stage every peer. What interrupts the main thread ends them all."""
        if parallel == 1:
            for peer in self.plan.peers:
                self.one_peer(peer)
            return
        with ThreadPoolExecutor(parallel, thread_name_prefix="peerstage-stage") as pool:
            futures = [pool.submit(self.one_peer, peer) for peer in self.plan.peers]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                self._stop(futures)
                raise

    def _stop(self, futures: list[Future[None]]) -> None:
        self.stopped.set()
        while wait(futures, _AGAIN).not_done:
            for peer in self.plan.peers:
                peer.cancel()

    def one_peer(self, peer: BackupPeer) -> None:
        """Check, stage and mark one peer; what fails is logged."""
        if self.stopped.is_set():
            return
        name = escape(peer.name)
        with self.cback_log.speaking_of(peer.name):
            log.info("Staging peer %s.", name)
            ignored = ignores_failures(peer.ignoreFailureMode, week_begins=self.week_begins)
            try:
                with _one_login(peer):
                    with self.cback_log.quietly(peer.name, ignored):
                        is_ready = peer.checkCollectIndicator()
                    if not is_ready:
                        log.log(logging.INFO if ignored else logging.ERROR, "Peer %s was not ready to be staged.", name)
                        return
                    with self.places.of(peer.name) as place:
                        count = peer.stagePeer(place, self.plan.ownership)
                    log.info("Staged %d files for peer %s.", count, name)
                    peer.writeStageIndicator()
            except (ValueError, OSError) as exc:
                log.error("Error staging %s: %s", name, log_line(exc))
            except Exception as exc:  # a defect must not cost the other peers their backup
                log.error("Error staging %s: unexpected %s: %s", name, type(exc).__name__, escape(str(exc)))
                log.debug("%s: a bug, or a problem of this machine.", name, exc_info=True)


def _one_login(peer: BackupPeer) -> contextlib.AbstractContextManager[object]:
    return peer if isinstance(peer, RemotePeer) else contextlib.nullcontext()


def _sweep(staging: str) -> None:
    """Remove what killed runs have left, of this day and all others; where that fails, staging need not."""
    try:
        sweep(staging)
    except StageError as exc:
        log.warning("%s", log_line(exc))

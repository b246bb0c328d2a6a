"""Workers that are threads of this process: they share a bandwidth limit and slots, and are cancelled directly."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from peerstage.errors import Cancelled
from peerstage.fleet.plan import PeerJob
from peerstage.fleet.run_peer import PeerWork, stage_peer
from peerstage.fleet.slots import Slots
from peerstage.fleet.verdicts import result_of_error
from peerstage.fleet.workers import Inbox, WorkerMessage, Workers, submit
from peerstage.peer.base import BackupPeer
from peerstage.peer.remote import RemotePeer
from peerstage.rates import BandwidthLimit
from peerstage.system_errors import start_thread


class ThreadWorkers(Workers):
    """Stages each peer in a thread of its own, or in one of a `ThreadPoolExecutor`.

    Own threads are daemons: one that hangs in a system call keeps neither the run nor the process from ending.

    Args:
        inbox: Where threads tell what they do.
        slots: The slots of the run.
        bwlimit: Bytes per second, all peers together; None for no limit.
        executor: Where threads come from; None for own ones.
    """

    def __init__(
        self, inbox: Inbox, slots: Slots, *, bwlimit: int | None = None, executor: ThreadPoolExecutor | None = None
    ) -> None:
        self._bandwidth = None if bwlimit is None else BandwidthLimit(bwlimit)
        self._inbox = inbox
        self._slots = slots
        self._executor = executor
        self._is_cancelled = False
        self._lock = threading.Lock()
        self._peers: dict[str, BackupPeer] = {}
        self._futures: dict[str, Future[None]] = {}

    def start(self, work: PeerWork) -> None:
        name = work.job.name
        if self._executor is not None:
            self._futures[name] = submit(self._executor, self._run, work)
        else:
            thread = threading.Thread(target=self._run, args=(work,), name=f"peerstage-{name}", daemon=True)
            start_thread(thread)

    def poll(self) -> Iterator[WorkerMessage]:
        return iter(())

    def cancel(self) -> list[str]:
        with self._lock:
            self._is_cancelled = True
            peers = list(self._peers.values())
        for peer in peers:
            peer.cancel()
        return [name for name, future in list(self._futures.items()) if future.cancel()]

    def forget(self, peer: str) -> None:
        self._futures.pop(peer, None)

    @contextlib.contextmanager
    def registered(self, peer: BackupPeer, job: PeerJob) -> Iterator[None]:
        """See `RunThreads`."""
        if isinstance(peer, RemotePeer) and job.can_limit_bandwidth:
            peer.bandwidth = self._bandwidth
        with self._lock:
            self._peers[job.name] = peer
        try:
            self._raise_if_cancelled()
            yield
        finally:
            with self._lock:
                self._peers.pop(job.name, None)

    def wait_for_slot(self, job: PeerJob) -> None:
        """See `RunThreads`."""
        self._slots.wait_for(job.name, self._raise_if_cancelled)

    def _raise_if_cancelled(self) -> None:
        if self._is_cancelled:
            raise Cancelled("Cancelled.")

    def _run(self, work: PeerWork) -> None:
        self._inbox.put(WorkerMessage(work.job.name))
        try:
            outcome = stage_peer(work, self)
        except BaseException as exc:  # such as an error whose text cannot be made
            outcome = result_of_error(work.job, RuntimeError(type(exc).__name__))
        self._inbox.put(WorkerMessage(work.job.name, outcome))

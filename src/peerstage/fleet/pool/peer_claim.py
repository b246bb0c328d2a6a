"""`PeerClaim`: what a worker holds while it stages a peer of a run. See `peerstage.fleet.pool.claims`."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable

from peerstage.errors import Cancelled, StageError
from peerstage.fleet.pool.claims import CURRENT, ENDED, JOBS, MAX_BYTES, PEERS
from peerstage.fleet.pool.run_lock import find_holder, lock_within
from peerstage.fleet.pool.runs_directory import RunsDirectory
from peerstage.forks import call_in_forked_child, release_after_fork
from peerstage.printable import escape
from peerstage.reasons import Reason
from peerstage.system_errors import is_machine_wide, start_thread, system_error
from peerstage.target.file_descriptors import LOCK_FILE, NO_FOLLOW, close_quietly

_log = logging.getLogger("peerstage.fleet")

#: Seconds between two looks at the pool, and between two heartbeats.
_INTERVAL = 1.0
_HEARTBEAT = 5.0
#: Seconds to wait for another worker's lock: it notices within `_INTERVAL` that it was given up, and then cancels.
_PATIENCE = 60.0
_PAUSE = 0.2
#: Errors which mean that a file or its directory was removed.
_GONE = (errno.ENOENT, errno.ESTALE, errno.ENOTDIR)


class PeerClaim:
    """A worker's claim on one peer of a run, in a ``with`` block: no other worker stages it at the same time.

    Args:
        staging: The staging pool, as this worker sees it.
        run: The id of the run that assigned the peer.
        peer: The peer's name.
        on_stop: Called again and again, from another thread, from the moment when the run has ended, was stopped or has
            given this worker up; usually `BackupPeer.cancel`. None, for threads of the run itself: then this needs no
            thread, and there is no heartbeat.
        patience: Seconds to wait for another worker that still holds the peer.

    Raises:
        StageError: With the reason pool-not-visible if the run is not found in the pool; with peer-locked if another
            worker still stages the peer. Raised on entering.
        Cancelled: If the run has ended, was stopped, or has given the job up. Raised on entering.
        TargetError: If the pool cannot be used. Raised on entering.
    """

    def __init__(
        self,
        staging: str,
        run: str,
        peer: str,
        *,
        on_stop: Callable[[], object] | None = None,
        patience: float = _PATIENCE,
    ) -> None:
        self.peer = peer
        self._staging = staging
        self._run = run
        self._on_stop = on_stop
        self._patience = patience
        self._runs: RunsDirectory | None = None
        self._lock_fd = -1
        self._job_fd = -1
        self._job = b""
        self._next_beat = 0.0
        self._closing = threading.Lock()

    def __enter__(self) -> PeerClaim:
        self._runs = runs = self._open_runs()
        try:
            self._require_visible(runs)
            with runs.errors("The peer's lock cannot be opened"):
                self._lock_fd = os.open(f"{PEERS}/{self.peer}", LOCK_FILE | os.O_CREAT, 0o600, dir_fd=runs.fd)
            release_after_fork(self)
            self._lock(runs)
            with runs.errors("The peer cannot be claimed"):
                self._job_fd = self._open_job(runs)
                # In place: replacing a file by rename(2) makes ext4 write it to the disk at once.
                head = f"{self._run}\n".encode()
                worker = f"{socket.gethostname()} {os.getpid()} {secrets.token_hex(8)}\n".encode()
                os.ftruncate(self._job_fd, len(head))
                os.pwrite(self._job_fd, worker, len(head))
                self._job = head + worker
            self._next_beat = time.monotonic() + _HEARTBEAT
            self.require_current()
            if self._on_stop is not None:
                _keeper.add(self)
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        _keeper.remove(self)
        with self._closing:
            self._close()

    def require_current(self) -> None:
        """Raise unless this worker may publish files of the peer, and mark it.

        Raises:
            Cancelled: If the run has ended, was stopped or killed, or has given this worker up.
            StageError: If that cannot be found out.
        """
        runs = self._runs
        if runs is None:
            raise self._cancelled("This worker has ended its work, or was forked.")
        try:
            if runs.read(CURRENT, MAX_BYTES).decode().strip() != self._run:
                raise self._cancelled("Another run has begun.")
            if runs.read(f"{JOBS}/{self.peer}", MAX_BYTES) != self._job:
                raise self._cancelled("The run has given the peer to another worker.")
        except StageError:
            raise
        except (OSError, ValueError) as exc:
            if isinstance(exc, OSError) and exc.errno not in _GONE:
                raise system_error("The pool's runs directory cannot be read", exc, path=runs.path) from exc
            raise self._cancelled("The run has ended, was stopped, or has given this worker up.") from exc
        if not self._is_locked(runs):
            raise self._cancelled("The run was killed.")

    def keep(self) -> None:
        """Send a heartbeat if one is due; call *on_stop* if the run has ended, or has given this worker up."""
        with self._closing:
            if self._runs is None or self._on_stop is None:
                return
            if time.monotonic() >= self._next_beat:
                self._next_beat = time.monotonic() + _HEARTBEAT
                with contextlib.suppress(OSError):
                    os.utime(self._job_fd)
            try:
                self.require_current()
                return
            except Cancelled:
                pass
            except StageError:  # for the moment it cannot be found out; it is asked again before anything is published
                return
        try:
            self._on_stop()
        except Exception:  # a bug must not cost the other claims their heartbeats
            _log.exception("%s: the worker cannot be stopped.", escape(self.peer))

    def release_in_child(self) -> None:
        """Close the copies of the descriptors in a forked child; the parent keeps the claim."""
        self._closing = threading.Lock()  # the parent's other thread may hold the old one
        self._close()

    def _close(self) -> None:
        runs, self._runs = self._runs, None
        fds, self._job_fd, self._lock_fd = (self._job_fd, self._lock_fd), -1, -1
        for fd in fds:
            close_quietly(fd)
        if runs is not None:
            runs.close()

    def _is_locked(self, runs: RunsDirectory) -> bool:
        """Return whether the run holds the pool's lock; True if the holder is unknown because its disk was full."""
        holder = find_holder(runs)
        return holder is not None and holder.run in (self._run, "")

    def _open_runs(self) -> RunsDirectory:
        try:
            runs = RunsDirectory.find(self._staging)
        except StageError as exc:
            if isinstance(exc.__cause__, OSError) and is_machine_wide(exc.__cause__):
                raise
            raise self._not_visible(f"{exc.message}") from exc
        if runs is None:
            raise self._not_visible("There has been no run in it.")
        return runs

    def _require_visible(self, runs: RunsDirectory) -> None:
        """Raise unless the run is under way in this pool."""
        found: dict[str, str] = {}
        for name in (CURRENT, ENDED):
            try:
                found[name] = runs.read(name, MAX_BYTES).decode().strip()
            except (OSError, ValueError) as exc:
                if isinstance(exc, OSError) and is_machine_wide(exc):
                    raise system_error("The pool's runs directory cannot be read", exc, path=runs.path) from exc
        if found.get(ENDED) == self._run:
            raise self._cancelled("The run has ended or was stopped.")
        if found.get(CURRENT) != self._run:
            other = found.get(CURRENT)
            raise self._not_visible("No run is under way in it." if other is None else f"The run in it is {other}.")
        if not self._is_locked(runs):
            raise self._not_visible("Nobody holds its lock: the run was killed, or this mount does not share locks.")

    def _open_job(self, runs: RunsDirectory) -> int:
        """Return a descriptor of the job's file.

        Raises:
            Cancelled: If the run has not assigned the peer, or no longer.
            OSError: If it cannot be opened.
        """
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(f"{JOBS}/{self.peer}", os.O_RDWR | NO_FOLLOW, dir_fd=runs.fd)
            if os.pread(fd, MAX_BYTES, 0).partition(b"\n")[0] == self._run.encode():
                return fd
            close_quietly(fd)
        raise self._cancelled("The run has ended, was stopped, or has given this job up.")

    def _lock(self, runs: RunsDirectory) -> None:
        until = time.monotonic() + self._patience
        while not lock_within(self._lock_fd, runs, tries=1):
            self._require_visible(runs)
            with runs.errors("The peer cannot be claimed"):
                close_quietly(self._open_job(runs))
            if time.monotonic() >= until:
                raise StageError(
                    "Another worker is still staging this peer. Wait until it has ended, or end it, then run again.",
                    peer=self.peer,
                    path=runs.path,
                    reason=Reason.PEER_LOCKED,
                )
            time.sleep(_PAUSE)

    def _cancelled(self, why: str) -> Cancelled:
        return Cancelled(f"{why} Nothing more is published.", peer=self.peer)

    def _not_visible(self, why: str) -> StageError:
        return StageError(
            f"The worker on {socket.gethostname()} does not find run {self._run} in the staging pool. {why} Mount the "
            "pool of the run there, under the same path, and start the worker as the same user.",
            peer=self.peer,
            path=self._staging,
            reason=Reason.POOL_NOT_VISIBLE,
        )


class _Keeper:
    """One thread that keeps all claims of this process; it exists as long as there are any."""

    def __init__(self) -> None:
        self._claims: set[PeerClaim] = set()
        self._changed = threading.Condition()
        self._is_running = False

    def add(self, claim: PeerClaim) -> None:
        """Keep *claim* from now on.

        Raises:
            StageError: If the system refuses another thread.
        """
        with self._changed:
            if not self._is_running:
                start_thread(threading.Thread(target=self._run, name="peerstage-claims", daemon=True))
                self._is_running = True
            self._claims.add(claim)

    def remove(self, claim: PeerClaim) -> None:
        """Keep *claim* no longer."""
        with self._changed:
            self._claims.discard(claim)
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: not self._claims, _INTERVAL)
                if not self._claims:
                    self._is_running = False
                    return
                claims = list(self._claims)
            for claim in claims:
                claim.keep()


_keeper = _Keeper()


def _forget_claims() -> None:
    """Begin without claims: a forked child has neither the thread nor the right to them."""
    global _keeper
    _keeper = _Keeper()


call_in_forked_child(_forget_claims)

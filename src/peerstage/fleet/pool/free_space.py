"""Free space in a staging pool: enough before a run, or made by removing what killed runs left behind."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from peerstage.errors import Cancelled, StageError, TargetError, format_log_line
from peerstage.peer_log import PeerLog
from peerstage.reasons import Reason
from peerstage.system_errors import start_thread, target_errors
from peerstage.target.sweep import sweep

log = PeerLog("peerstage.fleet")

#: Seconds between two looks at whether the run was cancelled.
_INTERVAL = 0.2


class PoolSweep:
    """A sweep of a pool in a thread of its own, because it takes long in a large pool.

    Args:
        staging: The staging pool.
    """

    def __init__(self, staging: str) -> None:
        self._staging = staging
        self._thread = threading.Thread(target=self._run, name="peerstage-sweep", daemon=True)

    def start(self) -> None:
        """Begin."""
        try:
            start_thread(self._thread)
        except StageError as exc:
            log.warning("The pool is not swept: %s", format_log_line(exc))

    def wait(self, cancelled: threading.Event, seconds: float = float("inf")) -> None:
        """Wait until it has ended or *cancelled* is set, *seconds* at most."""
        waited = 0.0
        while self._thread.is_alive() and waited < seconds and not cancelled.is_set():
            self._thread.join(_INTERVAL)
            waited += _INTERVAL

    def _run(self) -> None:
        try:
            sweep(self._staging)
        except StageError as exc:
            log.warning("%s", format_log_line(exc))


def require_free_space(
    staging: str,
    min_free: int,
    swept: PoolSweep,
    cancelled: threading.Event,
    find_reclaimable: Callable[[], int] = lambda: 0,
) -> None:
    """Raise unless *min_free* bytes are free in the pool, if need be after the sweep has ended.

    Args:
        staging: The staging pool.
        min_free: The number of bytes.
        swept: The sweep of the pool, which was started.
        cancelled: Ends the wait for the sweep.
        find_reclaimable: Returns how many bytes a prune would free. It is only called if there is too little space.

    Raises:
        TargetError: If fewer are free, or that cannot be found out.
        Cancelled: If *cancelled* was set during the wait.
    """
    if _count_free_bytes(staging) >= min_free:
        return
    swept.wait(cancelled)
    if cancelled.is_set():
        raise Cancelled("Cancelled.")
    free = _count_free_bytes(staging)
    if free < min_free:
        reclaimable = find_reclaimable()
        advice = f"`peerstage prune` would free {reclaimable} bytes." if reclaimable else "Free some space."
        raise TargetError(
            f"Only {free} bytes are free, fewer than min_free ({min_free}), so no peer is asked. {advice} Or lower "
            "min_free.",
            path=staging,
            reason=Reason.NO_SPACE,
        )


def _count_free_bytes(staging: str) -> int:
    with target_errors("Its free space cannot be read", staging):
        found = os.statvfs(staging)
    return (found.f_bfree if os.geteuid() == 0 else found.f_bavail) * found.f_frsize

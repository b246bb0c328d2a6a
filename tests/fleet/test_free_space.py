"""The space that must be free before a run: what killed runs left does not count once it is removed."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from peerstage import Reason
from peerstage.errors import Cancelled, TargetError
from peerstage.fleet.pool import free_space
from peerstage.fleet.pool.free_space import PoolSweep, require_free_space

pytestmark = pytest.mark.usefixtures("leaves_nothing")


def started(pool: Path) -> PoolSweep:
    sweep = PoolSweep(str(pool))
    sweep.start()
    return sweep


def test_the_sweep_may_make_the_space(pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked, swept = threading.Event(), threading.Event()

    def count(staging: str) -> int:
        looked.set()
        return 100 if swept.is_set() else 1

    def sweep(staging: str) -> list[str]:
        looked.wait(10)
        swept.set()
        return []

    monkeypatch.setattr(free_space, "_count_free_bytes", count)
    monkeypatch.setattr(free_space, "sweep", sweep)
    require_free_space(str(pool), 50, started(pool), threading.Event())
    with pytest.raises(TargetError) as caught:
        require_free_space(str(pool), 101, started(pool), threading.Event())
    assert caught.value.reason is Reason.NO_SPACE


def test_a_cancelled_run_does_not_wait_for_the_sweep(pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    released, cancelled = threading.Event(), threading.Event()
    monkeypatch.setattr(free_space, "sweep", lambda staging: released.wait(20))
    cancelled.set()
    sweep = started(pool)
    with pytest.raises(Cancelled):
        require_free_space(str(pool), 2**60, sweep, cancelled)
    assert not released.is_set()
    released.set()
    sweep.wait(threading.Event())


def test_a_sweep_that_fails_is_logged_and_fails_nothing(
    pool: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(staging: str) -> list[str]:
        raise TargetError("It cannot be swept: I/O error.", reason=Reason.LOCAL_IO_ERROR)

    monkeypatch.setattr(free_space, "sweep", fail)
    sweep = started(pool)
    sweep.wait(threading.Event())
    require_free_space(str(pool), 1, sweep, threading.Event())
    assert "It cannot be swept" in caplog.text

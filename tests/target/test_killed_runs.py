"""SIGKILL at any instant: each name is the old file or the complete new one, and the next run succeeds.

Timed kills hit where a run spends its time; counted kills hit between any two system calls that change the disk.
"""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from target_cases import memory_peer_of, stage_into

from peerstage import verify
from peerstage.errors import ConnectionLost
from peerstage.records import RESUMED, STAGED
from peerstage.stage_options import StageOptions
from peerstage.target import durability, kept_files
from peerstage.testing.contract import files_in
from peerstage.testing.memory import MemoryFile
from support.kept import Peer, scaled_down, stage_from

pytestmark = pytest.mark.usefixtures("patience")

INSTANTS = 60
#: System calls by which the target changes the disk.
STEPS = ("mkdir", "open", "pwrite", "close", "fchmod", "fchown", "utime", "fsync", "rename", "unlink", "rmdir")


def generation(names: list[bytes], which: bytes, size: int) -> dict[bytes, bytes]:
    return {name: hashlib.sha256(name + which).digest() * (size // 32) for name in names}


def in_a_process(run: Callable[[], object], *, kill_after: float | None = None) -> tuple[float, bool]:
    """Call *run* in a forked process; return its run time, and whether it was killed after *kill_after* seconds."""
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        try:
            run()
        finally:
            os._exit(0)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return time.monotonic() - started, os.WIFSIGNALED(status)


def make_old(target: Path, old: dict[bytes, bytes]) -> None:
    for name, data in old.items():
        (target / os.fsdecode(name)).write_bytes(data)


def phase_of(target: Path, old: dict[bytes, bytes], new: dict[bytes, bytes]) -> str:
    """Check that every name is old or complete, and return how far the run got."""
    found = files_in(target)
    left = [name for name in found if name not in new]
    assert len(left) <= 1
    assert all(name.startswith(b".peerstage-") for name in left)
    assert [name for name in new if found[name] not in (old[name], new[name])] == [], "a file is incomplete"
    replaced = [found[name] == new[name] for name in new]
    if not any(replaced):
        return "before, with temporaries" if left else "untouched"
    if not all(replaced):
        return "some names"
    return "all names, with temporaries" if left else "done"


def test_a_run_that_is_killed_at_any_of_60_instants_leaves_each_name_old_or_complete(quick_target: Path) -> None:
    names = [b"file-%02d" % number for number in range(24)]
    old, new = generation(names, b"old", 16384), generation(names, b"new", 16384)

    def run() -> None:
        stage_into(quick_target, memory_peer_of(new, chunk_size=8192))

    make_old(quick_target, old)
    whole = sorted(in_a_process(run)[0] for _ in range(5))[2]
    seen: dict[str, int] = {}
    for instant in range(INSTANTS):
        make_old(quick_target, old)
        in_a_process(run, kill_after=whole * 1.5 * instant / INSTANTS)
        phase = phase_of(quick_target, old, new)
        seen[phase] = seen.get(phase, 0) + 1
        if instant % 5 == 4:
            whole, _ = in_a_process(run)  # the next run, timed again, since this machine may be slower by now
            assert files_in(quick_target) == new
    before = seen.get("untouched", 0) + seen.get("before, with temporaries", 0)
    assert sum(seen.values()) == INSTANTS
    assert before, f"no kill hit before the publication: {seen}"
    assert seen.get("before, with temporaries", 0), f"no kill hit during the transfer: {seen}"
    assert before < INSTANTS, f"no kill hit after the first rename: {seen}"


class KilledBefore:
    """Kills the process before its *number*-th system call that changes the disk."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.count = 0

    def wrap(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            if self.count == self.number:
                os.kill(os.getpid(), signal.SIGKILL)
            self.count += 1
            return original(*arguments, **options)

        return counted


@pytest.mark.parametrize(("count", "few"), [(3, 4), (5, 4)], ids=["each file synced", "the file system synced"])
def test_a_run_that_is_killed_between_any_two_steps_leaves_each_name_old_or_complete(
    quick_target: Path, monkeypatch: pytest.MonkeyPatch, count: int, few: int
) -> None:
    monkeypatch.setattr(durability, "MAX_FSYNCS", few)
    names = [b"file-%02d" % number for number in range(count)]
    old, new = generation(names, b"old", 64), generation(names, b"new", 96)
    seen, step, killed = [], 0, True

    def run_killed_before_the_step() -> None:
        kill = KilledBefore(step)
        for name in STEPS:
            setattr(os, name, kill.wrap(getattr(os, name)))
        durability.syncfs = kill.wrap(durability.syncfs)
        stage_into(quick_target, memory_peer_of(new, chunk_size=40), options=StageOptions(preserve_times=True))

    while killed:
        make_old(quick_target, old)
        _, killed = in_a_process(run_killed_before_the_step)
        seen.append(phase_of(quick_target, old, new))
        stage_into(quick_target, memory_peer_of(new), options=StageOptions(durable=False))
        assert files_in(quick_target) == new
        step += 1
    order = ["untouched", "before, with temporaries", "some names", "all names, with temporaries", "done"]
    assert [phase for at, phase in enumerate(seen) if phase not in seen[:at]] == order
    assert seen.count("some names") == count - 1
    assert step > 10 * count


def test_a_run_that_is_killed_between_any_two_steps_leaves_a_manifest_that_is_old_or_true(quick_target: Path) -> None:
    """One file is new, one is replaced, one is not touched; the new manifest appears only when all are in place."""
    options = StageOptions(manifest=True)
    old = {b"kept": b"kept", b"replaced": b"old"}
    new = {b"replaced": b"new", b"added": b"added"}
    seen, step, killed = [], 0, True

    def run_killed_before_the_step() -> None:
        kill = KilledBefore(step)
        for name in STEPS:
            setattr(os, name, kill.wrap(getattr(os, name)))
        stage_into(quick_target, memory_peer_of(new), options=options)

    while killed:
        for path in quick_target.iterdir():
            path.unlink()
        stage_into(quick_target, memory_peer_of(old), options=options)
        before = files_in(quick_target)
        _, killed = in_a_process(run_killed_before_the_step)
        found = files_in(quick_target)
        renamed = [name for name, data in new.items() if found.get(name) == data]
        are_old = tuple(found[name] == before[name] for name in (b"peerstage.sha256", b"peerstage.json"))
        report = verify(quick_target)
        if are_old[0]:
            changed = {"replaced": "changed"} if b"replaced" in renamed else {}
            extra = {"added": "extra"} if b"added" in renamed else {}
            assert {difference.name: difference.kind for difference in report.differences} == {**changed, **extra}
            assert report.is_unfinished or not renamed
        else:
            assert len(renamed) == len(new)
            assert report.is_intact
        seen.append((len(renamed), *are_old))
        stage_into(quick_target, memory_peer_of(new), options=options)
        assert verify(quick_target).is_intact
        assert verify(quick_target).files == 3
        step += 1
    order = [(0, True, True), (1, True, True), (2, True, True), (2, False, True), (2, False, False)]
    assert [phase for at, phase in enumerate(seen) if phase not in seen[:at]] == order


def test_a_run_with_kept_files_that_is_killed_between_any_two_steps_leaves_nothing_wrong(
    quick_target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is killed as it takes a file over, as it continues it, and as it keeps it; the next run may start over."""
    target, partial_dir = quick_target / "target", quick_target / "partial"
    target.mkdir()
    files = {b"big": MemoryFile(hashlib.sha256(b"big").digest() * 500, mtime=1)}
    step, outcomes, killed = 0, set(), True

    def run_killed_before_the_step() -> None:
        kill = KilledBefore(step)
        for name in (*STEPS, "ftruncate", "chmod"):
            setattr(os, name, kill.wrap(getattr(os, name)))
        stage_from(Peer(files, 4000, chunk_size=1000), target, partial_dir)

    monkeypatch.setattr(kept_files, "_BLOCKS", 2)
    with scaled_down():
        while killed:
            with pytest.raises(ConnectionLost):
                stage_from(Peer(files, 8000, chunk_size=1000), target, partial_dir)
            _, killed = in_a_process(run_killed_before_the_step)
            report = stage_from(Peer(files), target, partial_dir)
            outcomes.add(report.files[0].outcome)
            assert files_in(target) == {b"big": files[b"big"].data}
            assert os.listdir(target) == ["big"]
            assert [name for name in os.listdir(partial_dir) if (partial_dir / name).stat().st_size] == []
            (target / "big").unlink()
            step += 1
    assert outcomes == {STAGED, RESUMED}
    assert step > 20

"""SIGKILL at 100 instants: each name is the old file or the complete new one, and the next run finishes."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from pathlib import Path

from peerstage.staging import stage
from peerstage.testing.memory import MemoryFile, MemoryTransport

INSTANTS = 100
NAMES = [b"file-%02d" % number for number in range(40)]


def content(name: bytes, generation: bytes) -> bytes:
    return hashlib.sha256(name + generation).digest() * 2048


OLD = {name: content(name, b"old") for name in NAMES}
NEW = {name: content(name, b"new") for name in NAMES}


def run(target: Path) -> None:
    """One stage of the new files."""
    files = {name: MemoryFile(data, mtime=1) for name, data in NEW.items()}
    stage(MemoryTransport({b"/c": files}, piece=4096), b"/c", str(target))


def in_a_child(target: Path, kill_after: float | None) -> float:
    """Stage in a forked child, killed after a while; return how long it ran."""
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        try:
            run(target)
        finally:
            os._exit(0)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return time.monotonic() - started


def make_old(target: Path) -> None:
    for name, data in OLD.items():
        (target / os.fsdecode(name)).write_bytes(data)


def test_a_run_that_is_killed_at_any_instant_leaves_each_name_old_or_complete(target: Path) -> None:
    make_old(target)
    whole = sorted(in_a_child(target, None) for _ in range(5))[2]
    seen = set()
    for instant in range(INSTANTS):
        make_old(target)
        in_a_child(target, whole * 2 * instant / INSTANTS)
        state = []
        for name in NAMES:
            data = (target / os.fsdecode(name)).read_bytes()
            assert data in (OLD[name], NEW[name]), f"{name!r} is half there after {instant} of {INSTANTS}"
            state.append(data == NEW[name])
        left = [entry for entry in os.listdir(target) if os.fsencode(entry) not in NEW]
        assert all(entry.startswith(".peerstage-") for entry in left)
        assert len(left) <= 1
        seen.add("all new" if all(state) else "some new" if any(state) else "temporaries" if left else "untouched")
        if instant % 10 == 9:
            run(target)
            assert {os.fsencode(path.name): path.read_bytes() for path in target.iterdir()} == NEW
    assert {"temporaries", "all new"} <= seen, "the kills have to hit before and after the publication"

"""Detect threads, processes and descriptors that a test leaks."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

#: Children that outlive the test that started them, because other tests use them too.
expected_children: set[int] = set()


@dataclass(frozen=True)
class Snapshot:
    """Threads, descriptors and children of this process at one moment."""

    threads: frozenset[str]
    descriptors: frozenset[str]
    children: frozenset[int]

    @classmethod
    def take(cls) -> Snapshot:
        names = frozenset(f"{thread.name}#{thread.ident}" for thread in threading.enumerate())
        return cls(names, _descriptors(), children())

    def compare(self, patience: float = 5.0) -> None:
        """Fail unless everything new is gone within *patience* seconds."""
        for message in self.describe_leaks(patience):
            raise AssertionError(message)

    def describe_leaks(self, patience: float = 5.0) -> Iterator[str]:
        """Yield a message if something new is not gone within *patience* seconds."""
        until = time.monotonic() + patience
        while True:
            now = Snapshot.take()
            new = (now.threads - self.threads, now.descriptors - self.descriptors, now.children - self.children)
            if not any(new):
                return
            if time.monotonic() > until:
                yield f"left behind: threads {new[0]}, descriptors {new[1]}, children {new[2]}"
                return
            time.sleep(0.05)


def _descriptors() -> frozenset[str]:
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{fd} -> {os.readlink(f'/proc/self/fd/{fd}')}")
        except OSError:
            continue
    return frozenset(found)


def children() -> frozenset[int]:
    """Return the process ids of this process's children, zombies among them, that no other test uses."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        try:
            found.update(int(pid) for pid in (task / "children").read_text().split())
        except OSError:
            continue
    return frozenset(found - expected_children)

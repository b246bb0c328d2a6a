"""What a run of a fleet takes: descriptors, threads, memory and time; also of one in a process of its own.

As a program, it runs the pickled plan that it reads from its standard input, and prints its `Usage` as JSON.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import pickle
import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from peerstage import FleetPlan, stage_fleet
from peerstage.fleet.events import Event, PeerFinished


@dataclass
class Usage:
    """An ``on_event`` that notes what the process has whenever a peer has finished.

    Attributes:
        descriptors: The most descriptors.
        threads: The most threads.
        finished: The names of the peers, in this order.
        seconds: Wall time; 0 if it was not measured.
        cpu: CPU seconds.
        peak: The most memory, in MiB.
        left: Descriptors and threads at the end.
    """

    descriptors: int = 0
    threads: int = 0
    finished: list[str] = field(default_factory=list)
    seconds: float = 0.0
    cpu: float = 0.0
    peak: float = 0.0
    left: list[int] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        if isinstance(event, PeerFinished):
            self.finished.append(event.result.peer)
            self.descriptors = max(self.descriptors, _count_descriptors())
            self.threads = max(self.threads, threading.active_count())


def stage_in_a_process(plan: FleetPlan) -> Usage:
    """Run *plan* in a new process."""
    done = subprocess.run(
        [sys.executable, "-m", __name__],
        input=pickle.dumps(plan),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        check=True,
    )
    return Usage(**json.loads(done.stdout))


def _stage() -> Usage:
    logging.getLogger("peerstage").addHandler(logging.NullHandler())
    plan, usage, started = pickle.load(sys.stdin.buffer), Usage(), time.monotonic()
    stage_fleet(plan, on_event=usage)
    usage.seconds, usage.cpu = time.monotonic() - started, time.process_time()
    status = Path("/proc/self/status").read_text()  # not getrusage: its maximum includes the process that forked this
    peak = re.search(r"VmHWM:\s+(\d+) kB", status)
    usage.peak = int(peak[1]) / 1024 if peak else 0.0
    usage.left = [_count_descriptors(), threading.active_count()]
    return usage


def _count_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


if __name__ == "__main__":
    print(json.dumps(dataclasses.asdict(_stage())))

"""The scheduler of the tests' workers: each test runs once, whatever happens to the workers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from support.bench_run import OWNER, PLAN, Plan
from support.schedule import PlannedScheduling

FAST = [f"test_fast.py::test_{number}" for number in range(40)]
SLOW = [f"test_slow.py::test_{number}" for number in range(5)]


class Worker:
    """A worker that runs its tests when it is asked to."""

    def __init__(self, scheduling: PlannedScheduling, name: str) -> None:
        self.gateway = SimpleNamespace(id=name)
        self.shutting_down = False
        self.batches: list[list[str]] = []
        self.done: list[str] = []
        self._scheduling = scheduling
        scheduling.add_node(self)  # type: ignore[arg-type]
        scheduling.add_node_collection(self, FAST + SLOW)  # type: ignore[arg-type]

    def send_runtest_some(self, indices: list[int]) -> None:
        self.batches.append([(FAST + SLOW)[index] for index in indices])

    def shutdown(self) -> None:
        self.shutting_down = True

    @property
    def next(self) -> str | None:
        """The test to run next: the last one only once no other can follow it."""
        waiting = [test for batch in self.batches for test in batch][len(self.done) :]
        return waiting[0] if len(waiting) > 1 or (waiting and self.shutting_down) else None

    def run_one(self) -> bool:
        """Run the next test; return whether there was one."""
        test = self.next
        if test is not None:
            self.done.append(test)
            self._scheduling.mark_test_complete(self, (FAST + SLOW).index(test))
        return test is not None


@pytest.fixture
def scheduling() -> PlannedScheduling:
    stash = {PLAN: Plan(fast_tests=FAST), OWNER: SimpleNamespace(has_started=False)}
    option = SimpleNamespace(loadscopereorder=False)
    config: Any = SimpleNamespace(stash=stash, option=option, getvalue=lambda name: ["popen"] * 2)
    return PlannedScheduling(config)


def test_slow_tests_are_sent_one_by_one_and_fast_tests_in_chunks(scheduling: PlannedScheduling) -> None:
    workers = [Worker(scheduling, "one"), Worker(scheduling, "two")]
    scheduling.schedule()
    while any(worker.run_one() for worker in workers):
        pass
    assert sorted(test for worker in workers for test in worker.done) == sorted(FAST + SLOW)
    batches = [batch for worker in workers for batch in worker.batches]
    assert {len(batch) for batch in batches if batch[0] in SLOW} == {1}
    assert {len(batch) for batch in batches if batch[0] in FAST} == {8}
    assert scheduling.tests_finished


@pytest.mark.parametrize("fatal", [{FAST[0]}, {SLOW[-1]}, {FAST[11], FAST[12], FAST[-1], SLOW[2]}, {*SLOW}])
def test_a_test_that_crashes_its_worker_is_not_run_again_and_all_others_run(
    scheduling: PlannedScheduling, fatal: set[str]
) -> None:
    workers = [Worker(scheduling, "one"), Worker(scheduling, "two")]
    scheduling.schedule()
    done: list[str] = []
    crashed: list[str | None] = []
    while workers:
        for worker in [*workers]:
            if worker.next in fatal or (worker.next is None and worker.shutting_down):
                workers.remove(worker)
                done += worker.done
                if worker.next is not None:
                    crashed.append(scheduling.remove_node(worker))
                    workers.append(Worker(scheduling, f"replacement {len(crashed)}"))
                    scheduling.schedule()
                else:
                    assert scheduling.remove_node(worker) is None
            else:
                assert worker.run_one()
    assert (sorted(done), set(crashed)) == (sorted({*FAST, *SLOW} - fatal), fatal)
    assert len(crashed) == len(fatal)

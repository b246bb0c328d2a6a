"""The scheduler of pytest-xdist's workers, which follows the plan of `support.bench_run`."""

from __future__ import annotations

import contextlib
from typing import Any

from xdist.scheduler import LoadScopeScheduling

from support.bench_run import PLAN, next_group


class PlannedScheduling(LoadScopeScheduling):
    """Distributes slow tests one by one, fast tests in chunks, and container tests in groups that share containers.

    Unlike its base it forgets finished tests, which that counts after each test, in quadratic time. A test that
    crashes its worker has failed, and is not given to one worker after another.
    """

    def _split_scope(self, nodeid: str) -> str:
        return self.config.stash[PLAN].unit_of(nodeid)

    def _assign_work_unit(self, node: Any) -> None:
        first = next_group(self.config, self.workqueue)
        if first is not None:
            self.workqueue.move_to_end(first, last=False)
        with contextlib.suppress(OSError):  # it has just crashed, which is reported next
            super()._assign_work_unit(node)

    def _reschedule(self, node: Any) -> None:
        if node not in self.registered_collections:  # it replaces one that crashed, and is collecting
            return
        super()._reschedule(node)
        # A worker keeps its last test back until it gets another one, or is told that there is none.
        while not node.shutting_down and self._pending_of(self.assigned_work[node]) < 2:
            super()._reschedule(node)

    def mark_test_complete(self, node: Any, item_index: int, duration: float = 0) -> None:
        self._forget(node, self.registered_collections[node][item_index])
        self._reschedule(node)

    def remove_node(self, node: Any) -> str | None:
        crashed = next((test for unit in self.assigned_work[node].values() for test in unit), None)
        if crashed is not None:
            self._forget(node, crashed)
        super().remove_node(node)
        return crashed

    def _forget(self, node: Any, test: str) -> None:
        name, assigned = self._split_scope(test), self.assigned_work[node]
        del assigned[name][test]
        if not assigned[name]:
            del assigned[name]

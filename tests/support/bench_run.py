"""The pytest plugin of the containers: which tests need which, when they start and when they are removed.

It also decides which tests a worker of pytest-xdist gets together.

The process that the user started owns them. Under pytest-xdist it starts them while its workers run other tests,
schedules container tests once they are up, and removes them when it exits, whatever happened to the workers.
"""

from __future__ import annotations

import json
import os
import signal
import uuid
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pytest

from support.bench_owner import BenchOwner, wait_for_start
from support.containers import Bench
from support.engine import engine_problem

#: Seconds that starting the containers may take: their images may have to be built.
_START_TIMEOUT = 1800

#: Stateless services, which several workers may use at the same time.
_SHARED = {"client"}

#: The number of fast tests that a worker gets together: to be sent one by one costs more than most of them.
_CHUNK = 8

#: The file in the bench's home in which workers write what they have collected.
_PLAN = "plan"


@dataclass
class Plan:
    """The containers that the selected tests need, and which tests stay together.

    Attributes:
        needs: The services that each container test needs; the summary counts it under the first one.
        left_out: The number of deselected tests.
        special_tests: Tests marked with ``kind``, which take longer than those that run on every kind.
        fast_tests: Tests that are not marked as slow.
        groups: The group of each test. Tests that use the same container have the same group, and run on one worker.
        sizes: A rough duration of each group.
    """

    needs: dict[str, tuple[str, ...]] = field(default_factory=dict)
    left_out: int = 0
    special_tests: list[str] = field(default_factory=list)
    fast_tests: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._chunks = {test: f"fast tests {index // _CHUNK}" for index, test in enumerate(self.fast_tests)}
        self.groups = group_by_container(self.needs)
        self.sizes = Counter(self.groups.values())
        for test in self.special_tests:
            self.sizes[self.groups[test]] += 9

    @property
    def services(self) -> set[str]:
        """All services that are needed."""
        return {service for services in self.needs.values() for service in services}

    def unit_of(self, test: str) -> str:
        """Return a name for the tests that run on one worker one after another, of which *test* is one."""
        return self.groups.get(test) or self._chunks.get(test, test)

    def write(self, home: Path) -> None:
        """Write the plan for the owner of the containers."""
        unfinished = home / f"{_PLAN}-{os.getpid()}"
        unfinished.write_text(json.dumps({one.name: getattr(self, one.name) for one in fields(self)}))
        unfinished.rename(home / _PLAN)

    @classmethod
    def read(cls, home: Path) -> Plan:
        """Return the plan that a worker wrote."""
        return cls(**json.loads((home / _PLAN).read_text()))


def group_by_container(needs: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """Return a group for each test, such that no two groups use one container."""
    leader: dict[str, str] = {}

    def find(service: str) -> str:
        while leader.setdefault(service, service) != service:
            service = leader[service]
        return service

    own = {test: [one for one in services if one not in _SHARED] for test, services in needs.items()}
    for services in own.values():
        for service in services[1:]:
            leader[find(service)] = find(services[0])
    return {test: f"containers of {find(services[0])}" if services else test for test, services in own.items()}


PLAN = pytest.StashKey[Plan]()
OWNER = pytest.StashKey[BenchOwner]()


def services_needed_by(item: pytest.Item) -> tuple[str, ...]:
    """Return the services that a test needs, its kind first; empty if it needs no container."""
    named = [service for mark in item.iter_markers("kind") for service in mark.args]
    callspec = getattr(item, "callspec", None)
    kind = getattr(callspec.params.get("scenario"), "kind", None) if callspec else None
    return (*named, *((kind.name,) if kind is not None else ()))


class MissingEngine(pytest.Item):
    """Replaces all container tests where there is no engine, and fails with one line."""

    message = ""

    def runtest(self) -> None:
        pytest.fail(self.message, pytrace=False)


# Every process.


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "kind(*services): the kind of peer that a test is counted under, and what it needs"
    )
    os.environ.setdefault("DOCKER_CONFIG", os.path.expanduser("~/.docker"))  # tests change HOME
    config.stash[PLAN] = Plan()
    if not hasattr(config, "workerinput"):
        project = f"peerstage-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        cache = getattr(config, "cache", None)
        cache_directory = None if cache is None else Path(cache.mkdir("containers"))
        config.stash[OWNER] = BenchOwner(project, lambda line: _print_line(config, line), cache_directory)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    needs = {item: services_needed_by(item) for item in items}
    ours = [item for item in items if needs[item]]
    if not ours:
        return
    problem = engine_problem()
    others = [item for item in items if not needs[item]]
    if config.getoption("--without-docker"):
        config.stash[PLAN] = Plan(left_out=len(ours))
        config.hook.pytest_deselected(items=ours)
        items[:] = others
    elif problem is not None:
        needed = MissingEngine.from_parent(session, name="containers")
        needed.message = f"{problem} {len(ours)} tests need it."
        items[:] = [*others, needed]
    else:
        special_tests = [item.nodeid for item in ours if item.get_closest_marker("kind")]
        plan = config.stash[PLAN] = Plan({item.nodeid: needs[item] for item in ours}, special_tests=special_tests)
        for item in {plan.groups[item.nodeid]: item for item in reversed(ours)}.values():
            item.add_marker(pytest.mark.timeout(_START_TIMEOUT))  # the first test of a group waits for the start


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    if hasattr(session.config, "workerinput"):
        plan = session.config.stash[PLAN]
        is_slow = ("slow", "bulk")
        plan.fast_tests = [item.nodeid for item in session.items if not any(map(item.get_closest_marker, is_slow))]
        plan.write(_home_and_project(session.config)[0])


@pytest.hookimpl(tryfirst=True)
def pytest_keyboard_interrupt() -> None:
    """Ignore further Ctrl-C, which would interrupt the clean-up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def running_bench(config: pytest.Config) -> Bench:
    """Return the containers that the selected tests need, as soon as they are up.

    Raises:
        RuntimeError: If they cannot be started.
    """
    home, project = _home_and_project(config)
    if hasattr(config, "workerinput"):
        wait_for_start(home, _START_TIMEOUT)
    else:
        config.stash[OWNER].start(config.stash[PLAN].services)
    return Bench(home, project)


def _home_and_project(config: pytest.Config) -> tuple[Path, str]:
    if hasattr(config, "workerinput"):
        home, project = config.workerinput["bench"]
        return Path(home), project
    owner = config.stash[OWNER]
    return owner.home, owner.project


# The process that owns the containers.


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    home, project = _home_and_project(node.config)
    node.workerinput["bench"] = (str(home), project)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node: Any) -> None:
    owner = node.config.stash[OWNER]
    plan = node.config.stash[PLAN] = Plan.read(owner.home)
    if plan.needs:
        owner.start_in_background(plan.services)


def pytest_unconfigure(config: pytest.Config) -> None:
    owner = config.stash.get(OWNER, None)
    if owner is None:
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        owner.remove()
    finally:
        signal.signal(signal.SIGINT, before)


def next_group(config: pytest.Config, waiting: Collection[str]) -> str | None:
    """Return the group or test to schedule next; None if the order does not matter.

    Container tests come as soon as the containers are up, the longest group first, so that it does not run alone at the
    end; until then other tests.
    """
    groups = config.stash[PLAN].sizes
    if not config.stash[OWNER].has_started:
        return next((one for one in waiting if one not in groups), None)
    return max((one for one in groups if one in waiting), key=groups.__getitem__, default=None)


def _print_line(config: pytest.Config, line: str) -> None:
    reporter: Any = config.pluginmanager.getplugin("terminalreporter")
    if reporter is not None:
        reporter.ensure_newline()
        reporter.write_line(f"containers: {line}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    needs, owner = config.stash[PLAN].needs, config.stash[OWNER]
    if not owner.banners:
        return
    counts: dict[str, Counter[str]] = {services[0]: Counter() for services in needs.values()}
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.stats.get(outcome, ()):
            if report.nodeid in needs:
                counts[needs[report.nodeid][0]][outcome] += 1
    terminalreporter.section("container tests by kind of peer")
    for kind, count in counts.items():
        outcomes = ", ".join(f"{number} {outcome}" for outcome, number in count.items())
        terminalreporter.write_line(f"{kind:14} {outcomes:24} {owner.banners.get(kind, '')}".rstrip())


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    """Print the number of deselected tests on the very last line."""
    yield
    left_out = session.config.stash[PLAN].left_out
    reporter: Any = session.config.pluginmanager.getplugin("terminalreporter")
    if left_out and reporter is not None:
        reporter.write_line(f"{left_out} container tests were left out (--without-docker).", yellow=True, bold=True)

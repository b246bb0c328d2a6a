"""Pytest's side of the containers: which tests need which, and who starts and removes them.

The process that a person started owns them. Under pytest-xdist it starts them while its workers do something else,
hands out container tests once they are up, and removes them at its own end, whatever became of the workers.
"""

from __future__ import annotations

import json
import os
import signal
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from support.containers import Bench
from support.engine import engine_problem
from support.owner import BenchOwner, wait_for_start

#: Seconds until the containers are up at the latest: their images may have to be built.
_START = 1800

#: Services without a state that tests could disturb for each other: several workers use them at a time.
_SHARED = {"client"}

#: The file in the bench's home by which workers tell what they have collected.
_PLAN = "plan"


@dataclass
class Plan:
    """What the selected tests need.

    Attributes:
        needs: The services that each container test needs, the kind that it is counted under first.
        left_out: How many tests were left out.
        stories: Tests that are not run on every kind, but go through something of their own, which takes longer.
        groups: Tests that use one container have one group; it is given to one worker.
        sizes: How long each group takes, roughly.
    """

    needs: dict[str, tuple[str, ...]] = field(default_factory=dict)
    left_out: int = 0
    stories: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.groups = groups_of(self.needs)
        self.sizes = Counter(self.groups.values())
        for test in self.stories:
            self.sizes[self.groups[test]] += 9

    @property
    def services(self) -> set[str]:
        """All that are needed."""
        return {service for services in self.needs.values() for service in services}

    def write(self, home: Path) -> None:
        """Leave it for the owner of the containers."""
        mine = home / f"{_PLAN}-{os.getpid()}"
        mine.write_text(json.dumps({"needs": self.needs, "left_out": self.left_out, "stories": self.stories}))
        mine.rename(home / _PLAN)

    @classmethod
    def read(cls, home: Path) -> Plan:
        """Return what a worker has left."""
        return cls(**json.loads((home / _PLAN).read_text()))


def groups_of(needs: Mapping[str, Iterable[str]]) -> dict[str, str]:
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


def needs_of(item: pytest.Item) -> tuple[str, ...]:
    """Return the services that a test needs, its kind first; none if it needs no container."""
    named = [service for mark in item.iter_markers("kind") for service in mark.args]
    callspec = getattr(item, "callspec", None)
    kind = getattr(callspec.params.get("way"), "kind", None) if callspec else None
    return (*named, *((kind.name,) if kind is not None else ()))


class Needed(pytest.Item):
    """Stands for all container tests where they can not be run, and fails with one line."""

    why = ""

    def runtest(self) -> None:
        pytest.fail(self.why, pytrace=False)


# Every process.


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "kind(*services): the kind of peer that a test is counted under, and what it needs"
    )
    os.environ.setdefault("DOCKER_CONFIG", os.path.expanduser("~/.docker"))  # tests have homes of their own
    config.stash[PLAN] = Plan()
    if not hasattr(config, "workerinput"):
        project = f"peerstage-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        cache = getattr(config, "cache", None)
        kept = None if cache is None else Path(cache.mkdir("containers"))
        config.stash[OWNER] = BenchOwner(project, lambda line: _say(config, line), kept)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    needs = {item: needs_of(item) for item in items}
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
        needed = Needed.from_parent(session, name="containers")
        needed.why = f"{problem} {len(ours)} tests need it."
        items[:] = [*others, needed]
    else:
        stories = [item.nodeid for item in ours if item.get_closest_marker("kind")]
        plan = config.stash[PLAN] = Plan({item.nodeid: needs[item] for item in ours}, stories=stories)
        for item in {plan.groups[item.nodeid]: item for item in reversed(ours)}.values():
            item.add_marker(pytest.mark.timeout(_START))  # it may have to wait


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    if hasattr(session.config, "workerinput"):
        session.config.stash[PLAN].write(_whereabouts(session.config)[0])


@pytest.hookimpl(tryfirst=True)
def pytest_keyboard_interrupt() -> None:
    """Clean up undisturbed: the second Ctrl-C of somebody impatient would only leave things behind."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def running_bench(config: pytest.Config) -> Bench:
    """Return the containers that the selected tests need, as soon as they are up.

    Raises:
        RuntimeError: If they can not be started.
    """
    home, project = _whereabouts(config)
    if hasattr(config, "workerinput"):
        wait_for_start(home, _START)
    else:
        config.stash[OWNER].start(config.stash[PLAN].services)
    return Bench(home, project)


def _whereabouts(config: pytest.Config) -> tuple[Path, str]:
    if hasattr(config, "workerinput"):
        home, project = config.workerinput["bench"]
        return Path(home), project
    owner = config.stash[OWNER]
    return owner.home, owner.project


# The process that owns the containers.


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    home, project = _whereabouts(node.config)
    node.workerinput["bench"] = (str(home), project)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node: Any) -> None:
    owner = node.config.stash[OWNER]
    plan = node.config.stash[PLAN] = Plan.read(owner.home)
    if plan.needs:
        owner.begin(plan.services)


def pytest_unconfigure(config: pytest.Config) -> None:
    owner = config.stash.get(OWNER, None)
    if owner is None:
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        owner.remove()
    finally:
        signal.signal(signal.SIGINT, before)


def next_group(config: pytest.Config, waiting: Iterable[str]) -> str | None:
    """Return the group or test that is to be given out next: what uses containers as soon as they are up, the longest
    first, so that nobody waits for it in the end; and something else until then."""
    groups = config.stash[PLAN].sizes
    if not config.stash[OWNER].has_started:
        return next((one for one in waiting if one not in groups), None)
    return max((one for one in waiting if one in groups), key=groups.__getitem__, default=None)


def _say(config: pytest.Config, line: str) -> None:
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
        told = ", ".join(f"{number} {outcome}" for outcome, number in count.items())
        terminalreporter.write_line(f"{kind:14} {told:24} {owner.banners.get(kind, '')}".rstrip())


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    """The very last line says what was left out."""
    yield
    left_out = session.config.stash[PLAN].left_out
    reporter: Any = session.config.pluginmanager.getplugin("terminalreporter")
    if left_out and reporter is not None:
        reporter.write_line(f"{left_out} container tests were left out (--without-docker).", yellow=True, bold=True)

"""The containers of a run: built where that is needed, started once, removed at the end whatever happens."""

from __future__ import annotations

import os
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from client_side import Client
from kinds import Way

from support.containers import COMPOSE_FILE, Bench, BenchPeer, engine_problem, lay_out

_KINDS = pytest.StashKey[dict[str, str]]()
_LEFT_OUT = pytest.StashKey[int]()
_BENCH = pytest.StashKey[Bench]()
_BANNERS = pytest.StashKey[dict[str, str]]()

#: Seconds that the first test may take: it builds the images.
_FIRST = 1800


# Which containers a test needs, and what becomes of it without an engine.


def _services(item: pytest.Item) -> tuple[str, ...]:
    """Return the services that a test needs, its kind first; none if it needs no container."""
    named = item.get_closest_marker("kind")
    callspec = getattr(item, "callspec", None)
    way = callspec.params.get("way") if callspec else None
    return (*(named.args if named else ()), *((way.kind.name,) if isinstance(way, Way) else ()))


class Needed(pytest.Item):
    """Stands for all container tests where they can not be run, and fails with one line."""

    why = ""

    def runtest(self) -> None:
        pytest.fail(self.why, pytrace=False)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "kind(*services): the kind of peer that a test is counted under, and what it needs"
    )


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    ours = [item for item in items if _services(item)]
    config.stash[_KINDS] = {item.nodeid: _services(item)[0] for item in ours}
    if not ours:
        return
    problem = engine_problem()
    others = [item for item in items if not _services(item)]
    if config.getoption("--without-docker", default=False):
        config.stash[_LEFT_OUT] = len(ours)
        config.hook.pytest_deselected(items=ours)
        items[:] = others
    elif problem is not None:
        needed = Needed.from_parent(session, name="containers")
        needed.why = f"{problem} {len(ours)} tests need it."
        items[:] = [*others, needed]
    else:
        ours[0].add_marker(pytest.mark.timeout(_FIRST))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    """The very last line says what was left out. A worker tells whoever has it work, which shows it."""
    config = session.config
    if hasattr(config, "workeroutput"):
        bench, kinds = config.stash.get(_BENCH, None), config.stash.get(_KINDS, {})
        banners = {} if bench is None else {kind: bench.container(kind).banner for kind in set(kinds.values())}
        told = {"left_out": config.stash.get(_LEFT_OUT, 0), "kinds": kinds, "banners": banners}
        config.workeroutput["containers"] = told
    yield
    left_out = config.stash.get(_LEFT_OUT, 0)
    reporter = config.pluginmanager.getplugin("terminalreporter")
    if left_out and reporter is not None:
        reporter.write_line(f"{left_out} container tests were left out (--without-docker).", yellow=True, bold=True)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Take over what a worker tells."""
    told = getattr(node, "workeroutput", {}).get("containers")
    if told is not None:
        stash = node.config.stash
        stash[_LEFT_OUT] = told["left_out"]
        stash[_KINDS] = told["kinds"]
        stash[_BANNERS] = {**stash.get(_BANNERS, {}), **told["banners"]}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    kinds = config.stash.get(_KINDS, {})
    bench = config.stash.get(_BENCH, None)
    banners = config.stash.get(_BANNERS, {})
    if bench is not None:
        banners = {kind: bench.container(kind).banner for kind in set(kinds.values())}
    if not banners:
        return
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in kinds.values()}
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.stats.get(outcome, ()):
            if report.nodeid in kinds:
                counts[kinds[report.nodeid]][outcome] += 1
    terminalreporter.section("container tests by kind of peer")
    for kind, count in counts.items():
        told = ", ".join(f"{number} {outcome}" for outcome, number in count.items())
        terminalreporter.write_line(f"{kind:14} {told:24} {banners.get(kind, '')}".rstrip())


# The containers.


@pytest.fixture(scope="session")
def bench_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keys, known_hosts and variables of this run. docker keeps to this user's own configuration of it."""
    with pytest.MonkeyPatch.context() as patch:
        if "DOCKER_CONFIG" not in os.environ:
            patch.setenv("DOCKER_CONFIG", os.path.expanduser("~/.docker"))
        yield tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="session")
def docker_compose_command(bench_home: Path) -> str:
    """Compose 2 or 1, whichever is there, with this run's variables."""
    return lay_out(bench_home)


@pytest.fixture(scope="session")
def docker_compose_file() -> str:
    return str(COMPOSE_FILE)


@pytest.fixture(scope="session")
def docker_compose_project_name() -> str:
    return f"peerstage-{os.getpid()}-{uuid.uuid4().hex[:6]}"


@pytest.fixture(scope="session")
def docker_setup() -> list[str]:
    """Nothing: `bench` starts what the selected tests need, when the clean-up is sure to follow."""
    return []


@pytest.fixture(scope="session")
def docker_cleanup() -> list[str]:
    return ["down -v -t 0 --remove-orphans"]


@pytest.fixture(scope="session")
def bench(
    request: pytest.FixtureRequest, docker_services: object, docker_compose_project_name: str, bench_home: Path
) -> Iterator[Bench]:
    """The containers that the selected tests need, running."""
    capture = request.config.pluginmanager.getplugin("capturemanager")
    reporter = request.config.pluginmanager.getplugin("terminalreporter")

    def say(line: str) -> None:
        with capture.global_and_fixture_disabled():
            if reporter is None:  # a worker's own stderr is that of whoever has it work
                print(f"containers: {line}", file=sys.stderr, flush=True)
                return
            reporter.ensure_newline()
            reporter.write_line(f"containers: {line}")

    compose = docker_services._docker_compose.execute  # type: ignore[attr-defined]
    bench = Bench(bench_home, docker_compose_project_name, compose, say)
    try:
        bench.start({service for item in request.session.items for service in _services(item)})
        request.config.stash[_BENCH] = bench
        yield bench
    finally:
        bench.thaw()


@pytest.fixture
def peer_of(bench: Bench) -> Callable[[Way], BenchPeer]:
    """Returns the peer at the end of a way, with an empty collect directory."""
    return lambda way: bench.peer(way.kind.name)


@pytest.fixture
def served(way: Way, peer_of: Callable[[Way], BenchPeer]) -> BenchPeer:
    """The peer of this test's way."""
    return peer_of(way)


@pytest.fixture(scope="session")
def client(bench: Bench, pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Client:
    """The client container, with our wheel installed."""
    cache = getattr(pytestconfig, "cache", None)
    wheels = cache.mkdir("client-wheels") if cache is not None else tmp_path_factory.mktemp("wheels")
    return Client(bench, Path(wheels) / "wheels")

"""Fixtures of the container tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from client_container import ClientContainer
from kinds import Scenario
from master_container import MasterContainer
from pytest_docker.plugin import Services

from support.bench_run import running_bench
from support.containers import Bench, BenchPeer
from support.engine import COMPOSE_FILE

# pytest-docker's view of the project. `BenchOwner` starts and removes it, whatever happens to the workers, so there is
# nothing to set up or clean up here.


@pytest.fixture(scope="session")
def owned_bench(pytestconfig: pytest.Config) -> Iterator[Bench]:
    """The containers of the run, as soon as they are up."""
    bench = running_bench(pytestconfig)
    yield bench
    bench.close()


@pytest.fixture(scope="session")
def docker_compose_command(owned_bench: Bench) -> str:
    return owned_bench.compose_command


@pytest.fixture(scope="session")
def docker_compose_file() -> str:
    return str(COMPOSE_FILE)


@pytest.fixture(scope="session")
def docker_compose_project_name(owned_bench: Bench) -> str:
    return owned_bench.project


@pytest.fixture(scope="session")
def docker_setup() -> list[str]:
    return []


@pytest.fixture(scope="session")
def docker_cleanup() -> list[str]:
    return []


@pytest.fixture(scope="session")
def bench(owned_bench: Bench, docker_services: Services) -> Bench:
    """The containers that the selected tests need, running."""
    return owned_bench


@pytest.fixture
def get_peer(bench: Bench) -> Callable[[Scenario], BenchPeer]:
    """Returns the peer of a scenario, with an empty collect directory."""
    return lambda scenario: bench.peer(scenario.kind.name)


@pytest.fixture
def bench_peer(scenario: Scenario, get_peer: Callable[[Scenario], BenchPeer]) -> BenchPeer:
    """The peer of this test's scenario, with an empty collect directory."""
    return get_peer(scenario)


@pytest.fixture(scope="session")
def client(bench: Bench) -> Iterator[ClientContainer]:
    """The client container, with peerstage installed."""
    client = ClientContainer(bench)
    yield client
    client.close()


@pytest.fixture(scope="session")
def master(bench: Bench) -> MasterContainer:
    """The master container, with cback3 and peerstage installed."""
    return MasterContainer(bench)

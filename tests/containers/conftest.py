"""The containers of a run, as tests are given them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from client_side import Client
from kinds import Way
from pytest_docker.plugin import Services

from support.bench_run import running_bench
from support.containers import Bench, BenchPeer
from support.engine import COMPOSE_FILE

# pytest-docker's view of the project. The process that a person started has brought it up and takes it down, whatever
# becomes of the workers; so there is nothing to set up or clean up here.


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
def peer_of(bench: Bench) -> Callable[[Way], BenchPeer]:
    """Returns the peer at the end of a way, with an empty collect directory."""
    return lambda way: bench.peer(way.kind.name)


@pytest.fixture
def served(way: Way, peer_of: Callable[[Way], BenchPeer]) -> BenchPeer:
    """The peer of this test's way."""
    return peer_of(way)


@pytest.fixture(scope="session")
def client(bench: Bench) -> Iterator[Client]:
    """The client container, with our wheel installed."""
    client = Client(bench)
    yield client
    client.close()

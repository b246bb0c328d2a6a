"""The containers of a run, as tests are given them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from client_side import Client
from kinds import Way

from support.bench_run import running_bench
from support.containers import Bench, BenchPeer


@pytest.fixture(scope="session")
def bench(pytestconfig: pytest.Config) -> Iterator[Bench]:
    """The containers that the selected tests need, running."""
    bench = running_bench(pytestconfig)
    yield bench
    bench.close()


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

"""A pytest plugin with fixtures for the tests of scripts that use peerstage.

pytest loads it in every run where peerstage is installed. So it lies outside of the package, and imports nothing of it
before a fixture is used: neither the start of other runs nor their coverage changes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from peerstage.testing import EmbeddedServer, MemoryHost


@pytest.fixture
def peerstage_hosts() -> Iterator[dict[str, MemoryHost]]:
    """Hosts in memory by the names of peers: while the test runs, each `RemotePeer` reaches these and no network.

    It is empty at first; put `peerstage.testing.MemoryHost` into it. See `peerstage.testing.memory_peers`.
    """
    from peerstage.testing import memory_peers

    hosts: dict[str, MemoryHost] = {}
    with memory_peers(hosts):
        yield hosts


@pytest.fixture
def peerstage_server() -> Iterator[Callable[..., EmbeddedServer]]:
    """Starts real SSH servers on loopback ports, any number, which end with the test.

    Call it with the arguments of `peerstage.testing.ssh_server`; it returns the `peerstage.testing.EmbeddedServer`.
    """
    from peerstage.testing import ssh_server

    with contextlib.ExitStack() as stack:

        def start(*arguments: object, **options: object) -> EmbeddedServer:
            return stack.enter_context(ssh_server(*arguments, **options))  # type: ignore[arg-type]

        yield start

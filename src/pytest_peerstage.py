"""A pytest plugin with fixtures for tests of scripts that use peerstage.

pytest loads it in every run where peerstage is installed. It is therefore outside the package, and imports the package
only when a fixture is used, so that it affects neither the startup time nor the coverage of other runs.
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
    """Hosts in memory by the names of peers: while the test runs, every `RemotePeer` connects to these only.

    The dict is empty at first; add `peerstage.testing.MemoryHost` objects. See `peerstage.testing.memory_peers`.
    """
    from peerstage.testing import memory_peers

    hosts: dict[str, MemoryHost] = {}
    with memory_peers(hosts):
        yield hosts


@pytest.fixture
def peerstage_server() -> Iterator[Callable[..., EmbeddedServer]]:
    """A function that starts real SSH servers on loopback ports, which exit at the end of the test.

    It takes the arguments of `peerstage.testing.ssh_server` and returns a `peerstage.testing.EmbeddedServer`.
    """
    from peerstage.testing import ssh_server

    with contextlib.ExitStack() as stack:

        def start(*arguments: object, **options: object) -> EmbeddedServer:
            return stack.enter_context(ssh_server(*arguments, **options))  # type: ignore[arg-type]

        yield start

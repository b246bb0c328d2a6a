"""Fixtures of the guide's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paramiko
import pytest

from guide.site import Site
from support.file_server import serves_files
from support.ssh_server import listening


@pytest.fixture(scope="session")
def file_server() -> Iterator[tuple[Any, int]]:
    """The host key and the port of a server for all examples."""
    key = paramiko.ECDSAKey.generate()
    with listening(serves_files(key)) as port:
        yield key, port


@pytest.fixture
def site(own_home: Path, tmp_path: Path, file_server: tuple[Any, int]) -> Iterator[Site]:
    site = Site(own_home, tmp_path, *file_server)
    with site.cluster:
        yield site

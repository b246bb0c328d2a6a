"""Fixtures of the tests of sessions."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def ssh(own_home: Path) -> Path:
    """The directory of ssh's configuration, keys and known_hosts."""
    path = own_home / ".ssh"
    path.mkdir(mode=0o700)
    return path

"""Fixtures for the tests of SSH connections."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def ssh(own_home: Path) -> Path:
    """Return ``~/.ssh``, in a home of the test's own."""
    path = own_home / ".ssh"
    path.mkdir(mode=0o700)
    return path

"""Fixtures of the command line's tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cli.command import Command
from support.sshd import Sshd


@pytest.fixture
def command(sshd: Sshd) -> Command:
    return Command(sshd)


@pytest.fixture
def one_line() -> Callable[[str], None]:
    """Checks that an error is one line that names the program, and no traceback."""

    def check(text: str) -> None:
        assert text.startswith("peerstage: ")
        assert text.count("\n") == 1
        assert text.endswith("\n")
        assert "Traceback" not in text

    return check

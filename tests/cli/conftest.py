"""Fixtures of the command line's tests."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cli.command import Command
from cli.doctor_setup import DoctorSetup
from cli.host_keys import Trust
from cli.plan_setup import PlanSetup
from support.sshd import Sshd


@pytest.fixture
def command(sshd: Sshd) -> Command:
    return Command(sshd)


@pytest.fixture
def known(tmp_path: Path) -> Path:
    """The path of a known_hosts file, which does not exist yet."""
    return tmp_path / "known_hosts"


@pytest.fixture
def trust(command: Command, known: Path) -> Trust:
    """Runs ``trust`` with a known_hosts file of the test's own."""

    def run(*arguments: object, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
        return command("trust", "--no-config", "--known-hosts", known, *arguments, stdin=stdin)

    return run


@pytest.fixture
def assert_one_line() -> Callable[[str], None]:
    """Checks that an error is one line that names the program, and no traceback."""

    def check(text: str) -> None:
        assert text.startswith("peerstage: ")
        assert text.count("\n") == 1
        assert text.endswith("\n")
        assert "Traceback" not in text

    return check


@pytest.fixture
def setup(command: Command, own_sshd: Callable[..., Sshd], own_home: Path, collect: Path) -> Iterator[DoctorSetup]:
    with contextlib.ExitStack() as stack:
        yield DoctorSetup(own_home, collect, own_sshd, command, stack)


@pytest.fixture
def unprivileged_setup(
    command: Command, unprivileged_sshd: Sshd, public_path: Path, own_home: Path
) -> Iterator[DoctorSetup]:
    """A set-up whose login is not root, so that file modes matter."""
    setup = DoctorSetup(own_home, public_path / "collect", lambda **changes: unprivileged_sshd, command)
    yield setup.start()
    setup.collect.chmod(0o755)


@pytest.fixture
def fleet(tmp_path: Path, own_home: Path) -> Iterator[PlanSetup]:
    """A master with a plan, and a server in this process for its peers."""
    with contextlib.ExitStack() as stack:
        yield PlanSetup(tmp_path, stack)

"""A pytest plugin: two local accounts per test process, created before the workers start and removed at the end.

useradd replaces the password database, so no test runs it. Each worker has its own pair, so that tests that inspect
all processes of a user do not interfere. Without root, and with ``-m "not slow"``, no account is created.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from support.sshd import Sshd

_SCRIPT = Path(__file__).with_name("account_keeper.py")


@dataclass(frozen=True)
class Account:
    """A local user."""

    name: str
    uid: int
    gid: int
    home: Path

    def chown_tree(self, path: Path) -> Path:
        """Give *path* and everything below it to this user; return *path*."""
        for one in (path, *path.rglob("*")):
            os.chown(one, self.uid, self.gid, follow_symlinks=False)
        return path

    def configure_ssh(self, server: Sshd, **more: str) -> None:
        """Write a ~/.ssh that reaches *server* as the host ``db1``: key, known_hosts and configuration."""
        ssh = self.home / ".ssh"
        shutil.rmtree(ssh, ignore_errors=True)
        ssh.mkdir(mode=0o700)
        shutil.copy(server.identity, ssh / "id_ed25519")
        shutil.copy(server.known_hosts, ssh / "known_hosts")
        settings = {"HostName": server.host, "Port": str(server.port), **more}
        (ssh / "config").write_text("Host db1\n" + "".join(f"  {name} {value}\n" for name, value in settings.items()))
        self.chown_tree(ssh)


#: Two accounts as they are sent to a worker: name, user id, group id and home of each.
Pair = list[tuple[str, int, int, str]]


class AccountKeeper:
    """The process that creates accounts; it removes them after `close`, or when this process has ended.

    Args:
        pairs: The number of pairs of accounts.

    Raises:
        RuntimeError: If they cannot be created. Tests that need them fail instead of being skipped.
    """

    def __init__(self, pairs: int) -> None:
        command = [sys.executable, "-I", "-S", str(_SCRIPT), str(2 * pairs)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, start_new_session=True)
        assert self._process.stdout is not None
        reply = json.loads(self._process.stdout.readline())
        if isinstance(reply, str):
            self.close()
            raise RuntimeError(f"An account cannot be created: {reply}. Run the tests as root.")
        self.pairs: list[Pair] = [reply[at : at + 2] for at in range(0, len(reply), 2)]

    def close(self) -> None:
        """Let the accounts be removed, and wait; an interrupt ends only the waiting."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        failure = self._process.stdout.read()
        self._process.stdout.close()
        self._process.wait()
        if failure:
            raise RuntimeError(f"An account cannot be removed: {failure}")


_KEEPER = pytest.StashKey[AccountKeeper]()
_FREE = pytest.StashKey[list[Pair]]()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config, specs: list[Any]) -> None:
    """Create a pair per worker before the first one starts; if that fails, the tests that need one fail."""
    if os.geteuid() == 0 and "not slow" not in config.option.markexpr:
        with contextlib.suppress(RuntimeError):
            config.stash[_KEEPER] = keeper = AccountKeeper(len(specs))
            config.stash[_FREE] = keeper.pairs


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Give the worker its pair."""
    if free := node.config.stash.get(_FREE, []):
        node.workerinput["accounts"] = free.pop()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Keep the pair of a worker that ended for its replacement."""
    if pair := node.workerinput.get("accounts"):
        node.config.stash[_FREE].append(pair)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the accounts, however the run ended."""
    if keeper := config.stash.get(_KEEPER, None):
        keeper.close()


@pytest.fixture(scope="session")
def accounts(request: pytest.FixtureRequest) -> Iterator[tuple[Account, Account]]:
    """Two local users that no other worker uses; without workers they are created now."""
    pair = getattr(request.config, "workerinput", {}).get("accounts")
    keeper = None if pair else AccountKeeper(1)
    one, two = (Account(*ids, Path(home)) for *ids, home in (pair or keeper.pairs[0]))
    yield one, two
    if keeper:
        keeper.close()


@pytest.fixture
def user(accounts: tuple[Account, Account]) -> Account:
    """The user that `localUser` names."""
    return accounts[0]


@pytest.fixture
def other(accounts: tuple[Account, Account]) -> Account:
    """A user that is not involved."""
    return accounts[1]


@pytest.fixture(scope="session")
def unprivileged_user(request: pytest.FixtureRequest) -> str | None:
    """A login other than root; None if the tests do not run as root, whose own user is such a login."""
    if os.geteuid() != 0:
        return None
    accounts: tuple[Account, Account] = request.getfixturevalue("accounts")
    return accounts[1].name

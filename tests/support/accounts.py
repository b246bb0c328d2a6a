"""Two local users for each process that runs tests: they exist before the workers start, and go when the run ends.

A pytest plugin. useradd replaces the password database, which is why no test does it; and since each worker has a pair
of its own, tests that look at all processes of a user do not meet. Where nothing but quick tests run, and for whoever
is not root, no account is made.
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

    def give(self, path: Path) -> Path:
        """Make *path*, and all in it, theirs."""
        for one in (path, *path.rglob("*")):
            os.chown(one, self.uid, self.gid, follow_symlinks=False)
        return path

    def knows(self, server: Sshd, **more: str) -> None:
        """Set up their ssh for *server*, as the host ``db1``: a key that it accepts, known_hosts, configuration."""
        ssh = self.home / ".ssh"
        shutil.rmtree(ssh, ignore_errors=True)
        ssh.mkdir(mode=0o700)
        shutil.copy(server.identity, ssh / "id_ed25519")
        shutil.copy(server.known_hosts, ssh / "known_hosts")
        settings = {"HostName": server.host, "Port": str(server.port), **more}
        (ssh / "config").write_text("Host db1\n" + "".join(f"  {name} {value}\n" for name, value in settings.items()))
        self.give(ssh)


#: Two accounts, as they travel to a worker: name, user id, group id, home.
Pair = list[tuple[str, int, int, str]]


class Keeper:
    """The process that makes accounts; it removes them after `close`, or when this process has ended.

    Args:
        pairs: How many pairs of accounts.

    Raises:
        RuntimeError: If they cannot be made. The tests that need them fail: nothing is skipped.
    """

    def __init__(self, pairs: int) -> None:
        command = [sys.executable, "-I", "-S", str(_SCRIPT), str(2 * pairs)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, start_new_session=True)
        assert self._process.stdout is not None
        told = json.loads(self._process.stdout.readline())
        if isinstance(told, str):
            self.close()
            raise RuntimeError(f"An account can not be made: {told}. Run the tests as root.")
        self.pairs: list[Pair] = [told[at : at + 2] for at in range(0, len(told), 2)]

    def close(self) -> None:
        """Have the accounts removed, and wait for that; an interrupt ends the waiting alone."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        failure = self._process.stdout.read()
        self._process.stdout.close()
        self._process.wait()
        if failure:
            raise RuntimeError(f"An account can not be removed: {failure}")


_KEEPER = pytest.StashKey[Keeper]()
_FREE = pytest.StashKey[list[Pair]]()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config, specs: list[Any]) -> None:
    """Make a pair for each worker, before the first one starts; where that fails, the tests that need one say so."""
    if os.geteuid() == 0 and "not slow" not in config.option.markexpr:
        with contextlib.suppress(RuntimeError):
            config.stash[_KEEPER] = keeper = Keeper(len(specs))
            config.stash[_FREE] = keeper.pairs


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Give the worker its pair."""
    if free := node.config.stash.get(_FREE, []):
        node.workerinput["accounts"] = free.pop()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Take the pair of a worker that has ended for the one that may replace it."""
    if pair := node.workerinput.get("accounts"):
        node.config.stash[_FREE].append(pair)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove what was made, however the run has ended."""
    if keeper := config.stash.get(_KEEPER, None):
        keeper.close()


@pytest.fixture(scope="session")
def accounts(request: pytest.FixtureRequest) -> Iterator[tuple[Account, Account]]:
    """Two users of this machine that no other worker uses; without workers they are made now."""
    pair = getattr(request.config, "workerinput", {}).get("accounts")
    keeper = None if pair else Keeper(1)
    one, two = (Account(*known, Path(home)) for *known, home in (pair or keeper.pairs[0]))
    yield one, two
    if keeper:
        keeper.close()


@pytest.fixture
def user(accounts: tuple[Account, Account]) -> Account:
    """The user that is copied as."""
    return accounts[0]


@pytest.fixture
def other(accounts: tuple[Account, Account]) -> Account:
    """A user who has no part in it."""
    return accounts[1]


@pytest.fixture(scope="session")
def unprivileged_user(request: pytest.FixtureRequest) -> str | None:
    """A user whom a server may log in who is not root; None where the tests are not run by root either."""
    if os.geteuid() != 0:
        return None
    accounts: tuple[Account, Account] = request.getfixturevalue("accounts")
    return accounts[1].name

"""Two local users of this machine, made for the run, each with keys and configuration of their own."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.local_user import account
from support.sshd import Sshd


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


@pytest.fixture(scope="session")
def accounts() -> Iterator[tuple[Account, Account]]:
    """The two users."""
    place = Path(tempfile.mkdtemp(prefix="peerstage-homes-"))
    place.chmod(0o755)
    names = [f"peerstage-{letter}{os.getpid()}" for letter in "ab"]
    homes = [place / name for name in names]
    try:
        with account(names[0], homes[0]) as one, account(names[1], homes[1]) as two:
            yield (
                Account(one.pw_name, one.pw_uid, one.pw_gid, homes[0]),
                Account(two.pw_name, two.pw_uid, two.pw_gid, homes[1]),
            )
    finally:
        shutil.rmtree(place)


@pytest.fixture
def user(accounts: tuple[Account, Account]) -> Account:
    """The user that is copied as."""
    return accounts[0]


@pytest.fixture
def other(accounts: tuple[Account, Account]) -> Account:
    """A user who has no part in it."""
    return accounts[1]

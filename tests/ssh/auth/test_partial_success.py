"""Servers that want several authentication methods (``AuthenticationMethods``), in any order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import paramiko
import pytest

from peerstage import RemotePeer, Retry
from peerstage.errors import LoginError, RemoteError, StageError
from support import ssh_server
from support.keys import fingerprint_of, make_key
from support.ssh_server import listening, options_for, paramiko_handler
from support.sshd import Sshd

pytestmark = pytest.mark.usefixtures("leaves_nothing")


class WantsSeveralMethods(ssh_server.RefusesSubsystems):
    """Wants one method after another, and then has no SFTP."""

    steps: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.remaining = list(self.steps)
        self.used: set[bytes] = set()

    def get_allowed_auths(self, username: str) -> str:
        return self.remaining[0]

    def accept(self, method: str) -> int:
        if self.remaining[0] != method:
            return paramiko.AUTH_FAILED
        self.remaining.pop(0)
        return paramiko.AUTH_PARTIALLY_SUCCESSFUL if self.remaining else paramiko.AUTH_SUCCESSFUL

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        if key.asbytes() in self.used or self.remaining[0] != "publickey":
            return paramiko.AUTH_FAILED
        self.used.add(key.asbytes())
        return self.accept("publickey")

    def check_auth_password(self, username: str, password: str) -> int:
        return self.accept("password") if password == self.password else paramiko.AUTH_FAILED


def error_of(steps: tuple[str, ...], target: Path, **options: Any) -> StageError:
    """Stage from a server that wants *steps*; return the error, which after a login is the missing subsystem."""
    policy = type("Policy", (WantsSeveralMethods,), {"steps": steps})
    key = paramiko.ECDSAKey.generate()
    with listening(paramiko_handler(policy, key=key)) as port:
        ssh = options_for(port, key, **options)
        peer = RemotePeer("127.0.0.1", "/c", "/tmp", "backup", ssh=ssh, transport="sftp", retry=Retry(tries=1))
        with pytest.raises(StageError) as caught:
            peer.stagePeer(str(target))
    return caught.value


@pytest.mark.parametrize(
    "steps",
    [
        ("publickey", "password"),
        ("password", "publickey"),
        ("publickey", "publickey"),
        ("publickey", "publickey", "password"),
        ("publickey", "password", "publickey"),
        ("password", "publickey", "publickey"),
    ],
    ids=lambda steps: " and ".join(steps),
)
def test_methods_are_used_in_the_order_in_which_the_server_wants_them(
    target: Path, tmp_path: Path, steps: tuple[str, ...]
) -> None:
    keys = tuple(str(make_key(tmp_path / f"key{number}")) for number in range(3))
    error = error_of(steps, target, identity=keys, password="sesame")
    assert isinstance(error, RemoteError), error
    assert "subsystem" in str(error)


@pytest.mark.parametrize(
    "steps", [("password", "password"), ("publickey",) * 4, ("password", "keyboard-interactive")], ids=" and ".join
)
def test_server_that_always_wants_more_is_an_error_that_says_so(
    target: Path, tmp_path: Path, steps: tuple[str, ...]
) -> None:
    keys = tuple(str(make_key(tmp_path / f"key{number}")) for number in range(3))
    error = error_of(steps, target, identity=keys, password="sesame")
    assert isinstance(error, LoginError), error
    assert "accepted, but another method is required too" in str(error)
    assert f"The peer offers {steps[-1]}." in str(error)


def test_sshd_that_wants_two_keys_gets_both(own_sshd: Callable[..., Sshd], target: Path, tmp_path: Path) -> None:
    server = own_sshd(extra="AuthenticationMethods publickey,publickey")
    second = make_key(tmp_path / "second")
    with (server.home / "authorized_keys").open("a") as file:
        file.write(Path(f"{second}.pub").read_text())
    (tmp_path / "cback.collect").touch()

    def can_log_in(*identities: Path) -> bool:
        ssh = server.options(identity=tuple(map(str, identities)))
        return RemotePeer(server.host, str(tmp_path), "/tmp", server.user, ssh=ssh).checkCollectIndicator()

    assert can_log_in(second, make_key(tmp_path / "unauthorized"), server.identity)
    assert not can_log_in(second)
    assert server.log.count(fingerprint_of(second)) >= 2

"""Servers that want several proofs, one after the other (``AuthenticationMethods``), in whichever order."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paramiko
import pytest

from peerstage import RemotePeer, Retry, SSHOptions
from peerstage.errors import LoginError, RemoteError, StageError
from support import ssh_server
from support.keys import fingerprint, make_key
from support.ssh_server import listening, made_of_paramiko
from support.sshd import Sshd

pytestmark = pytest.mark.usefixtures("leaves_nothing")


@pytest.fixture(autouse=True)
def quiet_server() -> None:
    logging.getLogger("paramiko").setLevel(logging.CRITICAL)


class WantsSeveral(ssh_server.RefusesSubsystems):
    """Wants one proof after the other, and then has no SFTP."""

    steps: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.left = list(self.steps)
        self.used: set[bytes] = set()

    def get_allowed_auths(self, username: str) -> str:
        return self.left[0]

    def take(self, method: str) -> int:
        if self.left[0] != method:
            return paramiko.AUTH_FAILED
        self.left.pop(0)
        return paramiko.AUTH_PARTIALLY_SUCCESSFUL if self.left else paramiko.AUTH_SUCCESSFUL

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        if key.asbytes() in self.used or self.left[0] != "publickey":
            return paramiko.AUTH_FAILED
        self.used.add(key.asbytes())
        return self.take("publickey")

    def check_auth_password(self, username: str, password: str) -> int:
        return self.take("password") if password == self.password else paramiko.AUTH_FAILED


def error_of(steps: tuple[str, ...], target: Path, **options: Any) -> StageError:
    """Stage from a server that wants *steps*; return the error, which after the login is that there is no SFTP."""
    policy = type("Policy", (WantsSeveral,), {"steps": steps})
    key = paramiko.ECDSAKey.generate()
    with listening(made_of_paramiko(policy, key=key)) as port:
        known = f"[127.0.0.1]:{port} {key.get_name()} {key.get_base64()}\n".encode()
        ssh = SSHOptions(port=port, config=(), agent=False, known_hosts=known, **options)
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
def test_proofs_are_given_in_the_order_in_which_they_are_wanted(
    target: Path, tmp_path: Path, steps: tuple[str, ...]
) -> None:
    keys = tuple(str(make_key(tmp_path / f"key{number}")) for number in range(3))
    error = error_of(steps, target, identity=keys, password="sesame")
    assert isinstance(error, RemoteError), error
    assert "subsystem" in str(error)


@pytest.mark.parametrize(
    "steps", [("password", "password"), ("publickey",) * 4, ("password", "keyboard-interactive")], ids=" and ".join
)
def test_a_server_that_always_wants_more_ends_in_an_error_that_says_so(
    target: Path, tmp_path: Path, steps: tuple[str, ...]
) -> None:
    keys = tuple(str(make_key(tmp_path / f"key{number}")) for number in range(3))
    error = error_of(steps, target, identity=keys, password="sesame")
    assert isinstance(error, LoginError), error
    assert "accepted, and more is wanted" in str(error)
    assert f"The peer wants {steps[-1]}." in str(error)


def test_sshd_that_wants_two_keys_is_given_them(own_sshd: Callable[..., Sshd], target: Path, tmp_path: Path) -> None:
    server = own_sshd(extra="AuthenticationMethods publickey,publickey")
    second = make_key(tmp_path / "second")
    with (server.home / "authorized_keys").open("a") as file:
        file.write(Path(f"{second}.pub").read_text())
    (tmp_path / "cback.collect").touch()

    def is_there(*identities: Path) -> bool:
        ssh = server.options(identity=tuple(map(str, identities)))
        return RemotePeer(server.host, str(tmp_path), "/tmp", server.user, ssh=ssh).checkCollectIndicator()

    assert is_there(second, make_key(tmp_path / "of nobody"), server.identity)
    assert not is_there(second)
    assert server.log.count(fingerprint(second)) >= 2

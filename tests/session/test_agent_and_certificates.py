"""A certificate in a file whose key only the agent has, as Vault and step-ca leave it: ssh itself is the oracle."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from peerstage.errors import LoginError
from support.agents import token_agent
from support.keys import blob, certify, make_key, public, running_agent
from support.logins import certified_server, configure, log_in, offered_to, run_ssh, ssh_offers
from support.programs import program
from support.sshd import Sshd

Start = Callable[..., Sshd]


def encrypt(key: Path) -> None:
    command = [program("ssh-keygen"), "-q", "-p", "-P", "", "-N", "sesame", "-f", str(key)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


def remove_all_but_the_certificate(key: Path) -> None:
    key.unlink()
    key.with_name(f"{key.name}.pub").unlink()


def make_it_a_directory(key: Path) -> None:
    key.unlink()
    key.mkdir()


#: What becomes of the private key file once the agent has the key.
FATES: dict[str, Callable[[Path], object]] = {
    "stays": lambda key: None,
    "is removed": Path.unlink,
    "is encrypted": encrypt,
    "is no key": lambda key: key.write_text("nonsense"),
    "cannot be read": make_it_a_directory,
}
#: Lines of the configuration; ``key`` and ``other`` are in the agent, ``key`` has a certificate, ``third`` is a file.
CONFIGURATIONS: dict[str, list[str]] = {
    "a key with a certificate beside it": ["IdentityFile key"],
    "among others": ["IdentityFile third", "IdentityFile key", "IdentityFile other"],
    "that key alone": ["IdentitiesOnly yes", "IdentityFile key"],
    "a certificate that is named": ["CertificateFile key-cert.pub"],
    "a certificate that is named, and its key alone": [
        *("IdentitiesOnly yes", "CertificateFile key-cert.pub", "IdentityFile key"),
    ],
    "a certificate as an identity": ["IdentityFile key-cert.pub", "IdentityFile third"],
    "a certificate as an identity, and its key": [
        *("IdentitiesOnly yes", "IdentityFile key-cert.pub", "IdentityFile key"),
    ],
}


@pytest.fixture
def authority(ssh: Path, tmp_path: Path) -> Path:
    """An authority that has certified one of three keys."""
    authority = make_key(tmp_path / "authority")
    for name in ("key", "other", "third"):
        make_key(ssh / name)
    certify(ssh / "key", authority, "somebody", "root", "nobody")
    return authority


def with_paths(ssh: Path, lines: list[str]) -> list[str]:
    return [re.sub(r"File ", f"File {ssh}/", line) for line in lines]


@pytest.mark.parametrize("lines", CONFIGURATIONS)
def test_it_is_offered_where_ssh_offers_it(
    ssh: Path,
    own_sshd: Start,
    target: Path,
    tmp_path: Path,
    authority: Path,
    monkeypatch: pytest.MonkeyPatch,
    lines: str,
) -> None:
    server = own_sshd(extra="MaxAuthTries 20\nLogLevel VERBOSE")
    (server.home / "authorized_keys").write_text("")
    configure(ssh, server, *with_paths(ssh, CONFIGURATIONS[lines]))
    with running_agent(tmp_path / "agent", ssh / "key", ssh / "other", certificates=False) as path:
        monkeypatch.setenv("SSH_AUTH_SOCK", path)
        with pytest.raises(LoginError):
            log_in(server, target)
        offered = offered_to(server)
        assert [one for one in offered if "CERT" in one]
        assert offered == ssh_offers(ssh, server)


@pytest.mark.parametrize("fate", FATES)
def test_the_agent_signs_for_it_whatever_became_of_the_private_key_file(
    ssh: Path,
    own_sshd: Start,
    target: Path,
    tmp_path: Path,
    authority: Path,
    monkeypatch: pytest.MonkeyPatch,
    fate: str,
) -> None:
    server = certified_server(own_sshd, authority, "MaxAuthTries 20")
    certify(ssh / "key", authority, server.user)
    with running_agent(tmp_path / "agent", ssh / "key", ssh / "other", certificates=False) as path:
        monkeypatch.setenv("SSH_AUTH_SOCK", path)
        FATES[fate](ssh / "key")
        for lines in CONFIGURATIONS.values():
            configure(ssh, server, *with_paths(ssh, lines))
            assert run_ssh(ssh, server).returncode == 0
            log_in(server, target)
            assert offered_to(server)[-1].startswith("ED25519-CERT")
        configure(ssh, server)
        log_in(server, target, identity=str(ssh / "key"))


def test_a_certificate_that_is_left_alone_is_enough(
    ssh: Path, own_sshd: Start, target: Path, tmp_path: Path, authority: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = certified_server(own_sshd, authority)
    certify(ssh / "key", authority, server.user)
    configure(ssh, server, f"IdentityFile {ssh}/key")
    with running_agent(tmp_path / "agent", ssh / "key", certificates=False) as path:
        monkeypatch.setenv("SSH_AUTH_SOCK", path)
        remove_all_but_the_certificate(ssh / "key")
        assert run_ssh(ssh, server).returncode == 0
        log_in(server, target)


@pytest.mark.parametrize("certified", [False, True], ids=["the public key", "the certificate"])
def test_a_default_key_of_which_only_the_public_part_is_left_is_still_one(
    ssh: Path, own_sshd: Start, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, certified: bool
) -> None:
    key, authority = make_key(ssh / "id_ed25519"), make_key(tmp_path / "authority")
    server = certified_server(own_sshd, authority) if certified else own_sshd()
    (server.home / "authorized_keys").write_text(public(key))
    configure(ssh, server, "IdentitiesOnly yes")
    with running_agent(tmp_path / "agent", make_key(tmp_path / "other"), key) as path:
        monkeypatch.setenv("SSH_AUTH_SOCK", path)
        key.unlink()
        if certified:
            certify(key, authority, server.user)
        log_in(server, target)
    assert len(set(offered_to(server))) == 1 + certified, "of the agent's keys that one alone"


def test_the_file_signs_where_the_agent_refuses(
    ssh: Path, own_sshd: Start, target: Path, tmp_path: Path, authority: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = certified_server(own_sshd, authority)
    certify(ssh / "key", authority, server.user)
    configure(ssh, server, f"IdentityFile {ssh}/key")
    with token_agent(tmp_path / "agent", also=(blob(ssh / "key.pub"),)) as path:
        monkeypatch.setenv("SSH_AUTH_SOCK", path)
        log_in(server, target)


def test_a_certificate_beside_a_key_that_nobody_has_is_named_with_the_reason(
    ssh: Path, own_sshd: Start, target: Path, authority: Path
) -> None:
    server = own_sshd()
    configure(ssh, server, f"IdentityFile {ssh}/key")
    encrypt(ssh / "key")
    with pytest.raises(LoginError) as caught:
        log_in(server, target)
    assert "key: it has a passphrase, and none was given" in str(caught.value)
    assert re.search(
        r"key-cert.pub \(.*\): there is no private key to this certificate: it has a pass", str(caught.value)
    )

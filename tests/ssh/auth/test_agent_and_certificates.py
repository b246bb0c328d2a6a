"""Certificate files whose key only the agent holds, as with Vault and step-ca; ssh is the oracle."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from peerstage.errors import LoginError
from peerstage.reasons import Reason
from support.agents import serve_token_agent
from support.keys import certify, make_key, public_key, read_blob, run_agent, run_ssh_keygen
from support.logins import (
    configure,
    find_keys_offered_by_ssh,
    find_offered_keys,
    log_in,
    run_ssh,
    start_certified_server,
)
from support.sshd import Sshd

Start = Callable[..., Sshd]


def encrypt(key: Path) -> None:
    run_ssh_keygen("-q", "-p", "-P", "", "-N", "sesame", "-f", key)


def remove_key_pair(key: Path) -> None:
    key.unlink()
    key.with_name(f"{key.name}.pub").unlink()


def replace_with_directory(key: Path) -> None:
    key.unlink()
    key.mkdir()


#: What happens to the private key file after the agent has loaded it.
CHANGES: dict[str, Callable[[Path], object]] = {
    "stays": lambda key: None,
    "is removed": Path.unlink,
    "is encrypted": encrypt,
    "is not a key": lambda key: key.write_text("nonsense"),
    "cannot be read": replace_with_directory,
}
#: Lines of the configuration; the agent holds ``key`` and ``other``, ``key`` has a certificate, ``third`` is a file.
CONFIGURATIONS: dict[str, list[str]] = {
    "a key with a certificate beside it": ["IdentityFile key"],
    "among others": ["IdentityFile third", "IdentityFile key", "IdentityFile other"],
    "that key alone": ["IdentitiesOnly yes", "IdentityFile key"],
    "an explicit certificate": ["CertificateFile key-cert.pub"],
    "an explicit certificate, and its key alone": [
        *("IdentitiesOnly yes", "CertificateFile key-cert.pub", "IdentityFile key")
    ],
    "a certificate as an identity": ["IdentityFile key-cert.pub", "IdentityFile third"],
    "a certificate as an identity, and its key": [
        *("IdentitiesOnly yes", "IdentityFile key-cert.pub", "IdentityFile key")
    ],
}


@pytest.fixture
def authority(ssh: Path, tmp_path: Path) -> Path:
    """Return an authority that has certified one of three keys."""
    authority = make_key(tmp_path / "authority")
    for name in ("key", "other", "third"):
        make_key(ssh / name)
    certify(ssh / "key", authority, "somebody", "root", "nobody")
    return authority


def with_paths(ssh: Path, lines: list[str]) -> list[str]:
    return [re.sub(r"File ", f"File {ssh}/", line) for line in lines]


@pytest.mark.parametrize("lines", CONFIGURATIONS)
def test_certificate_is_offered_when_ssh_offers_it(
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
    with run_agent(tmp_path / "agent", ssh / "key", ssh / "other", certificates=False) as path:
        monkeypatch.setenv("SSH_AUTH_SOCK", path)
        with pytest.raises(LoginError):
            log_in(server, target)
        offered = find_offered_keys(server)
        assert [one for one in offered if "CERT" in one]
        assert offered == find_keys_offered_by_ssh(ssh, server)


@pytest.mark.parametrize("change", CHANGES)
def test_agent_signs_for_the_certificate_whatever_happened_to_the_key_file(
    ssh: Path,
    own_sshd: Start,
    target: Path,
    tmp_path: Path,
    authority: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: str,
) -> None:
    server = start_certified_server(own_sshd, authority, "MaxAuthTries 20")
    certify(ssh / "key", authority, server.user)
    with run_agent(tmp_path / "agent", ssh / "key", ssh / "other", certificates=False) as path:
        monkeypatch.setenv("SSH_AUTH_SOCK", path)
        CHANGES[change](ssh / "key")
        for lines in CONFIGURATIONS.values():
            configure(ssh, server, *with_paths(ssh, lines))
            assert run_ssh(ssh, server).returncode == 0
            log_in(server, target)
            assert find_offered_keys(server)[-1].startswith("ED25519-CERT")
        configure(ssh, server)
        log_in(server, target, identity=str(ssh / "key"))


def test_certificate_file_alone_is_enough(
    ssh: Path, own_sshd: Start, target: Path, tmp_path: Path, authority: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start_certified_server(own_sshd, authority)
    certify(ssh / "key", authority, server.user)
    configure(ssh, server, f"IdentityFile {ssh}/key")
    with run_agent(tmp_path / "agent", ssh / "key", certificates=False) as path:
        monkeypatch.setenv("SSH_AUTH_SOCK", path)
        remove_key_pair(ssh / "key")
        assert run_ssh(ssh, server).returncode == 0
        log_in(server, target)


@pytest.mark.parametrize("certified", [False, True], ids=["the public key", "the certificate"])
def test_default_key_counts_if_only_its_public_part_is_left(
    ssh: Path, own_sshd: Start, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, certified: bool
) -> None:
    key, authority = make_key(ssh / "id_ed25519"), make_key(tmp_path / "authority")
    server = start_certified_server(own_sshd, authority) if certified else own_sshd()
    (server.home / "authorized_keys").write_text(public_key(key))
    configure(ssh, server, "IdentitiesOnly yes")
    with run_agent(tmp_path / "agent", make_key(tmp_path / "other"), key) as path:
        monkeypatch.setenv("SSH_AUTH_SOCK", path)
        key.unlink()
        if certified:
            certify(key, authority, server.user)
        log_in(server, target)
    assert len(set(find_offered_keys(server))) == 1 + certified, "only that key of the agent"


def test_key_file_signs_if_the_agent_refuses(
    ssh: Path, own_sshd: Start, target: Path, tmp_path: Path, authority: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start_certified_server(own_sshd, authority)
    certify(ssh / "key", authority, server.user)
    configure(ssh, server, f"IdentityFile {ssh}/key")
    with serve_token_agent(tmp_path / "agent", also=(read_blob(ssh / "key.pub"),)) as path:
        monkeypatch.setenv("SSH_AUTH_SOCK", path)
        log_in(server, target)


@pytest.mark.parametrize(
    "lines",
    [
        ["CertificateFile key-cert.pub", "IdentityFile third", "IdentityFile key"],
        ["IdentityFile key"],
    ],
    ids=["an explicit certificate", "a certificate beside its key"],
)
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("is encrypted", Reason.PASSPHRASE_MISSING),
        ("is not a key", Reason.KEY_INVALID),
        ("cannot be read", Reason.KEY_FILE_UNREADABLE),
        ("is removed", Reason.KEY_FILE_MISSING),
    ],
)
def test_certificate_whose_private_key_cannot_be_used_is_reported_with_that_key_and_its_problem(
    ssh: Path, own_sshd: Start, target: Path, authority: Path, lines: list[str], change: str, reason: Reason
) -> None:
    server = own_sshd()
    (server.home / "authorized_keys").write_text("")
    configure(ssh, server, *with_paths(ssh, lines))
    CHANGES[change](ssh / "key")
    with pytest.raises(LoginError) as caught:
        log_in(server, target)
    (attempt,) = [one for one in caught.value.attempts if "CERT" in one.key_type.upper()]
    assert (attempt.reason, attempt.path) == (reason, str(ssh / "key"))
    assert attempt.label == "~/.ssh/key (private key of ~/.ssh/key-cert.pub)"


def test_certificate_without_a_private_key_is_reported_as_such(
    ssh: Path, own_sshd: Start, target: Path, authority: Path
) -> None:
    server = own_sshd()
    (server.home / "authorized_keys").write_text("")
    configure(ssh, server, *with_paths(ssh, ["CertificateFile key-cert.pub", "IdentityFile third"]))
    (ssh / "third").write_text("nonsense")
    (ssh / "third.pub").unlink()
    with pytest.raises(LoginError, match="no private key was found for this certificate") as caught:
        log_in(server, target)
    assert [(one.reason, one.path) for one in caught.value.attempts] == [
        (Reason.PUBLIC_KEY_ONLY, str(ssh / "key-cert.pub")),
        (Reason.KEY_INVALID, str(ssh / "third")),
    ]

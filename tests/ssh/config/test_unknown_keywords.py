"""Keywords that ssh_config(5) does not have: misspelled ones, and those that vendors add."""

from __future__ import annotations

from pathlib import Path

import pytest

from peerstage.errors import ConfigurationError
from peerstage.reasons import Reason
from support.oracle import resolve_with


@pytest.fixture
def config(own_home: Path) -> Path:
    (own_home / ".ssh").mkdir()
    return own_home / ".ssh" / "config"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("HostNam there", ":1: HostNam: unknown keyword. Did you mean HostName? An earlier "),
        ("userKnownHost /k", ":1: userKnownHost: unknown keyword. Did you mean UserKnownHostsFile?"),
        ("Quux 1", ":1: Quux: unknown keyword. An earlier IgnoreUnknown line that lists it makes ssh ignore it. "),
        ("x" * 500, f":1: {'x' * 60}: unknown keyword."),
        ("Po\x1brt 1", r":1: Po\x1brt: unknown keyword. Did you mean Port?"),
    ],
)
def test_an_unknown_keyword_is_rejected_and_the_nearest_one_suggested(config: Path, line: str, words: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        resolve_with(f"{line} 1\n", config)
    assert f"{config}{words}" in str(caught.value)
    assert (caught.value.reason, caught.value.location) == (Reason.UNKNOWN_KEYWORD, (str(config), 1))


#: Lines of vendors' configuration files that plain ssh rejects.
VENDORS = [
    "UseKeychain yes\nAskPassGUI no\n",
    "VersionAddendum FreeBSD-20240806\nHPNDisabled yes\nNoneSwitch no\n",
    "GSSAPIKeyExchange yes\nGSSAPITrustDNS no\nUseBlacklistedKeys yes\n",
    "Metrics yes\nFallback no\nHappyEyes yes\nDisableMTAES yes\n",
]


@pytest.mark.parametrize("text", VENDORS)
def test_vendors_keywords_are_accepted_without_effect(
    config: Path, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    assert resolve_with(f"{text}Port 7\n", config).port == 7
    assert not caplog.text


def test_vendors_aliases_are_honoured(config: Path) -> None:
    assert resolve_with("RSAMinSize 3072\n", config).min_rsa_bits == 3072
    assert resolve_with("ProtocolKeepAlives 7\n", config).server_alive_interval == 7.0
    assert resolve_with("SetupTimeOut 8\n", config).server_alive_interval == 8.0


def test_the_crypto_policy_of_fedora_is_accepted(config: Path, caplog: pytest.LogCaptureFixture) -> None:
    policy = (
        "Ciphers aes256-gcm@openssh.com,chacha20-poly1305@openssh.com,aes256-ctr,aes128-gcm@openssh.com,aes128-ctr\n"
        "MACs hmac-sha2-256-etm@openssh.com,umac-128-etm@openssh.com,hmac-sha2-512-etm@openssh.com,hmac-sha2-256\n"
        "GSSAPIKexAlgorithms gss-curve25519-sha256-,gss-nistp256-sha256-,gss-group14-sha256-,gss-group16-sha512-\n"
        "KexAlgorithms mlkem768x25519-sha256,curve25519-sha256,ecdh-sha2-nistp256,diffie-hellman-group14-sha256\n"
        "PubkeyAcceptedAlgorithms ecdsa-sha2-nistp256,sk-ecdsa-sha2-nistp256@openssh.com,ssh-ed25519,"
        "sk-ssh-ed25519@openssh.com,rsa-sha2-256,rsa-sha2-512\n"
        "CASignatureAlgorithms ecdsa-sha2-nistp256,sk-ecdsa-sha2-nistp256@openssh.com,ssh-ed25519,rsa-sha2-256\n"
        "RequiredRSASize 2048\n"
    )
    found = resolve_with(policy, config)
    assert found.algorithms.ciphers[0] == "aes256-gcm@openssh.com"
    assert found.algorithms.ca_signatures[1] == "sk-ecdsa-sha2-nistp256@openssh.com"
    assert "rsa-sha2-512" not in found.algorithms.ca_signatures


def test_an_unknown_keyword_in_a_system_file_is_logged_once_and_ignored(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    etc = tmp_path / "etc"
    (etc / "ssh").mkdir(parents=True)
    (etc / "crypto").mkdir()
    monkeypatch.setattr("peerstage.ssh.config.resolve._SYSTEM_DIRECTORY", f"{etc}/ssh")
    monkeypatch.setattr("peerstage.ssh.config.read_config._VENDOR_DIRECTORY", f"{etc}/")
    (etc / "ssh" / "ssh_config").write_text(f'# ours\nHostNam "x\nInclude {etc}/crypto/*\nMatch final\n Port 7\n')
    (etc / "crypto" / "policy.conf").write_text("Host other\n QuantumSafe yes\nHost *\nConnectTimeout 9\n")
    found = resolve_with(f"Include {etc}/crypto/policy.conf\n", config)
    assert (found.port, found.connect_timeout) == (7, 9.0)
    policy = f"{etc}/crypto/policy.conf:2: QuantumSafe: unknown keyword. The line is ignored."
    own = f"{etc}/ssh/ssh_config:2: HostNam: unknown keyword. Did you mean HostName? The line is ignored."
    assert [record.getMessage() for record in caplog.records] == [f"db1: {line}" for line in (policy, own, policy)]
    assert {record.levelname for record in caplog.records} == {"WARNING"}
    (etc / "ssh" / "ssh_config").write_text("Port none\n")
    with pytest.raises(ConfigurationError, match=r"ssh_config:1: Port must be"):
        resolve_with("", config)
    with pytest.raises(ConfigurationError, match=r"config:1: QuantumSafe: unknown keyword\. An earlier IgnoreUnknown"):
        resolve_with("QuantumSafe yes\n", config)


def test_ignoreunknown_in_the_user_file_applies_to_the_system_file_too(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("peerstage.ssh.config.resolve._SYSTEM_DIRECTORY", str(tmp_path))
    (tmp_path / "ssh_config").write_text("QuantumSafe yes\nPort 7\n")
    assert resolve_with("IgnoreUnknown quantum*\n", config).port == 7
    assert not caplog.text

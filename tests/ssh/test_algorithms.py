"""Algorithm lists: with the same configuration, a server negotiates the same with us as with ssh."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from peerstage import RemotePeer, Retry
from peerstage.errors import HostKeyError, LoginError
from peerstage.ssh.algorithms import CIPHERS, KEX, MACS, SIGNATURE_ALGORITHMS, filter_algorithms
from support.keys import make_key
from support.programs import require_program
from support.sshd import Sshd

AGREED = re.compile(r"kex: ((?:host key )?algorithm|\S+->\S+ cipher): (.*?)(?= \[preauth\]|$)", re.MULTILINE)
VERBOSE = "LogLevel DEBUG1"
#: How the server logs the algorithm of a keyword; MACs are logged with the ciphers.
WHAT = {"KexAlgorithms": "algorithm", "HostKeyAlgorithms": "host key algorithm", "Ciphers": "server->client cipher"}


@pytest.fixture
def config(own_home: Path) -> Path:
    return own_home / "config"


def key_of(path: Path, kind: str) -> str:
    return make_key(path, key_type=kind).with_suffix(".pub").read_text()


def peer_of(server: Sshd, collect: Path, config: Path, **options: object) -> RemotePeer:
    ssh = server.options(config=str(config), **options)
    return RemotePeer(server.host, str(collect), "/tmp", server.user, ssh=ssh, retry=Retry(tries=1))


def by_ssh(server: Sshd, config: Path) -> int:
    """Log in with ssh and the same configuration; return its exit status."""
    place = f"{server.user}@{server.host}"
    command = [require_program("ssh"), "-F", str(config), *server.ssh_arguments()[2:], place, "true"]
    return subprocess.run(command, check=False, capture_output=True).returncode


def agreed_by(server: Sshd, connect: Callable[[], object]) -> dict[str, str]:
    """Return the algorithms that the server negotiates during *connect*."""
    before = len(server.log)
    connect()
    return dict(AGREED.findall(server.log[before:]))


@pytest.mark.parametrize(
    "lines",
    [
        "Ciphers aes256-ctr\nMACs hmac-sha2-512",
        "Ciphers MISSING,aes192-ctr\nMACs hmac-sha2-256-etm@openssh.com",
        "Ciphers ^aes256-gcm@openssh.com",
        "Ciphers -aes*-gcm@openssh.com,chacha*,aes128-ctr\nMACs ^hmac-sha2-512-etm@openssh.com",
        "KexAlgorithms ecdh-sha2-nistp384,curve25519-sha256\nCiphers aes256-ctr\nMACs hmac-sha2-256",
        "KexAlgorithms ^diffie-hellman-group14-sha256\nCiphers aes128-gcm@openssh.com",
        "HostKeyAlgorithms ecdsa-sha2-nistp256\nCiphers aes128-ctr\nMACs hmac-sha2-256",
        "HostKeyAlgorithms rsa-sha2-256,ssh-ed25519\nCiphers aes128-ctr\nMACs hmac-sha2-256",
        "HostKeyAlgorithms ^rsa-sha2-512\nCompression yes\nCiphers aes256-gcm@openssh.com",
        "HostKeyAlgorithms -*ed25519*,rsa*\nCiphers aes256-gcm@openssh.com",
    ],
)
def test_negotiation_agrees_with_ssh(
    own_sshd: Callable[..., Sshd], collect: Path, config: Path, tmp_path: Path, lines: str
) -> None:
    publics = [key_of(tmp_path / kind, kind) for kind in ("rsa", "ecdsa")]
    server = own_sshd(extra=f"{VERBOSE}\nHostKey {tmp_path}/rsa\nHostKey {tmp_path}/ecdsa")
    place = server.known_hosts.read_text().split()[0]
    server.known_hosts.write_text(server.known_hosts.read_text() + "".join(f"{place} {public}" for public in publics))
    (collect / "cback.collect").touch()
    config.write_text(lines.replace("MISSING", "none@example.com") + "\n")
    ours = agreed_by(server, peer_of(server, collect, config).checkCollectIndicator)
    config.write_text("Compression no\n" + lines.replace("MISSING,", "") + "\n")
    theirs = agreed_by(server, lambda: by_ssh(server, config))
    assert len(ours) == len(theirs) == 4
    asked_for = {WHAT[name] for name in WHAT if f"{name} " in lines}
    assert {what for what in ours if what in asked_for and ours[what] != theirs[what]} == set()
    assert all("compression: none" in ours[what] for what in ours if "cipher" in what)


def test_strict_kex_is_always_offered(own_sshd: Callable[..., Sshd], collect: Path, config: Path) -> None:
    server = own_sshd(extra="LogLevel DEBUG3")
    (collect / "cback.collect").touch()
    config.write_text("KexAlgorithms ecdh-sha2-nistp256\n")
    assert peer_of(server, collect, config).checkCollectIndicator()
    assert "will use strict KEX ordering" in server.log


@pytest.mark.parametrize(
    ("listed", "shown"),
    [("rsa-sha2-512,ssh-ed25519", "rsa"), ("^rsa-sha2-512", "rsa"), ("-ecdsa*", "known"), ("+ssh-rsa", "known")],
)
def test_configured_order_of_host_keys_outranks_known_keys(
    own_sshd: Callable[..., Sshd], collect: Path, target: Path, config: Path, tmp_path: Path, listed: str, shown: str
) -> None:
    key_of(tmp_path / "rsa", "rsa")
    server = own_sshd(extra=f"HostKey {tmp_path}/rsa")
    (collect / "a").touch()
    config.write_text(f"HostKeyAlgorithms {listed}\nStrictHostKeyChecking yes\n")
    assert (by_ssh(server, config) == 0) is (shown == "known")
    peer = peer_of(server, collect, config)
    if shown == "known":
        assert peer.stagePeer(str(target)) == 1
    else:
        with pytest.raises(HostKeyError, match="ssh-rsa"):
            peer.stagePeer(str(target))


@pytest.mark.parametrize(
    ("lines", "signed_by"),
    [
        ("PubkeyAcceptedAlgorithms rsa-sha2-256", "rsa-sha2-256"),
        ("PubkeyAcceptedKeyTypes ^rsa-sha2-256", "rsa-sha2-256"),
        ("PubkeyAcceptedAlgorithms -rsa-sha2-512*", "rsa-sha2-256"),
        ("PubkeyAcceptedAlgorithms +ssh-rsa", "rsa-sha2-512"),
        ("PubkeyAcceptedAlgorithms -rsa*", None),
        ("PubkeyAcceptedAlgorithms ssh-ed25519", None),
    ],
)
def test_keys_sign_with_an_accepted_algorithm(
    own_sshd: Callable[..., Sshd],
    collect: Path,
    target: Path,
    config: Path,
    tmp_path: Path,
    lines: str,
    signed_by: str | None,
) -> None:
    server = own_sshd(extra="LogLevel DEBUG2")
    public = key_of(tmp_path / "rsa", "rsa")
    (server.home / "authorized_keys").write_text(public)
    config.write_text(f"{lines}\n")
    (collect / "a").touch()
    peer = peer_of(server, collect, config, identity=str(tmp_path / "rsa"))
    if signed_by is None:
        with pytest.raises(LoginError, match="PubkeyAcceptedAlgorithms allows neither"):
            peer.stagePeer(str(target))
    else:
        assert peer.stagePeer(str(target)) == 1
        assert re.search(rf"pkalg {signed_by}\b", server.log)
        assert not re.search(rf"pkalg (?!{signed_by}\b)", server.log)


@pytest.mark.parametrize(
    ("listed", "patterns", "taken", "ignored"),
    [
        ("b,a", False, ("b", "a"), ()),
        ("+x,c", False, ("a", "b", "c"), ("x",)),
        ("^c,b", False, ("c", "b", "a"), ()),
        ("-b,x", False, ("a", "c"), ()),
        ("-*", False, (), ()),
        ("-?,!b", False, ("b",), ()),
        ("?", False, (), ("?",)),
        ("?", True, ("a", "b", "c"), ()),
        ("a,a,,b", False, ("a", "b"), ()),
    ],
)
def test_algorithm_list_selects_only_supported_names(
    listed: str, patterns: bool, taken: tuple[str, ...], ignored: tuple[str, ...]
) -> None:
    assert filter_algorithms(listed, ("a", "b", "c"), patterns=patterns) == (taken, ignored)


def test_fast_algorithms_come_first_and_none_is_weak() -> None:
    assert KEX[0] == "mlkem768x25519-sha256"
    assert CIPHERS[0] == "aes128-gcm@openssh.com"
    weak = re.compile("sha1|cbc|3des|group1-|md5|dss|arcfour|umac-64")
    assert not [name for name in (*KEX, *CIPHERS, *MACS, *SIGNATURE_ALGORITHMS) if weak.search(name)]

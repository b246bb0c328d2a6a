"""Keys, made in this process; certificates and agents, made by OpenSSH's own programs."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from support.programs import program

_Key = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
_CURVES: dict[int, type[ec.EllipticCurve]] = {256: ec.SECP256R1, 384: ec.SECP384R1, 521: ec.SECP521R1}


def make_key(path: Path, passphrase: str = "", kind: str = "ed25519", bits: int | None = None) -> Path:
    """Make a key pair as ``ssh-keygen`` makes it; return the private one's path.

    Args:
        path: The private key's file; the public one's gets ``.pub`` behind its name.
        passphrase: Encrypts the private key; empty for a key that is not encrypted.
        kind: "ed25519", "ecdsa" or "rsa".
        bits: The size, by default that of ``ssh-keygen``: 256 (ecdsa), 3072 (rsa).
    """
    key = _generate(kind, bits)
    encryption = BestAvailableEncryption(passphrase.encode()) if passphrase else NoEncryption()
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, encryption))
    blob = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    Path(f"{path}.pub").write_text(f"{blob} {path.name}\n")
    return path


def make_key_by_openssh(path: Path, passphrase: str = "", kind: str = "ed25519") -> Path:
    """Make a key pair by ``ssh-keygen`` itself, for tests of what its files hold; return the private one's path."""
    command = [program("ssh-keygen"), "-q", "-t", kind, "-N", passphrase, "-C", path.name, "-f", str(path)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return path


def _generate(kind: str, bits: int | None) -> _Key:
    if kind == "ecdsa":
        return ec.generate_private_key(_CURVES[bits or 256]())
    if kind == "rsa":
        return rsa.generate_private_key(65537, bits or 3072)
    return ed25519.Ed25519PrivateKey.generate()


def certify(
    key: Path,
    authority: Path,
    *principals: str,
    host: bool = False,
    validity: str = "always:forever",
    options: tuple[str, ...] = (),
    algorithm: str | None = None,
) -> Path:
    """Have *authority* sign *key*; return the certificate's path.

    Args:
        key: A private key, whose public one lies beside it.
        authority: The private key that signs.
        principals: Hosts or users it is for.
        host: Whether it is a host's.
        validity: As ``ssh-keygen -V`` takes it.
        options: As ``ssh-keygen -O`` takes them.
        algorithm: By which an RSA authority signs.
    """
    words = ["-h"] if host else []
    words += ["-n", ",".join(principals)] if principals else []
    words += [word for option in options for word in ("-O", option)]
    words += ["-t", algorithm] if algorithm else []
    command = [program("ssh-keygen"), "-q", "-s", str(authority), "-I", key.name, "-V", validity, *words]
    subprocess.run([*command, f"{key}.pub"], check=True, capture_output=True, stdin=subprocess.DEVNULL)
    return key.with_name(f"{key.name}-cert.pub")


def public(path: Path) -> str:
    """Return type and key of a private key's public one, as known_hosts and authorized_keys hold them."""
    return " ".join(Path(f"{path}.pub").read_text().split()[:2])


def blob(path: Path) -> bytes:
    """Return what a public key or certificate file holds, as SSH encodes it."""
    return base64.b64decode(path.read_text().split()[1])


def fingerprint(path: Path) -> str:
    """Return the fingerprint of a private key's public one."""
    digest = hashlib.sha256(blob(Path(f"{path}.pub"))).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


@contextlib.contextmanager
def running_agent(path: Path, *keys: Path, certificates: bool = True) -> Iterator[str]:
    """A real agent with *keys*, in their order, and the certificates beside them; yield its socket."""
    process = subprocess.Popen([program("ssh-agent"), "-D", "-a", str(path)], stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 10
        while not _listens(path):
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.01)
        environment = {**os.environ, "SSH_AUTH_SOCK": str(path)}
        add = [program("ssh-add"), "-q", *([] if certificates else ["-k"])]
        for key in keys:
            subprocess.run([*add, str(key)], env=environment, check=True, stdin=subprocess.DEVNULL)
        yield str(path)
    finally:
        process.terminate()
        process.wait()


def _listens(path: Path) -> bool:
    """Return whether somebody accepts connections at *path*, which exists before that."""
    with socket.socket(socket.AF_UNIX) as sock:
        return sock.connect_ex(str(path)) == 0

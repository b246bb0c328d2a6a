"""Keys made in this process, and certificates and agents made by OpenSSH's programs."""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import itertools
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

from support.programs import require_program

_Key = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
_CURVES: dict[int, type[ec.EllipticCurve]] = {256: ec.SECP256R1, 384: ec.SECP384R1, 521: ec.SECP521R1}


def make_key(path: Path, passphrase: str = "", key_type: str = "ed25519", bits: int | None = None) -> Path:
    """Make a key pair as ``ssh-keygen`` would; return the path of the private key.

    Args:
        path: The file of the private key; the public key's file has the suffix ``.pub``.
        passphrase: The passphrase of the private key; empty for none.
        key_type: "ed25519", "ecdsa" or "rsa".
        bits: The size; the default is as for ``ssh-keygen``: 256 (ecdsa), or smaller: 2048 (rsa).
    """
    key = _generate(key_type, bits)
    encryption = BestAvailableEncryption(passphrase.encode()) if passphrase else NoEncryption()
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, encryption))
    blob = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    Path(f"{path}.pub").write_text(f"{blob} {path.name}\n")
    return path


def make_key_by_openssh(path: Path, passphrase: str = "", key_type: str = "ed25519") -> Path:
    """Make a key pair with ``ssh-keygen``, for tests of its file format; return the path of the private key."""
    run_ssh_keygen("-q", "-t", key_type, "-N", passphrase, "-C", path.name, "-f", path)
    return path


def run_ssh_keygen(*arguments: str | Path, allowed: tuple[int, ...] = (0,)) -> str:
    """Run ssh-keygen; return its output, and fail unless its exit status is *allowed*."""
    command = [require_program("ssh-keygen"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL)
    assert done.returncode in allowed, done.stderr
    return done.stdout


def _generate(key_type: str, bits: int | None) -> _Key:
    if key_type == "ecdsa":
        return ec.generate_private_key(_CURVES[bits or 256]())
    if key_type == "rsa":
        return next(_rsa_keys(bits or 2048))
    return ed25519.Ed25519PrivateKey.generate()


@functools.cache
def _rsa_keys(bits: int) -> Iterator[rsa.RSAPrivateKey]:
    """Return three keys in turn: generating one costs more than most tests."""
    return itertools.cycle(rsa.generate_private_key(65537, bits) for _ in range(3))


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
        key: The private key; the public key is beside it.
        authority: The private key of the certification authority.
        principals: Hosts or users.
        host: Whether to make a host certificate.
        validity: As ``ssh-keygen -V`` takes it.
        options: As ``ssh-keygen -O`` takes them.
        algorithm: The signature algorithm of an RSA authority.
    """
    words = ["-h"] if host else []
    words += ["-n", ",".join(principals)] if principals else []
    words += [word for option in options for word in ("-O", option)]
    words += ["-t", algorithm] if algorithm else []
    run_ssh_keygen("-q", "-s", authority, "-I", key.name, "-V", validity, *words, f"{key}.pub")
    return key.with_name(f"{key.name}-cert.pub")


def public_key(path: Path) -> str:
    """Return the public key of the private key *path* as a line of known_hosts or authorized_keys has it."""
    return " ".join(Path(f"{path}.pub").read_text().split()[:2])


def read_blob(path: Path) -> bytes:
    """Return the key or certificate in a public key file, as SSH encodes it."""
    return base64.b64decode(path.read_text().split()[1])


def fingerprint_of(path: Path) -> str:
    """Return the fingerprint of the private key *path*."""
    digest = hashlib.sha256(read_blob(Path(f"{path}.pub"))).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


@contextlib.contextmanager
def run_agent(path: Path, *keys: Path, certificates: bool = True) -> Iterator[str]:
    """Run ssh-agent with *keys*, in this order, and the certificates beside them; yield its socket."""
    process = subprocess.Popen([require_program("ssh-agent"), "-D", "-a", str(path)], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10
        while not _listens(path):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        environment = {**os.environ, "SSH_AUTH_SOCK": str(path)}
        add = [require_program("ssh-add"), "-q", *([] if certificates else ["-k"])]
        for key in keys:
            subprocess.run([*add, str(key)], env=environment, check=True, stdin=subprocess.DEVNULL)
        yield str(path)
    finally:
        process.terminate()
        process.wait()


def _listens(path: Path) -> bool:
    """Return whether the agent accepts connections at *path*, which exists before it does."""
    with socket.socket(socket.AF_UNIX) as sock:
        return sock.connect_ex(str(path)) == 0

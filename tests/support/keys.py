"""Keys, certificates and agents, made by OpenSSH's own programs."""

from __future__ import annotations

import base64
import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from support.programs import program


def make_key(path: Path, passphrase: str = "", kind: str = "ed25519", bits: int | None = None) -> Path:
    """Make a key pair; return the private one's path."""
    size = () if bits is None else ("-b", str(bits))
    path.parent.mkdir(parents=True, exist_ok=True)
    command = [program("ssh-keygen"), "-q", "-t", kind, *size, "-N", passphrase, "-C", path.name, "-f", str(path)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return path


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
    told = subprocess.run(
        [program("ssh-keygen"), "-l", "-f", f"{path}.pub"], capture_output=True, text=True, check=True
    )
    return told.stdout.split()[1]


@contextlib.contextmanager
def running_agent(path: Path, *keys: Path, certificates: bool = True) -> Iterator[str]:
    """A real agent with *keys*, in their order, and the certificates beside them; yield its socket."""
    process = subprocess.Popen([program("ssh-agent"), "-D", "-a", str(path)], stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 10
        while not path.exists():
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

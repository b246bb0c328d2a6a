"""Private keys: from files, bytes and agents, as paramiko takes them."""

from __future__ import annotations

import base64
import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import paramiko
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from peerstage.session._paramiko import SocketAgent
from peerstage.session.files import read_regular, read_with_status

_MOST_BYTES = 1024 * 1024
_AGENT_TIMEOUT = 2.0
_CLASSES = (
    (rsa.RSAPrivateKey, paramiko.RSAKey),
    (ed25519.Ed25519PrivateKey, paramiko.Ed25519Key),
    (ec.EllipticCurvePrivateKey, paramiko.ECDSAKey),
)
_AGENT_TYPES = frozenset(
    {"ssh-rsa", "ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521"}
)


class UnusableKey(Exception):
    """A private key that can not be used, with the reason in words."""


def read_key(path: str, passphrase: str | None) -> paramiko.PKey:
    """Return the private key in the file *path*.

    Raises:
        UnusableKey: It is not there, can not be read or opened, is the caller's own and open to others (as for ssh), or
            is of a type that is not supported.
    """
    try:
        data, status = read_with_status(path, _MOST_BYTES)
    except OSError as exc:
        raise UnusableKey(exc.strerror or "unreadable") from exc
    if hasattr(os, "geteuid") and status.st_uid == os.geteuid() and status.st_mode & 0o077:
        raise UnusableKey(f"others can read it (mode {stat.S_IMODE(status.st_mode):04o}); ssh ignores it: chmod 600")
    return parse_key(data, passphrase)


def parse_key(data: bytes, passphrase: str | None) -> paramiko.PKey:
    """Return the private key that *data* holds: OpenSSH, PKCS#8 or traditional PEM; RSA, ECDSA or Ed25519.

    Raises:
        UnusableKey: It is not one, or needs another passphrase.
    """
    password = None if passphrase is None else passphrase.encode()
    load = serialization.load_ssh_private_key if b"OPENSSH PRIVATE KEY" in data else serialization.load_pem_private_key
    try:
        try:
            loaded = load(data, password)
        except TypeError:
            if password is None:
                raise UnusableKey("it has a passphrase, and none was given") from None
            loaded = load(data, None)  # a passphrase that is not needed is no fault
    except UnusableKey:
        raise
    except Exception as exc:
        reason = "wrong passphrase, or a damaged key" if passphrase is not None else "not a private key, or damaged"
        raise UnusableKey(reason) from exc
    for kind, ours in _CLASSES:
        if isinstance(loaded, kind):
            plain = loaded.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
            )
            return ours.from_private_key(io.StringIO(plain.decode("ascii")))
    raise UnusableKey(f"keys of this type ({type(loaded).__name__}) are not supported")


def public_blob(path: str) -> bytes | None:
    """Return the public key that lies beside the private key *path*, as SSH encodes it; None if there is none."""
    try:
        return base64.b64decode(read_regular(path + ".pub", _MOST_BYTES).split()[1], validate=True)
    except (OSError, IndexError, ValueError):
        return None


def describe(key: paramiko.PKey) -> str:
    """Return a key's type and fingerprint, as ssh shows it."""
    return f"{key.get_name()} {key.fingerprint}"


class AgentKeys:
    """The usable keys of an ssh agent, and the connection that signs with them.

    Args:
        path: The agent's socket.

    Raises:
        UnusableKey: No agent answers there within two seconds.
    """

    def __init__(self, path: str) -> None:
        try:
            self._agent = SocketAgent(path, _AGENT_TIMEOUT)
        except (OSError, paramiko.SSHException, ValueError, IndexError) as exc:
            raise UnusableKey(str(exc) or "no answer") from exc

    def __iter__(self) -> Iterator[paramiko.PKey]:
        return (key for key in self._agent.get_keys() if key.get_name() in _AGENT_TYPES)

    def close(self) -> None:
        """Close the connection to the agent."""
        self._agent.close()


def default_label(path: str) -> str:
    """Return *path* as it is shown in messages: below the home directory with ``~``."""
    home = str(Path.home())
    return "~" + path[len(home) :] if path.startswith(home + "/") else path

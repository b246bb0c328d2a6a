"""Keys in files: private ones as paramiko takes them, public ones and certificates as SSH encodes them."""

from __future__ import annotations

import base64
import contextlib
import errno
import io
import os
import stat
import struct

import paramiko
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from peerstage.errors import escape
from peerstage.reasons import Reason
from peerstage.session.agent import UnusableKey
from peerstage.session.algorithms import CERTIFICATE
from peerstage.session.certificates import Certificate, blob_type
from peerstage.session.files import read_regular, read_with_status
from peerstage.session.known_hosts import fingerprint

_MOST_BYTES = 1024 * 1024
_MAGIC = b"openssh-key-v1\0"
_CLASSES = (
    (rsa.RSAPrivateKey, paramiko.RSAKey),
    (ed25519.Ed25519PrivateKey, paramiko.Ed25519Key),
    (ec.EllipticCurvePrivateKey, paramiko.ECDSAKey),
)


def read_key(path: str, passphrase: str | None) -> paramiko.PKey:
    """Return the private key in the file *path*.

    Raises:
        UnusableKey: It is not there, can not be read or opened, is the caller's own and open to others (as for ssh), or
            is of a type that is not supported.
    """
    try:
        data, status = read_with_status(path, _MOST_BYTES)
    except OSError as exc:
        raise _unreadable(exc) from exc
    if _is_public(data):
        raise UnusableKey("it is a public key, and no agent has the private one", Reason.PUBLIC_KEY_ONLY)
    if hasattr(os, "geteuid") and status.st_uid == os.geteuid() and status.st_mode & 0o077:
        raise UnusableKey(
            f"others can read it (mode {stat.S_IMODE(status.st_mode):04o}), so that ssh ignores it",
            Reason.KEY_FILE_PERMISSIONS,
        )
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
                raise UnusableKey("it has a passphrase, and none was given", Reason.PASSPHRASE_MISSING) from None
            loaded = load(data, None)  # a passphrase that is not needed is no fault
    except UnusableKey:
        raise
    except Exception as exc:
        if _is_on_a_token(data):
            raise UnusableKey("it is on a FIDO token, which only an agent can use", Reason.KEY_ON_TOKEN) from exc
        if passphrase is not None:
            raise UnusableKey("wrong passphrase, or a damaged key", Reason.PASSPHRASE_WRONG) from exc
        raise UnusableKey("not a private key, or damaged", Reason.KEY_INVALID) from exc
    try:
        for kind, ours in _CLASSES:
            if isinstance(loaded, kind):
                plain = loaded.private_bytes(
                    serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
                )
                return ours.from_private_key(io.StringIO(plain.decode("ascii")))
    except Exception as exc:  # a curve, or a size, that SSH does not know
        raise UnusableKey(f"keys of this kind are not supported ({exc})", Reason.KEY_UNSUPPORTED) from exc
    raise UnusableKey(f"keys of this type ({type(loaded).__name__}) are not supported", Reason.KEY_UNSUPPORTED)


def public_blob(path: str) -> bytes | None:
    """Return the public key that the identity file *path* stands for, as SSH encodes it; None if nothing tells.

    As for ssh, the file may itself be a public key, whose private one an agent has; else it is the file beside it, or
    the private key.
    """
    for place in (path, path + ".pub"):
        with contextlib.suppress(UnusableKey):
            return read_public(place)
    try:
        return _public_part(read_regular(path, _MOST_BYTES))
    except (OSError, ValueError, struct.error):
        return None


def read_public(path: str) -> bytes:
    """Return the public key or certificate in the file *path*, as SSH encodes it.

    Raises:
        UnusableKey: There is none.
    """
    try:
        return _parse_public(read_regular(path, _MOST_BYTES))
    except OSError as exc:
        raise _unreadable(exc) from exc
    except ValueError:
        raise UnusableKey("no public key or certificate", Reason.CERTIFICATE_INVALID) from None


def _unreadable(exc: OSError) -> UnusableKey:
    is_missing = exc.errno in (errno.ENOENT, errno.ENOTDIR)
    reason = Reason.KEY_FILE_MISSING if is_missing else Reason.KEY_FILE_UNREADABLE
    return UnusableKey(exc.strerror or "unreadable", reason)


def _parse_public(data: bytes) -> bytes:
    kind, text = data.split()[:2]
    blob = base64.b64decode(text, validate=True)
    if blob_type(blob) != kind.decode("ascii"):
        raise ValueError("the key is not of the type that the line says")
    return blob


def _is_public(data: bytes) -> bool:
    try:
        return bool(_parse_public(data))
    except ValueError:
        return False


def _public_part(data: bytes) -> bytes:
    """Return the public key of a private key in OpenSSH's own format, which shows it even if it has a passphrase."""
    text = data.partition(b"-----BEGIN OPENSSH PRIVATE KEY-----")[2].partition(b"-----END")[0]
    binary = base64.b64decode(b"".join(text.split()), validate=True)
    at = len(_MAGIC)
    if not binary.startswith(_MAGIC):
        raise ValueError("not a private key of OpenSSH's")
    for _ in range(3):  # cipher, key derivation and its options
        at += 4 + int(struct.unpack_from(">I", binary, at)[0])
    count, length = struct.unpack_from(">II", binary, at)
    if count != 1:
        raise ValueError("not one key")
    return binary[at + 8 : at + 8 + length]


def _is_on_a_token(data: bytes) -> bool:
    """Whether the private key *data* is only what a FIDO token needs to find the key."""
    try:
        return blob_type(_public_part(data)).startswith("sk-")
    except (ValueError, struct.error):
        return False


def show(blob: bytes) -> str:
    """Return the type and the fingerprint of a key or certificate, as ssh shows it."""
    kind = blob_type(blob)
    if not kind.endswith(CERTIFICATE):
        return f"{escape(kind)} {fingerprint(blob)}"
    certificate = Certificate.parse(blob)
    return f"{kind} {fingerprint(certificate.key)}, valid {certificate.validity}"


def default_label(path: str) -> str:
    """Return *path* as it is shown in messages: below the home directory with ``~``."""
    home = os.path.expanduser("~")
    return "~" + path[len(home) :] if path.startswith(home + "/") else path

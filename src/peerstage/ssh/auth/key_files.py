"""Key files: private keys as paramiko's objects, public keys and certificates as SSH encodes them."""

from __future__ import annotations

import base64
import contextlib
import errno
import io
import os
import stat

import paramiko
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from peerstage.bounded_files import read_file_and_status, read_regular_file
from peerstage.printable import escape
from peerstage.reasons import Reason
from peerstage.ssh.algorithms import CERT_SUFFIX
from peerstage.ssh.auth.agent import UnusableKey
from peerstage.ssh.data_types import DataReader
from peerstage.ssh.keys.certificates import Certificate
from peerstage.ssh.keys.public_keys import fingerprint, parse_key_type

_MAX_BYTES = 1024 * 1024
_OPENSSH_MAGIC = b"openssh-key-v1\0"  # OpenSSH's PROTOCOL.key
_PKEY_CLASSES = (
    (rsa.RSAPrivateKey, paramiko.RSAKey),
    (ed25519.Ed25519PrivateKey, paramiko.Ed25519Key),
    (ec.EllipticCurvePrivateKey, paramiko.ECDSAKey),
)


def load_private_key(path: str, passphrase: str | None) -> paramiko.PKey:
    """Return the private key in the file *path*.

    Raises:
        UnusableKey: If the file is missing, unreadable, or the user's own and accessible to others (as in ssh), or if
            `parse_private_key` fails.
    """
    try:
        data, status = read_file_and_status(path, _MAX_BYTES)
    except OSError as exc:
        raise _file_error(exc) from exc
    with contextlib.suppress(ValueError):
        _parse_public_key(data)
        raise UnusableKey("it is a public key, and no agent has the private one", Reason.PUBLIC_KEY_ONLY)
    if hasattr(os, "geteuid") and status.st_uid == os.geteuid() and status.st_mode & 0o077:
        raise UnusableKey(
            f"others can access it (mode {stat.S_IMODE(status.st_mode):04o}), so ssh ignores it",
            Reason.KEY_FILE_PERMISSIONS,
        )
    return parse_private_key(data, passphrase)


def parse_private_key(data: bytes, passphrase: str | None) -> paramiko.PKey:
    """Return the RSA, ECDSA or Ed25519 key that *data* holds in OpenSSH's format, PKCS#8 or traditional PEM.

    Raises:
        UnusableKey: If it is not such a key, or the passphrase is missing or wrong.
    """
    password = None if passphrase is None else passphrase.encode()
    load = serialization.load_ssh_private_key if b"OPENSSH PRIVATE KEY" in data else serialization.load_pem_private_key
    try:
        try:
            loaded = load(data, password)
        except TypeError:
            if password is None:
                raise UnusableKey("it has a passphrase, and none was given", Reason.PASSPHRASE_MISSING) from None
            loaded = load(data, None)  # a passphrase that is not needed is ignored
    except UnusableKey:
        raise
    except Exception as exc:
        with contextlib.suppress(ValueError):
            if parse_key_type(_parse_public_part(data)).startswith("sk-"):
                raise UnusableKey("it is on a FIDO token, which only an agent can use", Reason.KEY_ON_TOKEN) from exc
        if passphrase is not None:
            raise UnusableKey("wrong passphrase, or a damaged key", Reason.PASSPHRASE_WRONG) from exc
        raise UnusableKey("not a private key, or damaged", Reason.KEY_INVALID) from exc
    try:
        for loaded_class, pkey_class in _PKEY_CLASSES:
            if isinstance(loaded, loaded_class):
                pem = loaded.private_bytes(
                    serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
                )
                return pkey_class.from_private_key(io.StringIO(pem.decode("ascii")))
    except Exception as exc:  # SSH has no such curve or size
        raise UnusableKey(f"keys of this kind are not supported ({exc})", Reason.KEY_UNSUPPORTED) from exc
    raise UnusableKey(f"keys of this type ({type(loaded).__name__}) are not supported", Reason.KEY_UNSUPPORTED)


def find_public_key(path: str) -> bytes | None:
    """Return the public key of the identity file *path*, as SSH encodes it; None if it cannot be determined.

    As in ssh, the file may itself be a public key whose private key an agent holds; otherwise the public key is in the
    ``.pub`` file beside it, or in the private key.
    """
    for candidate in (path, path + ".pub"):
        with contextlib.suppress(UnusableKey):
            return load_public_key(candidate)
    try:
        return _parse_public_part(read_regular_file(path, _MAX_BYTES))
    except (OSError, ValueError):
        return None


def load_public_key(path: str) -> bytes:
    """Return the public key or certificate in the file *path*, as SSH encodes it.

    Raises:
        UnusableKey: If the file is missing or unreadable, or holds neither.
    """
    try:
        return _parse_public_key(read_regular_file(path, _MAX_BYTES))
    except OSError as exc:
        raise _file_error(exc) from exc
    except ValueError:
        raise UnusableKey("no public key or certificate", Reason.CERTIFICATE_INVALID) from None


def _file_error(exc: OSError) -> UnusableKey:
    is_missing = exc.errno in (errno.ENOENT, errno.ENOTDIR)
    reason = Reason.KEY_FILE_MISSING if is_missing else Reason.KEY_FILE_UNREADABLE
    return UnusableKey(exc.strerror or "unreadable", reason)


def _parse_public_key(data: bytes) -> bytes:
    key_type, text = data.split()[:2]
    blob = base64.b64decode(text, validate=True)
    if parse_key_type(blob) != key_type.decode("ascii"):
        raise ValueError("the key is not of the type that the line names")
    return blob


def _parse_public_part(data: bytes) -> bytes:
    """Return the public key of a private key in OpenSSH's format, which is readable without the passphrase."""
    text = data.partition(b"-----BEGIN OPENSSH PRIVATE KEY-----")[2].partition(b"-----END")[0]
    binary = base64.b64decode(b"".join(text.split()), validate=True)
    if not binary.startswith(_OPENSSH_MAGIC):
        raise ValueError("not a private key in OpenSSH's format")
    reader = DataReader(binary[len(_OPENSSH_MAGIC) :])
    for _ in ("cipher", "KDF", "KDF options"):
        reader.skip_string()
    if reader.read_uint32() != 1:
        raise ValueError("it does not hold exactly one key")
    return reader.read_string()


def describe_key(blob: bytes) -> str:
    """Return the type and fingerprint of a key, or of a certificate's key with its validity.

    Raises:
        ValueError: If *blob* is neither.
    """
    key_type = parse_key_type(blob)
    if not key_type.endswith(CERT_SUFFIX):
        return f"{escape(key_type)} {fingerprint(blob)}"
    certificate = Certificate.parse(blob)
    return f"{key_type} {fingerprint(certificate.key)}, valid {certificate.validity}"


def abbreviate_home(path: str) -> str:
    """Return *path* for messages, with ``~`` for the home directory."""
    home = os.path.expanduser("~")
    return "~" + path[len(home) :] if path.startswith(home + "/") else path

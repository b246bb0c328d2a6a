"""Public keys as SSH encodes them (RFC 4253, 6.6): their type and fingerprint, and verification of their signatures.

`cryptography` loads keys and verifies raw signatures. Key types, signature algorithms and the signatures of FIDO tokens
(OpenSSH's PROTOCOL.u2f) are read here.
"""

from __future__ import annotations

import base64
from hashlib import sha256

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from paramiko.message import Message

from peerstage.ssh.data_types import DataReader

SK_ED25519, SK_ECDSA = "sk-ssh-ed25519@openssh.com", "sk-ecdsa-sha2-nistp256@openssh.com"
#: The hash of each signature algorithm that does not imply its own. SHA-1 is absent.
_HASHES: dict[str, hashes.HashAlgorithm] = {
    "rsa-sha2-256": hashes.SHA256(),
    "rsa-sha2-512": hashes.SHA512(),
    "ecdsa-sha2-nistp256": hashes.SHA256(),
    "ecdsa-sha2-nistp384": hashes.SHA384(),
    "ecdsa-sha2-nistp521": hashes.SHA512(),
    SK_ECDSA: hashes.SHA256(),
}
_FLAGS_AND_COUNTER = 5


def parse_key_type(blob: bytes) -> str:
    """Return the type of the key or certificate *blob*; raise `ValueError` if it is neither."""
    return DataReader(blob).read_text()


def fingerprint(blob: bytes) -> str:
    """Return the SHA-256 fingerprint of the public key *blob*, as ``ssh-keygen -l`` prints it."""
    return "SHA256:" + base64.b64encode(sha256(blob).digest()).rstrip(b"=").decode("ascii")


def format_public_key(blob: bytes) -> str:
    """Return the key or certificate *blob* as a line of authorized_keys, without a comment."""
    return f"{parse_key_type(blob)} {base64.b64encode(blob).decode('ascii')}"


def rsa_bits(blob: bytes) -> int | None:
    """Return the number of bits of the RSA key *blob*, None for another type; raise `ValueError` if it is not a key."""
    reader = DataReader(blob)
    if reader.read_text() != "ssh-rsa":
        return None
    reader.skip_string()  # the exponent
    modulus = reader.read_mpint()
    reader.expect_end()
    if modulus <= 0:
        raise ValueError("the modulus is not positive")
    return modulus.bit_length()


class PublicKey:
    """A public key that verifies signatures. The private key may be in a FIDO token.

    Args:
        blob: The key, as SSH encodes it.

    Raises:
        ValueError: If it is not a key of a supported type.
        cryptography.exceptions.UnsupportedAlgorithm: If `cryptography` does not support its curve.
    """

    def __init__(self, blob: bytes) -> None:
        self._type = parse_key_type(blob)
        self._key: serialization.SSHPublicKeyTypes
        self._application: bytes | None = None
        if self._type in (SK_ED25519, SK_ECDSA):
            self._key, self._application = _load_security_key(blob)
        else:
            self._key = serialization.load_ssh_public_key(format_public_key(blob).encode())

    def verify_ssh_sig(self, data: bytes, message: Message) -> bool:
        """Return whether the signature in *message* is this key's signature of *data*. paramiko's name for `verify`."""
        return self.verify(data, message.asbytes())

    def verify(self, data: bytes, signature: bytes) -> bool:
        """Return whether *signature*, as SSH encodes it, is this key's signature of *data*."""
        try:
            self._verify(data, DataReader(signature))
        except (InvalidSignature, ValueError, KeyError):  # KeyError: an unknown "rsa-..." algorithm
            return False
        return True

    def _verify(self, data: bytes, reader: DataReader) -> None:
        algorithm, raw = reader.read_text(), reader.read_string()
        if self._application is not None:
            data = _signed_by_token(self._application, data, flags_and_counter=reader.read_remaining())
        reader.expect_end()
        if isinstance(self._key, rsa.RSAPublicKey) and algorithm.startswith("rsa-"):
            raw = raw.rjust((self._key.key_size + 7) // 8, b"\0")  # some signers omit leading zeros
            self._key.verify(raw, data, padding.PKCS1v15(), _HASHES[algorithm])
        elif algorithm != self._type:
            raise InvalidSignature
        elif isinstance(self._key, ed25519.Ed25519PublicKey):
            self._key.verify(raw, data)
        elif isinstance(self._key, ec.EllipticCurvePublicKey):
            numbers = DataReader(raw)
            r, s = numbers.read_mpint(), numbers.read_mpint()
            numbers.expect_end()
            self._key.verify(encode_dss_signature(r, s), data, ec.ECDSA(_HASHES[algorithm]))
        else:  # such as ssh-rsa, which is RSA with SHA-1
            raise InvalidSignature


def _load_security_key(blob: bytes) -> tuple[ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey, bytes]:
    """Return the public key in a FIDO token, and the application that it is for."""
    key_type, *fields = DataReader(blob)
    if key_type == SK_ED25519.encode():
        point, application = fields
        return ed25519.Ed25519PublicKey.from_public_bytes(point), application
    curve, point, application = fields
    if curve != b"nistp256":
        raise ValueError("the curve is not nistp256")
    return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point), application


def _signed_by_token(application: bytes, data: bytes, *, flags_and_counter: bytes) -> bytes:
    """Return what a FIDO token signs: a hash of the application, its flags and counter, and a hash of the data.

    As in ssh, the flag for user presence is not checked: only servers have a policy about it, for users' keys.
    """
    if len(flags_and_counter) != _FLAGS_AND_COUNTER:
        raise InvalidSignature
    return sha256(application).digest() + flags_and_counter + sha256(data).digest()

"""OpenSSH certificates (PROTOCOL.certkeys): read, and held against the authority that is to vouch for them."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass

import paramiko
from paramiko.message import Message

from peerstage.errors import escape
from peerstage.session.algorithms import CA_SIGNATURES, CERTIFICATE, plain_algorithm
from peerstage.session.fields import Fields, string
from peerstage.session.patterns import match_pattern
from peerstage.session.security_keys import ECDSA, ED25519, SecurityKey

USER, HOST = 1, 2
_FOREVER = 2**64 - 1
#: The least an RSA key has to have, of a host as of an authority.
_RSA_BITS = 2048
_MOST_PRINCIPALS = 256
#: Fields of the public key, behind the nonce.
_KEY_FIELDS = {
    "ssh-ed25519": 1,
    "ssh-rsa": 2,
    "ecdsa-sha2-nistp256": 2,
    "ecdsa-sha2-nistp384": 2,
    "ecdsa-sha2-nistp521": 2,
    ED25519: 2,
    ECDSA: 3,
}


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate as it is written, not yet believed. Made by `parse`.

    Attributes:
        kind: Its type, such as ``ssh-ed25519-cert-v01@openssh.com``.
        key: The public key that it certifies, as SSH encodes it.
        role: `USER` or `HOST`.
        key_id: What the authority calls it.
        principals: Who it is for.
        valid_after: Seconds since the epoch from which it holds.
        valid_before: Seconds since the epoch from which it holds no more.
        critical: Names of its critical options.
        authority: The public key that signed it, as SSH encodes it.
        signature: The signature, as SSH encodes it.
        signed: What is signed.
    """

    kind: str
    key: bytes
    role: int
    key_id: str
    principals: tuple[str, ...]
    valid_after: int
    valid_before: int
    critical: tuple[str, ...]
    authority: bytes
    signature: bytes
    signed: bytes

    @classmethod
    def parse(cls, blob: bytes) -> Certificate:
        """Return the certificate that *blob* is.

        Raises:
            ValueError: It is none, or one of a type that is not supported.
        """
        fields = Fields(blob)
        kind = fields.text()
        plain = plain_algorithm(kind)
        if plain == kind or plain not in _KEY_FIELDS:
            raise ValueError(f"{kind!r} is no type of certificate that is supported")
        fields.string()  # the nonce
        key = string(plain.encode()) + b"".join(string(fields.string()) for _ in range(_KEY_FIELDS[plain]))
        fields.number(">Q")  # the serial
        role, key_id = fields.number(">I"), fields.text()
        principals = tuple(name.decode("utf-8", "surrogateescape") for name in Fields(fields.string()))
        if len(principals) > _MOST_PRINCIPALS:
            raise ValueError(f"it has more than {_MOST_PRINCIPALS} principals")
        valid_after, valid_before = fields.number(">Q"), fields.number(">Q")
        critical = tuple(name.decode("utf-8", "replace") for name in list(Fields(fields.string()))[::2])
        fields.string()  # extensions, which a client has no use for
        fields.string()  # reserved
        authority = fields.string()
        signed = blob[: fields.at]
        signature = fields.string()
        if fields.at != len(blob):
            raise ValueError("something follows its signature")
        return cls(
            kind, key, role, key_id, principals, valid_after, valid_before, critical, authority, signature, signed
        )

    @property
    def key_type(self) -> str:
        """The type of the key that it certifies."""
        return plain_algorithm(self.kind)

    @property
    def validity(self) -> str:
        """When it holds, in words."""
        since = "always" if not self.valid_after else f"{_date(self.valid_after)}"
        until = "forever" if self.valid_before >= _FOREVER else f"{_date(self.valid_before)}"
        return "forever" if (since, until) == ("always", "forever") else f"from {since} to {until}"

    def why_not(self, host: str, now: float, accepted: Collection[str] = CA_SIGNATURES) -> str | None:
        """Return why this does not certify the key of *host* at the time *now*; None if it does.

        Its authority may sign by one of the *accepted* algorithms (CASignatureAlgorithms).

        Whether `authority` is one that is trusted is not looked at: the caller knows. As for ssh from 10.3 on, a
        principal may hold wildcards, and a certificate without principals is for no host, not for all of them. As for
        every ssh, a principal with capital letters is nobody's.
        """
        if self.role != HOST:
            return "it is not a host's"
        if now < self.valid_after or now >= self.valid_before:
            state = "not valid yet" if now < self.valid_after else "expired"
            return f"it is {state} (valid {self.validity})"
        if not any(match_pattern(host.lower(), name) for name in self.principals):
            return f"it is for {', '.join(map(escape, self.principals)) or 'no host (it names no principals)'}"
        if self.critical:
            return f"it has critical options that are unknown ({', '.join(map(escape, self.critical))})"
        return self._why_not_signed(accepted)

    def _why_not_signed(self, accepted: Collection[str]) -> str | None:
        try:
            algorithm = blob_type(self.signature)
            if algorithm not in accepted or blob_type(self.authority) not in _KEY_FIELDS:
                return f"its authority signs by {escape(algorithm)}, which is not accepted"
            keys = (self.authority, self.key)
            authority, _ = map(_verifier, keys)
            if any(bits is not None and bits < _RSA_BITS for bits in map(rsa_bits, keys)):
                return f"an RSA key in it has fewer than {_RSA_BITS} bits"
            if isinstance(authority, paramiko.PKey):
                _refuse_what_follows(self.signature)
            if not authority.verify_ssh_sig(self.signed, Message(self.signature)):
                return "its signature is wrong"
        except Exception as exc:  # whatever cryptography makes of keys and signatures that are none
            return f"its signature can not be verified ({type(exc).__name__})"
        return None


def _verifier(blob: bytes) -> paramiko.PKey | SecurityKey:
    kind = blob_type(blob)
    return SecurityKey(blob) if kind in (ED25519, ECDSA) else paramiko.PKey.from_type_string(kind, blob)


def _refuse_what_follows(signature: bytes) -> None:
    """Raise `ValueError` if anything stands behind the signature or its numbers, which paramiko would ignore."""
    name, raw = Fields(signature)
    if name.startswith(b"ecdsa-"):
        _r, _s = Fields(raw)


def blob_type(blob: bytes) -> str:
    """Return the type of the key or certificate *blob*.

    Raises:
        ValueError: It is none.
    """
    return Fields(blob).text()


def plain_key(blob: bytes) -> bytes:
    """Return the key that *blob* is, or that the certificate *blob* is for.

    Raises:
        ValueError: If it is none.
    """
    return Certificate.parse(blob).key if blob_type(blob).endswith(CERTIFICATE) else blob


def rsa_bits(blob: bytes) -> int | None:
    """Return how many bits the RSA key *blob* has; None for one of another type.

    Raises:
        ValueError: It is no key.
    """
    if blob_type(blob) != "ssh-rsa":
        return None
    _, _, modulus = Fields(blob)
    return int.from_bytes(modulus, "big").bit_length()


def _date(seconds: int) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
    except (OverflowError, ValueError, OSError):
        return str(seconds)

"""OpenSSH certificates (PROTOCOL.certkeys): the parser, and the checks of a host certificate."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass

from peerstage.printable import escape
from peerstage.ssh.algorithms import CA_SIGNATURE_ALGORITHMS, CERT_SUFFIX, plain_algorithm
from peerstage.ssh.data_types import DataReader, pack_string
from peerstage.ssh.keys.public_keys import SK_ECDSA, SK_ED25519, PublicKey, parse_key_type, rsa_bits
from peerstage.ssh.patterns import match_pattern

#: Certificate types.
USER, HOST = 1, 2
_FOREVER = 2**64 - 1
#: The minimum size of an RSA key, the certified one and the authority's.
_MIN_RSA_BITS = 2048
_MAX_PRINCIPALS = 256
#: The number of fields of each public key; they follow the nonce.
_KEY_FIELDS = {
    "ssh-ed25519": 1,
    "ssh-rsa": 2,
    "ecdsa-sha2-nistp256": 2,
    "ecdsa-sha2-nistp384": 2,
    "ecdsa-sha2-nistp521": 2,
    SK_ED25519: 2,
    SK_ECDSA: 3,
}


@dataclass(frozen=True, slots=True)
class Certificate:
    """The fields of a certificate, not verified yet. Made by `parse`.

    The class in `cryptography` does not serve here: it accepts signatures with SHA-1 without telling the algorithm, and
    rejects certificates of keys in FIDO tokens.

    Attributes:
        algorithm: Its public key algorithm, such as ``ssh-ed25519-cert-v01@openssh.com``.
        key: The certified public key, as SSH encodes it.
        cert_type: `USER` or `HOST`.
        key_id: The authority's name for it.
        principals: The users or hosts that it is for; they may hold wildcards.
        valid_after: The start of its validity, in seconds since the epoch.
        valid_before: The end of its validity, in seconds since the epoch.
        critical_options: The names of its critical options.
        authority: The public key of the certification authority that signed it, as SSH encodes it.
        signature: The signature, as SSH encodes it.
        signed_data: The bytes that are signed.
    """

    algorithm: str
    key: bytes
    cert_type: int
    key_id: str
    principals: tuple[str, ...]
    valid_after: int
    valid_before: int
    critical_options: tuple[str, ...]
    authority: bytes
    signature: bytes
    signed_data: bytes

    @classmethod
    def parse(cls, blob: bytes) -> Certificate:
        """Return the fields of the certificate *blob*.

        Raises:
            ValueError: If it is not a certificate of a supported type.
        """
        reader = DataReader(blob)
        algorithm = reader.read_text()
        plain = plain_algorithm(algorithm)
        if plain == algorithm or plain not in _KEY_FIELDS:
            raise ValueError(f"{algorithm!r} is not a supported type of certificate")
        reader.skip_string()  # the nonce
        fields = (reader.read_string() for _ in range(_KEY_FIELDS[plain]))
        key = b"".join(map(pack_string, (plain.encode(), *fields)))
        reader.read_uint64()  # the serial number
        cert_type, key_id = reader.read_uint32(), reader.read_text()
        principals = tuple(name.decode("utf-8", "surrogateescape") for name in DataReader(reader.read_string()))
        if len(principals) > _MAX_PRINCIPALS:
            raise ValueError(f"it has more than {_MAX_PRINCIPALS} principals")
        after, before = reader.read_uint64(), reader.read_uint64()
        names = list(DataReader(reader.read_string()))[::2]  # of the critical options, each followed by its data
        options = tuple(name.decode("utf-8", "replace") for name in names)
        reader.skip_string()  # the extensions, which grant permissions to users
        reader.skip_string()  # reserved
        authority = reader.read_string()
        signed_data = blob[: reader.position]
        signature = reader.read_string()
        reader.expect_end()
        return cls(
            algorithm, key, cert_type, key_id, principals, after, before, options, authority, signature, signed_data
        )

    @property
    def key_type(self) -> str:
        """The type of the certified key."""
        return plain_algorithm(self.algorithm)

    @property
    def validity(self) -> str:
        """The period of its validity in words, such as "from 2024-01-01 00:00:00 UTC to forever"."""
        since = "always" if not self.valid_after else _format_time(self.valid_after)
        until = "forever" if self.valid_before >= _FOREVER else _format_time(self.valid_before)
        return "forever" if (since, until) == ("always", "forever") else f"from {since} to {until}"

    def validation_error(
        self, host: str, now: float, accepted: Collection[str] = CA_SIGNATURE_ALGORITHMS
    ) -> str | None:
        """Return why this does not certify the key of *host* at the time *now*; None if it does.

        The caller decides whether `authority` is trusted. As in ssh since 10.3, a principal may hold wildcards, and a
        certificate without principals is valid for no host rather than for all of them. As in every version of ssh, a
        principal with capital letters matches nothing.

        Args:
            host: The name by which the host is known.
            now: Seconds since the epoch.
            accepted: The algorithms by which the authority may sign (CASignatureAlgorithms).
        """
        if self.cert_type != HOST:
            return "it is not a host certificate"
        if now < self.valid_after or now >= self.valid_before:
            state = "not valid yet" if now < self.valid_after else "expired"
            return f"it is {state} (valid {self.validity})"
        if not any(match_pattern(host.lower(), name) for name in self.principals):
            return f"it is for {', '.join(map(escape, self.principals)) or 'no host (it lists no principals)'}"
        if self.critical_options:
            return f"it has unknown critical options ({', '.join(map(escape, self.critical_options))})"
        return self._signature_error(accepted)

    def _signature_error(self, accepted: Collection[str]) -> str | None:
        try:
            algorithm = DataReader(self.signature).read_text()
            if algorithm not in accepted or parse_key_type(self.authority) not in _KEY_FIELDS:
                return f"its authority signs by {escape(algorithm)}, which is not accepted"
            keys = (self.authority, self.key)
            authority, _ = map(PublicKey, keys)
            if any(bits is not None and bits < _MIN_RSA_BITS for bits in map(rsa_bits, keys)):
                return f"it holds an RSA key of fewer than {_MIN_RSA_BITS} bits"
            if not authority.verify(self.signed_data, self.signature):
                return "its signature is wrong"
        except Exception as exc:  # `cryptography` rejects malformed keys with exceptions of many types
            return f"its signature cannot be verified ({type(exc).__name__})"
        return None


def plain_key(blob: bytes) -> bytes:
    """Return the key *blob*, or the key that the certificate *blob* certifies.

    Raises:
        ValueError: If it is neither.
    """
    return Certificate.parse(blob).key if parse_key_type(blob).endswith(CERT_SUFFIX) else blob


def _format_time(seconds: int) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
    except (OverflowError, ValueError, OSError):
        return str(seconds)

"""Algorithms to offer in the key exchange (RFC 4253, 7.1), the cheapest first; none with SHA-1, CBC or 3DES."""

from __future__ import annotations

from dataclasses import dataclass

from peerstage.ssh.patterns import match_pattern, match_pattern_list

#: AES-GCM first: it authenticates while it encrypts, which saves a pass over the data and several copies.
CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "aes192-ctr", "aes256-ctr")
#: Encrypt-then-MAC last: a server without strict key exchange must not negotiate it (CVE-2023-48795).
MACS = ("hmac-sha2-256", "hmac-sha2-512", "hmac-sha2-256-etm@openssh.com", "hmac-sha2-512-etm@openssh.com")
KEX = (
    "mlkem768x25519-sha256",
    "curve25519-sha256",
    "curve25519-sha256@libssh.org",
    "ecdh-sha2-nistp256",
    "ecdh-sha2-nistp384",
    "ecdh-sha2-nistp521",
    "diffie-hellman-group-exchange-sha256",
    "diffie-hellman-group16-sha512",
    "diffie-hellman-group14-sha256",
)
_PLAIN = (
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
    "rsa-sha2-512",
    "rsa-sha2-256",
)
CERT_SUFFIX = "-cert-v01@openssh.com"
_DOMAIN = "@openssh.com"
#: For host keys and users' keys; certificates first, as for ssh.
SIGNATURE_ALGORITHMS = (*(name.removesuffix(_DOMAIN) + CERT_SUFFIX for name in _PLAIN), *_PLAIN)
#: For the signatures in certificates.
CA_SIGNATURE_ALGORITHMS = _PLAIN
#: Limits for the same session keys: bytes in either direction, and seconds (RFC 4253, 9).
REKEY_BYTES = 1 << 30
REKEY_SECONDS = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Algorithms:
    """Names of algorithms in order of preference, and limits for key re-exchange.

    Attributes:
        kex: Key exchange methods (KexAlgorithms).
        host_keys: Algorithms of host keys and host certificates (HostKeyAlgorithms).
        is_host_key_order_fixed: Whether to keep that order; otherwise the types in known_hosts come first.
        ciphers: Ciphers.
        macs: MACs.
        ca_signatures: Algorithms that host certificates may be signed with (CASignatureAlgorithms).
        pubkey_accepted: Algorithms that users' keys and certificates may sign with (PubkeyAcceptedAlgorithms).
        rekey_bytes: Bytes in either direction before key re-exchange (RekeyLimit).
        rekey_seconds: Seconds before key re-exchange, None for no limit.
    """

    kex: tuple[str, ...] = KEX
    host_keys: tuple[str, ...] = SIGNATURE_ALGORITHMS
    is_host_key_order_fixed: bool = False
    ciphers: tuple[str, ...] = CIPHERS
    macs: tuple[str, ...] = MACS
    ca_signatures: tuple[str, ...] = CA_SIGNATURE_ALGORITHMS
    pubkey_accepted: tuple[str, ...] = SIGNATURE_ALGORITHMS
    rekey_bytes: int = REKEY_BYTES
    rekey_seconds: float | None = REKEY_SECONDS


def plain_algorithm(name: str) -> str:
    """Return the algorithm, or key type, that a certificate's *name* is based on; any other name unchanged.

    The domain that ends the name of a FIDO key comes after ``-cert-v01`` in its certificate's name (PROTOCOL.u2f).
    """
    plain = name.removesuffix(CERT_SUFFIX)
    return plain + _DOMAIN if plain != name and plain.startswith("sk-") else plain


def signing_key_type(algorithm: str) -> str:
    """Return the type of the key or certificate that signs with *algorithm* (RFC 8332, 3)."""
    plain = plain_algorithm(algorithm)
    return "ssh-rsa" + algorithm[len(plain) :] if plain.startswith("rsa-") else algorithm


def filter_algorithms(
    names: str, supported: tuple[str, ...], *, patterns: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the *supported* algorithms that a list of ssh_config(5) selects, in order, and the names it ignores.

    Args:
        names: Comma-separated names. ``+`` at the start appends them, ``-`` removes what matches, ``^`` puts them
            first; otherwise they replace the defaults.
        supported: Supported algorithms in order of preference. No other is ever selected.
        patterns: Whether names may be patterns; after ``-`` they always may.
    """
    sign = names[:1] if names.startswith(("+", "-", "^")) else ""
    names = names[len(sign) :]
    if sign == "-":
        return tuple(name for name in supported if not match_pattern_list(name, names)), ()
    listed: list[str] = []
    ignored = []
    for pattern in names.split(","):
        matches = [name for name in supported if name == pattern or (patterns and match_pattern(name, pattern))]
        listed += matches
        if not matches and pattern:
            ignored.append(pattern)
    order = {"+": (*supported, *listed), "^": (*listed, *supported), "": tuple(listed)}[sign]
    return tuple(dict.fromkeys(order)), tuple(ignored)

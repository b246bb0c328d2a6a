"""What is offered in the key exchange (RFC 4253, 7.1): what costs least first, nothing with SHA-1, CBC or 3DES."""

from __future__ import annotations

from dataclasses import dataclass

from peerstage.session.patterns import match_pattern, match_pattern_list

#: AES-GCM saves a pass over the data and several copies (SPEED.md).
CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "aes192-ctr", "aes256-ctr")
#: Encrypt-then-MAC last: a server without strict key exchange must not be served with it (CVE-2023-48795).
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
CERTIFICATE = "-cert-v01@openssh.com"
_DOMAIN = "@openssh.com"
#: Of host keys and of users' keys; certificates first, as for ssh.
SIGNATURES = (*(name.removesuffix(_DOMAIN) + CERTIFICATE for name in _PLAIN), *_PLAIN)
#: By which a certificate may be signed.
CA_SIGNATURES = _PLAIN
#: For how many bytes, either way, and how many seconds the same keys serve (RFC 4253, 9).
REKEY_BYTES = 1 << 30
REKEY_SECONDS = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Algorithms:
    """Names of algorithms in the order in which they are preferred.

    Attributes:
        kex: Key exchange methods (KexAlgorithms).
        host_keys: Of host keys and host certificates (HostKeyAlgorithms).
        host_keys_fixed: Whether that order stands as it is; else the types that are known of a host come first.
        ciphers: (Ciphers.)
        macs: (MACs.)
        authorities: By which those who certify hosts may sign (CASignatureAlgorithms).
        public_keys: With which users' keys and certificates may sign (PubkeyAcceptedAlgorithms).
        rekey_bytes: Bytes, either way, after which new keys are agreed on (RekeyLimit).
        rekey_seconds: Seconds after which they are, None for never.
    """

    kex: tuple[str, ...] = KEX
    host_keys: tuple[str, ...] = SIGNATURES
    host_keys_fixed: bool = False
    ciphers: tuple[str, ...] = CIPHERS
    macs: tuple[str, ...] = MACS
    authorities: tuple[str, ...] = CA_SIGNATURES
    public_keys: tuple[str, ...] = SIGNATURES
    rekey_bytes: int = REKEY_BYTES
    rekey_seconds: float | None = REKEY_SECONDS


def plain_algorithm(name: str) -> str:
    """Return the algorithm, or key type, to that of a certificate; any other *name* as it is.

    Names of FIDO keys end in a domain of their own, which their certificates' have in another place (PROTOCOL.u2f).
    """
    plain = name.removesuffix(CERTIFICATE)
    return plain + _DOMAIN if plain != name and plain.startswith("sk-") else plain


def key_type(algorithm: str) -> str:
    """Return the type of key, or of certificate, that signs by *algorithm* (RFC 8332, 3)."""
    plain = plain_algorithm(algorithm)
    return "ssh-rsa" + algorithm[len(plain) :] if plain.startswith("rsa-") else algorithm


def select(listed: str, ours: tuple[str, ...], *, patterns: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return which of *ours* a list of ssh_config(5) takes, in which order, and which of its names it passes over.

    Args:
        listed: Names with commas between. ``+`` before them adds them, ``-`` takes away what matches, ``^`` puts them
            first; without a sign they alone are taken.
        ours: What there is, in the order in which it is preferred. Nothing else is ever taken.
        patterns: Whether the names may be patterns; behind ``-`` they always may.
    """
    sign = listed[:1] if listed.startswith(("+", "-", "^")) else ""
    names = listed[len(sign) :]
    if sign == "-":
        return tuple(name for name in ours if not match_pattern_list(name, names)), ()
    found: list[str] = []
    passed_over = []
    for name in names.split(","):
        matches = [one for one in ours if one == name or (patterns and match_pattern(one, name))]
        found += matches
        if not matches and name:
            passed_over.append(name)
    order = {"+": (*ours, *found), "^": (*found, *ours), "": tuple(found)}[sign]
    return tuple(dict.fromkeys(order)), tuple(passed_over)

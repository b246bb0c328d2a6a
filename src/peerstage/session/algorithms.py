"""What is offered in the key exchange (RFC 4253, 7.1): what costs least first, nothing with SHA-1, CBC or 3DES."""

from __future__ import annotations

from dataclasses import dataclass

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
    "rsa-sha2-512",
    "rsa-sha2-256",
)
CERTIFICATE = "-cert-v01@openssh.com"
#: Of host keys and of users' keys; certificates first, as for ssh.
SIGNATURES = (*(name + CERTIFICATE for name in _PLAIN), *_PLAIN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Algorithms:
    """Names of algorithms in the order in which they are preferred.

    Attributes:
        kex: Key exchange methods (KexAlgorithms).
        host_keys: Of host keys and host certificates (HostKeyAlgorithms).
        host_keys_fixed: Whether that order stands as it is; else the types that are known of a host come first.
        ciphers: (Ciphers.)
        macs: (MACs.)
        public_keys: With which users' keys and certificates may sign (PubkeyAcceptedAlgorithms).
        rekey_bytes: Bytes, either way, after which new keys are agreed on (RekeyLimit).
        rekey_seconds: Seconds after which they are, None for never.
    """

    kex: tuple[str, ...] = KEX
    host_keys: tuple[str, ...] = SIGNATURES
    host_keys_fixed: bool = False
    ciphers: tuple[str, ...] = CIPHERS
    macs: tuple[str, ...] = MACS
    public_keys: tuple[str, ...] = SIGNATURES
    rekey_bytes: int = 1 << 30
    rekey_seconds: float | None = None

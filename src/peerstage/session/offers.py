"""What may be offered to log in by, in the order in which ssh offers it: certificates, the agent's keys, key files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeAlias

import paramiko

from peerstage.errors import ConfigurationError, Location, LoginAttempt
from peerstage.reasons import Reason
from peerstage.session.agent import Agent, UnusableKey
from peerstage.session.algorithms import CERTIFICATE, plain_algorithm
from peerstage.session.certificates import USER, Certificate, blob_type, plain_key
from peerstage.session.config import Destination
from peerstage.session.keys import default_label, parse_key, public_blob, read_key, read_public, show
from peerstage.session.options import SSHOptions

#: Returns the signature of some data by an algorithm; raises `UnusableKey` if there is none.
Sign: TypeAlias = Callable[[str, bytes], bytes]


@dataclass(frozen=True, slots=True)
class Offer:
    """A key or a certificate to log in by.

    Attributes:
        label: What it is called in messages.
        blob: The key or certificate, as SSH encodes it.
        sign: Signs by the private key.
        path: The key file; "" for a key that the agent or the caller holds.
    """

    label: str
    blob: bytes
    sign: Sign
    path: str = ""

    @property
    def kind(self) -> str:
        """Its type."""
        return blob_type(self.blob)

    @property
    def key(self) -> bytes:
        """The key, or the one that the certificate is for."""
        return plain_key(self.blob)


class Offers:
    """What there is to log in by. Iterated over, files are read and the agent is asked only when their turn comes.

    Use as a context manager: the connection to the agent is closed in the end.

    Args:
        destination: Which keys, certificates and agent.
        options: A key that was handed in, and the passphrase.
        unusable: Told of what cannot be used.
    """

    def __init__(
        self, destination: Destination, options: SSHOptions, unusable: Callable[[LoginAttempt], object]
    ) -> None:
        self._destination = destination
        self._unusable = unusable
        self._files = [_File(path, options.passphrase) for path in destination.identities]
        self._given = _given(options)
        self._agent: Agent | None = None

    def __enter__(self) -> Offers:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._agent is not None:
            self._agent.close()

    def __iter__(self) -> Iterator[Offer]:
        yield from self._certificates()
        if self._given is not None:
            yield self._given
            return
        if self._destination.explicit_identities:  # what the caller names goes first, whatever the agent has
            yield from self._from_files()
            yield from self._from_agent()
        else:
            yield from self._from_agent()
            yield from self._from_files()

    def _certificates(self) -> Iterator[Offer]:
        """Yield the certificates that are named."""
        for path in self._destination.certificates:
            label = default_label(path)
            try:
                yield self._certificate(label, read_public(path), path)
            except UnusableKey as exc:
                self._unusable(LoginAttempt(label, exc.reason, str(exc), path))

    def _certificate(self, label: str, blob: bytes, path: str) -> Offer:
        """Return the offer of a certificate; whoever has its key signs (ssh: sign_and_send_pubkey).

        Raises:
            UnusableKey: If it is no certificate of a user.
        """
        key = _user_certificate(blob).key

        def sign(algorithm: str, data: bytes) -> bytes:
            return self._sign_by_any(key, algorithm, data)

        return Offer(f"{label} ({show(blob)})", blob, sign, path)

    def _sign_by_any(self, key: bytes, algorithm: str, data: bytes) -> bytes:
        """Return the signature by the first that has the private *key*, in the order in which they would be offered."""
        reasons = []
        for sign in self._signers(key):
            try:
                return sign(algorithm, data)
            except UnusableKey as exc:
                reasons.append(str(exc))
        why = ": ".join(["there is no private key to this certificate", *reasons[:1]])
        raise UnusableKey(why, Reason.PUBLIC_KEY_ONLY)

    def _signers(self, key: bytes) -> Iterator[Sign]:
        if self._given is not None:
            if self._given.blob == key:
                yield self._given.sign
            return
        files = (file.signer_of(key) for file in self._files if file.public in (None, key))
        agent = (self._sign_by_agent(blob) for blob, _ in self._agent_keys if blob == key)
        if self._destination.explicit_identities:
            yield from files
            yield from agent
        else:
            yield from agent
            yield from files

    @cached_property
    def _agent_keys(self) -> list[tuple[bytes, str]]:
        path = self._destination.agent
        if path is None:
            return []
        label = f"agent at {path}"
        try:
            self._agent = Agent(path)
            keys = self._agent.keys()
        except UnusableKey as exc:
            self._unusable(LoginAttempt(label, exc.reason, str(exc), path))
            return []
        if not keys:
            self._unusable(LoginAttempt(label, Reason.AGENT_EMPTY, "it holds no keys", path))
        return keys

    @cached_property
    def _identities(self) -> list[_Identity]:
        """What the identity files name, in ssh's order: each key, then the certificate beside it.

        The certificate is looked for unless certificates are named (ssh: load_public_identity_files).
        """
        found = []
        for file in self._files:
            found.append(_Identity(file.label, file.public, file))
            if file.certificate is not None and not self._destination.certificates:
                found.append(_Identity(f"{file.label}-cert.pub", file.certificate, file))
        return found

    def _from_agent(self) -> Iterator[Offer]:
        """Yield the agent's keys: those that a file names first, then the others unless `IdentitiesOnly` is set."""
        named = {identity.blob for identity in self._identities}
        mine = [key for key in self._agent_keys if key[0] in named]
        others = [key for key in self._agent_keys if key[0] not in named]
        for blob, comment in mine if self._destination.identities_only else mine + others:
            try:
                yield Offer(f"agent key {comment!r} ({show(blob)})", blob, self._sign_by_agent(blob))
            except ValueError as exc:
                self._unusable(LoginAttempt(f"agent key {comment!r}", Reason.KEY_INVALID, str(exc)))

    def _sign_by_agent(self, blob: bytes) -> Sign:
        def sign(algorithm: str, data: bytes) -> bytes:
            if self._agent is None:
                raise UnusableKey("the agent is gone", Reason.AGENT_UNAVAILABLE)
            return self._agent.sign(blob, plain_algorithm(algorithm), data)

        return sign

    def _from_files(self) -> Iterator[Offer]:
        """Yield what the files name and the agent has not offered, where it may need no passphrase."""
        by_agent = () if self._destination.explicit_identities else {key for key, _ in self._agent_keys}
        for label, blob, file in self._identities:
            if blob in by_agent:
                continue
            try:
                if blob is not None and blob_type(blob).endswith(CERTIFICATE):
                    yield self._certificate(label, blob, f"{file.path}-cert.pub")
                else:
                    key = file.key.asbytes()
                    yield Offer(f"{label} ({show(key)})", key, file.sign, file.path)
            except UnusableKey as exc:
                self._unusable(LoginAttempt(label, exc.reason, str(exc), file.path))


class _Identity(NamedTuple):
    """A key or certificate that an identity file names; without a blob where only the private key can tell it."""

    label: str
    blob: bytes | None
    file: _File


class _File:
    """A private key in a file, and what lies beside it."""

    def __init__(self, path: str, passphrase: str | None) -> None:
        self.label = default_label(path)
        self.path = path
        self._passphrase = passphrase

    @cached_property
    def public(self) -> bytes | None:
        return public_blob(self.path)

    @cached_property
    def certificate(self) -> bytes | None:
        """The certificate beside the key, if it is one of this key for a user."""
        try:
            blob = read_public(self.path + "-cert.pub")
            key = _user_certificate(blob).key
        except UnusableKey:
            return None
        return blob if self.public in (None, key) else None

    @cached_property
    def key(self) -> paramiko.PKey:
        return read_key(self.path, self._passphrase)

    def sign(self, algorithm: str, data: bytes) -> bytes:
        return _sign(self.key, algorithm, data)

    def signer_of(self, key: bytes) -> Sign:
        """Return what signs by the private key if it is the one to the public *key*."""

        def sign(algorithm: str, data: bytes) -> bytes:
            if self.key.asbytes() != key:
                raise UnusableKey(f"{self.label} is another key", Reason.PUBLIC_KEY_ONLY)
            return self.sign(algorithm, data)

        return sign


def _given(options: SSHOptions) -> Offer | None:
    pkey = options.pkey
    if pkey is None:
        return None
    try:
        key = parse_key(pkey, options.passphrase) if isinstance(pkey, bytes) else pkey
    except UnusableKey as exc:
        raise ConfigurationError(
            f"SSHOptions(pkey=...) can not be used: {exc}.",
            reason=exc.reason,
            location=Location("SSHOptions(pkey=...)"),
        ) from exc
    blob = key.asbytes()
    loaded = getattr(key, "public_blob", None)  # a certificate that the caller has loaded into the key
    if loaded is not None:
        blob = loaded.key_blob
    return Offer(f"the key given ({show(blob)})", blob, lambda algorithm, data: _sign(key, algorithm, data))


def _user_certificate(blob: bytes) -> Certificate:
    try:
        certificate = Certificate.parse(blob)
    except ValueError as exc:
        raise UnusableKey(f"not a certificate that can be used: {exc}", Reason.CERTIFICATE_INVALID) from None
    if certificate.role != USER:
        raise UnusableKey("not a user's certificate", Reason.CERTIFICATE_INVALID)
    return certificate


def _sign(key: paramiko.PKey, algorithm: str, data: bytes) -> bytes:
    try:
        signed = key.sign_ssh_data(data, plain_algorithm(algorithm))
    except (OSError, ValueError, TypeError, paramiko.SSHException) as exc:
        raise UnusableKey(f"it does not sign ({exc})", Reason.KEY_INVALID) from exc
    return signed if isinstance(signed, bytes) else signed.asbytes()

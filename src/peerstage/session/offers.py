"""What may be offered to log in by, in the order in which ssh offers it: certificates, the agent's keys, key files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import paramiko

from peerstage.errors import ConfigurationError
from peerstage.session.agent import Agent, UnusableKey
from peerstage.session.algorithms import CERTIFICATE
from peerstage.session.certificates import USER, Certificate, blob_type
from peerstage.session.config import Destination
from peerstage.session.keys import default_label, parse_key, public_blob, read_key, read_public, show
from peerstage.session.options import SSHOptions


@dataclass(frozen=True, slots=True)
class Offer:
    """A key or a certificate to log in by.

    Attributes:
        label: What it is called in messages.
        blob: The key or certificate, as SSH encodes it.
        sign: Returns the signature of some data by an algorithm; raises `UnusableKey` if that is not to be had.
    """

    label: str
    blob: bytes
    sign: Callable[[str, bytes], bytes]

    @property
    def kind(self) -> str:
        """Its type."""
        return blob_type(self.blob)

    @property
    def key(self) -> bytes:
        """The key, or the one that the certificate is for."""
        return Certificate.parse(self.blob).key if self.kind.endswith(CERTIFICATE) else self.blob


class Offers:
    """What there is to log in by. Iterated over, files are read and the agent is asked only when their turn comes.

    Use as a context manager: the connection to the agent is closed in the end.

    Args:
        destination: Which keys, certificates and agent.
        options: A key that was handed in, and the passphrase.
        unusable: Told of what can not be used: its label, and why.
    """

    def __init__(self, destination: Destination, options: SSHOptions, unusable: Callable[[str, str], object]) -> None:
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
        """Certificates that are named; the key to each is a file's, the agent's or the one handed in."""
        for path in self._destination.certificates:
            label = default_label(path)
            try:
                blob, certificate = _read_certificate(path)
                yield Offer(f"{label} ({show(blob)})", blob, self._signer_of(certificate.key))
            except UnusableKey as exc:
                self._unusable(label, str(exc))

    def _signer_of(self, key: bytes) -> Callable[[str, bytes], bytes]:
        if self._given is not None and self._given.blob == key:
            return self._given.sign
        for blob, _ in self._agent_keys:
            if blob == key:
                return self._sign_by_agent(blob)
        for file in self._files:
            if file.public == key:
                return file.sign
        raise UnusableKey("there is no private key to this certificate")

    @cached_property
    def _agent_keys(self) -> list[tuple[bytes, str]]:
        path = self._destination.agent
        if path is None:
            return []
        try:
            self._agent = Agent(path)
            return self._agent.keys()
        except UnusableKey as exc:
            self._unusable(f"agent at {path}", str(exc))
            return []

    def _from_agent(self) -> Iterator[Offer]:
        """Those that a file names first, then the others, unless `IdentitiesOnly` excludes them."""
        named = {file.public for file in self._files} | {file.certificate for file in self._files}
        mine = [key for key in self._agent_keys if key[0] in named]
        others = [key for key in self._agent_keys if key[0] not in named]
        for blob, comment in mine if self._destination.identities_only else mine + others:
            try:
                yield Offer(f"agent key {comment!r} ({show(blob)})", blob, self._sign_by_agent(blob))
            except ValueError as exc:
                self._unusable(f"agent key {comment!r}", str(exc))

    def _sign_by_agent(self, blob: bytes) -> Callable[[str, bytes], bytes]:
        def sign(algorithm: str, data: bytes) -> bytes:
            if self._agent is None:
                raise UnusableKey("the agent is gone")
            return self._agent.sign(blob, algorithm.removesuffix(CERTIFICATE), data)

        return sign

    def _from_files(self) -> Iterator[Offer]:
        by_agent = () if self._destination.explicit_identities else [key for key, _ in self._agent_keys]
        for file in self._files:
            if file.public in by_agent:
                continue  # it had its turn, and may need no passphrase there
            try:
                blob = file.key.asbytes()
            except UnusableKey as exc:
                self._unusable(file.label, str(exc))
                continue
            yield Offer(f"{file.label} ({show(blob)})", blob, file.sign)
            if file.certificate is not None and not self._destination.certificates:
                yield Offer(f"{file.label}-cert.pub ({show(file.certificate)})", file.certificate, file.sign)


class _File:
    """A private key in a file, and what lies beside it."""

    def __init__(self, path: str, passphrase: str | None) -> None:
        self.label = default_label(path)
        self._path = path
        self._passphrase = passphrase

    @cached_property
    def public(self) -> bytes | None:
        return public_blob(self._path)

    @cached_property
    def certificate(self) -> bytes | None:
        """The certificate that lies beside the key, if it is one of this key for a user."""
        try:
            blob, certificate = _read_certificate(self._path + "-cert.pub")
        except UnusableKey:
            return None
        return blob if self.public in (None, certificate.key) else None

    @cached_property
    def key(self) -> paramiko.PKey:
        return read_key(self._path, self._passphrase)

    def sign(self, algorithm: str, data: bytes) -> bytes:
        return _sign(self.key, algorithm, data)


def _given(options: SSHOptions) -> Offer | None:
    pkey = options.pkey
    if pkey is None:
        return None
    try:
        key = parse_key(pkey, options.passphrase) if isinstance(pkey, bytes) else pkey
    except UnusableKey as exc:
        raise ConfigurationError(f"SSHOptions(pkey=...) can not be used: {exc}.") from exc
    blob = key.asbytes()
    loaded = getattr(key, "public_blob", None)  # a certificate that the caller has loaded into the key
    if loaded is not None:
        blob = loaded.key_blob
    return Offer(f"the key given ({show(blob)})", blob, lambda algorithm, data: _sign(key, algorithm, data))


def _read_certificate(path: str) -> tuple[bytes, Certificate]:
    blob = read_public(path)
    try:
        certificate = Certificate.parse(blob)
    except ValueError as exc:
        raise UnusableKey(f"not a certificate that can be used: {exc}") from None
    if certificate.role != USER:
        raise UnusableKey("not a user's certificate")
    return blob, certificate


def _sign(key: paramiko.PKey, algorithm: str, data: bytes) -> bytes:
    try:
        signed = key.sign_ssh_data(data, algorithm.removesuffix(CERTIFICATE))
    except (OSError, ValueError, TypeError, paramiko.SSHException) as exc:
        raise UnusableKey(f"it does not sign ({exc})") from exc
    return signed if isinstance(signed, bytes) else signed.asbytes()

"""The keys and certificates to log in with, in ssh's order: certificates, the agent's identities, key files."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple, TypeAlias, TypeVar

import paramiko

from peerstage.errors import ConfigurationError, Location, LoginAttempt
from peerstage.reasons import Reason
from peerstage.ssh.algorithms import CERT_SUFFIX, plain_algorithm
from peerstage.ssh.auth.agent import Agent, UnusableKey
from peerstage.ssh.auth.key_files import (
    abbreviate_home,
    describe_key,
    find_public_key,
    load_private_key,
    load_public_key,
    parse_private_key,
)
from peerstage.ssh.config.destination import Destination
from peerstage.ssh.keys.certificates import USER, Certificate
from peerstage.ssh.keys.public_keys import parse_key_type
from peerstage.ssh.options import SSHOptions

#: Returns the signature of data by an algorithm; raises `UnusableKey` if the private key cannot be used.
Sign: TypeAlias = Callable[[str, bytes], bytes]
_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class Credential:
    """A key or a certificate to log in with.

    Attributes:
        label: Its name in messages.
        blob: The key or certificate, as SSH encodes it.
        sign: Signs with the private key.
        path: The key file; "" for a key that the agent or the caller holds.
    """

    label: str
    blob: bytes
    sign: Sign
    path: str = ""

    @property
    def key_type(self) -> str:
        """The type of the key or certificate."""
        return parse_key_type(self.blob)


class Credentials:
    """The credentials for one login.

    Iterating loads each private key, and queries the agent, only when its turn comes; the public keys of all identity
    files are read first.

    A context manager, which closes the connection to the agent.

    Args:
        destination: The paths of keys, certificates and the agent's socket.
        options: A private key of the caller, and the passphrase.
        on_unusable: Called for each key, certificate or agent that cannot be used.
    """

    def __init__(
        self, destination: Destination, options: SSHOptions, on_unusable: Callable[[LoginAttempt], object]
    ) -> None:
        self._destination = destination
        self._on_unusable = on_unusable
        self._files = [_KeyFile(path, options.passphrase) for path in destination.identities]
        self._callers_key = _callers_key(options)
        self._agent: Agent | None = None

    def __enter__(self) -> Credentials:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._agent is not None:
            self._agent.close()

    def __iter__(self) -> Iterator[Credential]:
        yield from self._from_certificate_files()
        if self._callers_key is not None:
            yield self._callers_key
        else:
            yield from self._in_order(self._from_agent(), self._from_key_files())

    def _in_order(self, from_agent: Iterable[_Item], from_files: Iterable[_Item]) -> Iterable[_Item]:
        """Chain both: the agent's first, as in ssh, but after explicit identities."""
        is_explicit = self._destination.explicit_identities
        return itertools.chain(*((from_files, from_agent) if is_explicit else (from_agent, from_files)))

    def _from_certificate_files(self) -> Iterator[Credential]:
        """Yield the certificates named by CertificateFile or the option certificate."""
        for path in self._destination.certificates:
            label = abbreviate_home(path)
            try:
                yield self._certificate_credential(label, load_public_key(path), path)
            except UnusableKey as exc:
                self._on_unusable(LoginAttempt(label, exc.reason, str(exc), path))

    def _certificate_credential(self, label: str, blob: bytes, path: str) -> Credential:
        """Return the credential of a certificate; any holder of its private key signs (OpenSSH: sign_and_send_pubkey).

        Raises:
            UnusableKey: If it is not a user certificate.
        """
        key = _parse_user_certificate(blob).key
        sign = partial(self._sign_with_any, key, path)
        return Credential(f"{label} ({describe_key(blob)})", blob, sign, path)

    def _sign_with_any(self, key: bytes, certificate: str, algorithm: str, data: bytes) -> bytes:
        """Return the signature by the first holder of the private *key*, in the order of `__iter__`.

        Raises:
            UnusableKey: If none of them signs. It names the first that is known to hold the key of the file
                *certificate*; the others report their own failures as identities.
        """
        first: UnusableKey | None = None
        for holder in self._find_holders(key, certificate):
            try:
                return holder.sign(algorithm, data)
            except UnusableKey as exc:
                if first is None and holder.is_known and exc.reason is not Reason.PUBLIC_KEY_ONLY:
                    label = f"{holder.label} (private key of {abbreviate_home(certificate)})"
                    first = UnusableKey(str(exc), exc.reason, label=label, path=holder.path)
        raise first or UnusableKey("no private key was found for this certificate", Reason.PUBLIC_KEY_ONLY)

    def _find_holders(self, key: bytes, certificate: str) -> Iterable[_Holder]:
        if self._callers_key is not None:
            caller = self._callers_key
            return [_Holder(caller.label, caller.path, caller.sign, True)] if caller.blob == key else []
        socket = self._destination.agent_socket or ""
        agent = (
            _Holder(f"agent at {socket}", socket, partial(self._sign_with_agent, blob), True)
            for blob, _ in self._agent_identities
            if blob == key
        )
        files = (
            _Holder(
                file.label,
                file.path,
                partial(file.sign_if, key),
                file.public_key == key or certificate == f"{file.path}-cert.pub",
            )
            for file in self._files
            if file.public_key in (None, key)
        )
        return self._in_order(agent, files)

    @cached_property
    def _agent_identities(self) -> list[tuple[bytes, str]]:
        path = self._destination.agent_socket
        if path is None:
            return []
        label = f"agent at {path}"
        try:
            self._agent = Agent(path)
            identities = self._agent.list_identities()
        except UnusableKey as exc:
            self._on_unusable(LoginAttempt(label, exc.reason, str(exc), path))
            return []
        if not identities:
            self._on_unusable(LoginAttempt(label, Reason.AGENT_EMPTY, "it holds no keys", path))
        return identities

    @cached_property
    def _file_identities(self) -> list[_FileIdentity]:
        """The keys of the identity files in ssh's order, each followed by the certificate beside it.

        Certificates beside keys count unless certificates are named explicitly (OpenSSH: load_public_identity_files).
        """
        found = []
        for file in self._files:
            found.append(_FileIdentity(file.label, file.public_key, file))
            if file.certificate is not None and not self._destination.certificates:
                found.append(_FileIdentity(f"{file.label}-cert.pub", file.certificate, file))
        return found

    def _from_agent(self) -> Iterator[Credential]:
        """Yield the agent's keys: first those of identity files, then the others unless IdentitiesOnly is set."""
        of_files = {identity.blob for identity in self._file_identities}
        preferred = [identity for identity in self._agent_identities if identity[0] in of_files]
        others = [identity for identity in self._agent_identities if identity[0] not in of_files]
        for blob, comment in preferred if self._destination.identities_only else preferred + others:
            try:
                sign = partial(self._sign_with_agent, blob)
                yield Credential(f"agent key {comment!r} ({describe_key(blob)})", blob, sign)
            except ValueError as exc:
                self._on_unusable(LoginAttempt(f"agent key {comment!r}", Reason.KEY_INVALID, str(exc)))

    def _sign_with_agent(self, blob: bytes, algorithm: str, data: bytes) -> bytes:
        if self._agent is None:
            raise UnusableKey("the agent is no longer connected", Reason.AGENT_UNAVAILABLE)
        return self._agent.sign(blob, plain_algorithm(algorithm), data)

    def _from_key_files(self) -> Iterator[Credential]:
        """Yield the identities of files, except those already offered from the agent."""
        from_agent = () if self._destination.explicit_identities else {blob for blob, _ in self._agent_identities}
        for label, blob, file in self._file_identities:
            if blob in from_agent:
                continue
            try:
                if blob is not None and parse_key_type(blob).endswith(CERT_SUFFIX):
                    yield self._certificate_credential(label, blob, f"{file.path}-cert.pub")
                else:
                    key = file.private_key.asbytes()
                    yield Credential(f"{label} ({describe_key(key)})", key, file.sign, file.path)
            except UnusableKey as exc:
                self._on_unusable(LoginAttempt(label, exc.reason, str(exc), file.path))


class _Holder(NamedTuple):
    """What may hold the private key of a certificate, and whether that *is_known* without loading a private key."""

    label: str
    path: str
    sign: Sign
    is_known: bool


class _FileIdentity(NamedTuple):
    """A key or certificate of an identity file; *blob* is None if it is known only after loading the private key."""

    label: str
    blob: bytes | None
    file: _KeyFile


class _KeyFile:
    """A private key in a file, with the public key and the certificate beside it."""

    def __init__(self, path: str, passphrase: str | None) -> None:
        self.label = abbreviate_home(path)
        self.path = path
        self._passphrase = passphrase

    @cached_property
    def public_key(self) -> bytes | None:
        return find_public_key(self.path)

    @cached_property
    def certificate(self) -> bytes | None:
        """The user certificate of this key beside it; None if there is none."""
        try:
            blob = load_public_key(self.path + "-cert.pub")
            key = _parse_user_certificate(blob).key
        except UnusableKey:
            return None
        return blob if self.public_key in (None, key) else None

    @cached_property
    def private_key(self) -> paramiko.PKey:
        return load_private_key(self.path, self._passphrase)

    def sign(self, algorithm: str, data: bytes) -> bytes:
        return _sign(self.private_key, algorithm, data)

    def sign_if(self, key: bytes, algorithm: str, data: bytes) -> bytes:
        """Sign if the private key belongs to the public *key*."""
        if self.private_key.asbytes() != key:
            raise UnusableKey(f"{self.label} is another key", Reason.PUBLIC_KEY_ONLY)
        return self.sign(algorithm, data)


def _callers_key(options: SSHOptions) -> Credential | None:
    pkey = options.pkey
    if pkey is None:
        return None
    try:
        key = parse_private_key(pkey, options.passphrase) if isinstance(pkey, bytes) else pkey
    except UnusableKey as exc:
        raise ConfigurationError(
            f"SSHOptions(pkey=...) cannot be used: {exc}.", reason=exc.reason, location=Location("SSHOptions(pkey=...)")
        ) from exc
    certificate = getattr(key, "public_blob", None)  # set by PKey.load_certificate()
    blob = key.asbytes() if certificate is None else certificate.key_blob
    return Credential(f"the key given ({describe_key(blob)})", blob, partial(_sign, key))


def _parse_user_certificate(blob: bytes) -> Certificate:
    try:
        certificate = Certificate.parse(blob)
    except ValueError as exc:
        raise UnusableKey(f"not a valid certificate: {exc}", Reason.CERTIFICATE_INVALID) from None
    if certificate.cert_type != USER:
        raise UnusableKey("not a user certificate", Reason.CERTIFICATE_INVALID)
    return certificate


def _sign(key: paramiko.PKey, algorithm: str, data: bytes) -> bytes:
    try:
        signature = key.sign_ssh_data(data, plain_algorithm(algorithm))
    except (OSError, ValueError, TypeError, paramiko.SSHException) as exc:
        raise UnusableKey(f"signing failed ({exc})", Reason.KEY_INVALID) from exc
    return signature if isinstance(signature, bytes) else signature.asbytes()

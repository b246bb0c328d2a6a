"""Verify the host key or certificate that a server presents, before anything else is sent to it."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from peerstage.errors import (
    ChangedHostKey,
    HostKeyError,
    Location,
    MismatchedHostKey,
    NotAvailable,
    ProtocolError,
    StageError,
    TargetError,
    UnknownHostKey,
)
from peerstage.printable import escape
from peerstage.reasons import Reason
from peerstage.ssh.algorithms import CERT_SUFFIX, signing_key_type
from peerstage.ssh.config.destination import Destination
from peerstage.ssh.hostkeys.known_hosts import KnownHosts
from peerstage.ssh.hostkeys.known_hosts_file import format_entry, lock_known_hosts
from peerstage.ssh.keys.certificates import Certificate
from peerstage.ssh.keys.public_keys import fingerprint, parse_key_type, rsa_bits
from peerstage.ssh.options import expand_home


class TrustedKey(NamedTuple):
    """A trusted host key: its fingerprint, and why it is trusted, as a participle ("known in FILE:1")."""

    fingerprint: str
    basis: str


class HostKeyVerifier:
    """Verifies the host key of *destination*, and chooses the host key algorithms to ask for.

    Args:
        destination: The host; if its `pinned_fingerprint` is set, known_hosts is not consulted.
        known: The content of its known_hosts files.
    """

    def __init__(self, destination: Destination, known: KnownHosts) -> None:
        self._destination = destination
        self._known = known
        pinned = destination.pinned_fingerprint
        self._is_wanted = None if pinned is None else lambda key: fingerprint(key) == pinned
        self._untried_algorithms: tuple[str, ...] = ()
        #: The keys and certificates that the host presented and that were not wanted.
        self.unwanted_keys: list[bytes] = []

    @classmethod
    def read(cls, destination: Destination) -> HostKeyVerifier:
        """Read the known_hosts files of *destination*."""
        return cls(destination, KnownHosts.read(destination.known_hosts, destination.log))

    def order_algorithms(self, offered: tuple[str, ...]) -> tuple[str, ...]:
        """Return the *offered* host key algorithms in the order to ask for them (RFC 4253, 7.1).

        Those of known keys come first (OpenSSH: order_hostkeyalgs). Certificates are requested only if an authority is
        known for this host; otherwise a host with both a key and a certificate would present a certificate that cannot
        be verified. They are also requested if only a revoked authority is known, so that the error names that line. A
        configured order is kept. If a fingerprint is pinned, known_hosts has no influence.
        """
        destination = self._destination
        if destination.algorithms.is_host_key_order_fixed:
            return offered
        prefer_certificates, known = False, set[str]()
        if destination.pinned_fingerprint is None:
            prefer_certificates = self._known.expects_certificate(*destination.host_key_name)
            known.update(self._known.key_types(*destination.host_key_name))

        def is_second_choice(name: str) -> bool:
            return not prefer_certificates if name.endswith(CERT_SUFFIX) else signing_key_type(name) not in known

        wanted = [name for name in offered if prefer_certificates or not name.endswith(CERT_SUFFIX)]
        return tuple(sorted(wanted, key=is_second_choice)) or offered

    def search_for(self, is_wanted: Callable[[bytes], bool]) -> None:
        """Have the host present one key after another until *is_wanted* accepts one.

        Without this call, a search takes place only for a pinned key.
        """
        self._is_wanted = is_wanted

    def remaining_algorithms(
        self, presented: bytes, asked: tuple[str, ...], offered: tuple[str, ...]
    ) -> tuple[str, ...]:
        """Return the algorithms by which the host may still present a wanted key; empty if no search is needed.

        Args:
            presented: The presented key or certificate.
            asked: The algorithms that the host was asked for, in order.
            offered: The algorithms that the host offers.
        """
        if self._is_wanted is None or self._is_wanted(parse_presented(presented)[1]):
            return ()
        self.unwanted_keys.append(presented)
        presented_type = parse_key_type(presented)
        self._untried_algorithms = tuple(
            name for name in asked if name in offered and signing_key_type(name) != presented_type
        )
        return self._untried_algorithms

    def verify(self, presented: bytes, *, sleep: Callable[[float], object] = time.sleep) -> TrustedKey:
        """Return why the presented key is trusted; with accept-new, record the key of a new host first.

        Args:
            presented: The presented key or certificate; the host has proved that it holds the private key.
            sleep: Sleeps for the given seconds while another process holds the lock; may raise to give up.

        Raises:
            HostKeyError: If the key is unknown, changed, revoked or mismatched, or could not be recorded.
            ProtocolError: If it is not a valid key or certificate.
        """
        try:
            return self.check(presented)
        except UnknownHostKey as exc:
            if not self._destination.accept_new:
                raise
            unknown = exc
        if not self.is_new_host:
            unknown.message += " (accept-new accepts only hosts that known_hosts does not mention.)"
            raise unknown
        try:
            trusted = self.record(presented, sleep=sleep)
        except (TargetError, NotAvailable) as exc:
            raise UnknownHostKey(
                f"{unknown.message} (accept-new cannot record it: {exc} A key that is not recorded is not accepted, "
                "since a changed key would not be noticed the next time.)",
                reason=Reason.HOST_KEY_NOT_SAVED,
            ) from exc
        self._destination.log.warning("%s is %s.", trusted.fingerprint, trusted.basis)
        return trusted

    @property
    def is_new_host(self) -> bool:
        """Whether known_hosts has neither a key of the host nor an authority that may certify it."""
        return self._known.is_new_host(*self._destination.host_key_name)

    def conflicting_line(self, presented: bytes) -> Location | None:
        """Return the line of known_hosts to correct if the *presented* key is right; None if there is none."""
        return self._known.conflicting_line(*self._destination.host_key_name, parse_presented(presented)[1])

    def check(self, presented: bytes) -> TrustedKey:
        """Return why the presented key is trusted, and record nothing; raise as `verify`."""
        certificate, key = parse_presented(presented)
        pinned = self._destination.pinned_fingerprint
        if pinned not in (None, fingerprint(key)):
            raise self._not_pinned_error(key)
        try:
            bits, min_bits = rsa_bits(key), self._destination.min_rsa_bits
        except ValueError:
            raise ProtocolError("The host presents an invalid RSA key.") from None
        if bits is not None and bits < min_bits:
            raise MismatchedHostKey(
                f"The host presents the RSA key {fingerprint(key)} of {bits} bits, and RequiredRSASize is {min_bits}. "
                "Give the host an Ed25519 key, or a larger RSA key.",
                reason=Reason.HOST_KEY_TOO_SMALL,
            )
        if pinned is not None:
            return TrustedKey(pinned, "the pinned host key")
        if certificate is not None:
            return TrustedKey(fingerprint(key), self._check_certificate(certificate))
        return TrustedKey(fingerprint(key), f"known in {self._check_known(key)}")

    def _not_pinned_error(self, key: bytes) -> MismatchedHostKey:
        presented = describe_keys([*(parse_presented(other)[1] for other in self.unwanted_keys), key])
        advice = (
            "Compare it with what `ssh-keygen -lf` prints for the .pub files in /etc/ssh on the host itself. If it is "
            "there, correct the pinned fingerprint (the option host key); if not, this may be a man-in-the-middle "
            "attack: do not connect."
        )
        if self._untried_algorithms:
            untried = ", ".join(self._untried_algorithms)
            advice = f"It was not asked for its other keys ({untried}): SSHOptions(sock=...) serves one connection."
        return MismatchedHostKey(
            f"The host presents {presented}, but the pinned fingerprint is {self._destination.pinned_fingerprint}. "
            f"{advice}",
            reason=Reason.HOST_KEY_NOT_PINNED,
        )

    def record(self, presented: bytes, *, sleep: Callable[[float], object] = time.sleep) -> TrustedKey:
        """Add the host's key to the file for new keys, unless another process has just recorded it.

        If the host presented a certificate, its plain key is added, as in ssh. The arguments are those of `verify`.

        Raises:
            HostKeyError: If another process has recorded another key, or no file for new keys is configured.
            TargetError, NotAvailable: If the file cannot be written.
        """
        destination = self._destination
        _, key = parse_presented(presented)
        if destination.new_keys_file is None:
            raise UnknownHostKey(
                f"The host presents {describe_keys([key])}, and there is no file to add it to. Name one with the "
                "option known hosts, or UserKnownHostsFile.",
                reason=Reason.HOST_KEY_UNKNOWN,
            )
        try:
            with lock_known_hosts(destination.new_keys_file, sleep=sleep) as file:
                current = HostKeyVerifier.read(destination)
                try:
                    return current.check(presented)
                except UnknownHostKey:
                    if not current.is_new_host:
                        raise
                file.append(format_entry(*destination.host_key_name, key, hashed=destination.hash_known_hosts))
        except StageError:
            raise
        except OSError as exc:
            raise TargetError(
                f"The host key cannot be added: {exc.strerror or exc}. Name another file (the option known hosts).",
                path=destination.new_keys_file,
                reason=Reason.HOST_KEY_NOT_SAVED,
            ) from exc
        return TrustedKey(fingerprint(key), f"added to {escape(destination.new_keys_file)}")

    def _check_known(self, key: bytes) -> Location:
        host, port = self._destination.host_key_name
        return self._known.check(host, port, parse_key_type(key), key, trust=trust_command(self._destination))

    def _check_certificate(self, certificate: Certificate) -> str:
        """Return why the certified key is trusted: by its authority or, as in ssh, as a known plain key."""
        host, port = self._destination.host_key_name
        self._known.check_key_not_revoked(host, port, certificate.authority, "a certificate signed by the")
        self._known.check_key_not_revoked(host, port, certificate.key, "a certificate of the")
        authority = self._known.authorities(host, port).get(certificate.authority)
        problem = None
        if authority is not None:
            accepted = self._destination.algorithms.ca_signatures
            problem = certificate.validation_error(host, time.time(), accepted)
            if problem is None:
                return f"certified by {fingerprint(certificate.authority)}, the authority in {authority}"
        error = self._certificate_error(certificate, authority, problem)
        try:
            location = self._check_known(certificate.key)
        except ChangedHostKey:
            if authority is None:
                raise
            raise error from None
        except HostKeyError as exc:
            raise error from exc
        self._destination.log.warning("%s The plain key is known, and is accepted.", error)
        return f"known in {location}"

    def _certificate_error(
        self, certificate: Certificate, authority: Location | None, problem: str | None
    ) -> HostKeyError:
        host = self._destination.host_key_name
        presented = (
            f"The host presents a certificate ({escape(certificate.key_id)!r}) of the {certificate.key_type} key "
            f"{fingerprint(certificate.key)}, signed by {fingerprint(certificate.authority)}"
        )
        if authority is None:
            authorities = self._known.authorities(*host).items()
            known = "; ".join(f"{fingerprint(blob)} in {location}" for blob, location in authorities)
            return UnknownHostKey(
                f"{presented}, which is not a known authority for this host (known: {known or 'none'}). If it should "
                "be, add it to known_hosts with the marker @cert-authority; or have the host's key signed by a known "
                "authority.",
                reason=Reason.HOST_CERTIFICATE_UNKNOWN,
            )
        return MismatchedHostKey(
            f"{presented}, the authority in {authority}, but {problem}. Have the authority sign the host's key again, "
            f"for the name {escape(host[0])}, and restart its sshd.",
            reason=Reason.HOST_CERTIFICATE_INVALID,
        )


def parse_presented(presented: bytes) -> tuple[Certificate | None, bytes]:
    """Return the certificate that a host presented, None if it presented a plain key, and the key.

    Raises:
        ProtocolError: If it is not a valid key or certificate.
    """
    try:
        if not parse_key_type(presented).endswith(CERT_SUFFIX):
            return None, presented
        certificate = Certificate.parse(presented)
    except ValueError as exc:
        raise ProtocolError(f"The host presents an invalid certificate: {exc}.") from None
    return certificate, certificate.key


def describe_keys(keys: Iterable[bytes]) -> str:
    """Return the types and fingerprints of *keys*, without repeats, as the object of a sentence."""
    return " and ".join(f"the {parse_key_type(key)} key {fingerprint(key)}" for key in dict.fromkeys(keys))


def trust_command(destination: Destination) -> str:
    """Return the command that adds the host key of *destination*; "" if there is no file to add it to."""
    path = destination.new_keys_file
    if path in (None, os.devnull):
        return ""
    words = ["peerstage", "trust"]
    if destination.port != 22:
        words += ["--port", str(destination.port)]
    if path != expand_home("~/.ssh/known_hosts"):
        words += ["--known-hosts", os.path.abspath(path)]
    for file in destination.config_files or ():
        words += ["--config", os.path.abspath(file)]
    if destination.config_files == ():
        words += ["--no-config"]
    if destination.hops:
        words += ["--jump", ",".join(str(hop) for hop in destination.hops)]
    return shlex.join([*words, destination.name])

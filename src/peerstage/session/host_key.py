"""Whether a host is the one that it should be: its key or certificate is judged before anything else is said to it."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from peerstage.errors import (
    ChangedHostKey,
    HostKeyError,
    LandingError,
    MismatchedHostKey,
    NotAvailable,
    ProtocolError,
    StageError,
    UnknownHostKey,
    escape,
)
from peerstage.reasons import Reason
from peerstage.session.algorithms import CERTIFICATE, key_type
from peerstage.session.certificates import Certificate, blob_type, rsa_bits
from peerstage.session.config import Destination
from peerstage.session.known_hosts import KnownHosts, fingerprint
from peerstage.session.known_hosts_file import line_of, locked
from peerstage.session.options import expand


class Verdict(NamedTuple):
    """A host key that may be trusted: its fingerprint, and why, to follow "it is"."""

    fingerprint: str
    why: str


class HostKeys:
    """What is known of the host at *destination*, and what follows from it.

    Args:
        destination: Where to; its `pinned` fingerprint decides alone if there is one.
        known: What known_hosts files say.
    """

    def __init__(self, destination: Destination, known: KnownHosts) -> None:
        self._destination = destination
        self._known = known
        pinned = destination.pinned
        self._is_sought = None if pinned is None else lambda key: fingerprint(key) == pinned
        self._not_asked: tuple[str, ...] = ()
        #: What the host has shown that was not the key sought.
        self.unsought: list[bytes] = []

    @classmethod
    def read(cls, destination: Destination) -> HostKeys:
        """Read the known_hosts files of *destination*."""
        return cls(destination, KnownHosts.read(destination.known_hosts, destination.log))

    def order(self, offered: tuple[str, ...]) -> tuple[str, ...]:
        """Return the *offered* algorithms of host keys in the order to ask for them (RFC 4253, 7.1).

        Those that can be judged come first, and certificates only where an authority is known for this host: a host
        that has both would show one that nobody here vouches for. An order that is configured stands. Where all that
        is known is an authority that is revoked, a certificate is what tells that this is why. Where a fingerprint is
        pinned, known_hosts has no say in the order either.
        """
        destination = self._destination
        if destination.algorithms.host_keys_fixed:
            return offered
        with_authority = destination.pinned is None and self._known.may_be_certified(*destination.known_as)
        known = set(self._known.key_types(*destination.known_as)) if destination.pinned is None else set()

        def rank(name: str) -> bool:
            return not with_authority if name.endswith(CERTIFICATE) else key_type(name) not in known

        wanted = [name for name in offered if with_authority or not name.endswith(CERTIFICATE)]
        return tuple(sorted(wanted, key=rank)) or offered

    def seek(self, is_sought: Callable[[bytes], bool]) -> None:
        """Have the host show each of its keys, until one is the key sought; by default that is the pinned one, if any.

        Args:
            is_sought: Returns whether a public key, as SSH encodes it, is the one.
        """
        self._is_sought = is_sought

    def further_types(self, shown: bytes, asked: tuple[str, ...], offered: tuple[str, ...]) -> tuple[str, ...]:
        """Return by which algorithms the host may still show the key sought; none if *shown* is it, or none is sought.

        Args:
            shown: What it has shown.
            asked: What it was asked for, in that order.
            offered: What it says it has.
        """
        if self._is_sought is None or self._is_sought(read_shown(shown)[1]):
            return ()
        self.unsought.append(shown)
        self._not_asked = tuple(name for name in asked if name in offered and key_type(name) != blob_type(shown))
        return self._not_asked

    def judge(self, shown: bytes, *, sleep: Callable[[float], object] = time.sleep) -> Verdict:
        """Return what makes the host's key its own; a host of which nothing is known is learnt if that is asked for.

        Args:
            shown: What it has shown, and has proved to have the private key of.
            sleep: Waits some seconds for whoever else writes known_hosts; may raise to give up.

        Raises:
            HostKeyError: It is unknown, another, revoked, not what was asked for, or it could not be remembered.
            ProtocolError: It is nothing that could be judged.
        """
        try:
            return self.look_up(shown)
        except UnknownHostKey as exc:
            if not self._destination.accept_new:
                raise
            refused = exc
        if not self.is_new_host:
            refused.message += " (accept-new learns only hosts of which nothing is known.)"
            raise refused
        try:
            verdict = self.learn(shown, sleep=sleep)
        except (LandingError, NotAvailable) as exc:
            raise UnknownHostKey(
                f"{refused.message} (accept-new can not remember it: {exc} What is not remembered is not accepted, "
                "for the next key could be anybody's.)",
                reason=Reason.HOST_KEY_NOT_SAVED,
            ) from exc
        self._destination.log.warning("%s is %s.", verdict.fingerprint, verdict.why)
        return verdict

    @property
    def is_new_host(self) -> bool:
        """Whether there is neither a key of the host nor an authority that may vouch for it."""
        return self._known.knows_nothing_of(*self._destination.known_as)

    def place_against(self, shown: bytes) -> str:
        """Return the place of the known_hosts line that speaks most against what is *shown*; empty if none does."""
        _, key = read_shown(shown)
        return self._known.place_against(*self._destination.known_as, key)

    def look_up(self, shown: bytes) -> Verdict:
        """Return what makes the host's key its own, learning nothing.

        Raises:
            HostKeyError, ProtocolError: As `judge`.
        """
        certificate, key = read_shown(shown)
        pinned = self._destination.pinned
        if pinned not in (None, fingerprint(key)):
            raise self._is_not_pinned(key)
        try:
            bits, least = rsa_bits(key), self._destination.rsa_bits
        except ValueError:
            raise ProtocolError("The host shows an RSA key that can not be read.") from None
        if bits is not None and bits < least:
            raise MismatchedHostKey(
                f"The host shows the RSA key {fingerprint(key)} of {bits} bits, and {least} are the least "
                "(RequiredRSASize). Give it a new key, best an Ed25519 one.",
                reason=Reason.HOST_KEY_TOO_SMALL,
            )
        if pinned is not None:
            return Verdict(pinned, "the one that it must have")
        if certificate is not None:
            return Verdict(fingerprint(key), self._judge_certificate(certificate))
        return Verdict(fingerprint(key), f"known in {self._check(blob_type(key), key)}")

    def _is_not_pinned(self, key: bytes) -> MismatchedHostKey:
        shows = describe_keys([*(read_shown(shown)[1] for shown in self.unsought), key])
        advice = (
            "Compare it with what `ssh-keygen -lf` prints of the .pub files in /etc/ssh on the host itself. If it is "
            "there, correct the pinned one (the option host key); if not, somebody may be between you and the host: do "
            "not connect."
        )
        if self._not_asked:
            advice = f"It was not asked for {', '.join(self._not_asked)}: SSHOptions(sock=...) serves one connection."
        return MismatchedHostKey(
            f"The host shows {shows}, and {self._destination.pinned} is the one that it must have. {advice}",
            reason=Reason.HOST_KEY_NOT_PINNED,
        )

    def learn(self, shown: bytes, *, sleep: Callable[[float], object] = time.sleep) -> Verdict:
        """Add the host's key to the file that new keys go to; where somebody else was quicker, that counts.

        Of a certificate, the plain key is added, as ssh does.

        Raises:
            HostKeyError: Something else has become known of the host, or there is no such file.
            LandingError, NotAvailable: The file can not be written.
        """
        destination = self._destination
        _, key = read_shown(shown)
        if destination.learns_into is None:
            raise UnknownHostKey(
                f"The host shows the {blob_type(key)} key {fingerprint(key)}, and there is no file to add it to. Name "
                "one: the option known hosts, or UserKnownHostsFile.",
                reason=Reason.HOST_KEY_UNKNOWN,
            )
        try:
            with locked(destination.learns_into, sleep=sleep) as file:
                now = HostKeys.read(destination)
                try:
                    return now.look_up(shown)
                except UnknownHostKey:
                    if not now.is_new_host:
                        raise
                file.append(line_of(*destination.known_as, key, hashed=destination.hash_names))
        except StageError:
            raise
        except OSError as exc:
            raise LandingError(
                f"No key can be added: {exc.strerror or exc}. Name another file (the option known hosts).",
                path=destination.learns_into,
                reason=Reason.HOST_KEY_NOT_SAVED,
            ) from exc
        return Verdict(fingerprint(key), f"added to {escape(destination.learns_into)}")

    def _check(self, key_type: str, key: bytes) -> str:
        return self._known.check(*self._destination.known_as, key_type, key, trust=trust_command(self._destination))

    def _judge_certificate(self, certificate: Certificate) -> str:
        """Return what makes it the host's: a known authority vouches for it, or, as for ssh, the key alone is known."""
        host, port = self._destination.known_as
        self._known.refuse_revoked(host, port, certificate.authority, "a certificate signed by")
        self._known.refuse_revoked(host, port, certificate.key, "a certificate of")
        place = self._known.authorities(host, port).get(certificate.authority)
        problem = None if place is None else self._why_not(certificate)
        if place is not None and problem is None:
            return f"certified by {fingerprint(certificate.authority)}, the authority in {place}"
        try:
            known = self._check(certificate.key_type, certificate.key)
        except ChangedHostKey:
            if place is None:
                raise
            raise self._complaint(certificate, place, problem) from None
        except HostKeyError as exc:
            raise self._complaint(certificate, place, problem) from exc
        self._destination.log.warning("%s Its key is known by itself.", self._complaint(certificate, place, problem))
        return f"known in {known}"

    def _why_not(self, certificate: Certificate) -> str | None:
        accepted = self._destination.algorithms.authorities
        return certificate.why_not(self._destination.known_as[0], time.time(), accepted)

    def _complaint(self, certificate: Certificate, place: str | None, problem: str | None) -> HostKeyError:
        host = escape(self._destination.known_as[0])
        shown = (
            f"The host shows a certificate ({escape(certificate.key_id)!r}) of the {certificate.key_type} key "
            f"{fingerprint(certificate.key)}, signed by {fingerprint(certificate.authority)}"
        )
        if place is None:
            others: Any = self._known.authorities(*self._destination.known_as)
            known = "; ".join(f"{fingerprint(blob)} in {where}" for blob, where in others.items())
            return UnknownHostKey(
                f"{shown}, which is no authority for it here (known: {known or 'none'}). If it should be, add it to "
                "known_hosts behind @cert-authority; or sign the host's key by one that is.",
                reason=Reason.HOST_CERTIFICATE_UNKNOWN,
            )
        return MismatchedHostKey(
            f"{shown}, the authority in {place}, but {problem}, and {host} is what was asked for. Sign the host's key "
            "anew, for the name by which it is reached, and restart its sshd.",
            reason=Reason.HOST_CERTIFICATE_INVALID,
        )


def read_shown(shown: bytes) -> tuple[Certificate | None, bytes]:
    """Return the certificate that a host has shown, if it is one, and the key.

    Raises:
        ProtocolError: It can not be read.
    """
    try:
        if not blob_type(shown).endswith(CERTIFICATE):
            return None, shown
        certificate = Certificate.parse(shown)
    except ValueError as exc:
        raise ProtocolError(f"The host shows a certificate that can not be read: {exc}.") from None
    return certificate, certificate.key


def describe_keys(keys: Iterable[bytes]) -> str:
    """Return *keys* in words, each once: their types and fingerprints."""
    return " and ".join(f"the {blob_type(key)} key {fingerprint(key)}" for key in dict.fromkeys(keys))


def trust_command(destination: Destination) -> str:
    """Return the command that adds the key of the host at *destination*; empty where there is no file to add it to."""
    path = destination.learns_into
    if path in (None, os.devnull):
        return ""
    words = ["peerstage", "trust"]
    if destination.port != 22:
        words += ["--port", str(destination.port)]
    if path != expand("~/.ssh/known_hosts"):
        words += ["--known-hosts", os.path.abspath(path)]
    for file in destination.config or ():
        words += ["--config", os.path.abspath(file)]
    if destination.config == ():
        words += ["--no-config"]
    if destination.hops:
        words += ["--jump", ",".join(str(hop) for hop in destination.hops)]
    return shlex.join([*words, destination.name])

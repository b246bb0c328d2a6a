"""Whether a host is the one that it should be: its key or certificate is judged before anything else is said to it."""

from __future__ import annotations

import logging
import time
from typing import Any

from peerstage.errors import ChangedHostKey, HostKeyError, MismatchedHostKey, ProtocolError, UnknownHostKey, escape
from peerstage.session.algorithms import CERTIFICATE
from peerstage.session.certificates import Certificate, blob_type
from peerstage.session.config import Destination
from peerstage.session.known_hosts import KnownHosts, fingerprint

log = logging.getLogger("peerstage.session")


class HostKeys:
    """What is known of the host at *destination*, and what follows from it.

    Args:
        destination: Where to; its `pinned` fingerprint decides alone if there is one.
        known: What known_hosts files say.
    """

    def __init__(self, destination: Destination, known: KnownHosts) -> None:
        self._destination = destination
        self._known = known

    @classmethod
    def read(cls, destination: Destination) -> HostKeys:
        """Read the known_hosts files of *destination*."""
        return cls(destination, KnownHosts.read(destination.known_hosts))

    def order(self, offered: tuple[str, ...]) -> tuple[str, ...]:
        """Return the *offered* algorithms of host keys in the order to ask for them (RFC 4253, 7.1).

        Those that can be judged come first, and certificates only where an authority is known for this host: a host
        that has both would show one that nobody here vouches for. An order that is configured stands.
        """
        destination = self._destination
        if destination.algorithms.host_keys_fixed:
            return offered
        with_authority = destination.pinned is None and bool(self._known.authorities(*destination.known_as))
        known = set(self._known.key_types(*destination.known_as))

        def rank(name: str) -> bool:
            if name.endswith(CERTIFICATE):
                return not with_authority
            return ("ssh-rsa" if name.startswith("rsa-sha2-") else name) not in known

        wanted = [name for name in offered if with_authority or not name.endswith(CERTIFICATE)]
        return tuple(sorted(wanted, key=rank)) or offered

    def judge(self, shown: bytes) -> str:
        """Return the fingerprint of the host's key, if the key or certificate that it has shown is its own.

        Args:
            shown: What it has shown, and has proved to have the private key of.

        Raises:
            HostKeyError: It is unknown, another, revoked, or not what was asked for.
            ProtocolError: It is nothing that could be judged.
        """
        certificate: Certificate | None = None
        try:
            if blob_type(shown).endswith(CERTIFICATE):
                certificate = Certificate.parse(shown)
        except ValueError as exc:
            raise ProtocolError(f"The host shows a certificate that can not be read: {exc}.") from None
        key = shown if certificate is None else certificate.key
        pinned = self._destination.pinned
        if pinned is not None:
            if pinned == fingerprint(key):
                return pinned
            raise MismatchedHostKey(
                f"The host shows the {blob_type(key)} key {fingerprint(key)}, and {pinned} is the one that it must "
                "have. Find out why it changed before anything else."
            )
        if certificate is not None:
            self._judge_certificate(certificate)
        else:
            self._known.check(*self._destination.known_as, blob_type(key), key)
        return fingerprint(key)

    def _judge_certificate(self, certificate: Certificate) -> None:
        """Return if a known authority vouches for it, or else, as for ssh, if the key alone is known."""
        host, port = self._destination.known_as
        self._known.refuse_revoked(host, port, certificate.authority, "a certificate signed by")
        self._known.refuse_revoked(host, port, certificate.key, "a certificate of")
        place = self._known.authorities(host, port).get(certificate.authority)
        problem = None if place is None else certificate.why_not(host, time.time())
        if place is not None and problem is None:
            return
        try:
            self._known.check(host, port, certificate.key_type, certificate.key)
        except ChangedHostKey:
            if place is None:
                raise
            raise self._complaint(certificate, place, problem) from None
        except HostKeyError as exc:
            raise self._complaint(certificate, place, problem) from exc
        log.warning("%s: %s Its key is known by itself.", escape(host), self._complaint(certificate, place, problem))

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
                "known_hosts behind @cert-authority; or sign the host's key by one that is."
            )
        return MismatchedHostKey(
            f"{shown}, the authority in {place}, but {problem}, and {host} is what was asked for. Sign the host's key "
            "anew, for the name by which it is reached, and restart its sshd."
        )

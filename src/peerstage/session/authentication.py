"""Logging in (RFC 4252): every key that may work in ssh's order, then the password; nothing interactive."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence

import paramiko

from peerstage.errors import LoginAttempt, LoginError, escape
from peerstage.reasons import Reason
from peerstage.session._paramiko.transport import ClientTransport
from peerstage.session.agent import UnusableKey
from peerstage.session.algorithms import CERTIFICATE, plain_algorithm
from peerstage.session.certificates import rsa_bits
from peerstage.session.config import Destination
from peerstage.session.login_advice import advise, deciding_line, without_empty_agents
from peerstage.session.offers import Offer, Offers
from peerstage.session.options import SSHOptions
from peerstage.session.pipe import Disconnected, PasswordExpired

#: Characters that are shown of what a peer says it wants.
_MOST_SHOWN = 200


class Login:
    """One attempt to log in to a peer, and the tale of what was tried, for the error that it may end with.

    Args:
        transport: Connected, its host key trusted.
        destination: The user, and which keys and agent to use.
        options: Key, passphrase and password where they were given.
        note: Told of each thing that was tried, as ``("login", what came of it)``.
    """

    def __init__(
        self,
        transport: ClientTransport,
        destination: Destination,
        options: SSHOptions,
        note: Callable[[str, str], object],
    ) -> None:
        self._transport = transport
        self._destination = destination
        self._options = options
        self._note = note
        self._tried: list[LoginAttempt] = []
        self._wanted: list[str] | None = None
        self._accepted = 0
        self._offers: Iterator[Offer] = iter(())
        self._offered: set[bytes] = set()
        self._password = options.password

    def run(self) -> None:
        """Log in.

        Raises:
            LoginError: Everything was refused; the message lists each thing that was tried and what came of it.
            ConfigurationError: The key that was handed in can not be used.
        """
        with Offers(self._destination, self._options, self._tell) as offers:
            self._transport.request_login()
            self._offers = iter(offers)
            if self._with_all():
                self._destination.log.info("logged in as %s.", escape(self._destination.user))
                return
        raise self._failure()

    def _failure(self) -> LoginError:
        """Return the error that says what was tried, and the step that follows from it."""
        user, attempts = self._destination.user, tuple(self._tried)
        reason = _reason_of(attempts)
        failed = f"Login as {user} refused" if reason in _OFFERED else f"Nothing to log in with as {user}"
        tried = self._told() or "no key, no agent, no password"
        wanted = ", ".join(filter(None, self._wanted or ()))
        also = f" The peer wants {wanted[:_MOST_SHOWN]}." if wanted else ""
        return LoginError(
            f"{failed}: {tried}.{also} {advise(self._destination, attempts)}".rstrip(),
            reason=reason,
            attempts=attempts,
            location=deciding_line(self._destination, attempts),
        )

    def _tell(self, attempt: LoginAttempt) -> None:
        self._tried.append(attempt)
        self._note("login", _line(attempt))

    def _told(self) -> str:
        """Return what was tried; of an agent without keys only if that is all that there is to say."""
        return "; ".join(_line(attempt) for attempt in without_empty_agents(self._tried))

    def _with_all(self) -> bool:
        """Try everything; and again what is left, as long as something is accepted and more is wanted."""
        accepted = -1
        while accepted < self._accepted:
            accepted = self._accepted
            if self._with_keys() or self._with_password():
                return True
        return False

    def _with_keys(self) -> bool:
        """Offer one key after the other as long as keys are wanted; those that it did not come to stay for later."""
        for offer in self._offers:
            if offer.blob in self._offered:
                continue
            accepted = self._accepted
            if self._is_wanted("publickey"):
                try:
                    algorithm = self._algorithm(offer)
                    by_key = functools.partial(self._by_key, offer, algorithm)
                    if self._attempt(offer.label, by_key, path=offer.path, key_type=offer.kind):
                        return True
                except UnusableKey as exc:
                    self._tell(LoginAttempt(offer.label, exc.reason, str(exc), offer.path, offer.kind))
            if self._accepted == accepted and not self._is_wanted("publickey"):
                self._offers = itertools.chain([offer], self._offers)
                return False
            self._offered.add(offer.blob)
        return False

    def _is_wanted(self, method: str) -> bool:
        return self._wanted is None or method in self._wanted

    def _by_key(self, offer: Offer, algorithm: str) -> list[str]:
        return self._transport.log_in_by_key(
            self._destination.user,
            algorithm,
            offer.blob,
            lambda data: offer.sign(algorithm, data),
            ask_first=algorithm.startswith("sk-"),  # somebody may have to touch a token
        )

    def _algorithm(self, offer: Offer) -> str:
        """Return by which algorithm a key signs; the server has a say for RSA and FIDO keys alone (RFC 8332, 3.3).

        Those of other types are offered whatever it says. FIDO keys are not, as some servers end the connection.

        Raises:
            UnusableKey: By none that is accepted.
        """
        kind, accepted = offer.kind, self._destination.algorithms.public_keys
        plain, theirs = plain_algorithm(kind), self._transport.signature_algorithms
        if plain != "ssh-rsa":
            if kind not in accepted:
                raise UnusableKey("its type is not accepted here (PubkeyAcceptedAlgorithms)", Reason.KEY_UNSUPPORTED)
            if plain.startswith("sk-") and theirs is not None and plain not in theirs:
                raise UnusableKey("the peer takes no keys on FIDO tokens", Reason.KEY_TYPE_REFUSED)
            return kind
        try:
            bits, least = rsa_bits(offer.key), self._destination.rsa_bits
        except ValueError:
            raise UnusableKey("the key can not be read", Reason.KEY_INVALID) from None
        if bits is not None and bits < least:
            raise UnusableKey(f"it has {bits} bits, and {least} are the least (RequiredRSASize)", Reason.KEY_TOO_SMALL)
        mine = [name for name in accepted if name in _RSA_NAMES[kind]]
        if not mine:
            raise UnusableKey(
                "no RSA signature with SHA-2 is accepted here (PubkeyAcceptedAlgorithms)", Reason.KEY_UNSUPPORTED
            )
        both = [name for name in mine if theirs is None or name.removesuffix(CERTIFICATE) in theirs]
        if not both:
            raise UnusableKey("the peer takes no RSA signature with SHA-2", Reason.KEY_TYPE_REFUSED)
        return both[0]

    def _with_password(self) -> bool:
        password = self._password
        if password is None or not self._is_wanted("password"):
            return False
        user, self._password = self._destination.user, None  # once is enough
        return self._attempt("the password", lambda: self._transport.log_in_by_password(user, password))

    def _attempt(self, label: str, attempt: Callable[[], list[str]], *, path: str = "", key_type: str = "") -> bool:
        """Try one credential; a server that ends the connection now has had enough of them (its MaxAuthTries)."""

        def tell(reason: Reason, outcome: str) -> None:
            self._tell(LoginAttempt(label, reason, outcome, path, key_type))

        try:
            wanted = attempt()
        except paramiko.BadAuthenticationType as exc:
            self._wanted = list(exc.allowed_types)
            tell(Reason.METHOD_NOT_OFFERED, "this way of logging in is not offered")
            return False
        except Disconnected as exc:
            tell(Reason.TOO_MANY_LOGIN_ATTEMPTS, str(exc))
            raise self._had_enough() from exc
        except paramiko.AuthenticationException as exc:
            if not self._transport.is_active():
                tell(Reason.TOO_MANY_LOGIN_ATTEMPTS, "the peer closed the connection")
                raise self._had_enough() from exc
            tell(Reason.LOGIN_REFUSED, "refused")
            return False
        except (OSError, EOFError):
            raise
        except paramiko.SSHException as exc:
            if not self._transport.is_active():
                raise
            tell(Reason.PASSWORD_EXPIRED if isinstance(exc, PasswordExpired) else Reason.LOGIN_REFUSED, str(exc))
            return False
        if wanted:
            self._wanted = list(wanted)
            self._accepted += 1
            tell(Reason.MORE_AUTHENTICATION_WANTED, "accepted, and more is wanted")
        if not self._transport.is_authenticated():
            return False
        self._note("logged in", f"{self._destination.user}, by {label}")
        return True

    def _had_enough(self) -> LoginError:
        return LoginError(
            f"Login as {self._destination.user} refused: {self._told()}. If there were many keys, the peer's "
            "MaxAuthTries is used up: name the right one by the option identity, or by IdentityFile and "
            "IdentitiesOnly.",
            reason=Reason.TOO_MANY_LOGIN_ATTEMPTS,
            attempts=tuple(self._tried),
        )


def _line(attempt: LoginAttempt) -> str:
    return f"{attempt.label}: {attempt.outcome}"


def _reason_of(attempts: Sequence[LoginAttempt]) -> Reason:
    """Return the reason that sums up *attempts*: that something was offered, or else why nothing was."""
    reasons = [attempt.reason for attempt in attempts]
    if not _OFFERED.isdisjoint(reasons):
        return Reason.LOGIN_REFUSED
    return next((reason for reason in reasons if reason is not Reason.AGENT_EMPTY), None) or (
        Reason.AGENT_EMPTY if reasons else Reason.NO_CREDENTIALS
    )


#: The reasons of what was offered to the server.
_OFFERED = frozenset(
    {
        Reason.LOGIN_REFUSED,
        Reason.MORE_AUTHENTICATION_WANTED,
        Reason.METHOD_NOT_OFFERED,
        Reason.PASSWORD_EXPIRED,
    }
)

_RSA_NAMES = {
    suffix: tuple(name + suffix.removeprefix("ssh-rsa") for name in ("rsa-sha2-512", "rsa-sha2-256"))
    for suffix in ("ssh-rsa", "ssh-rsa" + CERTIFICATE)
}

"""User authentication (RFC 4252): public keys in ssh's order, then the password; nothing interactive."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import paramiko

from peerstage.errors import LoginAttempt, LoginError
from peerstage.printable import escape
from peerstage.reasons import Reason
from peerstage.ssh._paramiko.client_transport import ClientTransport
from peerstage.ssh._paramiko.exceptions import Disconnected, PasswordExpired
from peerstage.ssh.algorithms import CERT_SUFFIX, plain_algorithm
from peerstage.ssh.auth.agent import UnusableKey
from peerstage.ssh.auth.credentials import Credential, Credentials
from peerstage.ssh.auth.login_remedies import OFFERED, advise, find_configured_path, without_empty_agents
from peerstage.ssh.config.destination import Destination
from peerstage.ssh.keys.certificates import plain_key
from peerstage.ssh.keys.public_keys import rsa_bits
from peerstage.ssh.options import SSHOptions
from peerstage.ssh.steps import OnStep

#: Characters of the server's list of methods that an error message shows.
_MAX_METHODS_LENGTH = 200


class Login:
    """One login, and the record of its attempts for the error message.

    Args:
        transport: A transport that has accepted the host key.
        destination: The user, and the paths of keys and agent.
        options: The caller's key, passphrase and password.
        on_step: Called after each attempt as ``("login", its outcome)``, and finally as ``("logged in", ...)``.
    """

    def __init__(
        self, transport: ClientTransport, destination: Destination, options: SSHOptions, on_step: OnStep
    ) -> None:
        self._transport = transport
        self._destination = destination
        self._options = options
        self._on_step = on_step
        self._attempts: list[LoginAttempt] = []
        self._methods: list[str] | None = None  # that can continue (RFC 4252, 5.1); None before the server lists them
        self._accepted = 0
        self._remaining: Iterator[Credential] = iter(())
        self._offered: set[bytes] = set()
        self._password = options.password

    def run(self) -> None:
        """Log in.

        Raises:
            LoginError: If the server refuses every credential; the message lists the attempts and their outcomes.
            ConfigurationError: If the key that the caller passed cannot be used.
        """
        with Credentials(self._destination, self._options, self._record) as credentials:
            self._transport.request_userauth()
            self._remaining = iter(credentials)
            if not self._try_all():
                raise self._login_error()
        self._destination.log.info("logged in as %s.", escape(self._destination.user))

    def _login_error(self) -> LoginError:
        user, attempts = self._destination.user, tuple(self._attempts)
        reason = _summarize(attempts)
        failure = f"Login as {user} refused" if reason in OFFERED else f"Nothing to log in with as {user}"
        listed = "; ".join(map(_format_attempt, without_empty_agents(attempts))) or "no key, no agent, no password"
        methods = ", ".join(filter(None, self._methods or ()))
        offered = f" The peer offers {methods[:_MAX_METHODS_LENGTH]}." if methods else ""
        return LoginError(
            f"{failure}: {listed}.{offered} {advise(self._destination, attempts)}".rstrip(),
            reason=reason,
            attempts=attempts,
            location=find_configured_path(self._destination, attempts),
        )

    def _record(self, attempt: LoginAttempt) -> None:
        self._attempts.append(attempt)
        self._on_step("login", _format_attempt(attempt))

    def _try_all(self) -> bool:
        """Try all credentials; after each partial success, try those that were not offered yet (RFC 4252, 5.1)."""
        accepted = -1
        while accepted < self._accepted:
            accepted = self._accepted
            if self._try_keys() or self._try_password():
                return True
        return False

    def _try_keys(self) -> bool:
        """Offer keys while the server accepts that method; keep the remaining ones for a later round."""
        for credential in self._remaining:
            if credential.blob in self._offered:
                continue
            accepted = self._accepted
            if self._can_continue("publickey") and self._try_key(credential):
                return True
            if self._accepted == accepted and not self._can_continue("publickey"):
                self._remaining = itertools.chain([credential], self._remaining)
                return False
            self._offered.add(credential.blob)
        return False

    def _can_continue(self, method: str) -> bool:
        return self._methods is None or method in self._methods

    def _try_key(self, credential: Credential) -> bool:
        label, path, key_type = credential.label, credential.path, credential.key_type
        try:
            algorithm = self._choose_algorithm(credential)
            return self._attempt(
                LoginAttempt(label, Reason.LOGIN_REFUSED, "refused", path, key_type),
                lambda: self._transport.authenticate_with_key(
                    self._destination.user,
                    algorithm,
                    credential.blob,
                    lambda data: credential.sign(algorithm, data),
                    probe_first=algorithm.startswith("sk-"),  # a signature may need a touch of the token
                ),
            )
        except UnusableKey as exc:
            self._record(LoginAttempt(exc.label or label, exc.reason, str(exc), exc.path or path, key_type))
            return False

    def _choose_algorithm(self, credential: Credential) -> str:
        """Return the signature algorithm for a key.

        The server's list (RFC 8308, 3.1) decides for RSA keys and FIDO keys alone. Other keys are offered even if it
        lacks their type (RFC 8332, 3.3); FIDO keys are not, since some servers end the connection over them.

        Raises:
            UnusableKey: If either side accepts no algorithm of the key.
        """
        key_type, accepted = credential.key_type, self._destination.algorithms.pubkey_accepted
        plain_type, by_server = plain_algorithm(key_type), self._transport.server_signature_algorithms
        if plain_type != "ssh-rsa":
            if key_type not in accepted:
                raise UnusableKey("PubkeyAcceptedAlgorithms does not allow its type", Reason.KEY_UNSUPPORTED)
            if plain_type.startswith("sk-") and by_server is not None and plain_type not in by_server:
                raise UnusableKey("the peer accepts no keys on FIDO tokens", Reason.KEY_TYPE_REFUSED)
            return key_type
        try:
            bits, min_bits = rsa_bits(plain_key(credential.blob)), self._destination.min_rsa_bits
        except ValueError:
            raise UnusableKey("the key is malformed", Reason.KEY_INVALID) from None
        if bits is not None and bits < min_bits:
            raise UnusableKey(f"it has {bits} bits, and RequiredRSASize is {min_bits}", Reason.KEY_TOO_SMALL)
        ours = [name for name in accepted if name in _RSA_ALGORITHMS[key_type]]
        if not ours:
            names = " nor ".join(reversed(_RSA_ALGORITHMS[key_type]))
            raise UnusableKey(f"PubkeyAcceptedAlgorithms allows neither {names}", Reason.KEY_UNSUPPORTED)
        common = [name for name in ours if by_server is None or name.removesuffix(CERT_SUFFIX) in by_server]
        if not common:
            names = " or ".join(name.removesuffix(CERT_SUFFIX) for name in ours)
            raise UnusableKey(f"the server accepts no {names} signatures (server-sig-algs)", Reason.KEY_TYPE_REFUSED)
        return common[0]

    def _try_password(self) -> bool:
        password = self._password
        if password is None or not self._can_continue("password"):
            return False
        user, self._password = self._destination.user, None  # it is not sent twice
        return self._attempt(
            LoginAttempt("the password", Reason.LOGIN_REFUSED, "refused"),
            lambda: self._transport.authenticate_with_password(user, password),
        )

    def _attempt(self, attempt: LoginAttempt, authenticate: Callable[[], list[str]]) -> bool:
        """Send one credential, record the *attempt* with its outcome, and return whether the user is logged in.

        Raises:
            LoginError: If the server ends the connection, which it does after MaxAuthTries attempts.
        """

        def record(reason: Reason, outcome: str) -> None:
            self._record(attempt._replace(reason=reason, outcome=outcome))

        try:
            methods = authenticate()
        except paramiko.BadAuthenticationType as exc:
            self._methods = list(exc.allowed_types)
            record(Reason.METHOD_NOT_OFFERED, "the peer does not offer this method")
            return False
        except Disconnected as exc:
            record(Reason.TOO_MANY_LOGIN_ATTEMPTS, str(exc))
            raise self._login_error() from exc
        except paramiko.AuthenticationException as exc:
            if not self._transport.is_active():
                record(Reason.TOO_MANY_LOGIN_ATTEMPTS, "the peer closed the connection")
                raise self._login_error() from exc
            record(Reason.LOGIN_REFUSED, "refused")
            return False
        except paramiko.SSHException as exc:
            if not self._transport.is_active():
                raise
            record(Reason.PASSWORD_EXPIRED if isinstance(exc, PasswordExpired) else Reason.LOGIN_REFUSED, str(exc))
            return False
        if methods:
            self._methods = list(methods)
            self._accepted += 1
            record(Reason.MORE_AUTHENTICATION_WANTED, "accepted, but another method is required too")
        if not self._transport.is_authenticated():
            return False
        self._on_step("logged in", f"{self._destination.user}, by {attempt.label}")
        return True


def _format_attempt(attempt: LoginAttempt) -> str:
    return f"{attempt.label}: {attempt.outcome}"


def _summarize(attempts: tuple[LoginAttempt, ...]) -> Reason:
    """Return the reason of the whole login: that the server refused it, or why nothing was offered."""
    reasons = [attempt.reason for attempt in without_empty_agents(attempts)]
    if Reason.TOO_MANY_LOGIN_ATTEMPTS in reasons:
        return Reason.TOO_MANY_LOGIN_ATTEMPTS
    if not OFFERED.isdisjoint(reasons):
        return Reason.LOGIN_REFUSED
    return reasons[0] if reasons else Reason.NO_CREDENTIALS


_RSA_ALGORITHMS = {
    "ssh-rsa" + suffix: tuple(name + suffix for name in ("rsa-sha2-512", "rsa-sha2-256"))
    for suffix in ("", CERT_SUFFIX)
}

"""What to do about a login that was refused, or that could not be tried: keys, certificates, agents, users."""

from __future__ import annotations

import base64
import shlex
import time
from collections.abc import Callable

from peerstage.cli.diagnosis import Diagnosis, Remedy
from peerstage.errors import LoginAttempt, LoginError, StageError
from peerstage.reasons import Reason
from peerstage.session.algorithms import CERTIFICATE
from peerstage.session.certificates import Certificate, blob_type
from peerstage.session.keys import default_label
from peerstage.session.offers import Offer, Offers


def explain_login(error: StageError, d: Diagnosis) -> Remedy:
    """Return what is to be said about a failed login: of all that was tried, about what its owner meant to be used."""
    attempts = error.attempts if isinstance(error, LoginError) else ()
    refused = [attempt for attempt in attempts if attempt.reason in _REFUSED]
    unusable = [attempt for attempt in attempts if attempt.reason in _UNUSABLE]
    for attempt in unusable:
        named = d.options.identity is not None and attempt.path != ""
        if attempt.reason is Reason.KEY_FILE_PERMISSIONS or (named and attempt.reason not in _OF_AGENT):
            return _explain_unusable(attempt, d)
    if error.reason is Reason.TOO_MANY_LOGIN_ATTEMPTS and len(refused) > 1:
        return Remedy(
            f"{d.machine} ended the connection before the right key was offered (its MaxAuthTries)",
            f"add `IdentitiesOnly yes` and `IdentityFile FILE` {d.host_block}",
        )
    if refused:
        return _explain_refused(refused, d)
    in_order = sorted(unusable, key=lambda attempt: attempt.reason is Reason.AGENT_EMPTY)  # it is only not useful
    if in_order:
        return _explain_unusable(in_order[0], d)
    return Remedy(
        "there is no key to offer",
        _new_key(d),
    )


def explain_login_timeout(error: StageError, d: Diagnosis) -> Remedy:
    """Return what is to be said about a login that took too long."""
    return Remedy(
        f"{d.machine} takes too long to let {d.login} in: it looks up our name, or its PAM or LDAP hangs",
        f"{d.sshd_setting('UseDNS no')}; see its log, and that of its PAM modules",
    )


def _explain_unusable(attempt: LoginAttempt, d: Diagnosis) -> Remedy:
    return _UNUSABLE[attempt.reason](attempt, d)


# What was offered.


def _explain_refused(refused: list[LoginAttempt], d: Diagnosis) -> Remedy:
    if all(attempt.reason is Reason.METHOD_NOT_OFFERED for attempt in refused):
        return Remedy(
            f"{d.machine} does not let {d.login} log in with a key",
            f"{d.sshd_setting('PubkeyAuthentication yes')}; look into its Match blocks, too",
        )
    if refused[-1].reason is Reason.MORE_AUTHENTICATION_WANTED:
        return Remedy(
            f"{d.machine} accepts the key and wants something more, which nobody is there to give",
            f"let the key suffice for {d.login}: {d.sshd_setting('AuthenticationMethods publickey')}",
        )
    offers = _offers_of(d)
    labels = {attempt.label for attempt in refused}
    offered = [offer for offer in offers if offer.label in labels]
    certificate = next((offer for offer in offered if offer.kind.endswith(CERTIFICATE)), None)
    if certificate is not None:
        return _explain_certificate(certificate, d)
    if not offered:
        return Remedy(f"{d.machine} does not accept what was offered for {d.login}", d.another_user)
    line = _line(offered[0].blob)
    key = f"; or {d.identity(offered[0].path)}" if d.options.identity is not None else ""
    return Remedy(
        f"{offered[0].label} is not among the keys of {d.login} on {d.machine}, or that is the wrong user",
        f"append `{line}` to {d.authorized_keys} (mode 0600); or {d.another_user}{key}",
    )


def _explain_certificate(offer: Offer, d: Diagnosis) -> Remedy:
    """Certificates are accepted by authority, principal and time, and never as a line of authorized_keys."""
    certificate, now = Certificate.parse(offer.blob), time.time()
    key = shlex.quote(offer.path.removesuffix("-cert.pub") + ".pub") if offer.path else "KEY.pub"
    renewal = f"have the authority sign the key again: `ssh-keygen -s AUTHORITY -I {d.login} -n {d.login} {key}`"
    if not certificate.valid_after <= now < certificate.valid_before:
        return Remedy(f"the certificate {offer.label} is not valid now: {certificate.validity}", renewal)
    if d.login not in certificate.principals:
        principals = ", ".join(certificate.principals) or "nobody"
        return Remedy(
            f"the certificate {offer.label} is for {principals}, and not for {d.login}",
            f"{renewal}; or {d.another_user}; or name one of these principals in the file that "
            f"`AuthorizedPrincipalsFile` names in {d.sshd_config}",
        )
    authority = _line(certificate.authority)
    return Remedy(
        f"{d.machine} does not trust the authority that signed {offer.label}, or not for {d.login}",
        f"append `cert-authority {authority}` to {d.authorized_keys}; or write `{authority}` to a file there, and "
        + d.sshd_setting("TrustedUserCAKeys FILE"),
    )


def _offers_of(d: Diagnosis) -> list[Offer]:
    if d.destination is None:
        return []
    with Offers(d.destination, d.options, lambda attempt: None) as offers:
        return list(offers)


def _line(blob: bytes) -> str:
    return f"{blob_type(blob)} {base64.b64encode(blob).decode('ascii')}"


# What could not be offered.


def _open_to_others(attempt: LoginAttempt, d: Diagnosis) -> Remedy:
    return Remedy(f"{attempt.label} is open to others, so that ssh ignores it", f"run `chmod 600 {_file(attempt)}`")


def _missing(attempt: LoginAttempt, d: Diagnosis) -> Remedy:
    return Remedy(f"the key file {attempt.label} does not exist", d.identity(attempt.path))


def _unreadable(attempt: LoginAttempt, d: Diagnosis) -> Remedy:
    return Remedy(
        f"this user may not read the key file {attempt.label}",
        f"run `chown $(id -u) {_file(attempt)} && chmod 600 {_file(attempt)}` as root; or {d.identity(attempt.path)}",
    )


def _damaged(attempt: LoginAttempt, d: Diagnosis) -> Remedy:
    return Remedy(
        f"{attempt.label} is no private key, or is damaged",
        f"{d.identity(attempt.path)}, if `ssh-keygen -y -f {_file(attempt)}` cannot read it either",
    )


def _locked(attempt: LoginAttempt, d: Diagnosis) -> Remedy:
    agent = "run" if d.destination is not None and d.destination.agent is not None else "run `eval $(ssh-agent)` and"
    return Remedy(
        f"{attempt.label} has a passphrase, and nobody is asked for it",
        f"{agent} `ssh-add {_file(attempt)}`; or run `ssh-keygen -p -f {_file(attempt)}`",
    )


def _wrong_passphrase(attempt: LoginAttempt, d: Diagnosis) -> Remedy:
    return Remedy(
        f"the passphrase given does not open {attempt.label}",
        f"correct it: `ssh-keygen -y -f {_file(attempt)}` tells whether it is right",
    )


def _only_public(attempt: LoginAttempt, d: Diagnosis) -> Remedy:
    private = attempt.path.removesuffix("-cert.pub").removesuffix(".pub")
    return Remedy(
        f"{attempt.label} holds no private key, and no agent has it",
        f"{d.identity(attempt.path)}, such as {default_label(private)}; or add the key to an agent with `ssh-add`",
    )


def _on_token(attempt: LoginAttempt, d: Diagnosis) -> Remedy:
    return Remedy(f"{attempt.label} is on a FIDO token, which only an agent can use", f"run `ssh-add {_file(attempt)}`")


def _unsupported(attempt: LoginAttempt, d: Diagnosis) -> Remedy:
    configured = d.setting("PubkeyAcceptedAlgorithms") or d.setting("RequiredRSASize")
    ours = f"; or correct {configured}" if configured else ""
    return Remedy(f"{attempt.label} is of a type or size that is not accepted here", f"{_new_key(d)}{ours}")


def _refused_type(attempt: LoginAttempt, d: Diagnosis) -> Remedy:
    return Remedy(f"{d.machine} accepts no signature by keys such as {attempt.label}", f"update it; or {_new_key(d)}")


def _no_certificate(attempt: LoginAttempt, d: Diagnosis) -> Remedy:
    return Remedy(
        f"{attempt.label} is no certificate of a user",
        d.correction("CertificateFile", "FILE"),
    )


def _no_agent(attempt: LoginAttempt, d: Diagnosis) -> Remedy:
    return Remedy(f"no agent listens at {attempt.path}", f"{_START}; or {_agent_setting(d)}, or {_key(d)}")


def _silent_agent(attempt: LoginAttempt, d: Diagnosis) -> Remedy:
    return Remedy(
        f"the agent at {attempt.path} does not answer: it hangs, or waits for somebody to confirm",
        f"end it and {_START}; or {_agent_setting(d)}, or {_key(d)}",
    )


def _refusing_agent(attempt: LoginAttempt, d: Diagnosis) -> Remedy:
    return Remedy(
        f"what listens at {attempt.path} refuses, as an agent that is locked, or is none",
        f"run `ssh-add -X` to unlock it; or {_agent_setting(d)}, or {_key(d)}",
    )


def _empty_agent(attempt: LoginAttempt, d: Diagnosis) -> Remedy:
    return Remedy(f"the agent at {attempt.path} holds no keys", f"add one with `ssh-add FILE`; or {_key(d)}")


_KEY = "~/.ssh/id_ed25519"
_START = "start another with `eval $(ssh-agent)`, and `ssh-add FILE`"


def _agent_setting(d: Diagnosis) -> str:
    configured = d.setting("IdentityAgent")
    return f"correct {configured}" if configured else "set SSH_AUTH_SOCK to the socket of another"


def _key(d: Diagnosis) -> str:
    return "name a key file with --identity"


def _new_key(d: Diagnosis) -> str:
    return f"run `ssh-keygen -t ed25519 -N '' -f {_KEY}`, then append {_KEY}.pub to {d.authorized_keys}"


def _file(attempt: LoginAttempt) -> str:
    """Return the path of a key for a shell, with its ``~`` as it is."""
    label = default_label(attempt.path)
    return f"~/{shlex.quote(label[2:])}" if label.startswith("~/") else shlex.quote(label)


#: The reasons of what was offered to the server.
_REFUSED = frozenset(
    {
        Reason.LOGIN_REFUSED,
        Reason.MORE_AUTHENTICATION_WANTED,
        Reason.METHOD_NOT_OFFERED,
        Reason.TOO_MANY_LOGIN_ATTEMPTS,
    }
)
_OF_AGENT = frozenset({Reason.AGENT_UNAVAILABLE, Reason.AGENT_SILENT, Reason.AGENT_REFUSED, Reason.AGENT_EMPTY})
_UNUSABLE: dict[Reason, Callable[[LoginAttempt, Diagnosis], Remedy]] = {
    Reason.KEY_FILE_PERMISSIONS: _open_to_others,
    Reason.KEY_FILE_MISSING: _missing,
    Reason.KEY_FILE_UNREADABLE: _unreadable,
    Reason.KEY_INVALID: _damaged,
    Reason.PASSPHRASE_MISSING: _locked,
    Reason.PASSPHRASE_WRONG: _wrong_passphrase,
    Reason.PUBLIC_KEY_ONLY: _only_public,
    Reason.KEY_ON_TOKEN: _on_token,
    Reason.KEY_UNSUPPORTED: _unsupported,
    Reason.KEY_TOO_SMALL: _unsupported,
    Reason.KEY_TYPE_REFUSED: _refused_type,
    Reason.CERTIFICATE_INVALID: _no_certificate,
    Reason.AGENT_UNAVAILABLE: _no_agent,
    Reason.AGENT_SILENT: _silent_agent,
    Reason.AGENT_REFUSED: _refusing_agent,
    Reason.AGENT_EMPTY: _empty_agent,
}
LOGIN_REMEDIES: dict[Reason, Callable[[StageError, Diagnosis], Remedy]] = {
    **dict.fromkeys((*_REFUSED, *_UNUSABLE, Reason.NO_CREDENTIALS), explain_login),
    Reason.LOGIN_TIMEOUT: explain_login_timeout,
}

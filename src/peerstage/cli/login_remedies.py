"""Remedies for failed logins, as the doctor words them: with options of the command line and lines of ssh_config."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable

from peerstage.cli.diagnosis import Diagnosis
from peerstage.errors import LoginAttempt, LoginError, StageError
from peerstage.reasons import Reason
from peerstage.ssh.auth.credentials import Credentials
from peerstage.ssh.auth.key_files import abbreviate_home
from peerstage.ssh.auth.login_remedies import (
    CERTIFICATE_REFUSED,
    LOGIN_REASONS,
    Remedy,
    choose_remedy,
    login_terms,
    private_key_path,
)
from peerstage.ssh.config.destination import Destination
from peerstage.ssh.keys.certificates import Certificate
from peerstage.ssh.keys.public_keys import format_public_key


def explain_login(error: StageError, d: Diagnosis) -> Remedy:
    """Return the remedy for a failed login: of all attempts, for the one that the user most likely meant to succeed."""
    if d.destination is None:
        return Remedy(error.reason.meaning.rstrip("."), "correct the configuration first")
    attempts = error.attempts if isinstance(error, LoginError) else ()
    remedy, attempt = choose_remedy(d.destination, attempts)
    blob = _find_blob(attempt, d.destination, d) if attempt.key_type else None
    if remedy is CERTIFICATE_REFUSED and blob is not None:
        return _explain_certificate(attempt, Certificate.parse(blob), d)
    return remedy.fill(_doctor_terms(attempt, blob, d.destination, d))


def _doctor_terms(attempt: LoginAttempt, blob: bytes | None, destination: Destination, d: Diagnosis) -> dict[str, str]:
    terms = login_terms(attempt, destination, d.machine)
    another_key = d.identity(attempt.path)
    key_types = d.setting("PubkeyAcceptedAlgorithms") or d.setting("RequiredRSASize")
    agent = d.setting("IdentityAgent")
    private = private_key_path(attempt.path)
    return {
        **terms,
        "public_key": terms["public_key"] if blob is None else f"`{format_public_key(blob)}`",
        "another_user": d.another_user,
        "another_key": another_key,
        "private_key": another_key + (f", such as {abbreviate_home(private)}" if private else ""),
        "key_file": "name a key file with --identity",
        "only_key_file": f"add `IdentitiesOnly yes` and `IdentityFile FILE` {d.host_block}",
        "another_certificate": d.correction("CertificateFile", "FILE"),
        "accepted_keys": f"correct {key_types}" if key_types else terms["accepted_keys"],
        "another_agent": f"correct {agent}" if agent else terms["another_agent"],
    }


def _explain_certificate(attempt: LoginAttempt, certificate: Certificate, d: Diagnosis) -> Remedy:
    """Return why a server refuses the certificate: its validity, its principals or its authority."""
    key = shlex.quote(attempt.path.removesuffix("-cert.pub") + ".pub") if attempt.path else "KEY.pub"
    renewal = f"have the authority sign the key again: `ssh-keygen -s AUTHORITY -I {d.login} -n {d.login} {key}`"
    if not certificate.valid_after <= time.time() < certificate.valid_before:
        return Remedy(f"the certificate {attempt.label} is not valid now: {certificate.validity}", renewal)
    if d.login not in certificate.principals:
        principals = ", ".join(certificate.principals) or "nobody"
        return Remedy(
            f"the certificate {attempt.label} is for {principals}, and not for {d.login}",
            f"{renewal}; or {d.another_user}; or name one of these principals in the file that "
            f"`AuthorizedPrincipalsFile` names in {d.sshd_config}",
        )
    authority = format_public_key(certificate.authority)
    return Remedy(
        f"{d.machine} does not trust the authority that signed {attempt.label}, or not for {d.login}",
        f"append `cert-authority {authority}` to {d.authorized_keys}; or write `{authority}` to a file there, and "
        + d.sshd_setting("TrustedUserCAKeys FILE"),
    )


def _find_blob(attempt: LoginAttempt, destination: Destination, d: Diagnosis) -> bytes | None:
    """Return the key or certificate that was offered in *attempt*; None if it is gone."""
    with Credentials(destination, d.options, lambda attempt: None) as credentials:
        return next((credential.blob for credential in credentials if credential.label == attempt.label), None)


LOGIN_REMEDIES: dict[Reason, Remedy | Callable[[StageError, Diagnosis], Remedy]] = {
    **dict.fromkeys(LOGIN_REASONS, explain_login),
    Reason.LOGIN_TIMEOUT: Remedy(
        "{machine} takes too long to log {login} in: its lookup of this machine's name, PAM or LDAP hangs",
        "set `UseDNS no` in {sshd_config}, and restart its sshd; see its log, and that of its PAM modules",
    ),
}

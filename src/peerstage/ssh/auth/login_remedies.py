"""Cause and next step for each failed login attempt, for the message of `LoginError` and the command `doctor`."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from peerstage.errors import Location, LoginAttempt
from peerstage.reasons import Reason
from peerstage.ssh.algorithms import CERT_SUFFIX
from peerstage.ssh.config.destination import Destination

_MAX_STEPS = 3
_AGENT_VARIABLE = "SSH_AUTH_SOCK"
_NEW_KEY = "~/.ssh/id_ed25519"


class Remedy(NamedTuple):
    """The likely cause of a failure, and the next step; a template if it holds fields for `str.format`.

    Attributes:
        cause: The cause, as a clause.
        action: Alternatives, as imperative clauses with "; or " between them. Commands and lines stand in backquotes.
    """

    cause: str
    action: str

    def fill(self, terms: dict[str, str]) -> Remedy:
        """Return the remedy with *terms* for its fields. See `login_terms`."""
        return Remedy(self.cause.format_map(terms), self.action.format_map(terms))


KEY_REFUSED = Remedy(
    "{label} is not among the keys of {user} on {machine}, or {user} is the wrong user",
    "append {public_key} to {authorized_keys} (mode 0600); or {another_user}",
)
CERTIFICATE_REFUSED = Remedy(
    "{machine} does not accept the certificate {label} for {user}",
    "check that {machine} trusts the certificate's authority (TrustedUserCAKeys), that the certificate lists {user} or "
    "one of its AuthorizedPrincipalsFile as a principal, and that it has not expired",
)
_PASSWORD_REFUSED = Remedy("{machine} does not accept {label} for {user}", "correct {label}; or {another_user}")
_PASSWORD_EXPIRED = Remedy("the password of {user} has expired", "change the password of {user} on {machine}")
_MORE_WANTED = Remedy(
    "{machine} accepts {label} but wants another authentication method, which is not available",
    "let one key suffice for {user}: set `AuthenticationMethods publickey` in {sshd_config}",
)
_METHOD_NOT_OFFERED = Remedy(
    "{machine} does not let {user} log in with {label}",
    "set `PubkeyAuthentication yes` in {sshd_config}; check its Match blocks, too; or use a method that it offers",
)
_TOO_MANY_ATTEMPTS = Remedy(
    "{machine} ended the connection before the right key was offered (its MaxAuthTries)", "{only_key_file}"
)
_NO_CREDENTIALS = Remedy("there is no key to offer", "{new_key}")
_NO_ATTEMPT = LoginAttempt("", Reason.NO_CREDENTIALS, "")
_INVALID_KEY_WITHOUT_FILE = Remedy("{label} is not a valid key", "use another key")
_KEY_NOT_ACCEPTED = Remedy("{label} is of a type or size that is not accepted here", "{new_key}; or {accepted_keys}")
_AGENT_ACTION = "{start_agent}; or {another_agent}; or {key_file}"

#: Remedies for what could not be offered to the server.
_UNUSABLE = {
    Reason.KEY_FILE_MISSING: Remedy("the key file {label} does not exist", "{another_key}"),
    Reason.KEY_FILE_UNREADABLE: Remedy(
        "this user may not read the key file {label}",
        "run `chown {uid} {file} && chmod 600 {file}` as root; or {another_key}",
    ),
    Reason.KEY_FILE_PERMISSIONS: Remedy("others can access {label}, so ssh ignores it", "run `chmod 600 {file}`"),
    Reason.KEY_INVALID: Remedy(
        "{label} is not a private key, or is damaged",
        "{another_key}, if `ssh-keygen -y -f {file}` cannot read it either",
    ),
    Reason.PASSPHRASE_MISSING: Remedy(
        "{label} has a passphrase, which an unattended run cannot ask for",
        "run {add_key}; or run `ssh-keygen -p -f {file}`; or give the passphrase to the Python API",
    ),
    Reason.PASSPHRASE_WRONG: Remedy(
        "the passphrase does not decrypt {label}",
        "correct the passphrase: `ssh-keygen -y -f {file}` tells whether it is right",
    ),
    Reason.PUBLIC_KEY_ONLY: Remedy(
        "{label} holds no private key, and no agent has it", "{private_key}; or run {add_private_key}"
    ),
    Reason.KEY_ON_TOKEN: Remedy("{label} is on a FIDO token, which only an agent can use", "run {add_key}"),
    Reason.KEY_UNSUPPORTED: _KEY_NOT_ACCEPTED,
    Reason.KEY_TOO_SMALL: _KEY_NOT_ACCEPTED,
    Reason.KEY_TYPE_REFUSED: Remedy(
        "{machine} accepts no signatures by keys like {label}", "update the SSH server of {machine}; or {new_key}"
    ),
    Reason.CERTIFICATE_INVALID: Remedy("{label} is not a user certificate", "{another_certificate}"),
    Reason.AGENT_UNAVAILABLE: Remedy("no agent listens at {agent}", _AGENT_ACTION),
    Reason.AGENT_SILENT: Remedy(
        "the agent at {agent} does not answer: it hangs, or waits for a confirmation", _AGENT_ACTION
    ),
    Reason.AGENT_REFUSED: Remedy(
        "the agent at {agent} refuses: it is locked, or not an agent",
        "run {unlock_agent} to unlock it; or {another_agent}; or {key_file}",
    ),
    Reason.AGENT_EMPTY: Remedy("the agent at {agent} holds no keys", "add one with {add_some_key}; or {key_file}"),
}
_OF_AGENT = frozenset({Reason.AGENT_UNAVAILABLE, Reason.AGENT_SILENT, Reason.AGENT_REFUSED, Reason.AGENT_EMPTY})
_REFUSED = (Reason.LOGIN_REFUSED, Reason.TOO_MANY_LOGIN_ATTEMPTS)
#: The reasons of attempts that reached the server.
OFFERED = frozenset({*_REFUSED, Reason.MORE_AUTHENTICATION_WANTED, Reason.METHOD_NOT_OFFERED, Reason.PASSWORD_EXPIRED})
#: All reasons of failed logins that have a remedy here.
LOGIN_REASONS = (*OFFERED, *_UNUSABLE, Reason.NO_CREDENTIALS)


def advise(destination: Destination, attempts: Sequence[LoginAttempt]) -> str:
    """Return the next steps after the failed *attempts* to log in at *destination*, as sentences."""
    remedies = (remedy.fill(login_terms(attempt, destination)) for remedy, attempt in _choose(destination, attempts))
    steps = dict.fromkeys(f"{action[0].upper()}{action[1:]}." for _, action in remedies)
    return " ".join(list(steps)[:_MAX_STEPS])


def choose_remedy(destination: Destination, attempts: Sequence[LoginAttempt]) -> tuple[Remedy, LoginAttempt]:
    """Return the template of the first remedy for failed *attempts*, and the attempt that it is for."""
    return next(_choose(destination, attempts), (_NO_CREDENTIALS, _NO_ATTEMPT))


def find_configured_path(destination: Destination, attempts: Sequence[LoginAttempt]) -> Location | None:
    """Return the line of ssh_config that names the first key or agent that could not be used; None if no line does."""
    unusable = (attempt for attempt in without_empty_agents(attempts) if attempt.reason in _UNUSABLE)
    lines = (destination.configured_paths.get(attempt.path) for attempt in unusable)
    return next((line.location for line in lines if line is not None), None)


def without_empty_agents(attempts: Sequence[LoginAttempt]) -> Sequence[LoginAttempt]:
    """Return *attempts* without the agents that hold no keys, unless there is nothing else."""
    return [attempt for attempt in attempts if attempt.reason is not Reason.AGENT_EMPTY] or attempts


def _choose(destination: Destination, attempts: Sequence[LoginAttempt]) -> Iterator[tuple[Remedy, LoginAttempt]]:
    """Yield the templates that apply: for what the user named explicitly, for what the server refused, for the rest."""
    unusable = [attempt for attempt in without_empty_agents(attempts) if attempt.reason in _UNUSABLE]
    is_explicit = destination.explicit_identities

    def is_intended(attempt: LoginAttempt) -> bool:
        is_explicit_file = is_explicit and attempt.path != "" and attempt.reason not in _OF_AGENT
        return is_explicit_file or attempt.reason is Reason.KEY_FILE_PERMISSIONS

    yield from ((_remedy_for_unusable(attempt), attempt) for attempt in unusable if is_intended(attempt))
    yield from _choose_for_offered(destination, [attempt for attempt in attempts if attempt.reason in OFFERED])
    yield from ((_remedy_for_unusable(attempt), attempt) for attempt in unusable if not is_intended(attempt))
    if not attempts:
        yield _NO_CREDENTIALS, _NO_ATTEMPT


def _remedy_for_unusable(attempt: LoginAttempt) -> Remedy:
    is_without_file = attempt.reason is Reason.KEY_INVALID and not attempt.path
    return _INVALID_KEY_WITHOUT_FILE if is_without_file else _UNUSABLE[attempt.reason]


def _choose_for_offered(
    destination: Destination, offered: Sequence[LoginAttempt]
) -> Iterator[tuple[Remedy, LoginAttempt]]:
    last = {attempt.reason: attempt for attempt in offered}
    if Reason.TOO_MANY_LOGIN_ATTEMPTS in last and len(offered) > 1:
        yield _TOO_MANY_ATTEMPTS, offered[-1]
        return
    if offered and offered[-1].reason is Reason.MORE_AUTHENTICATION_WANTED:
        yield _MORE_WANTED, offered[-1]
    refused = [attempt for attempt in offered if attempt.reason in _REFUSED]
    keys = sorted((attempt for attempt in refused if attempt.key_type), key=lambda attempt: not attempt.path)
    certificate = next((attempt for attempt in keys if attempt.key_type.endswith(CERT_SUFFIX)), None)
    if certificate is not None:
        yield CERTIFICATE_REFUSED, certificate
    elif keys:
        is_named = destination.explicit_identities and keys[0].path
        action = KEY_REFUSED.action + ("; or {another_key}" if is_named else "")
        yield KEY_REFUSED._replace(action=action), keys[0]
    elif refused:
        yield _PASSWORD_REFUSED, refused[0]
    if Reason.PASSWORD_EXPIRED in last:
        yield _PASSWORD_EXPIRED, last[Reason.PASSWORD_EXPIRED]
    if Reason.MORE_AUTHENTICATION_WANTED in last:
        yield _MORE_WANTED, last[Reason.MORE_AUTHENTICATION_WANTED]
    elif Reason.METHOD_NOT_OFFERED in last and not refused:
        yield _METHOD_NOT_OFFERED, last[Reason.METHOD_NOT_OFFERED]


def private_key_path(path: str) -> str:
    """Return the path of the private key for the public key or certificate *path*; "" if it has neither suffix."""
    private = path.removesuffix(".pub").removesuffix("-cert")
    return "" if private == path else private


def login_terms(attempt: LoginAttempt, destination: Destination, machine: str = "the peer") -> dict[str, str]:
    """Return the values of the fields in remedies: how to refer to the host, the key and the agent of *attempt*.

    The doctor replaces those that name the command line or lines of ssh_config.
    """
    user, file, agent = destination.user, shlex.quote(attempt.path), destination.agent_socket or ""
    private = private_key_path(attempt.path)
    line = str(destination.configured_paths.get(attempt.path, ""))
    agent_line = str(destination.configured_paths.get(agent, ""))
    is_default_agent = not agent_line and agent == os.environ.get(_AGENT_VARIABLE)
    authorized_keys = f"~{user}/.ssh/authorized_keys on {machine}"

    def ssh_add(argument: str) -> str:
        command = f"ssh-add {argument}"
        if not agent:
            return f"`eval $(ssh-agent)` and `{command}`"
        return f"`{command}`" if is_default_agent else f"`{_AGENT_VARIABLE}={shlex.quote(agent)} {command}`"

    if line or destination.explicit_identities:
        source = line or "the option identity"
        another_key = f"correct the path {file} ({source})"
    else:
        source = "the option identity, or IdentityFile"
        another_key = f"name another key file than {file} ({source})"
    private_key = f"name {shlex.quote(private) if private else 'the private key'} instead of {file} ({source})"
    if attempt.path.endswith("-cert.pub"):
        private_key = "name its private key (the option identity, or IdentityFile)"
    print_key = f"ssh-keygen -y -f {file}" if attempt.path else "ssh-add -L" if agent else ""
    remove = f"rm -f {shlex.quote(agent)} && " if os.path.lexists(agent) else ""
    start_agent = f"restart the agent with `{remove}ssh-agent -a {shlex.quote(agent)}`, and run {ssh_add('FILE')}"
    if is_default_agent:
        start_agent = "start another agent with `eval $(ssh-agent)`, and run `ssh-add FILE`"
    return {
        "machine": machine,
        "user": user,
        "uid": str(os.geteuid()) if hasattr(os, "geteuid") else "USER",
        "label": attempt.label,
        "file": file,
        "agent": agent,
        "authorized_keys": authorized_keys,
        "sshd_config": f"/etc/ssh/sshd_config on {machine}, and restart its sshd",
        "public_key": "the public key" + (f" (`{print_key}` prints it)" if print_key else ""),
        "new_key": f"run `ssh-keygen -t ed25519 -N '' -f {_NEW_KEY}`, then append {_NEW_KEY}.pub to {authorized_keys}",
        "add_key": ssh_add(file),
        "add_private_key": ssh_add(shlex.quote(private) if private else "FILE"),
        "add_some_key": ssh_add("FILE"),
        "unlock_agent": ssh_add("-X"),
        "start_agent": start_agent,
        # Where settings are corrected.
        "another_user": f"log in as another user than {user}",
        "another_key": another_key,
        "private_key": private_key,
        "key_file": "name a key file (the option identity, or IdentityFile)",
        "only_key_file": "name the right key, before the peer's MaxAuthTries is used up (the option identity, or "
        "IdentitiesOnly and IdentityFile)",
        "another_certificate": f"name a user certificate instead of {file} ({line or 'the option certificate'})",
        "accepted_keys": "accept it (PubkeyAcceptedAlgorithms, RequiredRSASize)",
        "another_agent": f"set {_AGENT_VARIABLE} to the socket of another agent"
        if is_default_agent
        else f"correct {agent_line or 'the option agent'}",
    }

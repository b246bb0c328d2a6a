"""The next step after a login that failed: chosen by the reason of each thing that was tried, and by who named it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence

from peerstage.errors import Location, LoginAttempt
from peerstage.reasons import Reason
from peerstage.session.algorithms import CERTIFICATE
from peerstage.session.config import Destination

#: Steps that one message names.
_MAX_STEPS = 3
_ENVIRONMENT = "SSH_AUTH_SOCK"
_ED25519 = "an Ed25519 key (`ssh-keygen -t ed25519`)"


def advise(destination: Destination, attempts: Sequence[LoginAttempt]) -> str:
    """Return the next steps after *attempts* to log in at *destination*, as sentences."""
    user = destination.user
    steps = [
        _UNUSABLE[attempt.reason](destination, attempt)
        for attempt in without_empty_agents(attempts)
        if attempt.reason in _UNUSABLE
    ]
    refused = [attempt for attempt in attempts if attempt.reason is Reason.LOGIN_REFUSED]
    if refused:
        steps.append(_after_refusal(destination, refused))
    reasons = {attempt.reason for attempt in attempts}
    if Reason.PASSWORD_EXPIRED in reasons:
        steps.append(f"Change the password of {user} on the peer.")
    if Reason.MORE_AUTHENTICATION_WANTED in reasons:
        steps.append(f"Let one key suffice for {user} (AuthenticationMethods publickey in the peer's sshd_config).")
    elif Reason.METHOD_NOT_OFFERED in reasons and not refused:
        steps.append(f"Use what the peer wants, or allow {user} what was tried in its sshd_config.")
    if not attempts:
        steps.append(
            "Make a key with `ssh-keygen -t ed25519 -N '' -f FILE`, append FILE.pub to authorized_keys of "
            f"{user} on the peer, and give FILE as the option identity."
        )
    return " ".join(list(dict.fromkeys(steps))[:_MAX_STEPS])


def deciding_line(destination: Destination, attempts: Sequence[LoginAttempt]) -> Location | None:
    """Return the line of the configuration that names the first thing that could not be used; None if none does."""
    named = (destination.named.get(one.path) for one in without_empty_agents(attempts) if one.reason in _UNUSABLE)
    return next((line.location for line in named if line is not None), None)


def without_empty_agents(attempts: Sequence[LoginAttempt]) -> Sequence[LoginAttempt]:
    """Return *attempts* without the agents that hold no keys, if there were others."""
    return [attempt for attempt in attempts if attempt.reason is not Reason.AGENT_EMPTY] or attempts


def _after_refusal(destination: Destination, refused: Sequence[LoginAttempt]) -> str:
    """Return the step after the server *refused* keys, certificates or a password. A certificate is not authorized."""
    user = destination.user
    if any(attempt.key_type.endswith(CERTIFICATE) for attempt in refused):
        return (
            "Check that the peer trusts the certificate's authority (TrustedUserCAKeys), that the certificate lists "
            f"{user} or one of its AuthorizedPrincipalsFile as a principal, and that it has not expired."
        )
    keys = [attempt for attempt in refused if attempt.key_type]
    if not keys:
        return f"Check that {user} is the right user, and correct the password."
    path = next((attempt.path for attempt in keys if attempt.path), "")
    command = f"ssh-keygen -y -f {shlex.quote(path)}" if path else "ssh-add -L" if destination.agent else ""
    shown = f" (`{command}` prints it)" if command else ""
    return (
        f"Check that {user} is the right user; if so, append the public key{shown} to authorized_keys of {user} on the "
        "peer."
    )


# What could not be used. Each returns the step for one attempt.


def _source(destination: Destination, attempt: LoginAttempt, option: str) -> str:
    """Return what names the path of *attempt*, in brackets behind a space; "" for a default."""
    line = destination.named.get(attempt.path)
    if line is not None:
        return f" ({line})"
    return "" if option == "identity" and not destination.explicit_identities else f" (the option {option})"


def _correct_path(destination: Destination, attempt: LoginAttempt) -> str:
    source = _source(destination, attempt, "identity")
    return f"Correct the path {shlex.quote(attempt.path)}{source}, or put the private key there."


def _make_readable(destination: Destination, attempt: LoginAttempt) -> str:
    source = _source(destination, attempt, "identity")
    return f"Let this user read {shlex.quote(attempt.path)}{source}, or correct the path."


def _close_to_others(destination: Destination, attempt: LoginAttempt) -> str:
    return f"Run `chmod 600 {shlex.quote(attempt.path)}`."


def _replace_key(destination: Destination, attempt: LoginAttempt) -> str:
    if not attempt.path:
        return "Remove that key from the agent (`ssh-add -d`)."
    quoted = shlex.quote(attempt.path)
    source = _source(destination, attempt, "identity")
    return f"Name another file than {quoted}{source}: `ssh-keygen -y -f {quoted}` tells whether it holds a private key."


def _unlock(destination: Destination, attempt: LoginAttempt) -> str:
    command = _add_to_agent(destination, attempt.path)
    return f"Run {command}, so that the agent signs by it; the Python API also takes its passphrase."


def _correct_passphrase(destination: Destination, attempt: LoginAttempt) -> str:
    return f"Correct the passphrase: `ssh-keygen -y -f {shlex.quote(attempt.path)}` tells whether it is right."


def _name_private_key(destination: Destination, attempt: LoginAttempt) -> str:
    private = attempt.path.removesuffix(".pub").removesuffix("-cert")
    if attempt.path.endswith("-cert.pub"):
        command = _add_to_agent(destination, private)
        return f"Name its private key (IdentityFile, or the option identity), or run {command}."
    name, command = shlex.quote(private), _add_to_agent(destination, private)
    if private == attempt.path:
        name, command = "the private key", _add_to_agent(destination, "FILE")
    source = _source(destination, attempt, "identity")
    return f"Name {name} instead of {shlex.quote(attempt.path)}{source}, or run {command}."


def _use_agent(destination: Destination, attempt: LoginAttempt) -> str:
    return f"Run {_add_to_agent(destination, attempt.path)}."


def _use_another_type(destination: Destination, attempt: LoginAttempt) -> str:
    return f"Use {_ED25519}, or allow this one in ssh_config."


def _update_peer(destination: Destination, attempt: LoginAttempt) -> str:
    return f"Update the peer's SSH server, or use {_ED25519}."


def _correct_certificate(destination: Destination, attempt: LoginAttempt) -> str:
    source = _source(destination, attempt, "certificate")
    return f"Correct the path {shlex.quote(attempt.path)}{source}: it must hold a certificate of a user."


def _restart_agent(destination: Destination, attempt: LoginAttempt) -> str:
    path, source = _agent_of(destination)
    if source == _ENVIRONMENT:
        return "Start another agent with `eval $(ssh-agent)`, then add the private key to it with `ssh-add FILE`."
    quoted = shlex.quote(path)
    remove = f"rm -f {quoted} && " if os.path.lexists(path) else ""
    return (
        f"Restart the agent with `{remove}ssh-agent -a {quoted}`, and add the private key to it with "
        f"{_add_to_agent(destination, 'FILE')}; or correct {source}."
    )


def _unlock_agent(destination: Destination, attempt: LoginAttempt) -> str:
    path, source = _agent_of(destination)
    return f"Unlock it with `ssh-add -X`, or correct {source} if {shlex.quote(path)} is no agent."


def _agent_of(destination: Destination) -> tuple[str, str]:
    """Return the path of the agent's socket, and what names it."""
    path = destination.agent or ""
    line = destination.named.get(path)
    if line is not None:
        return path, str(line)
    return path, _ENVIRONMENT if path == os.environ.get(_ENVIRONMENT) else "the option agent"


def _fill_agent(destination: Destination, attempt: LoginAttempt) -> str:
    return f"Run {_add_to_agent(destination, 'FILE')}, where FILE is the private key."


def _add_to_agent(destination: Destination, path: str) -> str:
    """Return, in backquotes, the commands that add the key in the file *path* to the agent that is used."""
    agent, command = destination.agent, f"ssh-add {shlex.quote(path)}"
    if agent is None:
        return f"`eval $(ssh-agent)`, then `{command}`"
    return (
        f"`{command}`" if agent == os.environ.get(_ENVIRONMENT) else f"`SSH_AUTH_SOCK={shlex.quote(agent)} {command}`"
    )


_UNUSABLE: dict[Reason, Callable[[Destination, LoginAttempt], str]] = {
    Reason.KEY_FILE_MISSING: _correct_path,
    Reason.KEY_FILE_UNREADABLE: _make_readable,
    Reason.KEY_FILE_PERMISSIONS: _close_to_others,
    Reason.KEY_INVALID: _replace_key,
    Reason.PASSPHRASE_MISSING: _unlock,
    Reason.PASSPHRASE_WRONG: _correct_passphrase,
    Reason.PUBLIC_KEY_ONLY: _name_private_key,
    Reason.KEY_ON_TOKEN: _use_agent,
    Reason.KEY_UNSUPPORTED: _use_another_type,
    Reason.KEY_TOO_SMALL: _use_another_type,
    Reason.KEY_TYPE_REFUSED: _update_peer,
    Reason.CERTIFICATE_INVALID: _correct_certificate,
    Reason.AGENT_UNAVAILABLE: _restart_agent,
    Reason.AGENT_SILENT: _restart_agent,
    Reason.AGENT_REFUSED: _unlock_agent,
    Reason.AGENT_EMPTY: _fill_agent,
}

"""The next steps after a failed login: some for each reason, and only those that fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from peerstage.errors import Location, LoginAttempt
from peerstage.reasons import Reason
from peerstage.ssh.auth.login_remedies import advise, find_configured_path
from peerstage.ssh.config.destination import Destination
from peerstage.ssh.config.resolve import resolve_destination
from peerstage.ssh.options import SSHOptions

OF_KEYS = [reason for reason in Reason if reason.startswith(("key-", "passphrase-")) and "exchange" not in reason]
OF_AGENTS = [reason for reason in Reason if reason.startswith("agent-")]
REFUSED = LoginAttempt("~/k", Reason.LOGIN_REFUSED, "refused", "/home/a b/k", "ssh-ed25519")
CERTIFICATE = LoginAttempt("~/k", Reason.LOGIN_REFUSED, "refused", "/k-cert.pub", "ssh-ed25519-cert-v01@openssh.com")
AGENT = LoginAttempt("agent at /agent", Reason.AGENT_EMPTY, "it holds no keys", "/agent")


@pytest.fixture
def destination() -> Destination:
    return resolve_destination("db1", "backup", SSHOptions(config=(), agent="/agent", identity="/home/a b/k"))


@pytest.mark.parametrize("reason", [*OF_KEYS, *OF_AGENTS, Reason.PUBLIC_KEY_ONLY, Reason.CERTIFICATE_INVALID])
def test_unusable_key_or_agent_is_corrected_on_this_machine(destination: Destination, reason: Reason) -> None:
    path = "/agent" if reason in OF_AGENTS else "/home/a b/k"
    steps = advise(destination, [LoginAttempt("it", reason, "why", path)])
    assert steps.endswith(".")
    if "ssh-keygen -t" in steps:
        assert steps.index("ssh-keygen -t") < steps.index("authorized_keys"), "a new key has to be authorized"
    else:
        assert "authorized_keys" not in steps
        assert path in steps


@pytest.mark.parametrize("reason", OF_AGENTS)
def test_key_of_an_agent_that_fails_later_leads_to_that_agent(destination: Destination, reason: Reason) -> None:
    assert "/agent" in advise(destination, [LoginAttempt("agent key 'k'", reason, "no answer")])


def test_command_prints_the_refused_key(destination: Destination) -> None:
    assert "`ssh-keygen -y -f '/home/a b/k'`" in advise(destination, [REFUSED])
    assert "`ssh-add -L`" in advise(destination, [REFUSED._replace(path="")])


def test_agent_without_keys_matters_only_if_nothing_else_does(destination: Destination) -> None:
    assert "ssh-add" not in advise(destination, [AGENT, REFUSED])
    assert "ssh-add" in advise(destination, [AGENT])


def test_refused_certificate_is_not_to_be_authorized_as_a_key(destination: Destination) -> None:
    steps = advise(destination, [CERTIFICATE, REFUSED])
    assert "TrustedUserCAKeys" in steps
    assert "backup" in steps
    assert "expired" in steps
    assert "authorized_keys" not in steps


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        (Reason.LOGIN_REFUSED, "Correct the password"),
        (Reason.PASSWORD_EXPIRED, "Change the password of backup"),
        (Reason.METHOD_NOT_OFFERED, "a method that it offers"),
        (Reason.MORE_AUTHENTICATION_WANTED, "AuthenticationMethods"),
    ],
)
def test_refused_password_is_not_a_matter_of_keys(destination: Destination, reason: Reason, words: str) -> None:
    steps = advise(destination, [LoginAttempt("the password", reason, "no")])
    assert words in steps
    assert "authorized_keys" not in steps


@pytest.mark.parametrize(
    ("path", "step"),
    [
        ("/k.pub", "Name /k instead of /k.pub (the option identity); or run `SSH_AUTH_SOCK=/agent ssh-add /k`."),
        ("/k-cert.pub", "Name its private key (the option identity, or IdentityFile); or run "),
        ("/k", "Name the private key instead of /k (the option identity); or run `SSH_AUTH_SOCK=/agent ssh-add FILE`."),
    ],
)
def test_public_key_is_replaced_by_its_private_key(destination: Destination, path: str, step: str) -> None:
    steps = advise(destination, [LoginAttempt("it", Reason.PUBLIC_KEY_ONLY, "why", path)])
    assert steps.startswith(step)


def test_number_of_steps_is_bounded(destination: Destination) -> None:
    missing = [LoginAttempt(f"k{n}", Reason.KEY_FILE_MISSING, "not there", f"/k{n}") for n in range(100)]
    assert advise(destination, missing).count("Correct the path") == 3


def test_line_that_names_a_missing_key_is_the_location_of_the_error(own_home: Path) -> None:
    (own_home / ".ssh").mkdir()
    config = own_home / ".ssh" / "config"
    config.write_text("IdentityFile /k1\nIdentityFile /k2\nIdentityAgent /agent\n")
    destination = resolve_destination("db1", "backup", SSHOptions())
    missing = LoginAttempt("/k2", Reason.KEY_FILE_MISSING, "not there", "/k2")
    assert find_configured_path(destination, [REFUSED, AGENT, missing]) == Location(str(config), 2)
    assert find_configured_path(destination, [AGENT]) == Location(str(config), 3)
    assert find_configured_path(destination, [REFUSED]) is None
    assert f"IdentityFile in {config}:2" in advise(destination, [missing])

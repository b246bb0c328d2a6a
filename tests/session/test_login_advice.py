"""What is advised after a failed login: something for each reason, and nothing that is about another failure."""

from __future__ import annotations

from pathlib import Path

import pytest

from peerstage.errors import Location, LoginAttempt
from peerstage.reasons import Reason
from peerstage.session.config import Destination, resolve_destination
from peerstage.session.login_advice import advise, deciding_line
from peerstage.session.options import SSHOptions

OF_KEYS = [reason for reason in Reason if reason.startswith(("key-", "passphrase-")) and "exchange" not in reason]
OF_AGENTS = [reason for reason in Reason if reason.startswith("agent-")]
REFUSED = LoginAttempt("~/k", Reason.LOGIN_REFUSED, "refused", "/home/a b/k", "ssh-ed25519")
CERTIFICATE = LoginAttempt("~/k", Reason.LOGIN_REFUSED, "refused", "/k-cert.pub", "ssh-ed25519-cert-v01@openssh.com")
AGENT = LoginAttempt("agent at /agent", Reason.AGENT_EMPTY, "it holds no keys", "/agent")


@pytest.fixture
def destination() -> Destination:
    return resolve_destination("db1", "backup", SSHOptions(config=(), agent="/agent", identity="/home/a b/k"))


@pytest.mark.parametrize("reason", [*OF_KEYS, *OF_AGENTS, Reason.PUBLIC_KEY_ONLY, Reason.CERTIFICATE_INVALID])
def test_what_could_not_be_offered_is_to_be_corrected_here(destination: Destination, reason: Reason) -> None:
    path = "/agent" if reason in OF_AGENTS else "/home/a b/k"
    said = advise(destination, [LoginAttempt("it", reason, "why", path)])
    assert said.endswith(".")
    assert "authorized_keys" not in said
    if "ssh-keygen -t" not in said and "FILE" not in said:
        assert path in said


@pytest.mark.parametrize("reason", OF_AGENTS)
def test_a_key_of_an_agent_that_fails_later_leads_to_that_agent(destination: Destination, reason: Reason) -> None:
    assert "/agent" in advise(destination, [LoginAttempt("agent key 'k'", reason, "no answer")])


def test_a_refused_key_is_shown_by_a_command_whatever_its_path(destination: Destination) -> None:
    assert "`ssh-keygen -y -f '/home/a b/k'`" in advise(destination, [REFUSED])
    assert "`ssh-add -L`" in advise(destination, [REFUSED._replace(path="")])


def test_an_agent_without_keys_matters_only_where_nothing_else_does(destination: Destination) -> None:
    assert "ssh-add" not in advise(destination, [AGENT, REFUSED])
    assert "ssh-add" in advise(destination, [AGENT])


def test_a_refused_certificate_is_no_key_to_authorize(destination: Destination) -> None:
    said = advise(destination, [CERTIFICATE, REFUSED])
    assert "TrustedUserCAKeys" in said
    assert "backup" in said
    assert "expired" in said
    assert "authorized_keys" not in said


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        (Reason.LOGIN_REFUSED, "correct the password"),
        (Reason.PASSWORD_EXPIRED, "Change the password of backup"),
        (Reason.METHOD_NOT_OFFERED, "what the peer wants"),
        (Reason.MORE_AUTHENTICATION_WANTED, "AuthenticationMethods"),
    ],
)
def test_a_password_that_does_not_do_is_no_matter_of_keys(destination: Destination, reason: Reason, words: str) -> None:
    said = advise(destination, [LoginAttempt("the password", reason, "no")])
    assert words in said
    assert "authorized_keys" not in said


def test_only_a_few_steps_are_named(destination: Destination) -> None:
    missing = [LoginAttempt(f"k{n}", Reason.KEY_FILE_MISSING, "not there", f"/k{n}") for n in range(100)]
    assert advise(destination, missing).count("Correct the path") == 3


def test_the_line_that_names_a_missing_key_is_the_location_of_the_error(own_home: Path) -> None:
    (own_home / ".ssh").mkdir()
    config = own_home / ".ssh" / "config"
    config.write_text("IdentityFile /k1\nIdentityFile /k2\nIdentityAgent /agent\n")
    destination = resolve_destination("db1", "backup", SSHOptions())
    missing = LoginAttempt("/k2", Reason.KEY_FILE_MISSING, "not there", "/k2")
    assert deciding_line(destination, [REFUSED, AGENT, missing]) == Location(str(config), 2)
    assert deciding_line(destination, [AGENT]) == Location(str(config), 3)
    assert deciding_line(destination, [REFUSED]) is None
    assert f"IdentityFile in {config}:2" in advise(destination, [missing])

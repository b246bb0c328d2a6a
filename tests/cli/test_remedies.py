"""What the doctor advises, from reasons, attributes and configuration alone: nothing is connected."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from peerstage.cli.diagnosis import Diagnosis
from peerstage.cli.remedies import find_remedy
from peerstage.errors import (
    ConnectError,
    IncompleteStage,
    LimitExceeded,
    LoginAttempt,
    LoginError,
    StageError,
    UnknownHostKey,
)
from peerstage.reasons import Reason
from peerstage.records import FileResult, Limits, StageReport
from peerstage.session.options import SSHOptions
from peerstage.session.watchdog import Watchdog

Diagnose = Callable[..., Diagnosis]


@pytest.fixture
def watchdog() -> Iterator[Watchdog]:
    dog = Watchdog(Limits())
    yield dog
    dog.close()


@pytest.fixture
def diagnose(own_home: Path, watchdog: Watchdog) -> Diagnose:
    """Returns what is known about ``db1``, configured by some lines, and reached with some options."""
    (own_home / ".ssh").mkdir()

    def read(*lines: str, **options: object) -> Diagnosis:
        (own_home / ".ssh" / "config").write_text("\n".join(["Host db1", *lines]) + "\n")
        diagnosis = Diagnosis("db1", "backup", SSHOptions(**options), watchdog, "/srv/collect")  # type: ignore[arg-type]
        diagnosis.read()
        return diagnosis

    return read


@pytest.mark.parametrize(
    ("step", "hop"), [("login", ""), ("write", ""), ("jump host", "gate"), ("jump host", "beyond")]
)
def test_every_reason_has_a_cause_and_an_action(diagnose: Diagnose, step: str, hop: str) -> None:
    diagnosis = diagnose("HostName 127.0.0.1", "ProxyJump gate")
    for known in (diagnosis, Diagnosis("db1", "backup", SSHOptions(), diagnosis.watchdog, "/srv/collect")):
        known.step = step
        for reason in Reason:
            for text in find_remedy(StageError("reworded", reason=reason, hop=hop), known):
                assert text
                assert text.isprintable()
                assert "reworded" not in text


def test_a_login_that_takes_too_long_is_no_matter_of_the_port(diagnose: Diagnose) -> None:
    error = LimitExceeded("late", reason=Reason.LOGIN_TIMEOUT, limit="login_timeout")
    remedy = find_remedy(error, diagnose("Port 2222"))
    assert "UseDNS no" in remedy.action
    assert "ort" not in remedy.action + remedy.cause


def refused(reason: Reason, path: str = "") -> LoginError:
    attempt = LoginAttempt("the key", reason, "why", path)
    return LoginError("Add a public key to the peer's authorized_keys.", reason=reason, attempts=(attempt,))


@pytest.mark.parametrize(
    ("reason", "says"),
    [
        (Reason.PASSPHRASE_WRONG, "`ssh-keygen -y -f ~/.ssh/id_rsa`"),
        (Reason.PASSPHRASE_MISSING, "run `eval $(ssh-agent)` and `ssh-add ~/.ssh/id_rsa`"),
        (Reason.KEY_FILE_UNREADABLE, "chmod 600 ~/.ssh/id_rsa"),
        (Reason.KEY_ON_TOKEN, "`ssh-add ~/.ssh/id_rsa`"),
        (Reason.KEY_INVALID, "add `IdentityFile FILE` below `Host db1` in ~/.ssh/config"),
        (Reason.CERTIFICATE_INVALID, "add `CertificateFile FILE` below `Host db1` in ~/.ssh/config"),
        (Reason.AGENT_REFUSED, "`ssh-add -X`"),
    ],
)
def test_what_cannot_be_offered_is_no_matter_of_authorized_keys(
    diagnose: Diagnose, own_home: Path, reason: Reason, says: str
) -> None:
    remedy = find_remedy(refused(reason, f"{own_home}/.ssh/id_rsa"), diagnose())
    assert says in remedy.action
    assert "authorized_keys" not in remedy.action


def test_what_is_given_on_the_command_line_is_corrected_there(diagnose: Diagnose, own_home: Path) -> None:
    configured = ("Port 22", "IdentityFile ~/old")
    refuses = ConnectError("no", reason=Reason.CONNECTION_REFUSED)
    assert find_remedy(refuses, diagnose(*configured, port=2222)).action.endswith("give another --port than 2222")
    missing = refused(Reason.KEY_FILE_MISSING, f"{own_home}/nokey")
    remedy = find_remedy(missing, diagnose(*configured, identity=(f"{own_home}/nokey",)))
    assert remedy.action == f"give another --identity than {own_home}/nokey"
    assert find_remedy(refuses, diagnose(config=())).action.endswith("give --port NUMBER")


def test_files_that_are_named_are_the_ones_to_edit(diagnose: Diagnose, tmp_path: Path) -> None:
    special = tmp_path / "special"
    special.write_text("Host db1\n")
    diagnosis = diagnose(config=(str(special),))
    unknown = find_remedy(StageError("no", reason=Reason.NAME_NOT_RESOLVED), diagnosis)
    assert f"add `HostName ADDRESS` below `Host db1` in {special}" in unknown.action
    trust = find_remedy(UnknownHostKey("no"), diagnosis)
    assert f"`peerstage trust --config {special} db1`" in trust.action
    assert "`peerstage trust --no-config db1`" in find_remedy(UnknownHostKey("no"), diagnose(config=())).action


def test_where_no_known_hosts_file_is_read_none_is_advised(diagnose: Diagnose) -> None:
    remedy = find_remedy(UnknownHostKey("no"), diagnose("UserKnownHostsFile /dev/null"))
    assert remedy.action.startswith("remove `UserKnownHostsFile /dev/null` in ")
    assert remedy.action.endswith("run `peerstage trust db1`")


def test_the_commands_of_a_jump_hosts_configuration_end_with_the_run(
    diagnose: Diagnose, tmp_path: Path, watchdog: Watchdog
) -> None:
    """A doctor that is interrupted must not wait for the ``Match exec`` of a host that it only wants to advise on."""
    diagnosis = diagnose("ProxyJump gate", f"Match host gate exec \"sh -c 'sleep 1; touch {tmp_path}/ran'\"")
    watchdog.cancel()
    find_remedy(StageError("no", reason=Reason.CONNECTION_REFUSED, hop="gate"), diagnosis)
    assert not (tmp_path / "ran").exists()


def test_no_name_of_a_peers_gets_into_a_command_that_might_mislead(diagnose: Diagnose) -> None:
    def remedy_for(name: str) -> str:
        failed = FileResult(name, error="no", reason=Reason.PERMISSION_DENIED)
        error = IncompleteStage("no", report=StageReport("", "", "", refused=(failed,)))
        return find_remedy(error, diagnose()).action

    assert "chmod u+r '/srv/collect/a b'`" in remedy_for("a b")
    for name in ("x` && evil `", "$(evil)", "a\nb", "'; evil; '", "\u202ecod.exe"):
        assert remedy_for(name).startswith("run `chown backup /srv/collect/* && chmod u+r /srv/collect/*` on the peer")

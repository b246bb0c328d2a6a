"""Remedies, from reasons, attributes and configuration, without a connection."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from peerstage.cli.diagnosis import Diagnosis
from peerstage.cli.remedies import find_remedy
from peerstage.errors import (
    ConfigurationError,
    ConnectError,
    IncompleteStage,
    LimitExceeded,
    Location,
    LoginAttempt,
    LoginError,
    StageError,
    UnknownHostKey,
)
from peerstage.reasons import Reason
from peerstage.records import FileResult, Limits, StageReport
from peerstage.ssh.options import SSHOptions
from peerstage.watchdog import Watchdog

Diagnose = Callable[..., Diagnosis]


@pytest.fixture
def watchdog() -> Iterator[Watchdog]:
    dog = Watchdog(Limits())
    yield dog
    dog.close()


@pytest.fixture
def diagnose(own_home: Path, watchdog: Watchdog) -> Diagnose:
    """Returns the diagnosis of ``db1``, for some lines of configuration and some options."""
    (own_home / ".ssh").mkdir()

    def read(*lines: str, **options: object) -> Diagnosis:
        (own_home / ".ssh" / "config").write_text("\n".join(["Host db1", *lines]) + "\n")
        diagnosis = Diagnosis("db1", "backup", SSHOptions(**options), watchdog, "/srv/collect")  # type: ignore[arg-type]
        diagnosis.read()
        return diagnosis

    return read


@pytest.mark.parametrize(
    ("step", "is_named"), [("key exchange", False), ("directory", False), ("SFTP", True), ("SCP", True)]
)
def test_a_login_script_is_named_only_where_it_may_have_printed(diagnose: Diagnose, step: str, is_named: bool) -> None:
    diagnosis = diagnose()
    diagnosis.step = step
    error = StageError("invalid", reason=Reason.PROTOCOL_VIOLATION)
    assert ("login script" in find_remedy(error, diagnosis).cause) is is_named


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


def test_the_remedy_for_a_login_timeout_does_not_mention_the_port(diagnose: Diagnose) -> None:
    error = LimitExceeded("late", reason=Reason.LOGIN_TIMEOUT, limit="login_timeout")
    remedy = find_remedy(error, diagnose("Port 2222"))
    assert "UseDNS no" in remedy.action
    assert "ort" not in remedy.action + remedy.cause


def test_the_remedy_for_a_server_that_requires_compression_does_not_blame_the_network(diagnose: Diagnose) -> None:
    remedy = find_remedy(ConnectError("none", reason=Reason.NO_COMMON_ALGORITHM), diagnose())
    assert "requires compression" in remedy.cause
    assert "MTU" not in remedy.cause


@pytest.mark.parametrize(("reason", "option"), [(Reason.TOO_SLOW, "min_rate"), (Reason.DEADLINE_PASSED, "--deadline")])
def test_the_remedy_for_a_slow_peer_names_the_limit_that_it_exceeded(
    diagnose: Diagnose, reason: Reason, option: str
) -> None:
    remedy = find_remedy(LimitExceeded("slow", reason=reason), diagnose())
    assert option in remedy.action
    assert "the server ended the connection" not in remedy.cause


def test_a_given_configuration_that_cannot_be_read_is_replaced_and_an_included_one_made_readable(
    diagnose: Diagnose, own_home: Path, tmp_path: Path
) -> None:
    def remedy_for(path: Path, config: object) -> str:
        error = ConfigurationError("no", reason=Reason.CONFIGURATION_UNREADABLE, location=Location(str(path)))
        return find_remedy(error, diagnose(config=config)).action

    given, included, other = own_home / "given", tmp_path / "included", own_home / "other"
    for path in (given, included, other):
        path.touch()
    for config in (given, "~/given", (str(other), str(given))):
        assert remedy_for(given, config) == f"give another --config than {given}"
        assert remedy_for(included, config) == f"run `chmod u+r {included}`"


def refused(reason: Reason, path: str = "") -> LoginError:
    attempt = LoginAttempt("the key", reason, "why", path)
    return LoginError("Add a public key to the peer's authorized_keys.", reason=reason, attempts=(attempt,))


@pytest.mark.parametrize(
    ("reason", "says"),
    [
        (Reason.PASSPHRASE_WRONG, "`ssh-keygen -y -f {home}/.ssh/id_rsa`"),
        (Reason.PASSPHRASE_MISSING, "run `eval $(ssh-agent)` and `ssh-add {home}/.ssh/id_rsa`"),
        (Reason.KEY_FILE_UNREADABLE, "chmod 600 {home}/.ssh/id_rsa"),
        (Reason.KEY_ON_TOKEN, "`ssh-add {home}/.ssh/id_rsa`"),
        (Reason.KEY_INVALID, "add `IdentityFile FILE` below `Host db1` in ~/.ssh/config"),
        (Reason.CERTIFICATE_INVALID, "add `CertificateFile FILE` below `Host db1` in ~/.ssh/config"),
        (Reason.AGENT_REFUSED, "`ssh-add -X`"),
    ],
)
def test_the_remedy_for_an_unusable_key_does_not_mention_authorized_keys(
    diagnose: Diagnose, own_home: Path, reason: Reason, says: str
) -> None:
    remedy = find_remedy(refused(reason, f"{own_home}/.ssh/id_rsa"), diagnose())
    assert says.format(home=own_home) in remedy.action
    assert "authorized_keys" not in remedy.action


def test_values_of_the_command_line_are_corrected_there(diagnose: Diagnose, own_home: Path) -> None:
    configured = ("Port 22", "IdentityFile ~/old")
    refuses = ConnectError("no", reason=Reason.CONNECTION_REFUSED)
    assert find_remedy(refuses, diagnose(*configured, port=2222)).action.endswith("give another --port than 2222")
    missing = refused(Reason.KEY_FILE_MISSING, f"{own_home}/nokey")
    remedy = find_remedy(missing, diagnose(*configured, identity=(f"{own_home}/nokey",)))
    assert remedy.action == f"give another --identity than {own_home}/nokey"
    assert find_remedy(refuses, diagnose(config=())).action.endswith("give --port NUMBER")


def test_remedies_edit_the_named_configuration_file(diagnose: Diagnose, tmp_path: Path) -> None:
    special = tmp_path / "special"
    special.write_text("Host db1\n")
    diagnosis = diagnose(config=(str(special),))
    unknown = find_remedy(StageError("no", reason=Reason.NAME_NOT_RESOLVED), diagnosis)
    assert f"add `HostName ADDRESS` below `Host db1` in {special}" in unknown.action
    trust = find_remedy(UnknownHostKey("no"), diagnosis)
    assert f"`peerstage trust --config {special} db1`" in trust.action
    assert "`peerstage trust --no-config db1`" in find_remedy(UnknownHostKey("no"), diagnose(config=())).action


def test_without_a_known_hosts_file_the_remedy_is_to_configure_one(diagnose: Diagnose) -> None:
    remedy = find_remedy(UnknownHostKey("no"), diagnose("UserKnownHostsFile /dev/null"))
    assert remedy.action.startswith("remove `UserKnownHostsFile /dev/null` in ")
    assert remedy.action.endswith("run `peerstage trust db1`")


def test_commands_in_the_configuration_of_a_jump_host_end_with_the_run(
    diagnose: Diagnose, tmp_path: Path, watchdog: Watchdog
) -> None:
    """An interrupted doctor must not wait for the ``Match exec`` of a jump host, which only a remedy needs."""
    diagnosis = diagnose("ProxyJump gate", f"Match host gate exec \"sh -c 'sleep 1; touch {tmp_path}/ran'\"")
    watchdog.cancel()
    find_remedy(StageError("no", reason=Reason.CONNECTION_REFUSED, hop="gate"), diagnosis)
    assert not (tmp_path / "ran").exists()


def test_file_names_that_could_mislead_never_become_part_of_a_command(diagnose: Diagnose) -> None:
    def remedy_for(name: str) -> str:
        failed = FileResult(name, error="no", reason=Reason.PERMISSION_DENIED)
        error = IncompleteStage("no", report=StageReport("", "", "", refused=(failed,)))
        return find_remedy(error, diagnose()).action

    assert "chmod u+r '/srv/collect/a b'`" in remedy_for("a b")
    for name in ("x` && evil `", "$(evil)", "a\nb", "'; evil; '", "\u202ecod.exe"):
        assert remedy_for(name).startswith("run `chown backup /srv/collect/* && chmod u+r /srv/collect/*` on the peer")

"""Broken set-ups, and the next step that the doctor names: carried out to the letter, it makes the peer work."""

from __future__ import annotations

import contextlib
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest

from cli.following import follow, reconfigure
from cli.patient import Patient, failure_of
from peerstage.reasons import Reason
from support.keys import certify, make_key, public, running_agent
from support.ssh_server import Handler, closes_at_once, listening, never_speaks, speaks_http
from support.sshd import free_port


@dataclass(frozen=True)
class Row:
    """A set-up that is broken in one way.

    Attributes:
        breaks: Breaks it.
        step: Where the doctor finds it.
        reason: What it finds.
        alternative: Which of the alternatives that the remedy names is carried out, from 0.
        restarts: Whether the server has to be restarted.
        says: What cause or remedy must say.
        never: What the remedy must not say, as it would lead astray.
        answers: What only a person knows, see `follow`. ``{port}``, ``{home}``, ``{host_key}`` and the like stand for
            those of the set-up.
    """

    breaks: Callable[[Patient], object]
    step: str
    reason: Reason
    alternative: int
    restarts: bool
    says: str
    never: str
    answers: dict[str, str]


ROWS: dict[str, Row] = {}
Breaks = Callable[[Patient], object]


def broken(
    step: str,
    reason: Reason,
    *,
    alternative: int = 0,
    restarts: bool = False,
    says: str = "",
    never: str = "\0",
    **answers: str,
) -> Callable[[Breaks], Breaks]:
    """Add a row to the table: the set-up that the function breaks."""

    def add(breaks: Breaks) -> Breaks:
        ROWS[breaks.__name__] = Row(breaks, step, reason, alternative, restarts, says, never, answers)
        return breaks

    return add


# --- the configuration -----------------------------------------------------------------------------------------------


@broken("configuration", Reason.UNKNOWN_KEYWORD, value="HostName 127.0.0.1")
def keyword_typo(patient: Patient) -> None:
    patient.config.write_text(f"Host db1\n HostNam 127.0.0.1\n Port {patient.sshd.port}\n")


@broken("configuration", Reason.UNKNOWN_KEYWORD, value="Port {port}", never="/.ssh/config")
def keyword_typo_in_a_file_that_is_named(patient: Patient) -> None:
    patient.configure(f"Prot {patient.sshd.port}")
    name_the_configuration(patient)


@broken("configuration", Reason.UNSUPPORTED_KEYWORD)
def canonicalize_hostname(patient: Patient) -> None:
    patient.configure(f"Port {patient.sshd.port}", "CanonicalizeHostname yes")


@broken("configuration", Reason.INVALID_CONFIGURATION, value="Port {port}")
def value_without_a_meaning(patient: Patient) -> None:
    patient.configure("Port many")


@broken("configuration", Reason.INSECURE_CONFIGURATION)
def configuration_that_others_can_write(patient: Patient) -> None:
    patient.config.chmod(0o666)


@broken("configuration", Reason.CONFIGURATION_UNREADABLE, value="{home}/.ssh/config")
def configuration_that_is_not_there(patient: Patient) -> None:
    patient.options += ["--config", f"{patient.home}/none"]


def name_the_configuration(patient: Patient) -> None:
    """Have the configuration in a file that is named on the command line, and none where ssh looks."""
    patient.options += ["--config", str(patient.config.rename(patient.home / "special"))]


# --- name, address, port ---------------------------------------------------------------------------------------------


@broken("name", Reason.NAME_NOT_RESOLVED, value="HostName 127.0.0.1")
def wrong_host_name(patient: Patient) -> None:
    patient.config.write_text(f"Host db1\n HostName db1.invalid\n Port {patient.sshd.port}\n")


@broken("name", Reason.NAME_NOT_RESOLVED, alternative=1, ADDRESS="127.0.0.1")
def no_host_name(patient: Patient) -> None:
    patient.config.write_text(f"Host db1\n Port {patient.sshd.port}\n")


@broken("name", Reason.NAME_NOT_RESOLVED, alternative=1, ADDRESS="127.0.0.1", never="/.ssh/config")
def no_host_name_in_a_file_that_is_named(patient: Patient) -> None:
    no_host_name(patient)
    name_the_configuration(patient)


@broken("TCP", Reason.CONNECTION_REFUSED, alternative=1, value="Port {port}")
def wrong_port(patient: Patient) -> None:
    patient.configure(f"Port {free_port()}")


@broken("TCP", Reason.CONNECTION_REFUSED, alternative=1, value="{port}", never="/.ssh/config")
def wrong_port_on_the_command_line(patient: Patient) -> None:
    patient.options += ["--port", str(free_port())]


@broken("TCP", Reason.CONNECTION_REFUSED, alternative=1, NUMBER="{port}")
def port_that_nobody_named(patient: Patient) -> None:
    patient.configure()


@broken("TCP", Reason.CONNECTION_REFUSED, restarts=True)
def peer_that_is_down(patient: Patient) -> None:
    patient.sshd.stop()


@broken("jump host", Reason.CONNECTION_REFUSED, value="ProxyJump none", alternative=1)
def jump_host_that_is_down(patient: Patient) -> None:
    patient.configure(f"Port {patient.sshd.port}", f"ProxyJump 127.0.0.1:{free_port()}")


# --- what answers there ----------------------------------------------------------------------------------------------


@broken("banner", Reason.NOT_SSH, value="Port {port}")
def web_server(patient: Patient) -> None:
    answer_by(patient, speaks_http)


@broken("banner", Reason.BANNER_TIMEOUT, value="Port {port}")
def server_that_says_nothing(patient: Patient) -> None:
    answer_by(patient, never_speaks)


@broken("banner", Reason.CLOSED_BEFORE_BANNER, alternative=1, value="Port {port}")
def server_that_hangs_up(patient: Patient) -> None:
    answer_by(patient, closes_at_once)


@broken("banner", Reason.PROXY_COMMAND_FAILED, value="ProxyCommand none")
def proxy_command_that_leads_nowhere(patient: Patient) -> None:
    patient.configure(f"Port {patient.sshd.port}", "ProxyCommand sh -c 'exit 1'")


@broken("key exchange", Reason.NO_COMMON_ALGORITHM, restarts=True)
def algorithms_that_are_too_old(patient: Patient) -> None:
    reconfigure(patient, "KexAlgorithms diffie-hellman-group1-sha1")


def answer_by(patient: Patient, handler: Handler) -> None:
    """Configure the port of a server that is none of SSH."""
    patient.configure(f"Port {patient.until_the_end(listening(handler))}", "ConnectTimeout 1")


# --- host keys -------------------------------------------------------------------------------------------------------


@broken("host key", Reason.HOST_KEY_UNKNOWN)
def unknown_host_key(patient: Patient) -> None:
    patient.known_hosts.unlink()


@broken("host key", Reason.HOST_KEY_UNKNOWN)
def unknown_host_key_by_a_file_that_is_named(patient: Patient) -> None:
    patient.known_hosts.unlink()
    name_the_configuration(patient)


@broken("host key", Reason.HOST_KEY_CHANGED)
def changed_host_key(patient: Patient) -> None:
    patient.known_hosts.write_text(f"[127.0.0.1]:{patient.sshd.port} {public(patient.sshd.home / 'id')}\n")


@broken("host key", Reason.HOST_KEY_NOT_PINNED, value="{host_key}")
def wrong_pinned_fingerprint(patient: Patient) -> None:
    patient.options += ["--host-key", "SHA256:" + "A" * 43]


@broken("host key", Reason.HOST_KEY_UNKNOWN, never="peerstage trust --known-hosts")
def known_hosts_that_remember_nothing(patient: Patient) -> None:
    patient.configure(f"Port {patient.sshd.port}", "UserKnownHostsFile /dev/null")


@broken("host key", Reason.HOST_KEY_UNKNOWN)
def known_hosts_on_the_command_line_that_remember_nothing(patient: Patient) -> None:
    patient.options += ["--known-hosts", "/dev/null"]


# --- keys, agents, users ---------------------------------------------------------------------------------------------


@broken("login", Reason.KEY_FILE_PERMISSIONS)
def key_that_others_can_read(patient: Patient) -> None:
    patient.key.chmod(0o644)


@broken("login", Reason.LOGIN_REFUSED)
def key_that_is_not_authorized(patient: Patient) -> None:
    (patient.sshd.home / "authorized_keys").write_text("")


@broken("login", Reason.LOGIN_REFUSED, alternative=2, value="{home}/.ssh/id_ed25519", never="/.ssh/config")
def wrong_key_on_the_command_line(patient: Patient) -> None:
    patient.options += ["--identity", str(make_key(patient.home / "other"))]


@broken("login", Reason.KEY_FILE_MISSING, value="{home}/.ssh/id_ed25519", never="authorized_keys")
def missing_key_on_the_command_line(patient: Patient) -> None:
    patient.options += ["--identity", f"{patient.home}/nokey"]


@broken("login", Reason.KEY_FILE_MISSING, value="IdentityFile ~/.ssh/id_ed25519", never="authorized_keys")
def missing_key_in_the_configuration(patient: Patient) -> None:
    patient.configure(f"Port {patient.sshd.port}", "IdentityFile ~/nokey")


@broken("login", Reason.KEY_FILE_MISSING, value="IdentityFile ~/.ssh/id_ed25519", never="authorized_keys")
def missing_key_in_a_file_that_is_named(patient: Patient) -> None:
    missing_key_in_the_configuration(patient)
    name_the_configuration(patient)


@broken("login", Reason.KEY_INVALID, FILE="~/mine", never="authorized_keys")
def damaged_key(patient: Patient) -> None:
    hide_the_key(patient)
    patient.key.write_text("no key")
    patient.key.chmod(0o600)


@broken("login", Reason.PUBLIC_KEY_ONLY, value="{home}/.ssh/id_ed25519", never="authorized_keys")
def public_key_given_as_identity(patient: Patient) -> None:
    patient.options += ["--identity", str(shutil.copy(patient.sshd.home / "id.pub", f"{patient.key}.pub"))]


@broken("login", Reason.PASSPHRASE_MISSING, alternative=1, p="p -P secret -N ''", never="authorized_keys")
def encrypted_key(patient: Patient) -> None:
    make_key(patient.key, "secret")
    authorize(patient, f"{public(patient.key)}\n")


@broken("login", Reason.LOGIN_REFUSED, alternative=1, value="{user}", never="/.ssh/config")
def wrong_user(patient: Patient) -> None:
    patient.user = "nosuch"


@broken("login", Reason.NO_CREDENTIALS)
def no_key(patient: Patient) -> None:
    patient.key.unlink()


@broken("login", Reason.AGENT_UNAVAILABLE, alternative=2, value="{home}/mine", never="authorized_keys")
def agent_that_is_gone(patient: Patient) -> None:
    keys_of_an_agent(patient, contextlib.nullcontext(f"{patient.home}/gone"))


@broken("login", Reason.AGENT_SILENT, alternative=2, value="{home}/mine", never="authorized_keys")
def agent_that_hangs(patient: Patient) -> None:
    @contextlib.contextmanager
    def silent() -> Iterator[str]:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(f"{patient.home}/agent")
            sock.listen()
            yield f"{patient.home}/agent"

    keys_of_an_agent(patient, silent())


@broken("login", Reason.AGENT_EMPTY, FILE="~/mine", never="authorized_keys")
def agent_that_is_empty(patient: Patient) -> None:
    keys_of_an_agent(patient, running_agent(patient.home / "agent"))


@broken("login", Reason.TOO_MANY_LOGIN_ATTEMPTS, restarts=True, FILE="~/mine")
def too_many_keys(patient: Patient) -> None:
    reconfigure(patient, "MaxAuthTries 2")
    keys = [make_key(patient.home / f"key{number}") for number in range(3)]
    keys_of_an_agent(patient, running_agent(patient.home / "agent", *keys))


@broken("login", Reason.LOGIN_REFUSED, says="TrustedUserCAKeys", never="-cert-v01")
def certificate_of_an_unknown_authority(patient: Patient) -> None:
    certify_the_key(patient, patient.user)


@broken("login", Reason.LOGIN_REFUSED, says="is for somebody, and not for", AUTHORITY="~/authority", never="-cert-v01")
def certificate_for_somebody_else(patient: Patient) -> None:
    certify_the_key(patient, "somebody")
    authorize(patient, f"cert-authority {public(patient.home / 'authority')}\n")


@broken("login", Reason.LOGIN_REFUSED, says="is not valid now", AUTHORITY="~/authority", never="-cert-v01")
def certificate_that_has_expired(patient: Patient) -> None:
    certify_the_key(patient, patient.user, validity="20200101:20210101")
    authorize(patient, f"cert-authority {public(patient.home / 'authority')}\n")


def authorize(patient: Patient, text: str) -> None:
    (patient.sshd.home / "authorized_keys").write_text(text)


def hide_the_key(patient: Patient) -> Path:
    """Move the key to where nothing looks for it, as what a person knows."""
    return patient.key.rename(patient.home / "mine")


def keys_of_an_agent(patient: Patient, agent: AbstractContextManager[str]) -> None:
    """Have no keys but those of *agent*, if it has any."""
    hide_the_key(patient)
    patient.command.environment["SSH_AUTH_SOCK"] = patient.until_the_end(agent)


def certify_the_key(patient: Patient, principal: str, validity: str = "always:forever") -> None:
    """Have a key that is not authorized, and beside it a certificate of an authority's."""
    certify(make_key(patient.key), make_key(patient.home / "authority"), principal, validity=validity)


# --- transports ------------------------------------------------------------------------------------------------------


@broken("SFTP", Reason.TEXT_BEFORE_PROTOCOL)
def guard_that_talks(patient: Patient) -> None:
    patient.guard(refuse="echo 'This key is for backups.'")


@broken("SCP", Reason.COMMAND_REFUSED, value="{collect}")
def guard_for_another_directory(patient: Patient) -> None:
    patient.guard()
    patient.directory = str(patient.home)


@broken("SFTP", Reason.TEXT_BEFORE_PROTOCOL, restarts=True)
def login_script_that_talks(patient: Patient) -> None:
    reconfigure(patient, "Subsystem sftp /bin/echo Welcome to db1")


@broken("SCP", Reason.NO_SCP, restarts=True)
def neither_sftp_nor_scp(patient: Patient) -> None:
    reconfigure(patient, "Subsystem none /bin/false")
    reconfigure(patient, f"SetEnv PATH={patient.home}")


# --- directories, files, indicators ----------------------------------------------------------------------------------


@broken("directory", Reason.NOT_FOUND)
def missing_directory(patient: Patient) -> None:
    shutil.rmtree(patient.collect)


@broken("directory", Reason.NOT_A_DIRECTORY)
def directory_that_is_a_file(patient: Patient) -> None:
    patient.directory += "/data"


@broken("directory", Reason.NOT_A_DIRECTORY)
def directory_that_is_a_file_over_scp(patient: Patient) -> None:
    directory_that_is_a_file(patient)
    patient.options += ["--transport", "scp"]


@broken("files", Reason.INCOMPLETE_STAGE, ELSEWHERE="{home}")
def stray_directory(patient: Patient) -> None:
    (patient.collect / "sub dir").mkdir()


@broken("indicator", Reason.NOT_READY)
def missing_indicator(patient: Patient) -> None:
    (patient.collect / "cback.collect").unlink()


@pytest.mark.parametrize("name", ROWS)
def test_the_next_step_makes_the_peer_work(patient: Patient, target: Path, name: str) -> None:
    row = ROWS[name]
    patient.healthy(**({"extra": f"# of {patient.home}"} if row.restarts else {}))
    known = {
        "home": patient.home,
        "port": patient.sshd.port,
        "user": patient.user,
        "collect": patient.collect,
        "host_key": patient.sshd.host_key,
    }
    row.breaks(patient)
    told = patient.doctor()
    assert (told["failed"], told["exit"] == 0) == (row.step, False)
    found = failure_of(told)
    assert found["reason"] == row.reason
    assert row.says in f"{found['cause']}; {found['remedy']}"
    assert row.never not in found["remedy"]
    assert "authorized_keys" not in found["seen"] or "authorized_keys" in found["remedy"]
    answers = {key: value.format(**known) for key, value in row.answers.items()}
    follow(patient, found["remedy"], row.alternative, **answers)
    if row.reason is Reason.NOT_FOUND:  # a new directory waits for the peer to collect
        (patient.collect / "cback.collect").touch()
    told = patient.doctor()
    assert (told["exit"], told["failed"]) == (0, None), told
    assert patient.stage(target).returncode == 0

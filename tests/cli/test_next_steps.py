"""Broken set-ups: following the doctor's remedy literally makes the peer work again."""

from __future__ import annotations

import contextlib
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest

from cli.doctor_setup import DoctorSetup, failure_of
from cli.follow_remedy import follow, reconfigure
from peerstage.reasons import Reason
from support.keys import certify, make_key, public_key, run_agent
from support.ssh_server import Handler, closes_at_once, listening, sends_nothing, speaks_http
from support.sshd import free_port


@dataclass(frozen=True)
class Row:
    """One way to break a set-up.

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

    breaks: Callable[[DoctorSetup], object]
    step: str
    reason: Reason
    alternative: int
    restarts: bool
    says: str
    never: str
    answers: dict[str, str]


ROWS: dict[str, Row] = {}
Breaks = Callable[[DoctorSetup], object]


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
    """Add the function to the table of broken set-ups."""

    def add(breaks: Breaks) -> Breaks:
        ROWS[breaks.__name__] = Row(breaks, step, reason, alternative, restarts, says, never, answers)
        return breaks

    return add


# --- the configuration -----------------------------------------------------------------------------------------------


@broken("configuration", Reason.UNKNOWN_KEYWORD, value="HostName 127.0.0.1")
def keyword_typo(setup: DoctorSetup) -> None:
    setup.config.write_text(f"Host db1\n HostNam 127.0.0.1\n Port {setup.sshd.port}\n")


@broken("configuration", Reason.UNKNOWN_KEYWORD, value="Port {port}", never="/.ssh/config")
def keyword_typo_in_a_file_that_is_named(setup: DoctorSetup) -> None:
    setup.configure(f"Prot {setup.sshd.port}")
    name_the_configuration(setup)


@broken("configuration", Reason.UNSUPPORTED_KEYWORD)
def canonicalize_hostname(setup: DoctorSetup) -> None:
    setup.configure(f"Port {setup.sshd.port}", "CanonicalizeHostname yes")


@broken("configuration", Reason.INVALID_CONFIGURATION, value="Port {port}")
def value_without_a_meaning(setup: DoctorSetup) -> None:
    setup.configure("Port many")


@broken("configuration", Reason.INSECURE_CONFIGURATION)
def configuration_that_others_can_write(setup: DoctorSetup) -> None:
    setup.config.chmod(0o666)


@broken("configuration", Reason.CONFIGURATION_UNREADABLE, value="{home}/.ssh/config")
def configuration_that_is_not_there(setup: DoctorSetup) -> None:
    setup.options += ["--config", f"{setup.home}/none"]


def name_the_configuration(setup: DoctorSetup) -> None:
    """Move the configuration to a file that --config names."""
    setup.options += ["--config", str(setup.config.rename(setup.home / "special"))]


# --- name, address, port ---------------------------------------------------------------------------------------------


@broken("name", Reason.NAME_NOT_RESOLVED, value="HostName 127.0.0.1")
def wrong_host_name(setup: DoctorSetup) -> None:
    setup.config.write_text(f"Host db1\n HostName db1.invalid\n Port {setup.sshd.port}\n")


@broken("name", Reason.NAME_NOT_RESOLVED, alternative=1, ADDRESS="127.0.0.1")
def no_host_name(setup: DoctorSetup) -> None:
    setup.config.write_text(f"Host db1\n Port {setup.sshd.port}\n")


@broken("name", Reason.NAME_NOT_RESOLVED, alternative=1, ADDRESS="127.0.0.1", never="/.ssh/config")
def no_host_name_in_a_file_that_is_named(setup: DoctorSetup) -> None:
    no_host_name(setup)
    name_the_configuration(setup)


@broken("TCP", Reason.CONNECTION_REFUSED, alternative=1, value="Port {port}")
def wrong_port(setup: DoctorSetup) -> None:
    setup.configure(f"Port {free_port()}")


@broken("TCP", Reason.CONNECTION_REFUSED, alternative=1, value="{port}", never="/.ssh/config")
def wrong_port_on_the_command_line(setup: DoctorSetup) -> None:
    setup.options += ["--port", str(free_port())]


@broken("TCP", Reason.CONNECTION_REFUSED, alternative=1, NUMBER="{port}")
def port_that_nobody_named(setup: DoctorSetup) -> None:
    setup.configure()


@broken("TCP", Reason.CONNECTION_REFUSED, restarts=True)
def peer_that_is_down(setup: DoctorSetup) -> None:
    setup.sshd.stop()


@broken("jump host", Reason.CONNECTION_REFUSED, value="ProxyJump none", alternative=1)
def jump_host_that_is_down(setup: DoctorSetup) -> None:
    setup.configure(f"Port {setup.sshd.port}", f"ProxyJump 127.0.0.1:{free_port()}")


# --- what answers there ----------------------------------------------------------------------------------------------


@broken("banner", Reason.NOT_SSH, value="Port {port}")
def web_server(setup: DoctorSetup) -> None:
    answer_by(setup, speaks_http)


@broken("banner", Reason.BANNER_TIMEOUT, value="Port {port}")
def server_that_says_nothing(setup: DoctorSetup) -> None:
    answer_by(setup, sends_nothing)


@broken("banner", Reason.CLOSED_BEFORE_BANNER, alternative=1, value="Port {port}")
def server_that_hangs_up(setup: DoctorSetup) -> None:
    answer_by(setup, closes_at_once)


@broken("banner", Reason.PROXY_COMMAND_FAILED, value="ProxyCommand none")
def proxy_command_that_leads_nowhere(setup: DoctorSetup) -> None:
    setup.configure(f"Port {setup.sshd.port}", "ProxyCommand sh -c 'exit 1'")


@broken("key exchange", Reason.NO_COMMON_ALGORITHM, restarts=True)
def algorithms_that_are_too_old(setup: DoctorSetup) -> None:
    reconfigure(setup, "KexAlgorithms diffie-hellman-group1-sha1")


def answer_by(setup: DoctorSetup, handler: Handler) -> None:
    """Configure the port of a server that does not speak SSH."""
    setup.configure(f"Port {setup.until_the_end(listening(handler))}", "ConnectTimeout 1")


# --- host keys -------------------------------------------------------------------------------------------------------


@broken("host key", Reason.HOST_KEY_UNKNOWN)
def unknown_host_key(setup: DoctorSetup) -> None:
    setup.known_hosts.unlink()


@broken("host key", Reason.HOST_KEY_UNKNOWN)
def unknown_host_key_by_a_file_that_is_named(setup: DoctorSetup) -> None:
    setup.known_hosts.unlink()
    name_the_configuration(setup)


@broken("host key", Reason.HOST_KEY_CHANGED)
def changed_host_key(setup: DoctorSetup) -> None:
    setup.known_hosts.write_text(f"[127.0.0.1]:{setup.sshd.port} {public_key(setup.sshd.home / 'id')}\n")


@broken("host key", Reason.HOST_KEY_NOT_PINNED, value="{host_key}")
def wrong_pinned_fingerprint(setup: DoctorSetup) -> None:
    setup.options += ["--host-key", "SHA256:" + "A" * 43]


@broken("host key", Reason.HOST_KEY_UNKNOWN, never="peerstage trust --known-hosts")
def known_hosts_that_remember_nothing(setup: DoctorSetup) -> None:
    setup.configure(f"Port {setup.sshd.port}", "UserKnownHostsFile /dev/null")


@broken("host key", Reason.HOST_KEY_UNKNOWN)
def known_hosts_on_the_command_line_that_remember_nothing(setup: DoctorSetup) -> None:
    setup.options += ["--known-hosts", "/dev/null"]


# --- keys, agents, users ---------------------------------------------------------------------------------------------


@broken("login", Reason.KEY_FILE_PERMISSIONS)
def key_that_others_can_read(setup: DoctorSetup) -> None:
    setup.key.chmod(0o644)


@broken("login", Reason.LOGIN_REFUSED)
def key_that_is_not_authorized(setup: DoctorSetup) -> None:
    (setup.sshd.home / "authorized_keys").write_text("")


@broken("login", Reason.LOGIN_REFUSED, alternative=2, value="{home}/.ssh/id_ed25519", never="/.ssh/config")
def wrong_key_on_the_command_line(setup: DoctorSetup) -> None:
    setup.options += ["--identity", str(make_key(setup.home / "other"))]


@broken("login", Reason.KEY_FILE_MISSING, value="{home}/.ssh/id_ed25519", never="authorized_keys")
def missing_key_on_the_command_line(setup: DoctorSetup) -> None:
    setup.options += ["--identity", f"{setup.home}/nokey"]


@broken("login", Reason.KEY_FILE_MISSING, value="IdentityFile ~/.ssh/id_ed25519", never="authorized_keys")
def missing_key_in_the_configuration(setup: DoctorSetup) -> None:
    setup.configure(f"Port {setup.sshd.port}", "IdentityFile ~/nokey")


@broken("login", Reason.KEY_FILE_MISSING, value="IdentityFile ~/.ssh/id_ed25519", never="authorized_keys")
def missing_key_in_a_file_that_is_named(setup: DoctorSetup) -> None:
    missing_key_in_the_configuration(setup)
    name_the_configuration(setup)


@broken("login", Reason.KEY_INVALID, FILE="~/mine", never="authorized_keys")
def damaged_key(setup: DoctorSetup) -> None:
    hide_the_key(setup)
    setup.key.write_text("no key")
    setup.key.chmod(0o600)


@broken("login", Reason.PUBLIC_KEY_ONLY, value="{home}/.ssh/id_ed25519", never="authorized_keys")
def public_key_given_as_identity(setup: DoctorSetup) -> None:
    setup.options += ["--identity", str(shutil.copy(setup.sshd.home / "id.pub", f"{setup.key}.pub"))]


@broken("login", Reason.PASSPHRASE_MISSING, alternative=1, p="p -P secret -N ''", never="authorized_keys")
def encrypted_key(setup: DoctorSetup) -> None:
    make_key(setup.key, "secret")
    authorize(setup, f"{public_key(setup.key)}\n")


@broken("login", Reason.LOGIN_REFUSED, alternative=1, value="{user}", never="/.ssh/config")
def wrong_user(setup: DoctorSetup) -> None:
    setup.user = "nosuch"


@broken("login", Reason.NO_CREDENTIALS)
def no_key(setup: DoctorSetup) -> None:
    setup.key.unlink()


@broken("login", Reason.AGENT_UNAVAILABLE, alternative=2, value="{home}/mine", never="authorized_keys")
def agent_that_is_gone(setup: DoctorSetup) -> None:
    keys_of_an_agent(setup, contextlib.nullcontext(f"{setup.home}/gone"))


@broken("login", Reason.AGENT_SILENT, alternative=2, value="{home}/mine", never="authorized_keys")
def agent_that_hangs(setup: DoctorSetup) -> None:
    @contextlib.contextmanager
    def silent() -> Iterator[str]:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(f"{setup.home}/agent")
            sock.listen()
            yield f"{setup.home}/agent"

    keys_of_an_agent(setup, silent())


@broken("login", Reason.AGENT_EMPTY, FILE="~/mine", never="authorized_keys")
def agent_that_is_empty(setup: DoctorSetup) -> None:
    keys_of_an_agent(setup, run_agent(setup.home / "agent"))


@broken("login", Reason.TOO_MANY_LOGIN_ATTEMPTS, restarts=True, FILE="~/mine")
def too_many_keys(setup: DoctorSetup) -> None:
    reconfigure(setup, "MaxAuthTries 2")
    keys = [make_key(setup.home / f"key{number}") for number in range(3)]
    keys_of_an_agent(setup, run_agent(setup.home / "agent", *keys))


@broken("login", Reason.LOGIN_REFUSED, says="TrustedUserCAKeys", never="-cert-v01")
def certificate_of_an_unknown_authority(setup: DoctorSetup) -> None:
    certify_the_key(setup, setup.user)


@broken("login", Reason.LOGIN_REFUSED, says="is for somebody, and not for", AUTHORITY="~/authority", never="-cert-v01")
def certificate_for_somebody_else(setup: DoctorSetup) -> None:
    certify_the_key(setup, "somebody")
    authorize(setup, f"cert-authority {public_key(setup.home / 'authority')}\n")


@broken("login", Reason.LOGIN_REFUSED, says="is not valid now", AUTHORITY="~/authority", never="-cert-v01")
def certificate_that_has_expired(setup: DoctorSetup) -> None:
    certify_the_key(setup, setup.user, validity="20200101:20210101")
    authorize(setup, f"cert-authority {public_key(setup.home / 'authority')}\n")


def authorize(setup: DoctorSetup, text: str) -> None:
    (setup.sshd.home / "authorized_keys").write_text(text)


def hide_the_key(setup: DoctorSetup) -> Path:
    """Move the key to a path that only the person knows."""
    return setup.key.rename(setup.home / "mine")


def keys_of_an_agent(setup: DoctorSetup, agent: AbstractContextManager[str]) -> None:
    """Have no keys except those of *agent*, if it has any."""
    hide_the_key(setup)
    setup.command.environment["SSH_AUTH_SOCK"] = setup.until_the_end(agent)


def certify_the_key(setup: DoctorSetup, principal: str, validity: str = "always:forever") -> None:
    """Have a key that is not authorized, and a certificate for it."""
    certify(make_key(setup.key), make_key(setup.home / "authority"), principal, validity=validity)


# --- transports ------------------------------------------------------------------------------------------------------


@broken("SFTP", Reason.TEXT_BEFORE_PROTOCOL)
def guard_that_talks(setup: DoctorSetup) -> None:
    setup.guard(refuse="echo 'This key is for backups.'")


@broken("SCP", Reason.COMMAND_REFUSED, value="{collect}")
def guard_for_another_directory(setup: DoctorSetup) -> None:
    setup.guard()
    setup.directory = str(setup.home)


@broken("SFTP", Reason.TEXT_BEFORE_PROTOCOL, restarts=True)
def login_script_that_talks(setup: DoctorSetup) -> None:
    reconfigure(setup, "Subsystem sftp /bin/echo Welcome to db1")


@broken("SCP", Reason.NO_SCP, restarts=True)
def neither_sftp_nor_scp(setup: DoctorSetup) -> None:
    reconfigure(setup, "Subsystem none /bin/false")
    reconfigure(setup, f"SetEnv PATH={setup.home}")


# --- directories, files, indicators ----------------------------------------------------------------------------------


@broken("directory", Reason.NOT_FOUND)
def missing_directory(setup: DoctorSetup) -> None:
    shutil.rmtree(setup.collect)


@broken("directory", Reason.NOT_A_DIRECTORY)
def directory_that_is_a_file(setup: DoctorSetup) -> None:
    setup.directory += "/data"


@broken("directory", Reason.NOT_A_DIRECTORY)
def directory_that_is_a_file_over_scp(setup: DoctorSetup) -> None:
    directory_that_is_a_file(setup)
    setup.options += ["--transport", "scp"]


@broken("files", Reason.INCOMPLETE_STAGE, ELSEWHERE="{home}")
def stray_directory(setup: DoctorSetup) -> None:
    (setup.collect / "sub dir").mkdir()


@broken("files", Reason.INCOMPLETE_STAGE, alternative=1, value="sub*")
def directory_that_is_not_wanted(setup: DoctorSetup) -> None:
    (setup.collect / "sub dir").mkdir()


@broken("indicator", Reason.NOT_READY)
def missing_indicator(setup: DoctorSetup) -> None:
    (setup.collect / "cback.collect").unlink()


@pytest.mark.parametrize("name", ROWS)
def test_the_next_step_makes_the_peer_work(setup: DoctorSetup, target: Path, name: str) -> None:
    row = ROWS[name]
    setup.start(**({"extra": f"# of {setup.home}"} if row.restarts else {}))
    known = {
        "home": setup.home,
        "port": setup.sshd.port,
        "user": setup.user,
        "collect": setup.collect,
        "host_key": setup.sshd.host_key,
    }
    row.breaks(setup)
    report = setup.doctor()
    assert (report["failed"], report["exit"] == 0) == (row.step, False)
    found = failure_of(report)
    assert found["reason"] == row.reason
    assert row.says in f"{found['cause']}; {found['remedy']}"
    assert row.never not in found["remedy"]
    assert "authorized_keys" not in found["seen"] or "authorized_keys" in found["remedy"]
    answers = {key: value.format(**known) for key, value in row.answers.items()}
    follow(setup, found["remedy"], row.alternative, **answers)
    if row.reason is Reason.NOT_FOUND:  # a new directory waits for the peer to collect
        (setup.collect / "cback.collect").touch()
    report = setup.doctor()
    assert (report["exit"], report["failed"]) == (0, None), report
    assert setup.stage(target).returncode == 0

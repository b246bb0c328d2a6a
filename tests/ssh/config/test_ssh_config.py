"""Destinations resolved from ssh's configuration, and errors with file and line. See also test_ssh_g.py."""

from __future__ import annotations

import getpass
import hashlib
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from peerstage import SSHOptions
from peerstage.errors import ConfigurationError
from peerstage.reasons import Reason
from peerstage.ssh.algorithms import MACS
from peerstage.ssh.config.resolve import resolve_destination
from support.oracle import ask_ssh, resolve_with


@pytest.fixture
def config(own_home: Path) -> Path:
    (own_home / ".ssh").mkdir()
    return own_home / ".ssh" / "config"


def test_without_any_configuration_a_name_is_a_host_on_port_22(own_home: Path) -> None:
    found = resolve_destination("db1", "backup", SSHOptions())
    assert (found.host, found.port, found.user, found.connect_timeout) == ("db1", 22, "backup", 15.0)
    assert found.identities == ()
    assert found.agent_socket is None
    assert found.known_hosts == (
        str(own_home / ".ssh/known_hosts"),
        str(own_home / ".ssh/known_hosts2"),
        "/etc/ssh/ssh_known_hosts",
        "/etc/ssh/ssh_known_hosts2",
    )


def test_default_identities_are_the_existing_keys_in_the_order_of_ssh(config: Path) -> None:
    for name in ("id_ed25519", "id_rsa", "id_dsa"):
        (config.parent / name).touch()
    found = resolve_with("", config)
    assert [Path(path).name for path in found.identities] == ["id_rsa", "id_ed25519"]


def test_a_matching_host_block_applies_and_a_given_user_overrides_it(config: Path) -> None:
    found = resolve_with(
        "Host db1\n HostName 192.0.2.7\n Port 2222\n User other\n IdentityFile ~/a\n IdentityFile /b\n"
        "  IdentitiesOnly yes\n UserKnownHostsFile ~/k1 /k2\n GlobalKnownHostsFile none\n ConnectTimeout 7\n"
        "  AddressFamily inet6\n IdentityAgent /agent\nHost *\n Port 22\n IdentityFile /c\n",
        config,
    )
    home = config.parent.parent
    assert (found.host, found.port, found.user) == ("192.0.2.7", 2222, "backup")
    assert found.identities == (f"{home}/a", "/b", "/c")
    assert found.identities_only
    assert found.known_hosts == (f"{home}/k1", "/k2")
    assert (found.connect_timeout, found.address_family, found.agent_socket) == (7.0, socket.AF_INET6, "/agent")


def test_options_override_the_configuration(config: Path) -> None:
    text = "Port 1\nIdentityFile /other\nUserKnownHostsFile /other\nConnectTimeout 1\nIdentityAgent /other\n"
    found = resolve_with(
        text, config, port=2222, identity=("~/mine",), known_hosts=(b"data", "/mine"), connect_timeout=3.0, agent=False
    )
    assert (found.port, found.connect_timeout, found.agent_socket) == (2222, 3.0, None)
    assert found.identities == (f"{config.parent.parent}/mine",)
    assert found.explicit_identities
    assert found.known_hosts == (b"data", "/mine")


def test_a_key_in_the_options_replaces_key_files_and_agent(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_AUTH_SOCK", "/agent")
    found = resolve_with("IdentityFile /configured\n", config, pkey=b"key")
    assert (found.identities, found.agent_socket) == ((), None)


@pytest.mark.parametrize(
    ("setting", "options", "expected"),
    [
        ("", {}, "/environment"),
        ("IdentityAgent none", {}, None),
        ("IdentityAgent SSH_AUTH_SOCK", {}, "/environment"),
        ("IdentityAgent $OTHER", {}, "/other"),
        ("IdentityAgent none", {"agent": True}, "/environment"),
        ("", {"agent": "/given"}, "/given"),
        ("", {"agent": False}, None),
    ],
)
def test_an_option_then_identityagent_then_the_environment_names_the_agent(
    config: Path, monkeypatch: pytest.MonkeyPatch, setting: str, options: dict[str, Any], expected: str | None
) -> None:
    monkeypatch.setenv("SSH_AUTH_SOCK", "/environment")
    monkeypatch.setenv("OTHER", "/other")
    assert resolve_with(setting, config, **options).agent_socket == expected


def test_an_empty_config_option_reads_no_file(config: Path) -> None:
    assert resolve_with("ProxyJump bastion\nInclude x\n", config, config=()).host == "db1"


def test_of_several_files_the_first_value_wins_and_identities_add_up(config: Path, tmp_path: Path) -> None:
    (tmp_path / "one").write_text("Port 1111\nIdentityFile /one\n")
    (tmp_path / "two").write_text("Port 2222\nHostName there\nIdentityFile /two\n")
    found = resolve_with("Port 3\n", config, config=(str(tmp_path / "one"), str(tmp_path / "two")))
    assert (found.port, found.host, found.identities) == (1111, "there", ("/one", "/two"))


REJECTED = [
    "CanonicalizeHostname yes",
    "CanonicalizeHostname always",
    "KnownHostsCommand /bin/k",
    "RevokedHostKeys /r",
    "NoHostAuthenticationForLocalhost yes",
    "RefuseConnection not from here",
    "RequiredRSASize many",
    "ProxyUseFdpass yes",
    "BindInterface eth1",
    "CASignatureAlgorithms ssh-rsa",
    "CASignatureAlgorithms -*",
    "Ciphers 3des-cbc,aes256-cbc",
    "MACs hmac-sha1",
    "KexAlgorithms diffie-hellman-group1-sha1",
    "HostKeyAlgorithms ssh-rsa,ssh-dss",
    "PubkeyAcceptedKeyTypes ssh-rsa",
    "Ciphers -*",
    "Ciphers +",
    "RekeyLimit 15",
    "RekeyLimit 1G soon",
    "RekeyLimit much",
    "RekeyLimit 1G 1h 1h",
    "ConnectionAttempts 0",
    "ConnectionAttempts twice",
    "ServerAliveInterval 1.5",
    "ServerAliveCountMax -1",
    "StrictHostKeyChecking maybe",
    "CanonicalizeHostname perhaps",
    "ProxyUseFdpass 2",
    "ProxyCommand nc %u",
    "ProxyJump %u",
    "BindAddress one two",
    "Host other\n Port 0",
    "Match host other\n ConnectTimeout soon",
    "Port 0",
    "Port 70000",
    "HostName %h.example.com.%p",
    "AddressFamily both",
    "ConnectTimeout soon",
    "IdentitiesOnly maybe",
    "Nonsense",
    "HostNam there",
    "Host other\n HostNam there",
    "Port 22 23",
    "HostName",
    "HostName one two",
    "IdentityFile ~/.ssh/%Z",
    "IdentityFile ${NO_SUCH_VARIABLE}/id",
    'IdentityFile "open',
    "Match",
    "Match all host x",
    "Match host",
    "Match weather fine",
    "Match host db1 user x all",
]


@pytest.mark.parametrize("text", REJECTED)
def test_invalid_and_unsupported_lines_are_rejected_with_file_and_line(config: Path, text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        resolve_with(f"# a comment\n\n{text}\n", config)
    _assert_located(caught.value, config)


@pytest.mark.parametrize(
    "keyword", ["Port", "ConnectTimeout", "ConnectionAttempts", "RekeyLimit", "RekeyLimit 1G", "ProxyJump gate:"]
)
def test_more_digits_than_python_converts_are_rejected_with_file_and_line(config: Path, keyword: str) -> None:
    space = "" if keyword.endswith(":") else " "
    with pytest.raises(ConfigurationError) as caught:
        resolve_with(f"\n\n{keyword}{space}{'9' * 5000}\n", config)
    _assert_located(caught.value, config)


def _assert_located(error: ConfigurationError, config: Path) -> None:
    message = str(error)
    assert f"{config}:3" in message or f"{config}:4" in message
    assert str(error.location) in message
    assert error.location is not None
    assert error.location.path == str(config)
    assert "Correct or remove the line" in message
    assert "SSHOptions" not in message
    assert message.isprintable()


@pytest.mark.parametrize(
    "text",
    [
        "Host other\n ProxyJump bastion\n HostKeyAlias x\n",
        "ProxyJump none\nProxyCommand none\n",
        "ServerAliveInterval 60\nCompression yes\nForwardAgent yes\nControlPath /x\nLogLevel DEBUG\n",
        "CanonicalizeHostname no\nNoHostAuthenticationForLocalhost no\nProxyUseFdpass False\n",
        "KnownHostsCommand none\nRevokedHostKeys none\nCASignatureAlgorithms +ssh-ed25519\n",
        "PKCS11Provider /p\nSecurityKeyProvider /s\nVerifyHostKeyDNS yes\nCheckHostIP yes\n",
    ],
)
def test_unsupported_keywords_without_effect_on_destination_or_trust_are_ignored(config: Path, text: str) -> None:
    assert resolve_with(text, config).host == "db1"


def test_an_unreadable_file_is_an_error_that_names_it(config: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="does not exist") as caught:
        resolve_with("", config, config=str(tmp_path / "missing"))
    assert (caught.value.reason, str(caught.value.location)) == (
        Reason.CONFIGURATION_UNREADABLE,
        str(tmp_path / "missing"),
    )
    with pytest.raises(ConfigurationError, match="not a regular file"):
        resolve_with("", config, config=str(tmp_path))
    config.write_bytes(b"\xff\xfe" * (1 << 20))
    with pytest.raises(ConfigurationError, match="larger"):
        resolve_destination("db1", "backup", SSHOptions())


@pytest.mark.parametrize("word", ["no", "off", "FALSE", "ask"])
def test_lax_host_key_checking_is_logged_and_treated_as_strict(
    config: Path, caplog: pytest.LogCaptureFixture, word: str
) -> None:
    caplog.set_level("INFO", "peerstage")
    assert resolve_with(f"StrictHostKeyChecking {word}\n", config).accept_new is False
    assert "StrictHostKeyChecking is treated as yes" in caplog.text


@pytest.mark.parametrize(
    ("setting", "option", "accepts"),
    [("accept-new", None, True), ("Accept-New", None, True), ("yes", None, False), ("accept-new", "strict", False)],
)
def test_keys_of_new_hosts_are_accepted_if_configured_and_no_option_is_stricter(
    config: Path, caplog: pytest.LogCaptureFixture, setting: str, option: str | None, accepts: bool
) -> None:
    caplog.set_level("INFO", "peerstage")
    assert resolve_with(f"StrictHostKeyChecking {setting}\n", config, host_key=option).accept_new is accepts
    assert not caplog.text


def test_key_providers_are_ignored_and_logged(config: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "peerstage")
    resolve_with("PKCS11Provider /p\nSecurityKeyProvider internal\n", config)
    assert [record.message for record in caplog.records] == ["db1: PKCS11Provider is ignored; its keys are not used."]


def test_unsupported_and_weak_algorithms_are_ignored_and_logged(config: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "peerstage")
    found = resolve_with(
        "Ciphers chacha20-poly1305@openssh.com,aes256-ctr,3des-cbc,aes128-ctr\nMACs +hmac-sha1\n", config
    )
    assert found.algorithms.ciphers == ("aes256-ctr", "aes128-ctr")
    assert found.algorithms.macs == MACS
    assert "chacha20-poly1305@openssh.com, 3des-cbc" in caplog.text
    assert f"{config}:1" in caplog.text
    assert len(caplog.records) == 2


def test_a_list_without_supported_algorithm_is_an_error_that_names_those_supported(config: Path) -> None:
    with pytest.raises(
        ConfigurationError, match=r":1: MACs selects no supported algorithm; supported are hmac-sha2-256, "
    ):
        resolve_with("MACs hmac-md5,umac-64@openssh.com\n", config)


def test_tokens_and_match_exec_see_the_port_and_jump_of_the_options(config: Path) -> None:
    text = 'Port 7\nMatch exec "test %p = 2222"\n IdentityFile /%p-%j\nProxyJump other\n'
    found = resolve_with(text, config, port=2222, jump="gate")
    assert found.identities == ("/2222-gate",)
    assert [hop.host for hop in found.hops] == ["gate"]


@pytest.mark.parametrize(
    ("jump", "host"),
    [
        ("gate", "gate"),
        ("a,me@b:7", "b"),
        ("ssh://me@gate:7", "gate"),
        ("[2001:db8::1]:7", "2001:db8::1"),
        ("none", ""),
        ("NONE", ""),
    ],
)
def test_tokens_have_the_host_of_the_last_jump_host_alone(config: Path, jump: str, host: str) -> None:
    connection = f"{socket.gethostname()}db122backup{host}"
    expected = f"/{host}-{hashlib.sha1(connection.encode()).hexdigest()}"
    text = f'ProxyJump {jump}\nIdentityFile /%j-%C\nMatch exec "test /%j-%C = {expected}"\n ConnectTimeout 7\n'
    found = resolve_with(text, config)
    assert (found.connect_timeout, found.identities) == (7.0, (expected,))


@pytest.mark.usefixtures("openssh")
@pytest.mark.parametrize(
    ("text", "jump", "command", "hops"),
    [
        ("ProxyCommand nc %h %p", None, "nc db1 22", 0),
        ("ProxyCommand nc %h %p\nProxyJump b", None, "nc db1 22", 0),
        ("ProxyJump b\nProxyCommand nc %h %p", None, None, 1),
        ("ProxyCommand none\nProxyJump b", None, None, 0),
        ("ProxyJump none\nProxyCommand nc %n", None, "nc db1", 0),
        ("ProxyCommand nc", "a,b", None, 2),
        ("ProxyJump b", "none", None, 0),
        ("ProxyCommand nc", "none", "nc", 0),
        ("ProxyJump b\nProxyCommand nc", "none", "nc", 0),
    ],
)
def test_the_first_of_proxycommand_and_proxyjump_wins_and_the_option_jump_overrides_both(
    config: Path, text: str, jump: str | None, command: str | None, hops: int
) -> None:
    found = resolve_with(text, config, jump=jump)
    assert (found.proxy_command, len(found.hops)) == (command, hops)
    given = ["-J", jump] if jump not in (None, "none") else []  # for ssh, -J none overrides nothing
    theirs = ask_ssh(config, "db1", *given) or {}
    if jump != "none":
        assert (len(theirs.get("proxyjump", [""])[0].split(",")) if "proxyjump" in theirs else 0) == hops
        assert ("proxycommand" in theirs) == (command is not None)


def test_a_relative_include_starts_from_the_ssh_directory_of_the_user(config: Path) -> None:
    (config.parent / "conf.d").mkdir()
    (config.parent / "conf.d" / "a").write_text("Host db1\n Port 2201\n")
    found = resolve_with("Include conf.d/*\nPort 22\n", config)
    assert found.port == 2201


def test_a_file_that_includes_itself_is_an_error(config: Path) -> None:
    with pytest.raises(ConfigurationError, match="Include is nested more than 16 levels deep"):
        resolve_with(f"Include {config}\n", config)


@pytest.mark.usefixtures("openssh")
@pytest.mark.parametrize("mode", [0o666, 0o620, 0o602, 0o777])
def test_a_file_that_others_may_write_is_rejected_as_by_ssh(config: Path, mode: int) -> None:
    config.write_text("Port 2222\n")
    config.chmod(mode)
    with pytest.raises(ConfigurationError, match="Bad owner or permissions on the ssh configuration") as caught:
        resolve_destination("db1", "backup", SSHOptions())
    assert (caught.value.reason, caught.value.location) == (Reason.INSECURE_CONFIGURATION, (str(config), 0))
    assert resolve_destination("db1", "backup", SSHOptions(config=str(config))).port == 2222, "as with ssh -F"
    include = config.with_name("including")
    include.write_text(f"Include {config}\n")
    if mode & 0o002:  # Debian's ssh permits it for a group without other members
        assert ask_ssh(include, "db1") is None
    with pytest.raises(ConfigurationError, match="Bad owner or permissions on the ssh configuration"):
        resolve_destination("db1", "backup", SSHOptions(config=str(include)))


def test_the_user_file_is_read_before_the_system_file(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peerstage.ssh.config.resolve._SYSTEM_DIRECTORY", str(tmp_path))
    (tmp_path / "ssh_config").write_text("Include more\nPort 1111\nIdentityFile /system\n")
    (tmp_path / "more").write_text("ConnectTimeout 3\nPort 1112\n")
    found = resolve_with("Port 2222\nIdentityFile /user\n", config)
    assert (found.port, found.connect_timeout, found.identities) == (2222, 3.0, ("/user", "/system"))
    assert resolve_destination("db1", "backup", SSHOptions(config=str(config))).identities == ("/user",)


def test_tokens_and_variables_are_expanded_in_paths(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEYS", "/keys")
    home = config.parent.parent
    text = "HostName real\nPort 2222\nHostKeyAlias alias\nIdentityFile ${KEYS}/%r@%h:%p-%n-%k-%%\nIdentityFile ~/%u\n"
    found = resolve_with(f"{text}UserKnownHostsFile %d/known-%h\n", config)
    assert found.identities == ("/keys/backup@real:2222-db1-alias-%", f"{home}/{getpass.getuser()}")
    assert found.known_hosts[0] == f"{home}/known-real"


def test_known_hosts_is_searched_for_the_host_key_alias(config: Path) -> None:
    assert resolve_with("Port 2222\nHostName real\n", config).host_key_name == ("real", 2222)
    assert resolve_with("Port 2222\nHostName real\nHostKeyAlias cluster\n", config).host_key_name == ("cluster", 22)


def test_a_match_exec_command_has_a_time_limit(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peerstage.ssh.config.read_config._EXEC_TIMEOUT", 0.2)
    with pytest.raises(ConfigurationError, match=r":1: Match exec took more"):
        resolve_with('Match exec "sleep 30"\n Port 1\n', config)


def test_a_match_exec_command_is_not_run_after_a_criterion_that_failed(config: Path, tmp_path: Path) -> None:
    resolve_with(f'Match host other exec "touch {tmp_path}/ran"\n Port 1\n', config)
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def nameless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run as a user without a name, as in many containers."""

    def find_no_user(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr("pwd.getpwuid", find_no_user)
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("text", "words"),
    [("", ""), ("IdentityFile ~/.ssh/%h\n", ""), ("IdentityFile /%u\n", ":1: "), ("Match localuser root\n", ":1: ")],
)
def test_a_local_user_without_name_matters_only_where_the_name_is_used(
    config: Path, nameless: None, text: str, words: str
) -> None:
    if not words:
        assert resolve_with(text, config).user == "backup"
        return
    with pytest.raises(ConfigurationError, match=f"{words}.*user {os.getuid()} has no name"):
        resolve_with(text, config)


def test_a_local_user_without_name_must_name_the_remote_user(config: Path, nameless: None) -> None:
    config.write_text("")
    with pytest.raises(ConfigurationError, match="has no name"):
        resolve_destination("db1", None, SSHOptions())
    config.write_text("User backup\n")
    assert resolve_destination("db1", None, SSHOptions()).user == "backup"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("CanonicalizeHostname yes", Reason.UNSUPPORTED_KEYWORD),
        ("KnownHostsCommand /bin/true", Reason.UNSUPPORTED_KEYWORD),
        ("Match weather fine", Reason.UNSUPPORTED_KEYWORD),
        ("HostNam there", Reason.UNKNOWN_KEYWORD),
        ("Port many", Reason.INVALID_CONFIGURATION),
    ],
)
def test_the_reason_of_an_error_tells_why_a_line_was_rejected(config: Path, line: str, reason: Reason) -> None:
    with pytest.raises(ConfigurationError) as caught:
        resolve_with(f"{line}\n", config)
    assert (caught.value.reason, caught.value.location) == (reason, (str(config), 1))


def test_the_location_of_an_invalid_option_is_the_option(config: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        resolve_with("", config, jump="a b")
    assert str(caught.value.location) == "SSHOptions(jump=...)"

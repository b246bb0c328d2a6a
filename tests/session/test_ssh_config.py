"""What ssh's configuration makes of a destination, and refusals that name file and line. See also test_ssh_g.py."""

from __future__ import annotations

import getpass
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from peerstage import SSHOptions
from peerstage.errors import ConfigurationError
from peerstage.reasons import Reason
from peerstage.session.algorithms import MACS
from peerstage.session.config import resolve_destination
from support.oracle import ask_ssh, reach


@pytest.fixture
def config(own_home: Path) -> Path:
    (own_home / ".ssh").mkdir()
    return own_home / ".ssh" / "config"


def test_without_any_configuration_a_name_is_a_host_on_port_22(own_home: Path) -> None:
    found = resolve_destination("db1", "backup", SSHOptions())
    assert (found.host, found.port, found.user, found.connect_timeout) == ("db1", 22, "backup", 15.0)
    assert found.identities == ()
    assert found.agent is None
    assert found.known_hosts == (
        str(own_home / ".ssh/known_hosts"),
        str(own_home / ".ssh/known_hosts2"),
        "/etc/ssh/ssh_known_hosts",
        "/etc/ssh/ssh_known_hosts2",
    )


def test_the_default_keys_are_those_that_are_there_in_ssh_s_order(config: Path) -> None:
    for name in ("id_ed25519", "id_rsa", "id_dsa"):
        (config.parent / name).touch()
    found = reach("", config)
    assert [Path(path).name for path in found.identities] == ["id_rsa", "id_ed25519"]


def test_what_a_host_block_says_is_used_and_user_does_not_override(config: Path) -> None:
    found = reach(
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
    assert (found.connect_timeout, found.family, found.agent) == (7.0, socket.AF_INET6, "/agent")


def test_options_win_over_the_configuration(config: Path) -> None:
    text = "Port 1\nIdentityFile /other\nUserKnownHostsFile /other\nConnectTimeout 1\nIdentityAgent /other\n"
    found = reach(
        text, config, port=2222, identity=("~/mine",), known_hosts=(b"data", "/mine"), connect_timeout=3.0, agent=False
    )
    assert (found.port, found.connect_timeout, found.agent) == (2222, 3.0, None)
    assert found.identities == (f"{config.parent.parent}/mine",)
    assert found.explicit_identities
    assert found.known_hosts == (b"data", "/mine")


def test_a_key_that_is_handed_in_leaves_files_and_agent_alone(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_AUTH_SOCK", "/agent")
    found = reach("IdentityFile /configured\n", config, pkey=b"key")
    assert (found.identities, found.agent) == ((), None)


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
def test_the_agent_is_the_one_that_is_named(
    config: Path, monkeypatch: pytest.MonkeyPatch, setting: str, options: dict[str, Any], expected: str | None
) -> None:
    monkeypatch.setenv("SSH_AUTH_SOCK", "/environment")
    monkeypatch.setenv("OTHER", "/other")
    assert reach(setting, config, **options).agent == expected


def test_no_configuration_is_read_if_none_is_wanted(config: Path) -> None:
    assert reach("ProxyJump bastion\nInclude x\n", config, config=()).host == "db1"


def test_several_files_add_up_and_the_first_value_wins(config: Path, tmp_path: Path) -> None:
    (tmp_path / "one").write_text("Port 1111\nIdentityFile /one\n")
    (tmp_path / "two").write_text("Port 2222\nHostName there\nIdentityFile /two\n")
    found = reach("Port 3\n", config, config=(str(tmp_path / "one"), str(tmp_path / "two")))
    assert (found.port, found.host, found.identities) == (1111, "there", ("/one", "/two"))


REFUSED = [
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


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_not_honoured_or_wrong_is_refused_by_file_and_line(config: Path, text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        reach(f"# a comment\n\n{text}\n", config)
    said = str(caught.value)
    assert f"{config}:3" in said or f"{config}:4" in said
    assert str(caught.value.location) in said
    assert caught.value.location is not None
    assert caught.value.location.path == str(config)
    assert "Correct or remove that line" in said
    assert "SSHOptions" not in said
    assert said.isprintable()


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
def test_what_does_not_concern_this_peer_or_nobody_s_identity_is_passed_over(config: Path, text: str) -> None:
    assert reach(text, config).host == "db1"


def test_files_that_can_not_be_read_are_named(config: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="not there") as caught:
        reach("", config, config=str(tmp_path / "missing"))
    assert (caught.value.reason, str(caught.value.location)) == (
        Reason.CONFIGURATION_UNREADABLE, str(tmp_path / "missing"),
    )  # fmt: skip
    with pytest.raises(ConfigurationError, match="not a regular file"):
        reach("", config, config=str(tmp_path))
    config.write_bytes(b"\xff\xfe" * (1 << 20))
    with pytest.raises(ConfigurationError, match="larger"):
        resolve_destination("db1", "backup", SSHOptions())


@pytest.mark.parametrize("word", ["no", "off", "FALSE", "ask"])
def test_lax_checking_is_taken_as_strict_and_said(config: Path, caplog: pytest.LogCaptureFixture, word: str) -> None:
    caplog.set_level("INFO", "peerstage")
    assert reach(f"StrictHostKeyChecking {word}\n", config).accept_new is False
    assert "StrictHostKeyChecking is taken as yes" in caplog.text


@pytest.mark.parametrize(
    ("setting", "option", "accepts"),
    [("accept-new", None, True), ("Accept-New", None, True), ("yes", None, False), ("accept-new", "strict", False)],
)
def test_new_hosts_are_learnt_where_that_is_configured_and_no_option_is_stricter(
    config: Path, caplog: pytest.LogCaptureFixture, setting: str, option: str | None, accepts: bool
) -> None:
    caplog.set_level("INFO", "peerstage")
    assert reach(f"StrictHostKeyChecking {setting}\n", config, host_key=option).accept_new is accepts
    assert not caplog.text


def test_providers_of_further_keys_are_passed_over_and_that_is_said(
    config: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "peerstage")
    reach("PKCS11Provider /p\nSecurityKeyProvider internal\n", config)
    assert [record.message for record in caplog.records] == ["db1: pkcs11provider is ignored; its keys are not used."]


def test_algorithms_that_there_are_not_or_that_are_weak_are_passed_over_and_named(
    config: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "peerstage")
    found = reach("Ciphers chacha20-poly1305@openssh.com,aes256-ctr,3des-cbc,aes128-ctr\nMACs +hmac-sha1\n", config)
    assert found.algorithms.ciphers == ("aes256-ctr", "aes128-ctr")
    assert found.algorithms.macs == MACS
    assert "chacha20-poly1305@openssh.com, 3des-cbc" in caplog.text
    assert f"{config}:1" in caplog.text
    assert len(caplog.records) == 2


def test_a_list_that_leaves_nothing_says_what_there_is(config: Path) -> None:
    with pytest.raises(ConfigurationError, match=r":1: macs leaves nothing that there is here: hmac-sha2-256, "):
        reach("MACs hmac-md5,umac-64@openssh.com\n", config)


def test_a_port_or_jump_that_is_given_is_the_one_that_tokens_and_matches_see(config: Path) -> None:
    text = 'Port 7\nMatch exec "test %p = 2222"\n IdentityFile /%p-%j\nProxyJump other\n'
    found = reach(text, config, port=2222, jump="gate")
    assert found.identities == ("/2222-gate",)
    assert [hop.host for hop in found.hops] == ["gate"]


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
def test_of_command_and_jump_the_first_wins_and_an_option_over_both(
    config: Path, text: str, jump: str | None, command: str | None, hops: int
) -> None:
    found = reach(text, config, jump=jump)
    assert (found.proxy_command, len(found.hops)) == (command, hops)
    given = ["-J", jump] if jump not in (None, "none") else []  # ssh lets -J none take the place of no ProxyJump
    theirs = ask_ssh(config, "db1", *given) or {}
    if jump != "none":
        assert (len(theirs.get("proxyjump", [""])[0].split(",")) if "proxyjump" in theirs else 0) == hops
        assert ("proxycommand" in theirs) == (command is not None)


def test_a_relative_include_begins_at_the_user_s_ssh_directory(config: Path) -> None:
    (config.parent / "conf.d").mkdir()
    (config.parent / "conf.d" / "a").write_text("Host db1\n Port 2201\n")
    found = reach("Include conf.d/*\nPort 22\n", config)
    assert found.port == 2201


def test_files_that_include_themselves_are_an_error(config: Path) -> None:
    with pytest.raises(ConfigurationError, match="include each other"):
        reach(f"Include {config}\n", config)


@pytest.mark.usefixtures("openssh")
@pytest.mark.parametrize("mode", [0o666, 0o620, 0o602, 0o777])
def test_a_configuration_that_others_can_write_is_refused_as_ssh_refuses_it(config: Path, mode: int) -> None:
    config.write_text("Port 2222\n")
    config.chmod(mode)
    with pytest.raises(ConfigurationError, match="can be written by others") as caught:
        resolve_destination("db1", "backup", SSHOptions())
    assert (caught.value.reason, caught.value.location) == (Reason.INSECURE_CONFIGURATION, (str(config), 0))
    assert resolve_destination("db1", "backup", SSHOptions(config=str(config))).port == 2222, "as ssh -F takes it"
    include = config.with_name("including")
    include.write_text(f"Include {config}\n")
    if mode & 0o002:  # Debian's ssh lets a group write that nobody else is in
        assert ask_ssh(include, "db1") is None
    with pytest.raises(ConfigurationError, match="can be written by others"):
        resolve_destination("db1", "backup", SSHOptions(config=str(include)))


def test_the_user_s_file_comes_before_the_system_s(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peerstage.session.config._SYSTEM_DIRECTORY", str(tmp_path))
    (tmp_path / "ssh_config").write_text("Include more\nPort 1111\nIdentityFile /system\n")
    (tmp_path / "more").write_text("ConnectTimeout 3\nPort 1112\n")
    found = reach("Port 2222\nIdentityFile /user\n", config)
    assert (found.port, found.connect_timeout, found.identities) == (2222, 3.0, ("/user", "/system"))
    assert resolve_destination("db1", "backup", SSHOptions(config=str(config))).identities == ("/user",)


def test_tokens_and_variables_are_expanded_in_paths(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEYS", "/keys")
    home = config.parent.parent
    text = "HostName real\nPort 2222\nHostKeyAlias alias\nIdentityFile ${KEYS}/%r@%h:%p-%n-%k-%%\nIdentityFile ~/%u\n"
    found = reach(f"{text}UserKnownHostsFile %d/known-%h\n", config)
    assert found.identities == ("/keys/backup@real:2222-db1-alias-%", f"{home}/{getpass.getuser()}")
    assert found.known_hosts[0] == f"{home}/known-real"


def test_a_host_key_alias_is_what_known_hosts_is_asked_for(config: Path) -> None:
    assert reach("Port 2222\nHostName real\n", config).known_as == ("real", 2222)
    assert reach("Port 2222\nHostName real\nHostKeyAlias cluster\n", config).known_as == ("cluster", 22)


def test_the_command_of_a_match_is_bounded_in_time(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peerstage.session.ssh_config._EXEC_SECONDS", 0.2)
    with pytest.raises(ConfigurationError, match=r":1: Match exec took more"):
        reach('Match exec "sleep 30"\n Port 1\n', config)


def test_the_command_of_a_match_is_not_run_where_its_answer_does_not_matter(config: Path, tmp_path: Path) -> None:
    reach(f'Match host other exec "touch {tmp_path}/ran"\n Port 1\n', config)
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def nameless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs this is a number and nothing else, as in many a container."""

    def knows_nobody(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr("pwd.getpwuid", knows_nobody)
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("text", "words"),
    [("", ""), ("IdentityFile ~/.ssh/%h\n", ""), ("IdentityFile /%u\n", ":1: "), ("Match localuser root\n", ":1: ")],
)
def test_whoever_has_no_name_here_reaches_a_peer_all_the_same(
    config: Path, nameless: None, text: str, words: str
) -> None:
    if not words:
        assert reach(text, config).user == "backup"
        return
    with pytest.raises(ConfigurationError, match=f"{words}.*user {os.getuid()} has no name"):
        reach(text, config)


def test_whoever_has_no_name_here_must_name_who_logs_in(config: Path, nameless: None) -> None:
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
def test_why_a_line_is_refused_can_be_told_apart(config: Path, line: str, reason: Reason) -> None:
    with pytest.raises(ConfigurationError) as caught:
        reach(f"{line}\n", config)
    assert (caught.value.reason, caught.value.location) == (reason, (str(config), 1))


def test_an_option_stands_where_it_was_given(config: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        reach("", config, jump="a b")
    assert str(caught.value.location) == "SSHOptions(jump=...)"

"""ssh's configuration as it is read so far: ssh's own answer (``ssh -G``), or a refusal that names file and line."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peerstage import SSHOptions
from peerstage.errors import ConfigurationError
from peerstage.session.config import Destination, resolve_destination
from support.programs import program


@pytest.fixture
def config(own_home: Path) -> Path:
    (own_home / ".ssh").mkdir()
    return own_home / ".ssh" / "config"


def reach(text: str, file: Path, name: str = "db1", **options: Any) -> Destination:
    file.write_text(text)
    return resolve_destination(name, "backup", SSHOptions(**options))


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
    "Include conf.d/*",
    "Match user backup\n Port 1",
    'Match exec "true"\n Port 1',
    "Match final\n Port 1",
    "Match host there\n Port 1\nHost db1\n HostName there",
    "HostName there\nMatch originalhost db1 host there\n Port 1",
    "Match canonical all\n Port 1",
    "ProxyJump bastion",
    "ProxyCommand nc %h %p",
    "HostKeyAlias other",
    "CertificateFile /c",
    "CanonicalizeHostname yes",
    "KnownHostsCommand /bin/k",
    "RevokedHostKeys /r",
    "NoHostAuthenticationForLocalhost yes",
    "BindAddress 192.0.2.1",
    "BindInterface eth1",
    "PKCS11Provider /p",
    "Port 0",
    "Port 70000",
    "Port ssh",
    "Port 22 # the usual",
    "HostName there # or there",
    "HostName %h.example.com.%p",
    "Host db[1]\n Port 1",
    'Host "db1"\n Port 1',
    "IdentityFile ~/.ssh/%r",
    "UserKnownHostsFile ~/.ssh/%h",
    "AddressFamily both",
    "ConnectTimeout soon",
    "IdentitiesOnly maybe",
    "Nonsense",
]


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_not_honoured_yet_is_refused_by_file_and_line(config: Path, text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        reach(f"# a comment\n\n{text}\n", config)
    said = str(caught.value)
    assert f"{config}:3" in said or f"{config}:4" in said
    assert "SSHOptions" in said
    assert said.isprintable()


@pytest.mark.parametrize(
    "text",
    [
        "Host other\n ProxyJump bastion\n HostKeyAlias x\n",
        "ProxyJump none\nProxyCommand none\n",
        "ServerAliveInterval 60\nCompression yes\nForwardAgent yes\nControlPath /x\nLogLevel DEBUG\n",
        "CanonicalizeHostname no\nNoHostAuthenticationForLocalhost no\n",
    ],
)
def test_what_does_not_concern_this_peer_or_nobody_s_identity_is_passed_over(config: Path, text: str) -> None:
    assert reach(text, config).host == "db1"


def test_files_that_can_not_be_read_are_named(config: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="not there"):
        reach("", config, config=str(tmp_path / "missing"))
    with pytest.raises(ConfigurationError, match="not a regular file"):
        reach("", config, config=str(tmp_path))
    config.write_bytes(b"\xff\xfe" * (1 << 20))
    with pytest.raises(ConfigurationError, match="larger"):
        resolve_destination("db1", "backup", SSHOptions())


def test_lax_checking_is_taken_as_strict_and_said(config: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "peerstage")
    reach("StrictHostKeyChecking no\n", config)
    assert "StrictHostKeyChecking" in caplog.text


# ssh itself as the oracle

hosts = st.sampled_from(["db1", "db2", "*", "db?", "!db2", "*.example.com", "192.0.2.*", "d*"])
settings_ = st.sampled_from(
    [
        "HostName there",
        "HostName 192.0.2.9",
        "HostName %h.example.com",
        "Port 2222",
        "port=2200",
        "Port = 2201",
        "IdentityFile /a",
        'IdentityFile "/with space"',
        "identityfile /b",
        "UserKnownHostsFile /k1 /k2",
        'UserKnownHostsFile "/k 3"',
        "ConnectTimeout 9",
        "ConnectTimeout 1m30s",
        "AddressFamily inet",
        "IdentitiesOnly yes",
        "User other",
        "# a comment",
        "",
        "\tCompression yes",
    ]
)
sections = st.one_of(
    st.lists(hosts, min_size=1, max_size=3).map(lambda patterns: "Host " + " ".join(patterns)),
    st.sampled_from(
        ["Match all", "Match host db1", "Match originalhost db*,!db2", "Match !host db2", "Match host there"]
    ),
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.one_of(settings_, settings_, sections), max_size=14), st.sampled_from(["db1", "db2", "a.example.com"])
)
def test_the_answer_is_ssh_s_or_a_refusal_and_never_another(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], name: str
) -> None:
    file = tmp_path_factory.getbasetemp() / "ssh_config"
    file.write_text("\n".join(lines) + "\n")
    done = subprocess.run([program("ssh"), "-G", "-F", str(file), name], capture_output=True, text=True, check=False)
    try:
        ours = resolve_destination(name, "backup", SSHOptions(config=str(file)))
    except ConfigurationError:
        return
    assert done.returncode == 0, done.stderr
    theirs: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        keyword, _, value = line.partition(" ")
        theirs.setdefault(keyword, []).append(value)
    assert ours.host == theirs["hostname"][0]
    assert ours.port == int(theirs["port"][0])
    assert ours.identities_only == (theirs["identitiesonly"][0] == "yes")
    if any("identityfile" in line.lower() for line in lines) and ours.identities:
        assert list(ours.identities) == theirs["identityfile"]
    timeout = theirs["connecttimeout"][0]
    assert ours.connect_timeout == (15.0 if timeout == "none" else float(timeout))
    if theirs["userknownhostsfile"][0].startswith("/k"):
        assert " ".join(str(path) for path in ours.known_hosts[:-2]) == theirs["userknownhostsfile"][0]
    assert ours.family.name.replace("AF_", "").lower().replace("unspec", "any") == theirs["addressfamily"][0]

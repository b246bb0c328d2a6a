"""ssh's configuration as it is read so far: ssh's own answer (``ssh -G``), or a refusal that names file and line."""

from __future__ import annotations

import getpass
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
from peerstage.session.ssh_config import Source, SSHConfig, port_of
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
    "ProxyCommand nc %h %p",
    "CanonicalizeHostname yes",
    "KnownHostsCommand /bin/k",
    "RevokedHostKeys /r",
    "NoHostAuthenticationForLocalhost yes",
    "BindAddress 192.0.2.1",
    "BindInterface eth1",
    "PKCS11Provider /p",
    "Port 0",
    "Port 70000",
    "HostName %h.example.com.%p",
    "AddressFamily both",
    "ConnectTimeout soon",
    "IdentitiesOnly maybe",
    "Nonsense",
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


# ssh itself as the oracle: `ssh -G` says what is in effect


KEYWORDS = (
    *(
        "hostname",
        "port",
        "identityfile",
        "certificatefile",
        "userknownhostsfile",
        "globalknownhostsfile",
        "hostkeyalias",
    ),
    *("identitiesonly", "addressfamily", "connecttimeout", "identityagent", "proxycommand", "bindaddress"),
)
SETTINGS = [
    *("HostName there", "HostName 192.0.2.9", "HostName %h.example.com", "HostName a%%b", "hostname=Upper.Example"),
    *("Port 2222", "port=2200", "Port = 2201", "Port\t2203", "Port ssh", 'Port "2204"', "Port 2205 # the usual"),
    *("IdentityFile /a", "identityfile /b", 'IdentityFile "/with space"', "IdentityFile '/single quoted'"),
    *("IdentityFile /esc\\ aped", "IdentityFile ~/.ssh/%r@%h", "IdentityFile /a", "CertificateFile /c-cert.pub"),
    *(
        "UserKnownHostsFile /k1 /k2",
        'UserKnownHostsFile "/k 3" /k4',
        "UserKnownHostsFile /k5 #none",
        "HostKeyAlias other",
    ),
    *("GlobalKnownHostsFile /g", "IdentityAgent none", "IdentityAgent $SOCK", 'ProxyCommand nc "%h" %p # no comment'),
    *("ConnectTimeout 9", "ConnectTimeout 1m30s", "AddressFamily inet", "IdentitiesOnly yes", "IdentitiesOnly no"),
    *("User other", "# a comment", "", "   ", "\tCompression yes", "BindAddress 192.0.2.1", "ForwardAgent no"),
    *("Port 1 2", "HostName", "IdentityFile 'open", "Port 0", "Port many"),
]
HOSTS = st.sampled_from(
    ["db1", "db2", "*", "db?", "!db2", "*.example.com", "192.0.2.*", "d*", "D*", '"db1"', "db1,db2"]
)
CRITERIA = st.sampled_from(
    [
        *("host db1", "host there", "host THERE", "host=there", "!host there", "host *.example.com,db2", 'host "db1"'),
        *(
            "originalhost db*,!db2",
            "originalhost db1",
            "user backup",
            "user root,back*",
            "!user backup",
            "localuser nobody",
        ),
        *(
            "exec true",
            'exec "test %h = there"',
            'exec "test %n = db1 -a %p = 2222"',
            "!exec true",
            "!localuser nobody",
        ),
        *("final", "canonical", "!final", "exec false"),
    ]
)
SECTIONS = st.one_of(
    st.lists(HOSTS, min_size=1, max_size=3).map(lambda patterns: "Host " + " ".join(patterns)),
    st.lists(CRITERIA, min_size=1, max_size=3).map(lambda criteria: "Match " + " ".join(criteria)),
    st.sampled_from(
        ["Match all", "Match !all", "Match all # everything", "match ALL", "Match host db1 all", "Match host"]
    ),
)
LINES = st.lists(st.one_of(st.sampled_from(SETTINGS[:-5]), st.sampled_from(SETTINGS), SECTIONS), max_size=12)


def ask_ssh(file: Path, name: str) -> dict[str, list[str]] | None:
    """Return what ssh makes of a configuration; None if it refuses."""
    command = [program("ssh"), "-G", "-F", str(file), "-l", "backup", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return None
    answer: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        keyword, _, value = line.partition(" ")
        answer.setdefault(keyword, []).append(value)
    return answer


def ours(file: Path, name: str) -> SSHConfig | None:
    try:
        return SSHConfig.read([Source(str(file), required=True, checked=False, base=str(file.parent))], name, "backup")
    except ConfigurationError as exc:
        assert str(exc).isprintable()
        assert str(file.parent) in str(exc)
        return None


def compare(file: Path, name: str) -> None:
    """Hold our answer against ssh's, setting by setting."""
    theirs, config = ask_ssh(file, name), ours(file, name)
    if theirs is None or config is None:
        assert (theirs is None) == (config is None), "one of the two refuses"
        return
    assert config.host == theirs["hostname"][0]
    for keyword in KEYWORDS[1:]:
        settings = config.found.get(keyword)
        if settings is None:
            continue  # ssh shows its default
        if keyword == "port":
            assert str(port_of(settings[0])) == theirs["port"][0]
        elif keyword == "connecttimeout":
            assert float(theirs[keyword][0]) == {"9": 9.0, "1m30s": 90.0}[settings[0].words[0]]
        elif keyword in ("identityfile", "certificatefile"):
            assert [setting.words[0] for setting in settings] == theirs[keyword]
        else:
            assert " ".join(settings[0].words) == theirs[keyword][0]
    for keyword, unset in (
        ("port", "22"),
        ("addressfamily", "any"),
        ("identitiesonly", "no"),
        ("connecttimeout", "none"),
    ):
        assert config.found.get(keyword) is not None or theirs[keyword] == [unset]
    for keyword in ("hostkeyalias", "proxycommand", "bindaddress", "certificatefile", "identityagent"):
        assert (keyword in config.found) == (keyword in theirs)


NAMES = st.sampled_from(["db1", "db2", "a.example.com"])


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(LINES, NAMES)
def test_our_answer_is_ssh_s(tmp_path_factory: pytest.TempPathFactory, lines: list[str], name: str) -> None:
    file = tmp_path_factory.getbasetemp() / "ssh_config"
    file.write_text("\n".join(lines) + "\n")
    compare(file, name)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(LINES, LINES, LINES, NAMES)
def test_our_answer_is_ssh_s_with_files_that_include_others(
    tmp_path_factory: pytest.TempPathFactory, before: list[str], inner: list[str], after: list[str], name: str
) -> None:
    folder = tmp_path_factory.getbasetemp() / "includes"
    folder.mkdir(exist_ok=True)
    (folder / "one.conf").write_text("\n".join(inner) + "\n")
    (folder / "two.conf").write_text("Host db2\n Port 7\nMatch all\n IdentityFile /two\n")
    (folder / ".hidden.conf").write_text("Port 9\n")
    file = folder / "ssh_config"
    include = f"Include {folder}/*.conf {folder}/missing"
    file.write_text("\n".join([*before, include, *after]) + "\n")
    compare(file, name)


def test_a_relative_include_begins_at_the_user_s_ssh_directory(config: Path) -> None:
    (config.parent / "conf.d").mkdir()
    (config.parent / "conf.d" / "a").write_text("Host db1\n Port 2201\n")
    found = reach("Include conf.d/*\nPort 22\n", config)
    assert found.port == 2201


def test_files_that_include_themselves_are_an_error(config: Path) -> None:
    with pytest.raises(ConfigurationError, match="include each other"):
        reach(f"Include {config}\n", config)


@pytest.mark.parametrize("mode", [0o666, 0o620, 0o602, 0o777])
def test_a_configuration_that_others_can_write_is_refused_as_ssh_refuses_it(config: Path, mode: int) -> None:
    config.write_text("Port 2222\n")
    config.chmod(mode)
    with pytest.raises(ConfigurationError, match="can be written by others"):
        resolve_destination("db1", "backup", SSHOptions())
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

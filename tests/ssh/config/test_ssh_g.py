"""peerstage reads a configuration as ssh does (``ssh -G``), keyword by keyword.

The intended differences, all of them in `compare`:

- Unsupported and weak algorithms are absent. The others are in ssh's order if a list has no sign, and start as ssh's
  list does after ``^``. The default order differs.
- ConnectTimeout, ServerAliveInterval and RekeyLimit have other defaults; ConnectTimeout 0 means the default, too.
- StrictHostKeyChecking ``no``, ``off`` and ``ask`` mean ``yes``.
"""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from peerstage.errors import ConfigurationError
from peerstage.ssh._paramiko.client_transport import supported_algorithms
from peerstage.ssh.algorithms import REKEY_BYTES, REKEY_SECONDS
from peerstage.ssh.config.keywords import is_known
from peerstage.ssh.config.parse_values import HOST_KEY_CHECKING
from peerstage.ssh.config.resolve import configured_algorithms, connection_attempts, jump_hosts
from peerstage.ssh.config.ssh_config import SSHConfig
from support.examples import examples
from support.oracle import ask_ssh, read_ours
from support.programs import require_program

pytestmark = pytest.mark.usefixtures("openssh")

#: Keywords whose arguments are compared unchanged.
PLAIN = (
    *("userknownhostsfile", "globalknownhostsfile", "hostkeyalias", "identityagent", "proxycommand", "bindaddress"),
    *("addressfamily", "identitiesonly", "ignoreunknown"),
)
#: Fields of `Algorithms`, and their keywords.
LISTS = {
    "ciphers": "ciphers",
    "macs": "macs",
    "kex": "kexalgorithms",
    "host_keys": "hostkeyalgorithms",
    "pubkey_accepted": "pubkeyacceptedalgorithms",
    "ca_signatures": "casignaturealgorithms",
}
SETTINGS = [
    *("HostName there", "HostName 192.0.2.9", "HostName %h.example.com", "HostName a%%b", "hostname=Upper.Example"),
    *("Port 2222", "port=2200", "Port = 2201", "Port\t2203", "Port ssh", 'Port "2204"', "Port 2205 # the usual"),
    *("IdentityFile /a", "identityfile /b", 'IdentityFile "/with space"', "IdentityFile '/single quoted'"),
    *("IdentityFile /esc\\ aped", "IdentityFile ~/.ssh/%r@%h", "IdentityFile2 /a", "CertificateFile /c-cert.pub"),
    *("UserKnownHostsFile /k1 /k2", 'UserKnownHostsFile "/k 3" /k4', "UserKnownHostsFile /k5 #none"),
    *("HostKeyAlias other", "GlobalKnownHostsFile /g", "IdentityAgent none", "IdentityAgent $SOCK"),
    *(
        'ProxyCommand nc "%h" %p # no comment',
        "ProxyCommand none",
        "ProxyJump none",
        "ProxyJump me@b:7",
        "ProxyJump a,b",
    ),
    *("ConnectTimeout 9", "ConnectTimeout 1m30s", "ConnectTimeout none", "ConnectTimeout 0", "connecttimeout 1H"),
    *("AddressFamily inet", "AddressFamily INET6", "addressfamily any", "IdentitiesOnly yes", "IdentitiesOnly False"),
    *("User other", "# a comment", "", "   ", "\tCompression yes", "BindAddress 192.0.2.1", "ForwardAgent no"),
    *("ServerAliveInterval 60", "ServerAliveInterval 0", "ServerAliveInterval 2m", "ServerAliveInterval none"),
    *("ServerAliveCountMax 0", "ServerAliveCountMax 7", "ConnectionAttempts 5", "ConnectionAttempts 1"),
    *("RekeyLimit 1G", "RekeyLimit 512M 30m", "RekeyLimit default none", "RekeyLimit default 600", "RekeyLimit 1.5K"),
    *("RekeyLimit 0 1h", "RekeyLimit 16b 0", "rekeylimit 100000 5", "RekeyLimit +1t"),
    *("StrictHostKeyChecking yes", "StrictHostKeyChecking accept-new", "StrictHostKeyChecking No"),
    *("StrictHostKeyChecking ask", "StrictHostKeyChecking off", "CanonicalizeHostname no", "ProxyUseFdpass no"),
    *("Ciphers aes256-ctr,aes128-gcm@openssh.com", "Ciphers ^aes256-ctr", "Ciphers -aes*-ctr", "Ciphers +3des-cbc"),
    *("Ciphers chacha20-poly1305@openssh.com,aes192-ctr", "MACs hmac-sha2-512,hmac-sha1", "MACs -*-etm@openssh.com"),
    *("MACs ^hmac-sha2-512", "MACs +hmac-md5", "KexAlgorithms curve25519-sha256,ecdh-sha2-nistp256"),
    *("KexAlgorithms -ecdh*,!ecdh-sha2-nistp384", "KexAlgorithms ^diffie-hellman-group14-sha256,ecdh-sha2-nistp521"),
    *(
        "KexAlgorithms +diffie-hellman-group1-sha1",
        "HostKeyAlgorithms rsa-sha2-256,ssh-ed25519",
        "HostKeyAlgorithms ^ecdsa*",
    ),
    *("HostKeyAlgorithms *ed25519*", "HostKeyAlgorithms -rsa*,*cert*", "HostKeyAlgorithms +ssh-rsa"),
    *("PubkeyAcceptedAlgorithms ssh-ed25519,rsa-sha2-256", "PubkeyAcceptedKeyTypes -ecdsa*"),
    *("PubkeyAcceptedAlgorithms ^rsa-sha2-256", "PubkeyAcceptedKeyTypes +ssh-rsa", "PubkeyAcceptedAlgorithms -sk-*"),
    *(
        "CASignatureAlgorithms ssh-ed25519,rsa-sha2-512",
        "CASignatureAlgorithms -sk-*,rsa*",
        "CASignatureAlgorithms ^ec*",
    ),
]
WRONG = [
    *(
        "Port 1 2",
        "HostName",
        "IdentityFile 'open",
        "Port 0",
        "Port many",
        "Ciphers +",
        "RekeyLimit 15",
        "RekeyLimit x",
    ),
    *("RekeyLimit 1G soon", "RekeyLimit -1K", "RekeyLimit 1KB", "RekeyLimit Default", "RekeyLimit 1G 1h 1h"),
    *("ConnectionAttempts x", "ConnectionAttempts -1", "ConnectionAttempts 0", "ConnectionAttempts 99999999999"),
    *("ServerAliveInterval 1.5", "ServerAliveCountMax 0x3", "ConnectTimeout None", "ConnectTimeout 99999999999"),
    *("AddressFamily both", "IdentitiesOnly 1", "StrictHostKeyChecking maybe", "CanonicalizeHostname perhaps"),
    *("User a b", 'User ""', 'HostName ""', 'HostKeyAlias ""', 'IdentityAgent ""', 'IdentityFile ""', 'Ciphers ""'),
    *('UserKnownHostsFile /a ""', 'GlobalKnownHostsFile ""', 'CertificateFile ""', 'BindAddress ""', "\ufeffPort 22"),
    *(
        "HostNam there",
        "UseLess yes",
        "UseMore yes",
        "Nonsense",
        'UseLess "open',
        "IgnoreUnknown a b",
        'IgnoreUnknown ""',
    ),
    *("ProxyUseFdpass x", "BindAddress a b", "Ciphers aes128-ctr aes256-ctr", "NoHostAuthenticationForLocalhost x"),
]
HOSTS = st.sampled_from(
    ["db1", "db2", "*", "db?", "!db2", "*.example.com", "192.0.2.*", "d*", "D*", '"db1"', "db1,db2"]
)
CRITERIA = st.sampled_from(
    [
        *("host db1", "host there", "host THERE", "host=there", "!host there", "host *.example.com,db2", 'host "db1"'),
        *("originalhost db*,!db2", "originalhost db1", "user backup", "user root,back*", "!user backup"),
        *("localuser nobody", "exec true", 'exec "test %h = there"', 'exec "test %n = db1 -a %p = 2222"'),
        *("!exec true", "!localuser nobody", "final", "canonical", "!final", "exec false"),
    ]
)
SECTIONS = st.one_of(
    st.lists(HOSTS, min_size=1, max_size=3).map(lambda patterns: "Host " + " ".join(patterns)),
    st.lists(CRITERIA, min_size=1, max_size=3).map(lambda criteria: "Match " + " ".join(criteria)),
    st.sampled_from(
        ["Match all", "Match !all", "Match all # everything", "match ALL", "Match host db1 all", "Match host"]
    ),
)
#: About one line in forty is invalid, or would be without an IgnoreUnknown.
RARE = [*SETTINGS, *WRONG[:2], *["IgnoreUnknown Use*"] * 6, "UseLess yes"]
LINES = st.lists(st.one_of(*[st.sampled_from(SETTINGS)] * 4, st.sampled_from(RARE), SECTIONS), max_size=14)
NAMES = st.sampled_from(["db1", "db2", "a.example.com"])


#: IgnoreUnknown that applies, that comes too late or in another block, or that does not match.
IGNORING = [
    "IgnoreUnknown HostN*\nHostNam x",
    "IgnoreUnknown Host?am\nHOSTNAM x y z",
    "HostNam x\nIgnoreUnknown HostN*",
    "Host other\nIgnoreUnknown HostN*\nHost *\nHostNam x",
    "Host db1\nIgnoreUnknown HostN*\nHost other\nHostNam x",
    "Match final\nIgnoreUnknown x\nMatch all\nx 1",
    "IgnoreUnknown x\nMatch final\nx 1",
    "IgnoreUnknown a\nIgnoreUnknown b\nb x",
    "IgnoreUnknown *,!HostNam\nHostNam y",
    "IgnoreUnknown *,!HostNam\nOther y",
    "IgnoreUnknown Port\nPort nonsense",
    "IgnoreUnknown x\nx",
    'IgnoreUnknown x\nx "open',
    "IgnoreUnknown Hos*\nHostName there",
]


def compare(file: Path, name: str) -> None:
    """Compare how peerstage and ssh read *file*."""
    theirs, config = ask_ssh(file, name), read_ours(file, name)
    if theirs is None or config is None:
        assert (theirs is None) == (config is None), "only one of them rejects it"
        return
    assert config.host == theirs["hostname"][0]
    assert str(config.port or 22) == theirs["port"][0]
    for keyword in ("identityfile", "certificatefile"):
        if keyword in config.lines:
            assert [line.arguments[0] for line in config.lines[keyword]] == theirs[keyword]
    defaults = {"addressfamily": "any", "identitiesonly": "no"}
    yes_or_no = {"true": "yes", "false": "no"}
    for keyword in PLAIN:
        line = config.first(keyword)
        if line is None or (keyword == "proxycommand" and line.arguments[0].lower() == "none"):
            assert "knownhosts" in keyword or theirs.get(keyword, [None])[0] == defaults.get(keyword)
        else:
            argument = " ".join(line.arguments)
            argument = yes_or_no.get(argument.lower(), argument.lower()) if keyword in defaults else argument
            assert argument == theirs[keyword][0]
    assert ("certificatefile" in config.lines) == ("certificatefile" in theirs)
    assert ",".join(map(str, jump_hosts(config))) == theirs.get("proxyjump", [""])[0].replace("[", "").replace("]", "")
    compare_numbers(config, theirs)
    compare_algorithms(config, theirs)


def compare_numbers(config: SSHConfig, theirs: dict[str, list[str]]) -> None:
    """Compare numbers and times."""
    assert theirs["connecttimeout"] == [f"{config.seconds('connecttimeout', -1):g}".replace("-1", "none")]
    assert theirs["serveraliveinterval"] == [f"{config.seconds('serveraliveinterval', 0):g}"]
    assert theirs["serveralivecountmax"] == [str(config.number("serveralivecountmax", 3))]
    assert theirs["connectionattempts"] == [str(connection_attempts(config))]
    checks = {"true": "yes", "accept-new": "accept-new", "false": "lax", "ask": "lax"}
    ours = config.choice("stricthostkeychecking", HOST_KEY_CHECKING, "lax")
    assert ours == checks[theirs["stricthostkeychecking"][0]]


def compare_algorithms(config: SSHConfig, theirs: dict[str, list[str]]) -> None:
    """Compare lists of algorithms and limits for key re-exchange."""
    try:
        ours = configured_algorithms(config)
    except ConfigurationError:
        pytest.fail("every list in these tests selects a supported algorithm")
    for field, keyword in LISTS.items():
        selected, supported = getattr(ours, field), getattr(supported_algorithms(), field)
        expected = [name for name in theirs[keyword][0].split(",") if name in supported]
        listed = config.lines[keyword][0].arguments[0] if keyword in config.lines else "+"
        assert {name for name in selected if name in algorithms_of_ssh()} == set(expected)
        if listed[0] not in "+-^" and "*" not in listed:
            assert list(selected) == expected
        if listed[0] == "^" and "*" not in listed:
            head = [name for name in listed[1:].split(",") if name in supported]
            assert list(selected[: len(head)]) == expected[: len(head)] == head
    assert ours.is_host_key_order_fixed == (is_order_fixed_by_ssh(config))
    size, seconds = map(int, theirs["rekeylimit"][0].split())
    assert ours.rekey_bytes == min(size or REKEY_BYTES, 1 << 36)
    assert ours.rekey_seconds == (seconds or (None if disables_rekey_time(config) else REKEY_SECONDS))


def is_order_fixed_by_ssh(config: SSHConfig) -> bool:
    """Return whether ssh keeps the order of HostKeyAlgorithms: a list without sign, or with ``^`` (sshconnect2.c)."""
    line = config.first("hostkeyalgorithms")
    return line is not None and line.arguments[0][0] not in "+-"


def disables_rekey_time(config: SSHConfig) -> bool:
    """Return whether RekeyLimit disables the time limit."""
    return any(line.arguments[1:] in (("none",), ("0",)) for line in config.lines.get("rekeylimit", []))


@cache
def algorithms_of_ssh() -> frozenset[str]:
    """Return every algorithm of this ssh."""
    queries = ("cipher", "mac", "kex", "key-sig")
    lists = [subprocess.check_output([require_program("ssh"), "-Q", query], text=True) for query in queries]
    return frozenset(" ".join(lists).split())


@examples(90, suppress_health_check=list(HealthCheck))
@given(LINES, NAMES)
def test_a_file_is_read_as_by_ssh(tmp_path_factory: pytest.TempPathFactory, lines: list[str], name: str) -> None:
    file = tmp_path_factory.getbasetemp() / "ssh_config"
    file.write_text("\n".join(lines) + "\n")
    compare(file, name)


@pytest.mark.parametrize("pattern", ["db1", "*.example.com", "*.Example.com", "* !db1", "* !*.example.com", "DB1"])
@pytest.mark.parametrize("final", ["Match final", "Match all"])
@pytest.mark.parametrize("name", ["db1", "DB1"])
def test_host_lines_compare_the_host_to_connect_to_in_the_final_pass(
    tmp_path: Path, pattern: str, final: str, name: str
) -> None:
    file = tmp_path / "config"
    file.write_text(f"HostName %h.Example.com\n{final}\nHost {pattern}\nPort 2200\n")
    compare(file, name)


@examples(40, suppress_health_check=list(HealthCheck))
@given(LINES, LINES, LINES, NAMES)
def test_files_with_includes_are_read_as_by_ssh(
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


@pytest.mark.parametrize("line", SETTINGS)
def test_a_single_line_is_read_as_by_ssh(tmp_path: Path, line: str) -> None:
    file = tmp_path / "ssh_config"
    file.write_text(f"{line}\n")
    assert ask_ssh(file, "db1") is not None
    compare(file, "db1")


@pytest.mark.parametrize(
    "lines",
    [
        "RekeyLimit 1G none\nRekeyLimit 2G 1h",
        "RekeyLimit 1G none\nRekeyLimit 2G",
        "RekeyLimit 1G 0\nRekeyLimit 2G 1h",
        "RekeyLimit default\nRekeyLimit 2G 5m",
        "ConnectTimeout none\nConnectTimeout 9",
        "ServerAliveInterval none\nServerAliveInterval 0\nServerAliveInterval 9",
        "ProxyCommand none\nProxyJump b",
        "ProxyJump none\nProxyCommand nc",
        "ProxyJump b\nProxyCommand nc",
        "ProxyCommand nc\nProxyJump b",
        "ProxyJump none\nProxyJump b",
        "PubkeyAcceptedKeyTypes ssh-ed25519\nPubkeyAcceptedAlgorithms rsa-sha2-256",
        "IdentityFile2 /a\nIdentityFile /b\nIdentityFile /a",
        "HostKeyAlgorithms +rsa-sha2-256\nHostKeyAlgorithms ssh-ed25519",
        *IGNORING,
    ],
)
def test_the_same_line_of_several_wins_as_for_ssh(tmp_path: Path, lines: str) -> None:
    file = tmp_path / "ssh_config"
    file.write_text(f"{lines}\n")
    compare(file, "db1")


@pytest.mark.parametrize("block", ["", "Host other\n ", "Match host other\n "])
@pytest.mark.parametrize("line", WRONG)
def test_lines_that_ssh_rejects_are_rejected_even_in_blocks_that_do_not_match(
    tmp_path: Path, line: str, block: str
) -> None:
    file = tmp_path / "ssh_config"
    file.write_text(f"{block}{line}\n")
    if block and line == "ConnectionAttempts 0":
        assert ask_ssh(file, "db1") is not None
    else:
        assert ask_ssh(file, "db1") is None
    compare(file, "db1")


def test_every_keyword_of_this_ssh_is_known(tmp_path: Path) -> None:
    """Find the keywords of ssh among the strings of its executable, or their ends: those that ssh accepts."""
    found = re.findall(rb"(?<![ -~])[a-z][a-z0-9]{1,39}(?![ -~])", Path(require_program("ssh")).read_bytes())
    words = {word.decode()[at:] for word in found for at in range(len(word) - 2)}
    file = tmp_path / "ssh_config"
    file.write_text("".join(f"{word} none\n" for word in sorted(words)))
    answer = subprocess.run(
        [require_program("ssh"), "-G", "-F", str(file), "db1"], capture_output=True, text=True, check=False
    )
    theirs = words - set(re.findall(r"Bad configuration option: (\w+)", answer.stderr))
    assert {"hostname", "requiredrsasize", "include", "kexalgorithms"} <= theirs
    assert {keyword for keyword in theirs if not is_known(keyword)} == set()

"""Our answer to a configuration is ssh's own (``ssh -G``), setting by setting; where it is not, we mean it.

The differences that are meant, all of them in `compare`:

- What there is not here, or is weak, of algorithms is left out; what remains is in ssh's order if a list stands alone,
  and has ssh's beginning after ``^``. The order of the defaults is ours.
- ConnectTimeout, ServerAliveInterval and RekeyLimit have defaults of ours; 0 seconds to connect mean ours, too.
- ``no``, ``off`` and ``ask`` are StrictHostKeyChecking yes.
"""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peerstage.errors import ConfigurationError
from peerstage.session._paramiko.transport import supported
from peerstage.session.algorithms import REKEY_BYTES, REKEY_SECONDS
from peerstage.session.keywords import is_known
from peerstage.session.settings import Settings
from peerstage.session.ssh_config import SSHConfig
from peerstage.session.values import HOST_KEY_CHECKS, port_of
from support.oracle import ask_ours, ask_ssh
from support.programs import program

pytestmark = pytest.mark.usefixtures("openssh")

#: Settings that are compared as they stand.
PLAIN = (
    *("userknownhostsfile", "globalknownhostsfile", "hostkeyalias", "identityagent", "proxycommand", "bindaddress"),
    *("addressfamily", "identitiesonly", "ignoreunknown"),
)
#: Ours to ssh's keyword.
LISTS = {
    "ciphers": "ciphers",
    "macs": "macs",
    "kex": "kexalgorithms",
    "host_keys": "hostkeyalgorithms",
    "public_keys": "pubkeyacceptedalgorithms",
    "authorities": "casignaturealgorithms",
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
#: One line in some forty is wrong, or would be without an IgnoreUnknown.
RARE = [*SETTINGS, *WRONG[:2], *["IgnoreUnknown Use*"] * 6, "UseLess yes"]
LINES = st.lists(st.one_of(*[st.sampled_from(SETTINGS)] * 4, st.sampled_from(RARE), SECTIONS), max_size=14)
NAMES = st.sampled_from(["db1", "db2", "a.example.com"])


#: Where IgnoreUnknown counts, and where it comes too late, is another's, or names something else.
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
    """Hold our answer against ssh's, setting by setting."""
    theirs, config = ask_ssh(file, name), ask_ours(file, name)
    if theirs is None or config is None:
        assert (theirs is None) == (config is None), "one of the two refuses"
        return
    found = Settings(config)
    assert config.host == theirs["hostname"][0]
    assert str(port_of(config.found["port"][0]) if "port" in config.found else 22) == theirs["port"][0]
    for keyword in ("identityfile", "certificatefile"):
        if keyword in config.found:
            assert [setting.words[0] for setting in config.found[keyword]] == theirs[keyword]
    defaults = {"addressfamily": "any", "identitiesonly": "no"}
    yes_or_no = {"true": "yes", "false": "no"}
    for keyword in PLAIN:
        setting = config.first(keyword)
        if setting is None or (keyword == "proxycommand" and setting.words[0].lower() == "none"):
            assert "knownhosts" in keyword or theirs.get(keyword, [None])[0] == defaults.get(keyword)
        else:
            said = " ".join(setting.words)
            said = yes_or_no.get(said.lower(), said.lower()) if keyword in defaults else said
            assert said == theirs[keyword][0]
    assert ("certificatefile" in config.found) == ("certificatefile" in theirs)
    assert ",".join(map(str, found.hops())) == theirs.get("proxyjump", [""])[0].replace("[", "").replace("]", "")
    compare_numbers(config, found, theirs)
    compare_algorithms(config, found, theirs)


def compare_numbers(config: SSHConfig, found: Settings, theirs: dict[str, list[str]]) -> None:
    """Numbers and times, ours where ssh shows a default of its own."""
    assert theirs["connecttimeout"] == [f"{found.seconds('connecttimeout', -1):g}".replace("-1", "none")]
    assert theirs["serveraliveinterval"] == [f"{found.seconds('serveraliveinterval', 0):g}"]
    assert theirs["serveralivecountmax"] == [str(found.count("serveralivecountmax", 3))]
    assert theirs["connectionattempts"] == [str(found.attempts())]
    checks = {"true": "yes", "accept-new": "accept-new", "false": "taken as yes", "ask": "taken as yes"}
    ours = found.choice("stricthostkeychecking", HOST_KEY_CHECKS, "taken as yes")
    assert ours == checks[theirs["stricthostkeychecking"][0]]


def compare_algorithms(config: SSHConfig, found: Settings, theirs: dict[str, list[str]]) -> None:
    """Lists of algorithms, and for how long the keys serve."""
    try:
        ours = found.algorithms()
    except ConfigurationError:
        pytest.fail("all the lists here leave something")
    for field, keyword in LISTS.items():
        taken, there = getattr(ours, field), getattr(supported(), field)
        said = [name for name in theirs[keyword][0].split(",") if name in there]
        listed = config.found[keyword][0].words[0] if keyword in config.found else "+"
        assert {name for name in taken if name in known_to_ssh()} == set(said)
        if listed[0] not in "+-^" and "*" not in listed:
            assert list(taken) == said
        if listed[0] == "^" and "*" not in listed:
            head = [name for name in listed[1:].split(",") if name in there]
            assert list(taken[: len(head)]) == said[: len(head)] == head
    assert ours.host_keys_fixed == (theirs_is_fixed(config))
    size, seconds = map(int, theirs["rekeylimit"][0].split())
    assert ours.rekey_bytes == min(size or REKEY_BYTES, 1 << 36)
    assert ours.rekey_seconds == (seconds or (None if says_never(config) else REKEY_SECONDS))


def theirs_is_fixed(config: SSHConfig) -> bool:
    """ssh prefers the types of known keys unless a list stands alone or begins with ``^`` (sshconnect2.c)."""
    setting = config.first("hostkeyalgorithms")
    return setting is not None and setting.words[0][0] not in "+-"


def says_never(config: SSHConfig) -> bool:
    """Whether RekeyLimit says that no time is a reason for new keys."""
    return any(setting.words[1:] in (("none",), ("0",)) for setting in config.found.get("rekeylimit", []))


@cache
def known_to_ssh() -> frozenset[str]:
    """Every name of an algorithm that this ssh has."""
    told = [subprocess.check_output([program("ssh"), "-Q", what], text=True) for what in ("cipher", "mac", "kex")]
    told.append(subprocess.check_output([program("ssh"), "-Q", "key-sig"], text=True))
    return frozenset(" ".join(told).split())


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


@pytest.mark.parametrize("line", SETTINGS)
def test_every_setting_alone_is_what_ssh_makes_of_it(tmp_path: Path, line: str) -> None:
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
def test_of_several_lines_those_win_that_win_for_ssh(tmp_path: Path, lines: str) -> None:
    file = tmp_path / "ssh_config"
    file.write_text(f"{lines}\n")
    compare(file, "db1")


@pytest.mark.parametrize("block", ["", "Host other\n ", "Match host other\n "])
@pytest.mark.parametrize("line", WRONG)
def test_what_ssh_refuses_is_refused_even_where_it_does_not_apply(tmp_path: Path, line: str, block: str) -> None:
    file = tmp_path / "ssh_config"
    file.write_text(f"{block}{line}\n")
    if block and line == "ConnectionAttempts 0":
        assert ask_ssh(file, "db1") is not None
    else:
        assert ask_ssh(file, "db1") is None
    compare(file, "db1")


def test_every_keyword_that_this_ssh_knows_is_known_here(tmp_path: Path) -> None:
    """Its keywords are among the words of the program, or ends of them: those that it does not call bad."""
    found = re.findall(rb"(?<![ -~])[a-z][a-z0-9]{1,39}(?![ -~])", Path(program("ssh")).read_bytes())
    words = {word.decode()[at:] for word in found for at in range(len(word) - 2)}
    file = tmp_path / "ssh_config"
    file.write_text("".join(f"{word} none\n" for word in sorted(words)))
    told = subprocess.run([program("ssh"), "-G", "-F", str(file), "db1"], capture_output=True, text=True, check=False)
    theirs = words - set(re.findall(r"Bad configuration option: (\w+)", told.stderr))
    assert {"hostname", "requiredrsasize", "include", "kexalgorithms"} <= theirs
    assert {keyword for keyword in theirs if not is_known(keyword)} == set()

"""ssh_config settings that ``ssh -G`` does not show: ssh in a container and our reader resolve the same files alike.

``ssh -vvv`` prints the keys, certificates and known_hosts files that it opens, and the command that it runs. Its
ProxyCommand is an sshd on a pipe, so that it gets as far as the host key.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from peerstage import SSHOptions
from peerstage.errors import ConfigurationError
from peerstage.ssh.config.resolve import resolve_destination
from support.containers import Bench, Container, FileTree
from support.oracle import resolve_with

pytestmark = pytest.mark.kind("openssh92", "openssh100")

HOME, SYSTEM = "/root", "/etc/ssh"
#: A server on standard input and output.
PROXY = "/usr/sbin/sshd -i -f /dev/null -h /etc/ssh/host_key"
USER_FILE, SYSTEM_FILE = f"{HOME}/.ssh/config", f"{SYSTEM}/ssh_config"


class Resolution(NamedTuple):
    """What a configuration resolves to."""

    identities: tuple[str, ...]
    certificates: tuple[str, ...]
    known_hosts: tuple[str, ...]
    command: str
    destination: str


class Layout(NamedTuple):
    """Configuration files: contents, unusual modes and owners, environment variables."""

    files: Mapping[str, str]
    modes: Mapping[str, int] = {}
    owners: Mapping[str, int] = {}
    variables: Mapping[str, str] = {}


CASES: dict[str, Layout] = {
    "tokens": Layout(
        {
            USER_FILE: "Host db1\n HostName %h.Example\n Port 2222\n User other\n HostKeyAlias alias\n"
            " IdentityFile ~/.ssh/%r@%h:%p-%n-%k-%%\n IdentityFile %d/id\n IdentityFile /abs/%h\n"
            " CertificateFile ~/%n-cert.pub\n CertificateFile /c/%r\n UserKnownHostsFile ~/k-%h %d/k-%k-%p /k/%n-%r\n"
        }
    ),
    "variables": Layout(
        {
            USER_FILE: "IdentityFile ${KEYS}/id\nIdentityFile ~/${WHO}\nCertificateFile ${KEYS}/%n-cert.pub\n"
            "UserKnownHostsFile ${KEYS}/k1 ~/.ssh/${WHO}\n"
        },
        variables={"KEYS": "/srv/keys", "WHO": "me"},
    ),
    "global files have no tokens and no variables": Layout({USER_FILE: "GlobalKnownHostsFile /g/%h ${KEYS}/g ~/g\n"}),
    "no known hosts": Layout({USER_FILE: "UserKnownHostsFile none\nGlobalKnownHostsFile none\n"}),
    "no known hosts of the user": Layout({USER_FILE: "UserKnownHostsFile none\nIdentityFile none\n"}),
    "quotes": Layout(
        {USER_FILE: 'IdentityFile "~/with space"\nIdentityFile \'/single\'\nUserKnownHostsFile "/k 1" /k2 # /k3\n'}
    ),
    "the user's before the system's": Layout(
        {
            USER_FILE: "Host db1\n Port 2201\n IdentityFile /user\nHost *\n User u\n",
            SYSTEM_FILE: "Port 2202\nHostName real\nIdentityFile /system\nUser s\nUserKnownHostsFile /sk\n",
        }
    ),
    "only the system's": Layout({SYSTEM_FILE: "Host db*\n Port 2202\n HostName there\n IdentityFile ~/s\n"}),
    "relative includes": Layout(
        {
            USER_FILE: "Include conf.d/* ~/more missing\nPort 2200\n",
            f"{HOME}/.ssh/conf.d/10": "Host other\n Port 1\nHost db1\n Port 2201\n",
            f"{HOME}/.ssh/conf.d/20": "IdentityFile /twenty\nPort 2202\nInclude deeper\n",
            f"{HOME}/.ssh/deeper": "IdentityFile /deeper\n",
            f"{HOME}/more": "IdentityFile /more\n",
            SYSTEM_FILE: f"Include ssh_config.d/*.conf {SYSTEM}/ssh_config.d/b*\nIdentityFile /last\n",
            f"{SYSTEM}/ssh_config.d/a.conf": "IdentityFile /a\nUser a\n",
            f"{SYSTEM}/ssh_config.d/b.conf": "IdentityFile /b\nUser b\n",
            f"{SYSTEM}/ssh_config.d/c": "IdentityFile /c\n",
        }
    ),
    "an include in a block that does not match": Layout(
        {USER_FILE: "Host other\n Include inner\nHost *\n Port 7\n", f"{HOME}/.ssh/inner": "Host *\n Port 8\n"}
    ),
    "an include in a block that matches": Layout(
        {USER_FILE: "Host db1\n Include inner\n IdentityFile /x\n", f"{HOME}/.ssh/inner": "Host other\n Port 8\n"}
    ),
    "matches across files": Layout(
        {
            USER_FILE: "HostName real\nPort 2222\nMatch final host real\n IdentityFile /final\n",
            SYSTEM_FILE: 'Match host real exec "test %h-%p-%n = real-2222-db1"\n IdentityFile /matched\n'
            "Match originalhost db1 user root\n IdentityFile /original\nMatch canonical\n IdentityFile /canonical\n",
        }
    ),
    "capitals": Layout({USER_FILE: "HostName REAL.Example\nIdentityFile /%h/%n\nUserKnownHostsFile /%h\n"}),
    "identityfile2": Layout({USER_FILE: "IdentityFile2 /a\nIdentityFile /b\nIdentityFile /a\n"}),
    "a group-writable file": Layout({USER_FILE: "Port 1\n"}, modes={USER_FILE: 0o664}, owners={USER_FILE: 34}),
    "a world-writable file": Layout({USER_FILE: "Port 1\n"}, modes={USER_FILE: 0o646}),
    "a file of another user": Layout({USER_FILE: "Port 1\n"}, owners={USER_FILE: 34}),
    "an included world-writable file": Layout(
        {USER_FILE: "Include inner\n", f"{HOME}/.ssh/inner": "Port 1\n"}, modes={f"{HOME}/.ssh/inner": 0o666}
    ),
    "an included file of another user": Layout(
        {SYSTEM_FILE: "Include inner\n", f"{SYSTEM}/inner": "Port 1\n"}, owners={f"{SYSTEM}/inner": 34}
    ),
    "the system's file may be world-writable": Layout({SYSTEM_FILE: "Port 2202\n"}, modes={SYSTEM_FILE: 0o666}),
    "an unknown token": Layout({USER_FILE: "IdentityFile ~/%Q\n"}),
    "a variable that is not set": Layout({USER_FILE: "IdentityFile ${NO_SUCH_VARIABLE}/id\n"}),
    "an unknown keyword": Layout({USER_FILE: "HostNam there\n"}),
    "an unknown keyword in a block that does not match": Layout({USER_FILE: "Host other\n HostNam there\n"}),
    "an unknown keyword in a file included by a block that does not match": Layout(
        {USER_FILE: "Host other\n Include inner\n", f"{HOME}/.ssh/inner": "HostNam there\n"}
    ),
    "IgnoreUnknown, for the system's file too": Layout(
        {USER_FILE: "IgnoreUnknown Host?am,Use*\nUseLess x\n", SYSTEM_FILE: "HostNam there\nPort 2202\n"}
    ),
    "an IgnoreUnknown that comes too late": Layout({USER_FILE: "HostNam x\n", SYSTEM_FILE: "IgnoreUnknown HostNam\n"}),
    "an invalid line in a block that does not match": Layout({USER_FILE: "Host other\n RekeyLimit 15\n"}),
}


@pytest.mark.parametrize("service", ["openssh92", "openssh100"])
@pytest.mark.parametrize("name", CASES)
def test_files_resolve_as_by_ssh(
    bench: Bench, service: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = with_proxy(CASES[name])
    theirs = resolve_by_ssh(bench.container(service), layout)
    ours = resolve_by_peerstage(layout, tmp_path, monkeypatch)
    assert ours == theirs


@pytest.mark.parametrize("arguments", ["%h %n %p %r %%", "'%k' \"%h\" $HOME#", "%r@%h:%p; true || %n"])
@pytest.mark.parametrize("service", ["openssh92", "openssh100"])
def test_proxy_command_is_expanded_as_by_ssh(
    bench: Bench, service: str, arguments: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"HostName Real\nPort 2222\nHostKeyAlias alias\nProxyCommand =  {PROXY} # {arguments}\n"
    layout = Layout({USER_FILE: text})
    assert resolve_by_peerstage(layout, tmp_path, monkeypatch) == resolve_by_ssh(bench.container(service), layout)


def test_include_expands_tokens_and_variables_as_since_openssh_9_9(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {USER_FILE: "Include ${WHERE}/a %n.conf %d/b\n", f"{HOME}/w/a": "IdentityFile /a\n"}
    files |= {f"{HOME}/.ssh/db1.conf": "IdentityFile /n\n", f"{HOME}/b": "IdentityFile /b\n"}
    layout = with_proxy(Layout(files, variables={"WHERE": f"{HOME}/w"}))
    theirs = resolve_by_ssh(bench.container("openssh100"), layout)
    assert theirs is not None
    assert theirs.identities == ("/a", "/n", "/b")
    assert resolve_by_peerstage(layout, tmp_path, monkeypatch) == theirs


@pytest.mark.parametrize("jump", ["gate", "a,me@b:7", "ssh://me@gate:7", "[::1]:7", "g-%r", "none"])
def test_tokens_of_the_jump_host_are_expanded_as_since_openssh_9_6(
    bench: Bench, jump: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    container = bench.container("openssh100")
    options = ("-o", f"ProxyJump={jump}", "-o", "ControlPath=/%j-%C")
    answer = container.execute("ssh", "-G", "-F", "none", "-l", "backup", *options, "db1").decode()
    theirs = re.findall("^controlpath (.*)$", answer, re.MULTILINE)
    name = container.execute("hostname").decode().strip()
    monkeypatch.setattr("socket.gethostname", lambda: name)
    config = tmp_path / "config"
    ours = resolve_with(f"ProxyJump {jump}\nIdentityFile /%j-%C\n", config, config=str(config))
    assert list(ours.identities) == theirs


@pytest.mark.parametrize("service", ["openssh92", "openssh100"])
def test_existing_default_keys_are_tried_in_the_order_of_ssh(
    bench: Bench, service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = (bench.home / "id").read_text()
    files = {f"{HOME}/.ssh/{name}": key for name in ("id_ed25519", "id_rsa", "id_ecdsa", "id_dsa")}
    layout = with_proxy(Layout(files, modes=dict.fromkeys(files, 0o600)))
    theirs, ours = resolve_by_ssh(bench.container(service), layout), resolve_by_peerstage(layout, tmp_path, monkeypatch)
    assert theirs is not None
    assert ours is not None
    assert ours.identities == tuple(path for path in theirs.identities if path in files and "dsa_" not in path)[:3]


def with_proxy(layout: Layout) -> Layout:
    """Add the ProxyCommand at the end of the system's file."""
    system = layout.files.get(SYSTEM_FILE, "")
    return layout._replace(files={**layout.files, SYSTEM_FILE: f"{system}Match all\n ProxyCommand {PROXY}\n"})


def resolve_by_ssh(container: Container, layout: Layout, name: str = "db1") -> Resolution | None:
    """Return what ssh in a container makes of *layout*; None if it rejects it."""
    directories = {str(parent) for path in layout.files for parent in Path(path).parents}
    container.execute("sh", "-c", f"rm -rf {SYSTEM}/ssh_config* {SYSTEM}/inner; find {HOME} -mindepth 1 -delete")
    container.execute("mkdir", "-p", "-m", "755", f"{HOME}/.ssh", *sorted(directories))
    files = FileTree()
    for path, text in layout.files.items():
        mode, owner = layout.modes.get(path, 0o644), layout.owners.get(path, 0)
        files.add_file(path.lstrip("/"), text.encode(), mode, owner=owner)
    container.fill(files, directory="/")
    variables = shlex.join(f"{key}={value}" for key, value in layout.variables.items())
    output = container.execute(
        "sh", "-c", f"env {variables} ssh -vvv -o BatchMode=yes {name} true 2>&1 || true"
    ).decode()
    destination = re.search(r"Authenticating to (.*):(\d+) as '(.*)'", output)
    if destination is None:
        assert re.search("Bad owner or permissions|bad configuration|unknown key|has no value|invalid env", output), (
            output
        )
        return None

    def find_all(pattern: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(re.findall(pattern, output, re.MULTILINE)))

    missing = set(
        find_all(rf"^debug1: identity file ({HOME}/\.ssh/id_\w+) type -1\r?$")
    )  # our reader lists only those that exist
    identities = [path for path in find_all(r"^debug1: identity file (.*) type -?\d+\r?$") if path not in missing]
    return Resolution(
        tuple(path for path in identities if path.removesuffix("-cert") not in (missing | {*identities}) - {path}),
        find_all(r"^debug1: certificate file (.*) type -?\d+\r?$"),
        find_all(r"^debug1: load_hostkeys: fopen (.*): No such file or directory\r?$"),
        find_all(r"Executing proxy command: exec (.*?)\r?$")[0],
        f"{destination[3]}@{destination[1]}:{destination[2]}",
    )


def change_owner(path: Path, owner: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Change the owner of a file; without root, pretend that this process has another user id."""
    if os.geteuid() == 0:
        os.chown(path, owner, -1)
    else:
        monkeypatch.setattr("os.geteuid", lambda: os.getuid() + 1)


def resolve_by_peerstage(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str = "db1"
) -> Resolution | None:
    """Return what our reader makes of a copy of *layout*, with the paths of the container."""
    home, system = tmp_path / "home", tmp_path / "system"
    (home / ".ssh").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr("peerstage.ssh.config.resolve._SYSTEM_DIRECTORY", str(system))

    def to_local(text: str) -> str:
        return text.replace(HOME + "/", f"{home}/").replace(SYSTEM + "/ssh_config", f"{system}/ssh_config")

    def to_container(path: str | bytes) -> str:
        return str(path).replace(str(home), HOME).replace(str(system), SYSTEM)

    for path, text in layout.files.items():
        copy = Path(
            to_local(path) if "inner" not in path else path.replace(HOME, str(home)).replace(SYSTEM, str(system))
        )
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(to_local(text))
        copy.chmod(layout.modes.get(path, 0o644))
        if path in layout.owners:
            change_owner(copy, layout.owners[path], monkeypatch)
    for key, value in layout.variables.items():
        monkeypatch.setenv(key, to_local(value))
    try:
        found: Any = resolve_destination(name, None, SSHOptions())
    except ConfigurationError as exc:
        assert str(tmp_path) in str(exc)
        return None
    return Resolution(
        tuple(map(to_container, found.identities)),
        tuple(map(to_container, found.certificates)),
        tuple(map(to_container, found.known_hosts)),
        to_container(found.proxy_command),
        f"{found.user}@{found.host}:{found.port}",
    )

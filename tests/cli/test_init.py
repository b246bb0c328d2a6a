"""``peerstage init``: a plan for hosts, known hosts, or cback3's peers; a plan that exists stays as it is."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from cli.command import Command
from peerstage.fleet.plan_file import parse_plan, read_plan
from peerstage.ssh.data_types import pack_string


@pytest.fixture
def command() -> Command:
    return Command(None)  # type: ignore[arg-type]  # it needs no server


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "etc" / "plan.toml"


def test_a_plan_for_hosts_loads_and_is_for_its_owner_alone(command: Command, path: Path) -> None:
    done = command("init", "db1", "db2.example.com:2222", "bob@web1:/srv/c", "[fe80::1]", "--output", path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{path}: 4 peers. Review it: every key has a comment.\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [(job.name, job.ssh.port, job.user, job.collect_dir) for job in read_plan(path).peers] == [
        ("db1", None, "backup", "/var/backup/collect"),
        ("db2.example.com", 2222, "backup", "/var/backup/collect"),
        ("web1", None, "bob", "/srv/c"),
        ("fe80::1", None, "backup", "/var/backup/collect"),
    ]


def test_a_plan_is_printed_rather_than_written(command: Command) -> None:
    done = command("init", "db1", "-o", "-")
    assert (done.returncode, done.stderr) == (0, "")
    assert [job.name for job in parse_plan(done.stdout.encode(), "-").peers] == ["db1"]


def test_json_tells_where_the_plan_is(command: Command, path: Path) -> None:
    done = command("init", "db1", "-o", path, "--json")
    assert json.loads(done.stdout) == {"verb": "init", "plan": str(path), "peers": ["db1"], "notes": []}


def test_a_plan_that_exists_is_not_overwritten(command: Command, path: Path) -> None:
    assert command("init", "db1", "-o", path).returncode == 0
    before = path.read_bytes()
    done = command("init", "db2", "-o", path)
    assert (done.returncode, path.read_bytes()) == (2, before)
    assert f"{path} exists, and is not overwritten. Move it, or give another --output." in done.stderr


def known_hosts_line(name: str) -> str:
    from base64 import b64encode

    return f"{name} ssh-ed25519 {b64encode(pack_string(b'ssh-ed25519') + pack_string(name.encode())).decode()}\n"


def test_known_hosts_become_peers_verified_with_that_file(command: Command, path: Path, tmp_path: Path) -> None:
    known_hosts = tmp_path / "known"
    known_hosts.write_text(known_hosts_line("db1,10.0.0.1") + known_hosts_line("*.example.com"))
    done = command("init", "--from-known-hosts", known_hosts, "-o", path)
    assert done.stdout.splitlines() == [
        "note 1 line is hashed, or hold patterns, and name no host.",
        f"{path}: 1 peer. Review it: every key has a comment.",
    ]
    assert read_plan(path).peers[0].ssh.known_hosts == (str(known_hosts),)


@pytest.mark.parametrize("is_stdin", [True, False])
def test_the_file_that_ssh_reads_anyway_needs_no_key(
    command: Command, path: Path, own_home: Path, is_stdin: bool
) -> None:
    (own_home / ".ssh").mkdir()
    usual = own_home / ".ssh" / "known_hosts"
    usual.write_text(known_hosts_line("db1"))
    done = command("init", "--from-known-hosts", "-" if is_stdin else usual, "-o", path, stdin=usual.read_bytes())
    assert done.returncode == 0, done.stderr
    assert read_plan(path).peers[0].ssh.known_hosts is None


CBACK = """<cb_config><options><starting_day>monday</starting_day><working_dir>/tmp</working_dir>
<backup_user>root</backup_user><backup_group>0</backup_group></options><stage><staging_dir>/s</staging_dir>
<peer><name>{name}</name><type>remote</type><collect_dir>/c</collect_dir></peer></stage></cb_config>"""


def test_a_configuration_of_cback3_becomes_a_plan(command: Command, path: Path, tmp_path: Path) -> None:
    (tmp_path / "cback3.conf").write_text(CBACK.format(name="db1"))
    settings = tmp_path / "cback3.peerstage.ini"
    settings.write_text("[peer db1]\nport = 2222\nelevate = sudo x\n")
    settings.chmod(0o600)
    done = command("init", "--from-cback", tmp_path / "cback3.conf", "-o", path)
    assert done.stdout.splitlines()[0] == "note The setting elevate = 'sudo x' of db1 can be made only in Python."
    assert [(job.name, job.user, job.ssh.port) for job in read_plan(path).peers] == [("db1", "root", 2222)]


def test_a_configuration_that_no_plan_can_have_writes_none(command: Command, path: Path, tmp_path: Path) -> None:
    (tmp_path / "cback3.conf").write_text(CBACK.format(name="db 1\x85"))
    done = command("init", "--from-cback", tmp_path / "cback3.conf", "-o", path)
    assert done.returncode == 2
    assert done.stderr.startswith(f'peerstage: {path}: peers."db 1\\u0085": Peer name must not begin with a dash')
    assert done.stderr.count("\n") == 2
    assert not path.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Name a host at least: give hosts, --from-known-hosts or --from-cback"),
        (["db1", "--from-cback", "/x"], "HOST and --from-cback exclude each other"),
        (["db1", "db1"], "db1 is named twice"),
        (["db1:x"], "After the colon comes a port"),
        (["--from-known-hosts", "/no/such"], "--from-known-hosts /no/such cannot be read: No such file"),
        (["--from-cback", "/no/such"], "/no/such: It cannot be read: No such file or directory."),
        (["cback.stage"], 'peers."cback.stage": must be another name'),
        (["db1", "-o", "-", "--json"], "--json and --output - exclude each other"),
    ],
)
def test_wrong_usage_writes_nothing(command: Command, path: Path, arguments: list[str], message: str) -> None:
    done = command("init", "-o", path, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert not path.exists()

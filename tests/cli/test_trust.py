"""``peerstage trust``: keys of many hosts are shown, compared and added; a known key is never replaced."""

from __future__ import annotations

import base64
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.command import Command
from cli.host_keys import OTHER, Trust, at, blob, fingerprint_of, found_by_keygen
from cli.test_terminal import on_terminal, text_of
from peerstage.ssh.hostkeys.known_hosts import KnownHosts
from peerstage.ssh.keys.public_keys import fingerprint
from support.keys import certify, make_key
from support.ssh_server import listening, sends_nothing, speaks_http
from support.sshd import Sshd, free_port, ssh_trusts


def test_new_keys_are_shown_and_nothing_is_added_without_a_yes(trust: Trust, sshd: Sshd, known: Path) -> None:
    done = trust(at(sshd))
    assert done.returncode == 4
    assert done.stdout == f"{at(sshd)}  ssh-ed25519  {fingerprint_of(sshd)}  new\n"
    assert "1 new key was not added" in done.stderr
    assert "--yes" in done.stderr
    assert not known.exists()


def test_many_hosts_are_added_after_one_yes_and_ssh_trusts_them(
    trust: Trust, own_sshd: Callable[..., Sshd], known: Path, tmp_path: Path
) -> None:
    servers = [own_sshd() for _ in range(3)]
    (tmp_path / "hosts").write_text("# ours\n\n" + "".join(f"  {at(server)}\n" for server in servers[1:]))
    done = trust("--yes", "--from", tmp_path / "hosts", f"somebody@{at(servers[0])}", at(servers[0]))
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[0] for line in done.stdout.splitlines()[:-1]] == [at(servers[n]) for n in (0, 0, 1, 2)]
    assert known.read_text().count("\n") == 3, "none twice"
    for server in servers:
        assert found_by_keygen(known, at(server))
        assert ssh_trusts(server, known)
    again = trust("--yes", *map(at, servers))
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout.count(f"known in {known}:") == 3
    assert known.read_text().count("\n") == 3


def test_hosts_are_not_logged_in_to(trust: Trust, own_sshd: Callable[..., Sshd]) -> None:
    server = own_sshd()
    assert trust("--yes", at(server)).returncode == 0
    assert "Accepted" not in server.log
    assert "userauth" not in server.log


@pytest.mark.parametrize(("typed", "added"), [(b"y\n", True), (b"n\n", False), (b"\n", False), (b"\x04", False)])
def test_the_question_at_a_terminal_is_asked_once(
    command: Command, own_sshd: Callable[..., Sshd], known: Path, typed: bytes, added: bool
) -> None:
    servers = [own_sshd(), own_sshd()]
    status, written = on_terminal(
        command, "trust", "--no-config", "--known-hosts", known, *map(at, servers), typed=typed
    )
    assert status == (0 if added else 4)
    assert text_of(written).count("[y/N]") == 1
    assert f"Add 2 new keys to {known}" in text_of(written)
    for server in servers:
        assert fingerprint_of(server) in text_of(written)
        assert (known.exists() and found_by_keygen(known, at(server))) is added


def test_a_known_key_is_known_and_a_changed_one_is_never_replaced(trust: Trust, sshd: Sshd, known: Path) -> None:
    known.write_text(f"# comment\n{at(sshd)} ssh-ed25519 {OTHER}\n")
    before = known.read_text()
    done = trust("--yes", at(sshd))
    assert done.returncode == 4
    assert f"{fingerprint_of(sshd)}  changed, see {known}:2" in done.stdout
    [removal] = re.findall(r"`(ssh-keygen -R .*?)`", done.stderr)
    assert known.read_text() == before
    subprocess.run(removal, shell=True, check=True, capture_output=True)
    assert trust("--yes", at(sshd)).returncode == 0
    assert ssh_trusts(sshd, known)


@pytest.mark.parametrize("kind", ["revoked", "other types", "an authority"])
def test_the_line_that_contradicts_a_key_is_shown(trust: Trust, sshd: Sshd, known: Path, kind: str) -> None:
    rsa = base64.b64encode((7).to_bytes(4, "big") + b"ssh-rsa" + b"\0\0\0\1\3" * 2).decode()
    known.write_text({
        "revoked": f"@revoked * ssh-ed25519 {base64.b64encode(blob(sshd)).decode()}\n",
        "other types": f"{at(sshd)} ssh-rsa {rsa}\n",
        "an authority": f"@cert-authority * ssh-ed25519 {OTHER}\n",
    }[kind])  # fmt: skip
    before = known.read_text()
    done = trust("--yes", at(sshd))
    assert done.returncode == 4
    assert f"{'revoked' if kind == 'revoked' else 'mismatched'}, see {known}:1" in done.stdout
    assert known.read_text() == before


def test_unreachable_hosts_are_explained_and_the_others_are_added(trust: Trust, sshd: Sshd, known: Path) -> None:
    with listening(speaks_http) as web, listening(sends_nothing) as silent:
        dead = [f"[127.0.0.1]:{free_port()}", f"[127.0.0.1]:{web}", f"[127.0.0.1]:{silent}", "no-such-host.invalid"]
        done = trust("--yes", "--connect-timeout", "2", *dead, at(sshd))
    assert done.returncode == 4
    assert [line.split()[-1] for line in done.stdout.splitlines()[:4]] == ["unreachable"] * 4
    assert done.stderr.count("\n") == 4
    for words in ("Connection refused", "HTTP", "within", "resolved"):
        assert words in done.stderr
    assert ssh_trusts(sshd, known)


def test_hosts_are_reached_as_a_stage_reaches_them(
    command: Command, own_sshd: Callable[..., Sshd], tmp_path: Path, own_home: Path
) -> None:
    server, hop = own_sshd(), own_sshd()
    config = tmp_path / "config"
    config.write_text(
        f"Host db1\n HostName 127.0.0.1\n Port {server.port}\n HostKeyAlias the-real-db1\n ProxyJump gate\n"
        f" HashKnownHosts yes\n"
        f"Host gate\n HostName 127.0.0.1\n Port {hop.port}\n User {hop.user}\n IdentityFile {hop.identity}\n"
    )
    done = command("trust", "--yes", "--config", config, "db1")
    assert done.returncode == 4
    assert "Jump host gate" in done.stderr
    assert "`peerstage trust --port" in done.stderr
    for host in ("gate", "db1"):
        done = command("trust", "--yes", "--config", config, host)
        assert (done.returncode, done.stderr) == (0, "")
    path = own_home / ".ssh" / "known_hosts"
    assert found_by_keygen(path, "the-real-db1")
    assert "the-real-db1" not in path.read_text()
    assert KnownHosts.read([path]).check("the-real-db1", 22, "ssh-ed25519", blob(server))


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["user@"],
        ["a b"],
        ["[::1"],
        ["[h]:0"],
        ["[h]:99999"],
        ["-oX=y", "h"],
        ["--from", "/nonexistent"],
        ["--from", "/dev/null"],
        ["--fingerprints", "/nonexistent", "h"],
        ["--fingerprints", "{bad}", "h"],
    ],
)
def test_wrong_usage_is_one_line_and_status_2(
    trust: Trust, tmp_path: Path, arguments: list[str], assert_one_line: Callable[[str], None]
) -> None:
    (tmp_path / "bad").write_text("db1 SHA256:short\n")
    done = trust(*(argument.format(bad=tmp_path / "bad") for argument in arguments))
    assert (done.returncode, done.stdout) == (2, "")
    assert_one_line(done.stderr.splitlines(keepends=True)[-1])


def test_a_file_that_cannot_be_written_is_the_local_disk(command: Command, sshd: Sshd, tmp_path: Path) -> None:
    done = command("trust", "--yes", "--no-config", "--known-hosts", tmp_path / "no" / "such" / "file", at(sshd))
    assert done.returncode == 6
    assert "The host key cannot be added" in done.stderr


def test_json_is_one_object_per_host(trust: Trust, sshd: Sshd, known: Path) -> None:
    done = trust("--json", at(sshd), f"[127.0.0.1]:{free_port()}")
    new, dead = map(json.loads, done.stdout.splitlines())
    assert (new["state"], new["fingerprint"], new["exit"]) == ("new", fingerprint_of(sshd), 4)
    assert (dead["state"], dead["kind"], dead["exit"]) == ("unreachable", "ConnectError", 4)
    [added] = map(json.loads, trust("--json", "--yes", at(sshd)).stdout.splitlines())
    assert (added["state"], added["added_to"], added["type"], added["exit"]) == ("added", str(known), "ssh-ed25519", 0)


def test_a_certificate_is_shown_with_its_authority(
    trust: Trust, own_sshd: Callable[..., Sshd], known: Path, tmp_path: Path
) -> None:
    certify(make_key(tmp_path / "key"), make_key(tmp_path / "ca"), "127.0.0.1", host=True)
    server = own_sshd(extra=f"HostKey {tmp_path}/key\nHostCertificate {tmp_path}/key-cert.pub")
    authority = (tmp_path / "ca.pub").read_text().split()[1]
    known.write_text(f"@cert-authority * ssh-ed25519 {authority}\n")
    done = trust(at(server))
    assert (done.returncode, done.stderr) == (0, "")
    assert f"certified by {fingerprint(base64.b64decode(authority))}" in done.stdout
    assert f"the authority in {known}:1" in done.stdout


def test_a_port_and_a_user_may_be_typed_as_for_scp(trust: Trust, sshd: Sshd, known: Path) -> None:
    for form in (f"{sshd.host}:{sshd.port}", f"nobody@{sshd.host}:{sshd.port}"):
        assert trust("--yes", form).returncode == 0
        assert ssh_trusts(sshd, known)
        known.unlink()


def test_one_fingerprint_may_be_given_as_the_host_key(trust: Trust, sshd: Sshd, known: Path) -> None:
    done = trust("--yes", "--host-key", "SHA256:" + "A" * 43, at(sshd))
    assert done.returncode == 4
    assert "NOT ON THE LIST" in done.stdout
    assert not known.exists()
    assert trust("--yes", "--host-key", fingerprint_of(sshd), at(sshd)).returncode == 0
    assert ssh_trusts(sshd, known)

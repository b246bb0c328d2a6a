"""New host keys are learnt when that is asked for, and not otherwise; ssh and ssh-keygen read the result."""

from __future__ import annotations

import base64
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peerstage import RemotePeer, SSHOptions
from peerstage.errors import ChangedHostKey, HostKeyError, MismatchedHostKey, RevokedHostKey, UnknownHostKey
from peerstage.reasons import Reason
from peerstage.session import known_hosts_file
from peerstage.session.config import resolve_destination
from peerstage.session.host_key import HostKeys
from peerstage.session.known_hosts import KnownHosts, fingerprint
from peerstage.session.known_hosts_file import line_of, locked
from support.keys import certify, make_key
from support.programs import program
from support.recording import bytes_after_newkeys, recording
from support.sshd import Sshd, ssh_trusts

KEY = (11).to_bytes(4, "big") + b"ssh-ed25519" + (32).to_bytes(4, "big") + b"k" * 32
OTHER = KEY[:-1] + b"o"


def add(path: Path, host: str, port: int = 22, key: bytes = KEY, *, hashed: bool = False) -> None:
    with locked(str(path)) as file:
        file.append(line_of(host, port, key, hashed=hashed))


def keygen(*arguments: object, allowed: tuple[int, ...] = (0,)) -> str:
    done = subprocess.run([program("ssh-keygen"), *map(str, arguments)], capture_output=True, text=True, timeout=30)
    assert done.returncode in allowed, done.stderr
    return done.stdout


def leftovers(directory: Path, *expected: str) -> list[str]:
    return sorted(set(os.listdir(directory)) - set(expected))


# --- the file --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("openssh")
@pytest.mark.parametrize("hashed", [False, True], ids=["plain", "hashed"])
@pytest.mark.parametrize(
    ("host", "port", "asked"),
    [
        ("db1", 22, "db1"),
        ("DB1.Example.com", 22, "db1.example.com"),
        ("db1", 2222, "[db1]:2222"),
        ("::1", 22, "::1"),
        ("2001:db8::7", 2222, "[2001:db8::7]:2222"),
    ],
)
def test_ssh_keygen_finds_and_removes_what_was_added(
    tmp_path: Path, host: str, port: int, asked: str, hashed: bool
) -> None:
    path = tmp_path / "known_hosts"
    add(path, "somebody-else", key=OTHER)
    add(path, host, port, hashed=hashed)
    assert "found: line 2" in keygen("-F", asked, "-f", path)
    assert fingerprint(KEY) in keygen("-l", "-F", asked, "-f", path)
    assert (host.lower() in path.read_text()) is not hashed
    assert KnownHosts.read([path]).check(host, port, "ssh-ed25519", KEY) == f"{path}:2"
    keygen("-R", asked, "-f", path)
    assert keygen("-F", asked, "-f", path, allowed=(1,)) == ""
    assert KnownHosts.read([path]).key_types("somebody-else", 22) == ("ssh-ed25519",)


@pytest.mark.usefixtures("openssh")
def test_a_file_that_ssh_keygen_has_hashed_is_added_to(tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"
    add(path, "db1")
    keygen("-q", "-H", "-f", path)
    add(path, "db2", key=OTHER)
    assert "found: line 1" in keygen("-F", "db1", "-f", path)
    assert "found: line 2" in keygen("-F", "db2", "-f", path)


@pytest.mark.parametrize("name", ["*", "db?", "!db1", "a,b", "#db1", "@revoked", "a b", "|1|x", "db1\nevil"])
def test_a_name_that_would_be_read_as_more_than_a_name_stands_for_itself_alone(tmp_path: Path, name: str) -> None:
    path = tmp_path / "known_hosts"
    add(path, name)
    known = KnownHosts.read([path])
    assert known.key_types(name, 22) == ("ssh-ed25519",)
    assert path.read_bytes().count(b"\n") == 1
    for other in ("db1", "dbx", "a", "b", "evil", "1"):
        assert known.key_types(other, 22) == ()


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o664, 0o400])
def test_mode_owner_and_what_the_file_held_are_kept(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "known_hosts"
    path.write_bytes(b"# mine\n\nnonsense\xff\nlast line without an end")
    path.chmod(mode)
    if os.geteuid() == 0:
        os.chown(path, 12345, 23456)
    elif mode == 0o400:
        mode = 0o600
        path.chmod(mode)
    before = path.stat()
    add(path, "db1")
    after = path.stat()
    assert path.read_bytes().startswith(b"# mine\n\nnonsense\xff\nlast line without an end\ndb1 ssh-ed25519 ")
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert leftovers(tmp_path, "known_hosts") == []


def test_the_file_and_its_directory_are_made_where_they_are_missing(own_home: Path) -> None:
    before = os.umask(0)
    try:
        add(own_home / ".ssh" / "known_hosts", "db1")
    finally:
        os.umask(before)
    assert (own_home / ".ssh").stat().st_mode & 0o7777 == 0o700
    assert (own_home / ".ssh" / "known_hosts").stat().st_mode & 0o7777 == 0o600
    with pytest.raises(FileNotFoundError):
        add(own_home / "no" / "such" / "known_hosts", "db1")


@pytest.mark.parametrize("dangling", [False, True])
def test_a_link_stays_one_and_the_file_that_it_leads_to_is_written(tmp_path: Path, dangling: bool) -> None:
    (tmp_path / "real").mkdir()
    real, link = tmp_path / "real" / "hosts", tmp_path / "known_hosts"
    if not dangling:
        add(real, "db1")
    link.symlink_to("real/hosts")
    add(link, "db2", key=OTHER)
    assert link.is_symlink()
    assert real.read_bytes().endswith(line_of("db2", 22, OTHER, hashed=False))
    assert leftovers(tmp_path / "real", "hosts") == []


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: os.symlink(path, path)])
def test_what_is_no_file_is_not_written(tmp_path: Path, make: Callable[[str], object], leaves_nothing: None) -> None:
    path = tmp_path / "known_hosts"
    make(str(path))
    with pytest.raises(OSError, match=r"regular|directory|symbolic"):
        add(path, "db1")
    assert leftovers(tmp_path, "known_hosts") == []


def test_devices_are_left_as_they_are(leaves_nothing: None) -> None:
    with pytest.raises(OSError, match="regular"):
        add(Path(os.devnull), "db1")


def test_what_a_killed_writer_left_is_cleared(tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"
    (tmp_path / ".known_hosts.peerstage").write_bytes(b"half a li")
    add(path, "db1")
    assert path.read_bytes() == line_of("db1", 22, KEY, hashed=False)
    assert leftovers(tmp_path, "known_hosts") == []


def test_a_disk_that_is_full_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "known_hosts"
    add(path, "db1")
    before = path.read_bytes()

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(known_hosts_file.os, "fsync", full)
    with pytest.raises(OSError, match="space"):
        add(path, "db2")
    assert path.read_bytes() == before
    assert leftovers(tmp_path, "known_hosts") == []


def test_the_lock_holds_from_one_addition_to_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "known_hosts"
    monkeypatch.setattr(known_hosts_file, "PATIENCE", 0.1)
    with locked(str(path)) as file:
        for name in ("db1", "db2"):
            file.append(line_of(name, 22, KEY, hashed=False))
            with pytest.raises(TimeoutError):
                add(path, "db3")
    assert [line.split()[0] for line in path.read_text().splitlines()] == ["db1", "db2"]


def test_the_wait_for_a_writer_that_never_ends_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "known_hosts"
    monkeypatch.setattr(known_hosts_file, "PATIENCE", 0.2)
    with locked(str(path)), pytest.raises(TimeoutError, match="locked"):
        add(path, "db1")
    add(path, "db1")

    class Enough(Exception):
        pass

    def give_up(seconds: float) -> None:
        raise Enough

    with locked(str(path)), pytest.raises(Enough), locked(str(path), sleep=give_up):
        pass


ADDS = """
import sys, threading
from peerstage.session.known_hosts_file import line_of, locked
path, who = sys.argv[1:]
key = (11).to_bytes(4, "big") + b"ssh-ed25519" + (32).to_bytes(4, "big") + b"k" * 32
def add(thread):
    for number in range(15):
        with locked(path) as file:
            file.append(line_of(f"host-{who}-{thread}-{number}", 22, key, hashed=False))
threads = [threading.Thread(target=add, args=(n,)) for n in range(2)]
[t.start() for t in threads]; [t.join() for t in threads]
"""


@pytest.mark.usefixtures("fresh_interpreter")
def test_writers_in_many_processes_and_threads_lose_no_line(tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"
    path.write_bytes(b"# first")
    writers = [subprocess.Popen([sys.executable, "-c", ADDS, str(path), str(who)]) for who in range(4)]
    assert [writer.wait(120) for writer in writers] == [0] * 4
    names = [line.split()[0] for line in path.read_text().splitlines()]
    assert sorted(names[1:]) == sorted(f"host-{w}-{t}-{n}" for w in range(4) for t in range(2) for n in range(15))
    assert leftovers(tmp_path, "known_hosts") == []


# --- accept-new ------------------------------------------------------------------------------------------------------


def peer_of(sshd: Sshd, collect: Path, path: Path, **options: Any) -> RemotePeer:
    values = {"known_hosts": str(path), "host_key": "accept-new", **options}
    return RemotePeer(sshd.host, str(collect), "/tmp", sshd.user, ssh=sshd.options(**values))


def host_key(sshd: Sshd) -> bytes:
    return base64.b64decode((sshd.home / "host.pub").read_text().split()[1])


def test_a_new_host_is_learnt_once_and_known_from_then_on(
    sshd: Sshd, collect: Path, target: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "known_hosts"
    (collect / "a").touch()
    assert not ssh_trusts(sshd, path)
    assert peer_of(sshd, collect, path).stagePeer(str(target)) == 1
    assert path.read_bytes() == line_of(sshd.host, sshd.port, host_key(sshd), hashed=False)
    assert "found: line 1" in keygen("-F", f"[{sshd.host}]:{sshd.port}", "-f", path)
    assert ssh_trusts(sshd, path)
    [warning] = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert fingerprint(host_key(sshd)) in warning
    assert str(path) in warning
    assert peer_of(sshd, collect, path).stagePeer(str(target)) == 1
    assert peer_of(sshd, collect, path, host_key="strict").stagePeer(str(target)) == 1
    assert path.read_bytes().count(b"\n") == 1


def test_what_is_written_is_what_ssh_would_write(sshd: Sshd, collect: Path, tmp_path: Path) -> None:
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    said = ["HashKnownHosts=no", "StrictHostKeyChecking=accept-new", "UpdateHostKeys=no", "GlobalKnownHostsFile=none"]
    options = [word for one in (f"UserKnownHostsFile={theirs}", *said) for word in ("-o", one)]
    command = [program("ssh"), *options, *sshd.ssh_arguments(), sshd.host, "true"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    peer_of(sshd, collect, ours).writeStageIndicator()
    assert ours.read_bytes() == theirs.read_bytes()


def test_the_configuration_asks_for_it_names_the_file_and_hides_the_name(
    sshd: Sshd, collect: Path, tmp_path: Path, own_home: Path
) -> None:
    config = tmp_path / "config"
    config.write_text(
        f"Host db1\n HostName 127.0.0.1\n Port {sshd.port}\n StrictHostKeyChecking accept-new\n"
        f" UserKnownHostsFile ~/mine ~/second\n HashKnownHosts yes\n IdentityFile {sshd.identity}\n"
    )
    peer = RemotePeer("db1", str(collect), "/tmp", sshd.user, ssh=SSHOptions(config=str(config)))
    peer.writeStageIndicator()
    assert (collect / "cback.stage").exists()
    assert "127.0.0.1" not in (own_home / "mine").read_text()
    assert "found: line 1" in keygen("-F", f"[127.0.0.1]:{sshd.port}", "-f", own_home / "mine")
    assert ssh_trusts(sshd, own_home / "mine")
    strict = SSHOptions(config=str(config), host_key="strict", known_hosts=())
    assert not resolve_destination("db1", sshd.user, strict).accept_new, "an option wins"


def test_the_default_file_is_the_one_that_is_written(sshd: Sshd, collect: Path, own_home: Path) -> None:
    peer_of(sshd, collect, Path(), known_hosts=None).writeStageIndicator()
    assert (own_home / ".ssh" / "known_hosts").read_bytes().startswith(b"[127.0.0.1]:")


def test_hops_are_learnt_too(own_sshd: Callable[..., Sshd], collect: Path, tmp_path: Path) -> None:
    server, hop = own_sshd(), own_sshd()
    (hop.home / "authorized_keys").write_bytes((server.home / "id.pub").read_bytes())
    path = tmp_path / "known_hosts"
    peer_of(server, collect, path, jump=f"{hop.user}@{hop.host}:{hop.port}").writeStageIndicator()
    assert ssh_trusts(server, path)
    names = [line.split()[0] for line in path.read_text().splitlines()]
    assert names == [f"[127.0.0.1]:{hop.port}", f"[127.0.0.1]:{server.port}"]


@pytest.mark.parametrize(
    ("kind", "known"),
    [
        (ChangedHostKey, "[127.0.0.1]:{port} ssh-ed25519 {other}\n"),
        (RevokedHostKey, "@revoked * ssh-ed25519 {real}\n"),
        (MismatchedHostKey, "[127.0.0.1]:{port} ssh-rsa {rsa}\n"),
        (UnknownHostKey, "@cert-authority [127.0.0.1]:{port} ssh-ed25519 {other}\n"),
    ],
    ids=["changed", "revoked", "other types", "an authority should vouch for it"],
)
def test_what_is_not_new_is_refused_before_any_byte_of_authentication(
    sshd: Sshd, collect: Path, target: Path, tmp_path: Path, kind: type[HostKeyError], known: str
) -> None:
    path = tmp_path / "known_hosts"
    rsa = base64.b64encode((7).to_bytes(4, "big") + b"ssh-rsa" + b"\0\0\0\1\3" * 2).decode()
    with recording(sshd.port) as (port, sent):
        real, other = base64.b64encode(host_key(sshd)).decode(), base64.b64encode(OTHER).decode()
        path.write_text(known.format(port=port, real=real, other=other, rsa=rsa))
        before = path.read_bytes()
        with pytest.raises(kind) as caught:
            peer_of(sshd, collect, path, port=port).stagePeer(str(target))
    assert type(caught.value) is kind
    assert fingerprint(host_key(sshd)) in str(caught.value)
    assert str(path) in str(caught.value)
    assert bytes_after_newkeys(bytes(sent)) == 0
    assert path.read_bytes() == before


def test_a_key_that_can_not_be_remembered_is_not_accepted(
    sshd: Sshd, collect: Path, target: Path, tmp_path: Path
) -> None:
    with recording(sshd.port) as (port, sent), pytest.raises(UnknownHostKey, match="can not remember") as no:
        peer_of(sshd, collect, tmp_path / "no" / "such" / "file", port=port).stagePeer(str(target))
    assert no.value.reason is Reason.HOST_KEY_NOT_SAVED
    assert bytes_after_newkeys(bytes(sent)) == 0
    for nowhere in ((), b"", os.devnull):
        with pytest.raises(UnknownHostKey):
            peer_of(sshd, collect, tmp_path, known_hosts=nowhere).stagePeer(str(target))


def test_peers_that_are_learnt_at_the_same_time_stand_there_once(
    sshd: Sshd, collect: Path, tmp_path: Path, leaves_nothing: None
) -> None:
    path = tmp_path / "known_hosts"
    peers = [peer_of(sshd, collect, path) for _ in range(8)]
    threads = [threading.Thread(target=peer.writeStageIndicator) for peer in peers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes().count(b"\n") == 1
    assert ssh_trusts(sshd, path)


@pytest.mark.usefixtures("openssh")
@pytest.mark.parametrize("authority", ["unknown", "another"])
def test_of_a_certificate_the_plain_key_is_learnt_unless_another_authority_should_vouch(
    tmp_path: Path, authority: str
) -> None:
    certify(make_key(tmp_path / "host"), make_key(tmp_path / "ca"), "db1", host=True)
    shown, plain = (base64.b64decode((tmp_path / f"host{end}.pub").read_text().split()[1]) for end in ("-cert", ""))
    path = tmp_path / "known_hosts"
    if authority == "another":
        path.write_text(f"@cert-authority * ssh-ed25519 {base64.b64encode(OTHER).decode()}\n")
    options = SSHOptions(config=(), known_hosts=str(path), host_key="accept-new")
    hosts = HostKeys.read(resolve_destination("db1", "backup", options))
    if authority == "another":
        before = path.read_bytes()
        with pytest.raises(UnknownHostKey, match="accept-new learns only hosts of which nothing is known"):
            hosts.judge(shown)
        assert path.read_bytes() == before
    else:
        assert hosts.judge(shown).fingerprint == fingerprint(plain)
        assert path.read_bytes() == line_of("db1", 22, plain, hashed=False)


# --- what is said ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["unknown", "changed", "mismatched"])
def test_the_command_that_is_named_leads_to_this_host_and_this_file(
    sshd: Sshd, collect: Path, target: Path, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "known hosts"
    rsa = base64.b64encode((7).to_bytes(4, "big") + b"ssh-rsa" + b"\0\0\0\1\3" * 2).decode()
    path.write_text({
        "unknown": "",
        "changed": f"[127.0.0.1]:{sshd.port} ssh-ed25519 {base64.b64encode(OTHER).decode()}\n",
        "mismatched": f"[127.0.0.1]:{sshd.port} ssh-rsa {rsa}\n",
    }[kind])  # fmt: skip
    with pytest.raises(HostKeyError) as caught:
        peer_of(sshd, collect, path, host_key=None).stagePeer(str(target))
    said = str(caught.value)
    assert fingerprint(host_key(sshd)) in said
    assert f"`peerstage trust --port {sshd.port} --known-hosts '{path}' --no-config 127.0.0.1`" in said
    if kind != "unknown":
        assert f"{path}:1" in said
        [removal] = re.findall(r"`ssh-keygen (-R .*?)`", said)
        assert removal == f"-R '[127.0.0.1]:{sshd.port}' -f '{path}'"

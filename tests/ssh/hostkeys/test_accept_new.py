"""accept-new: recording the keys of new hosts; ssh and ssh-keygen are the oracles."""

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
from peerstage.ssh.config.resolve import resolve_destination
from peerstage.ssh.hostkeys import known_hosts_file
from peerstage.ssh.hostkeys.known_hosts import KnownHosts
from peerstage.ssh.hostkeys.known_hosts_file import format_entry, lock_known_hosts
from peerstage.ssh.hostkeys.verifier import HostKeyVerifier
from peerstage.ssh.keys.public_keys import fingerprint
from support.keys import certify, make_key, run_ssh_keygen
from support.programs import require_program
from support.recording import count_bytes_after_newkeys, record_connection
from support.sshd import Sshd, ssh_trusts

KEY = (11).to_bytes(4, "big") + b"ssh-ed25519" + (32).to_bytes(4, "big") + b"k" * 32
OTHER = KEY[:-1] + b"o"


def add(path: Path, host: str, port: int = 22, key: bytes = KEY, *, hashed: bool = False) -> None:
    with lock_known_hosts(str(path)) as file:
        file.append(format_entry(host, port, key, hashed=hashed))


def other_names(directory: Path, *expected: str) -> list[str]:
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
def test_ssh_keygen_finds_and_removes_added_lines(
    tmp_path: Path, host: str, port: int, asked: str, hashed: bool
) -> None:
    path = tmp_path / "known_hosts"
    add(path, "somebody-else", key=OTHER)
    add(path, host, port, hashed=hashed)
    assert "found: line 2" in run_ssh_keygen("-F", asked, "-f", path)
    assert fingerprint(KEY) in run_ssh_keygen("-l", "-F", asked, "-f", path)
    assert (host.lower() in path.read_text()) is not hashed
    assert KnownHosts.read([path]).check(host, port, "ssh-ed25519", KEY) == (str(path), 2)
    run_ssh_keygen("-R", asked, "-f", path)
    assert run_ssh_keygen("-F", asked, "-f", path, allowed=(1,)) == ""
    assert KnownHosts.read([path]).key_types("somebody-else", 22) == ("ssh-ed25519",)


@pytest.mark.usefixtures("openssh")
def test_line_is_added_to_a_file_hashed_by_ssh_keygen(tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"
    add(path, "db1")
    run_ssh_keygen("-q", "-H", "-f", path)
    add(path, "db2", key=OTHER)
    assert "found: line 1" in run_ssh_keygen("-F", "db1", "-f", path)
    assert "found: line 2" in run_ssh_keygen("-F", "db2", "-f", path)


@pytest.mark.parametrize("name", ["*", "db?", "!db1", "a,b", "#db1", "@revoked", "a b", "|1|x", "db1\nevil"])
def test_name_with_special_characters_matches_only_itself(tmp_path: Path, name: str) -> None:
    path = tmp_path / "known_hosts"
    add(path, name)
    known = KnownHosts.read([path])
    assert known.key_types(name, 22) == ("ssh-ed25519",)
    assert path.read_bytes().count(b"\n") == 1
    for other in ("db1", "dbx", "a", "b", "evil", "1"):
        assert known.key_types(other, 22) == ()


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o664, 0o400])
def test_mode_owner_and_content_of_the_file_are_kept(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "known_hosts"
    path.write_bytes(b"# mine\n\nnonsense\xff\nlast line without a newline")
    path.chmod(mode)
    if os.geteuid() == 0:
        os.chown(path, 12345, 23456)
    elif mode == 0o400:
        mode = 0o600
        path.chmod(mode)
    before = path.stat()
    add(path, "db1")
    after = path.stat()
    assert path.read_bytes().startswith(b"# mine\n\nnonsense\xff\nlast line without a newline\ndb1 ssh-ed25519 ")
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert other_names(tmp_path, "known_hosts") == []


def test_missing_file_and_directory_are_created(own_home: Path) -> None:
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
def test_symlink_is_followed_and_kept(tmp_path: Path, dangling: bool) -> None:
    (tmp_path / "real").mkdir()
    real, link = tmp_path / "real" / "hosts", tmp_path / "known_hosts"
    if not dangling:
        add(real, "db1")
    link.symlink_to("real/hosts")
    add(link, "db2", key=OTHER)
    assert link.is_symlink()
    assert real.read_bytes().endswith(format_entry("db2", 22, OTHER, hashed=False))
    assert other_names(tmp_path / "real", "hosts") == []


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: os.symlink(path, path)])
def test_only_regular_files_are_written(tmp_path: Path, make: Callable[[str], object], leaves_nothing: None) -> None:
    path = tmp_path / "known_hosts"
    make(str(path))
    with pytest.raises(OSError, match=r"regular|directory|symbolic"):
        add(path, "db1")
    assert other_names(tmp_path, "known_hosts") == []


def test_device_is_not_replaced(leaves_nothing: None) -> None:
    with pytest.raises(OSError, match="regular"):
        add(Path(os.devnull), "db1")


def test_file_of_a_killed_writer_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"
    (tmp_path / ".known_hosts.peerstage").write_bytes(b"half a li")
    add(path, "db1")
    assert path.read_bytes() == format_entry("db1", 22, KEY, hashed=False)
    assert other_names(tmp_path, "known_hosts") == []


def test_full_disk_leaves_the_file_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "known_hosts"
    add(path, "db1")
    before = path.read_bytes()

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(known_hosts_file.os, "fsync", full)
    with pytest.raises(OSError, match="space"):
        add(path, "db2")
    assert path.read_bytes() == before
    assert other_names(tmp_path, "known_hosts") == []


def test_lock_is_held_across_additions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "known_hosts"
    monkeypatch.setattr(known_hosts_file, "LOCK_TIMEOUT", 0.1)
    with lock_known_hosts(str(path)) as file:
        for name in ("db1", "db2"):
            file.append(format_entry(name, 22, KEY, hashed=False))
            with pytest.raises(TimeoutError):
                add(path, "db3")
    assert [line.split()[0] for line in path.read_text().splitlines()] == ["db1", "db2"]


def test_wait_for_the_lock_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "known_hosts"
    monkeypatch.setattr(known_hosts_file, "LOCK_TIMEOUT", 0.2)
    with lock_known_hosts(str(path)), pytest.raises(TimeoutError, match="locked"):
        add(path, "db1")
    add(path, "db1")

    class GivenUp(Exception):
        pass

    def give_up(seconds: float) -> None:
        raise GivenUp

    with lock_known_hosts(str(path)), pytest.raises(GivenUp), lock_known_hosts(str(path), sleep=give_up):
        pass


ADDS = """
import sys, threading
from peerstage.ssh.hostkeys.known_hosts_file import format_entry, lock_known_hosts
path, writer = sys.argv[1:]
key = (11).to_bytes(4, "big") + b"ssh-ed25519" + (32).to_bytes(4, "big") + b"k" * 32
def add(thread):
    for number in range(15):
        with lock_known_hosts(path) as file:
            file.append(format_entry(f"host-{writer}-{thread}-{number}", 22, key, hashed=False))
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
    assert other_names(tmp_path, "known_hosts") == []


# --- accept-new ------------------------------------------------------------------------------------------------------


def peer_of(sshd: Sshd, collect: Path, path: Path, **options: Any) -> RemotePeer:
    values = {"known_hosts": str(path), "host_key": "accept-new", **options}
    return RemotePeer(sshd.host, str(collect), "/tmp", sshd.user, ssh=sshd.options(**values))


def host_key(sshd: Sshd) -> bytes:
    return base64.b64decode((sshd.home / "host.pub").read_text().split()[1])


def test_new_host_is_recorded_once_and_known_afterwards(
    sshd: Sshd, collect: Path, target: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "known_hosts"
    (collect / "a").touch()
    assert not ssh_trusts(sshd, path)
    assert peer_of(sshd, collect, path).stagePeer(str(target)) == 1
    assert path.read_bytes() == format_entry(sshd.host, sshd.port, host_key(sshd), hashed=False)
    assert "found: line 1" in run_ssh_keygen("-F", f"[{sshd.host}]:{sshd.port}", "-f", path)
    assert ssh_trusts(sshd, path)
    [warning] = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert fingerprint(host_key(sshd)) in warning
    assert str(path) in warning
    assert peer_of(sshd, collect, path).stagePeer(str(target)) == 1
    assert peer_of(sshd, collect, path, host_key="strict").stagePeer(str(target)) == 1
    assert path.read_bytes().count(b"\n") == 1


def test_recorded_line_equals_that_of_ssh(sshd: Sshd, collect: Path, tmp_path: Path) -> None:
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    settings = [
        "HashKnownHosts=no",
        "StrictHostKeyChecking=accept-new",
        "UpdateHostKeys=no",
        "GlobalKnownHostsFile=none",
    ]
    options = [word for one in (f"UserKnownHostsFile={theirs}", *settings) for word in ("-o", one)]
    command = [require_program("ssh"), *options, *sshd.ssh_arguments(), sshd.host, "true"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    peer_of(sshd, collect, ours).writeStageIndicator()
    assert ours.read_bytes() == theirs.read_bytes()


def test_configuration_enables_recording_and_names_the_file(
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
    assert "found: line 1" in run_ssh_keygen("-F", f"[127.0.0.1]:{sshd.port}", "-f", own_home / "mine")
    assert ssh_trusts(sshd, own_home / "mine")
    strict = SSHOptions(config=str(config), host_key="strict", known_hosts=())
    assert not resolve_destination("db1", sshd.user, strict).accept_new, "options override the configuration"


def test_default_file_is_written(sshd: Sshd, collect: Path, own_home: Path) -> None:
    peer_of(sshd, collect, Path(), known_hosts=None).writeStageIndicator()
    assert (own_home / ".ssh" / "known_hosts").read_bytes().startswith(b"[127.0.0.1]:")


def test_jump_host_is_recorded_too(own_sshd: Callable[..., Sshd], collect: Path, tmp_path: Path) -> None:
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
    ids=["changed", "revoked", "other types", "known by an authority"],
)
def test_host_that_is_not_new_is_refused_before_authentication(
    sshd: Sshd, collect: Path, target: Path, tmp_path: Path, kind: type[HostKeyError], known: str
) -> None:
    path = tmp_path / "known_hosts"
    rsa = base64.b64encode((7).to_bytes(4, "big") + b"ssh-rsa" + b"\0\0\0\1\3" * 2).decode()
    with record_connection(sshd.port) as (port, sent):
        real, other = base64.b64encode(host_key(sshd)).decode(), base64.b64encode(OTHER).decode()
        path.write_text(known.format(port=port, real=real, other=other, rsa=rsa))
        before = path.read_bytes()
        with pytest.raises(kind) as caught:
            peer_of(sshd, collect, path, port=port).stagePeer(str(target))
    assert type(caught.value) is kind
    assert fingerprint(host_key(sshd)) in str(caught.value)
    assert str(path) in str(caught.value)
    assert count_bytes_after_newkeys(bytes(sent)) == 0
    assert path.read_bytes() == before


def test_key_that_cannot_be_recorded_is_not_accepted(sshd: Sshd, collect: Path, target: Path, tmp_path: Path) -> None:
    with record_connection(sshd.port) as (port, sent), pytest.raises(UnknownHostKey, match="cannot record") as caught:
        peer_of(sshd, collect, tmp_path / "no" / "such" / "file", port=port).stagePeer(str(target))
    assert caught.value.reason is Reason.HOST_KEY_NOT_SAVED
    assert count_bytes_after_newkeys(bytes(sent)) == 0
    for known_hosts in ((), b"", os.devnull):
        with pytest.raises(UnknownHostKey):
            peer_of(sshd, collect, tmp_path, known_hosts=known_hosts).stagePeer(str(target))


def test_concurrent_connections_record_the_host_once(
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
def test_plain_key_of_a_certificate_is_recorded_unless_an_authority_is_known(tmp_path: Path, authority: str) -> None:
    certify(make_key(tmp_path / "host"), make_key(tmp_path / "ca"), "db1", host=True)
    presented, plain = (base64.b64decode((tmp_path / f"host{end}.pub").read_text().split()[1]) for end in ("-cert", ""))
    path = tmp_path / "known_hosts"
    if authority == "another":
        path.write_text(f"@cert-authority * ssh-ed25519 {base64.b64encode(OTHER).decode()}\n")
    options = SSHOptions(config=(), known_hosts=str(path), host_key="accept-new")
    hosts = HostKeyVerifier.read(resolve_destination("db1", "backup", options))
    if authority == "another":
        before = path.read_bytes()
        with pytest.raises(UnknownHostKey, match="accept-new accepts only hosts that known_hosts does not mention"):
            hosts.verify(presented)
        assert path.read_bytes() == before
    else:
        assert hosts.verify(presented).fingerprint == fingerprint(plain)
        assert path.read_bytes() == format_entry("db1", 22, plain, hashed=False)


def test_host_that_got_an_authority_after_the_files_were_read_is_not_new(tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"
    options = SSHOptions(config=(), known_hosts=str(path), host_key="accept-new")
    verifier = HostKeyVerifier.read(resolve_destination("db1", "backup", options))
    path.write_text(f"@cert-authority db1 ssh-ed25519 {base64.b64encode(OTHER).decode()}\n")
    before = path.read_bytes()
    with pytest.raises(UnknownHostKey, match="applies to certificates only"):
        verifier.verify(KEY)
    assert path.read_bytes() == before


# --- error messages --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["unknown", "changed", "mismatched"])
def test_trust_command_in_the_error_names_host_and_file(
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
    text = str(caught.value)
    assert fingerprint(host_key(sshd)) in text
    assert f"`peerstage trust --port {sshd.port} --known-hosts '{path}' --no-config 127.0.0.1`" in text
    if kind != "unknown":
        assert f"{path}:1" in text
        [removal] = re.findall(r"`ssh-keygen (-R .*?)`", text)
        assert removal == f"-R '[127.0.0.1]:{sshd.port}' -f '{path}'"

"""The embedded server: real clients, one user, one directory, and no process left."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import paramiko
import pytest

from peerstage import RemotePeer
from peerstage.errors import NotAvailable, StageError
from peerstage.testing import digests, make_sample, ssh_server
from peerstage.testing.server import EmbeddedServer
from support.programs import program


def is_gone(pid: int, patience: float = 10.0) -> bool:
    until = time.monotonic() + patience
    while time.monotonic() < until:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        with Path(f"/proc/{pid}/stat").open() as file:
            if file.read().rpartition(")")[2].split()[0] == "Z":
                return True
        time.sleep(0.02)
    return False


def sftp_of(server: EmbeddedServer, key: paramiko.PKey | None = None) -> paramiko.Transport:
    transport = paramiko.Transport((server.host, server.port))
    file = io.StringIO(server.private_key.decode())
    transport.connect(username=server.username, pkey=key or paramiko.Ed25519Key.from_private_key(file))
    return transport


def test_a_sample_of_real_files_is_staged_from_it_byte_for_byte(
    collect: Path, target: Path, leaves_nothing: None
) -> None:
    made = make_sample(collect, small=100, large=1, large_bytes=5_000_000)
    with ssh_server(collect) as server, RemotePeer(server.host, "/", None, server.username, ssh=server.options) as peer:
        assert peer.checkCollectIndicator()
        assert peer.stagePeer(str(target)) == len(made)
        peer.writeStageIndicator()
    assert digests(target) == made
    assert (collect / "cback.stage").exists()


def test_the_same_numbers_make_the_same_files(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    second.mkdir()
    assert make_sample(first, small=20, large=0) == make_sample(second, small=20, large=0) == digests(first)


def test_other_clients_work_with_it_over_sftp_and_scp(collect: Path, tmp_path: Path) -> None:
    (collect / "a").write_bytes(b"content")
    with ssh_server(str(collect), username="somebody") as server:
        transport = sftp_of(server)
        assert transport.open_sftp_client().listdir("/") == ["a"]  # type: ignore[union-attr]
        transport.close()
        key, known = tmp_path / "key", tmp_path / "known"
        key.write_bytes(server.private_key)
        key.chmod(0o600)
        known.write_bytes(server.known_hosts)
        for mode in ("-s", "-O"):
            subprocess.run(
                [program("scp"), "-q", mode, "-F", "none", "-i", str(key), "-o", f"UserKnownHostsFile={known}",
                 "-P", str(server.port), f"somebody@{server.host}:/a", str(tmp_path / f"got{mode}")],
                check=mode == "-O",  # asyncssh ends a subsystem without a status, and scp complains
            )  # fmt: skip
            assert (tmp_path / f"got{mode}").read_bytes() == b"content"


def test_no_other_key_and_no_other_user_get_in(collect: Path) -> None:
    with ssh_server(collect) as server:
        with pytest.raises(paramiko.AuthenticationException):
            sftp_of(server, paramiko.ECDSAKey.generate())
        peer = RemotePeer(server.host, "/", None, "root", ssh=server.options)
        with pytest.raises(StageError, match="refused"):
            peer.writeStageIndicator()


def test_nothing_outside_the_directory_can_be_reached(collect: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    with ssh_server(collect) as server:
        transport = sftp_of(server)
        sftp = transport.open_sftp_client()
        assert sftp is not None
        for path in ("/../secret", "../secret", str(tmp_path / "secret"), "/../../../../etc/hostname"):
            with pytest.raises(OSError, match=r"."):
                sftp.stat(path)
        transport.close()


def test_the_process_ends_with_the_block_whatever_happens_in_it(collect: Path, leaves_nothing: None) -> None:
    with ssh_server(collect) as server:
        assert not is_gone(server.pid, 0)
    assert is_gone(server.pid)
    with pytest.raises(KeyError), ssh_server(collect) as server:
        raise KeyError
    assert is_gone(server.pid)


def test_the_process_ends_with_its_parent_even_by_sigkill(collect: Path) -> None:
    code = f"""
import time
from peerstage.testing import ssh_server
with ssh_server({str(collect)!r}) as server:
    print(server.pid, flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
    assert is_gone(pid)


def test_without_asyncssh_it_says_what_to_install(collect: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(NotAvailable, match=r"peerstage\[testing\]"), ssh_server(collect):
        raise AssertionError


def test_a_server_that_does_not_start_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", program("ssh"))
    with pytest.raises(StageError, match="did not start"), ssh_server(tmp_path, startup_timeout=5):
        raise AssertionError


def test_it_shows_no_secrets(collect: Path) -> None:
    with ssh_server(collect) as server:
        assert "PRIVATE" not in repr(server)

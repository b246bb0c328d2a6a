"""ProxyCommand: the peer is reached through a program, whose end is the run's end, and of which nothing is left."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peerstage import RemotePeer, Retry, StageError
from peerstage.errors import Cancelled, ConfigurationError, ConnectError, ConnectionLost, LimitExceeded, UnknownHostKey
from peerstage.records import Progress
from support import relay
from support.children import in_child
from support.programs import program
from support.sshd import Sshd
from support.waiting import wait_until

MIB = 1 << 20
RELAY = f"{shlex.quote(sys.executable)} {shlex.quote(relay.__file__)}"


@pytest.fixture
def config(own_home: Path) -> Path:
    (own_home / ".ssh").mkdir(mode=0o700)
    return own_home / ".ssh" / "config"


def peer_of(server: Sshd, collect: Path, name: str = "db1", **options: Any) -> RemotePeer:
    """A peer that only the configuration knows how to reach."""
    options = {"port": None, "config": None, **options}
    return RemotePeer(name, str(collect), "/tmp", server.user, ssh=server.options(**options), retry=Retry(tries=1))


def lines_for(server: Sshd, command: str) -> str:
    return f"Host db1\n HostName {server.host}\n Port {server.port}\n ProxyCommand {command}\n"


def gone(pid: int, seconds: float = 5.0) -> bool:
    """Whether a process is gone, not even a zombie of it being left."""
    until = time.monotonic() + seconds
    while Path(f"/proc/{pid}").exists():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def pids(record: Path) -> list[int]:
    return [int(line.split()[0]) for line in record.read_text().splitlines()]


@pytest.mark.parametrize("transport", ["sftp", "scp"])
def test_a_peer_is_staged_through_a_command_of_which_nothing_is_left(
    leaves_nothing: None, sshd: Sshd, collect: Path, target: Path, config: Path, tmp_path: Path, transport: str
) -> None:
    config.write_text(lines_for(sshd, f"{RELAY} {tmp_path}/record %h %p"))
    data = os.urandom(20 * MIB)
    (collect / "big").write_bytes(data)
    for number in range(300):
        (collect / f"{number}").write_bytes(b"%d" % number)
    peer = peer_of(sshd, collect)
    peer.transport = transport
    with peer:
        assert peer.stagePeer(str(target)) == 301
        peer.writeStageIndicator()
        assert len(pids(tmp_path / "record")) == 1
    assert (target / "big").read_bytes() == data
    (pid,) = pids(tmp_path / "record")
    assert not Path(f"/proc/{pid}").exists()
    assert (tmp_path / "record").read_text() == f"{pid} {sshd.host} {sshd.port}\n"


def test_the_usual_command_is_ssh_w(
    leaves_nothing: None, own_sshd: Callable[..., Sshd], collect: Path, target: Path, config: Path
) -> None:
    server, gate = own_sshd(), own_sshd()
    ssh = shlex.join([program("ssh"), *gate.ssh_arguments(), "-W", "[%h]:%p", f"{gate.user}@{gate.host}"])
    config.write_text(lines_for(server, ssh.replace("'[%h]:%p'", "[%h]:%p")))
    (collect / "a").write_bytes(b"a")
    assert peer_of(server, collect).stagePeer(str(target)) == 1
    assert gate.log.count("Accepted publickey") == 1


@pytest.mark.parametrize(
    "words",
    [
        "%h %p %r %n %k %%",
        "\"%h\" '%n' $((1 + 1)) `echo x` %r@%h:%p",
        "$HOME ${LOGNAME:-x} ~ %%h",
        "a;b && c | d # not a comment for ssh",
    ],
)
def test_the_shell_gets_the_very_line_that_it_gets_from_ssh(
    sshd: Sshd, collect: Path, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    shell = tmp_path / "shell"
    shell.write_text(f'#!/bin/sh\nprintf "%s|" "$@" >{tmp_path}/line\nexit 1\n')
    shell.chmod(0o755)
    monkeypatch.setenv("SHELL", str(shell))
    text = f"HostName Real.Example\nPort 2222\nHostKeyAlias alias\nProxyCommand =  nc {words}\n"
    config.write_text(text)
    assert not peer_of(sshd, collect, "DB1").checkCollectIndicator()
    ours = (tmp_path / "line").read_text()
    subprocess.run([program("ssh"), "-F", str(config), "-l", sshd.user, "DB1"], capture_output=True, check=False)
    assert ours == (tmp_path / "line").read_text()
    assert ours.startswith("-c|exec nc ")


def test_a_token_that_ssh_does_not_know_there_is_refused(sshd: Sshd, collect: Path, config: Path) -> None:
    for letter in "uiLlCdj":
        config.write_text(f"ProxyCommand true %{letter}\n")
        done = subprocess.run([program("ssh"), "-F", str(config), "db1"], capture_output=True, text=True, check=False)
        assert "unknown key" in done.stderr
        with pytest.raises(ConfigurationError, match=rf"config:1: the token %{letter}"):
            peer_of(sshd, collect).stagePeer("/")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("sh -c 'echo no route to heaven >&2; exit 3'", r"\(status 3\), saying no route to heaven"),
        ("sh -c 'printf \"one\\n\\ntwo\\033[1m\\n\" >&2; kill -9 $$'", r"\(signal 9\), saying one; two\\x1b\[1m"),
        ("/nonexistent/proxy %h", r"\(status 12[67]\), saying .*(not found|No such file)"),
        ("true", r"\(status 0\), saying nothing"),
        ("sh -c 'exec <&- >&-; sleep 1000'", "hangs up|closed the connection"),
    ],
)
def test_a_command_that_fails_is_quoted(
    leaves_nothing: None, sshd: Sshd, collect: Path, config: Path, target: Path, command: str, words: str
) -> None:
    config.write_text(lines_for(sshd, command) + " ConnectTimeout 5\n")
    with pytest.raises(StageError, match=words) as caught:
        peer_of(sshd, collect).stagePeer(str(target))
    assert str(caught.value).isprintable()
    assert list(target.iterdir()) == []


def test_what_a_command_that_works_has_said_hides_no_other_reason(
    leaves_nothing: None, own_sshd: Callable[..., Sshd], collect: Path, config: Path, target: Path, tmp_path: Path
) -> None:
    server = own_sshd(extra="Ciphers aes256-ctr")
    script = tmp_path / "chatty"
    script.write_text(f"#!/bin/sh\necho take care >&2\nexec {RELAY} {tmp_path}/record $1 $2\n")
    script.chmod(0o755)
    config.write_text("Ciphers aes128-gcm@openssh.com\n" + lines_for(server, f"{script} %h %p"))
    with pytest.raises(ConnectError, match=r"No algorithm in common: .*take care"):
        peer_of(server, collect).stagePeer(str(target))
    config.write_text(lines_for(server, f"{script} %h %p"))
    with pytest.raises(UnknownHostKey) as caught:
        peer_of(server, collect, known_hosts=()).stagePeer(str(target))
    assert "take care" not in str(caught.value)


def test_a_shell_that_is_not_there_is_named(
    leaves_nothing: None, sshd: Sshd, collect: Path, config: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHELL", "/nonexistent/shell")
    config.write_text(lines_for(sshd, "nc"))
    with pytest.raises(ConnectError, match="/nonexistent/shell: No such file"):
        peer_of(sshd, collect).stagePeer(str(target))


def test_what_it_says_is_bounded_and_does_not_stop_it(
    leaves_nothing: None, sshd: Sshd, collect: Path, config: Path, target: Path, tmp_path: Path
) -> None:
    flood = tmp_path / "flood.py"
    flood.write_text("import sys\nsys.exit('x' * 20_000_000)\n")
    config.write_text(lines_for(sshd, f"{shlex.quote(sys.executable)} {flood}"))
    with pytest.raises(ConnectError) as caught:
        peer_of(sshd, collect).stagePeer(str(target))
    assert 1000 < len(str(caught.value)) < 4000


def test_a_command_that_ends_in_mid_transfer_ends_the_run_with_its_words(
    leaves_nothing: None, sshd: Sshd, collect: Path, config: Path, target: Path, tmp_path: Path
) -> None:
    with (collect / "big").open("wb") as file:
        file.truncate(100 * MIB)
    config.write_text(lines_for(sshd, f"{RELAY} {tmp_path}/record %h %p {10 * MIB} 'the tunnel fell in'"))
    started = time.monotonic()
    with pytest.raises(ConnectionLost, match=r"\(status 7\), saying the tunnel fell in"):
        peer_of(sshd, collect).stagePeer(str(target))
    assert time.monotonic() - started < 10
    assert list(target.iterdir()) == []


def test_a_command_that_is_lost_is_run_anew_and_the_stage_goes_on(
    leaves_nothing: None, sshd: Sshd, collect: Path, config: Path, target: Path, tmp_path: Path
) -> None:
    data = os.urandom(MIB) * 60
    (collect / "big").write_bytes(data)
    config.write_text(lines_for(sshd, f"{RELAY} {tmp_path}/record %h %p {40 * MIB}"))
    peer = peer_of(sshd, collect)
    peer.retry = Retry()
    assert peer.stagePeer(str(target)) == 1
    assert (target / "big").read_bytes() == data
    assert len(pids(tmp_path / "record")) == 2
    assert all(gone(pid) for pid in pids(tmp_path / "record"))


def test_a_command_that_reaches_nothing_is_bounded_by_the_time_to_connect(
    leaves_nothing: None, sshd: Sshd, collect: Path, config: Path, target: Path, tmp_path: Path
) -> None:
    command = f"sh -c 'echo $$ >{tmp_path}/pid; echo still trying >&2; exec sleep 1000'"
    config.write_text(lines_for(sshd, command) + " ConnectTimeout 1\n")
    started = time.monotonic()
    with pytest.raises(LimitExceeded, match=r"answer as an SSH server within 1 s.*says: still trying"):
        peer_of(sshd, collect).stagePeer(str(target))
    assert time.monotonic() - started < 8
    assert gone(int((tmp_path / "pid").read_text()))


def test_a_command_that_heeds_no_signal_is_killed_with_its_children(
    leaves_nothing: None, sshd: Sshd, collect: Path, config: Path, target: Path, tmp_path: Path
) -> None:
    script = tmp_path / "stubborn"
    script.write_text(
        f"#!/bin/sh\ntrap '' HUP TERM INT\nsleep 1000 </dev/null >/dev/null &\necho $! $$ >{tmp_path}/pids\n"
        f"{RELAY} {tmp_path}/record $1 $2\nsleep 1000\n"
    )
    script.chmod(0o755)
    config.write_text(lines_for(sshd, f"{script} %h %p"))
    (collect / "a").touch()
    assert peer_of(sshd, collect).stagePeer(str(target)) == 1
    assert all(gone(int(pid)) for pid in (tmp_path / "pids").read_text().split())


def test_cancelling_and_what_progress_raises_end_the_command(
    leaves_nothing: None, sshd: Sshd, collect: Path, config: Path, target: Path, tmp_path: Path
) -> None:
    with (collect / "big").open("wb") as file:
        file.truncate(100 * MIB)
    config.write_text(lines_for(sshd, f"{RELAY} {tmp_path}/record %h %p"))
    peer = peer_of(sshd, collect)

    def cancel(progress: Progress) -> None:
        if progress.bytes_done:
            peer.cancel()

    peer.on_progress = cancel
    with peer, pytest.raises(Cancelled):
        peer.stagePeer(str(target))

    def fail(progress: Progress) -> None:
        raise RuntimeError("enough")

    peer.on_progress = fail
    with pytest.raises(RuntimeError, match="enough"):
        peer.stagePeer(str(target))
    config.write_text(lines_for(sshd, f"sh -c 'echo $$ 0 0 >>{tmp_path}/record; exec sleep 1000'"))
    with peer:

        def cancel_it() -> None:
            wait_until(lambda: len(pids(tmp_path / "record")) == 3)
            peer.cancel()

        canceller = threading.Thread(target=cancel_it)
        canceller.start()
        with pytest.raises(Cancelled):
            peer.stagePeer(str(target))
        canceller.join()
    assert len(pids(tmp_path / "record")) == 3
    assert all(gone(pid) for pid in pids(tmp_path / "record"))


def test_its_socket_does_not_reach_other_children(
    leaves_nothing: None, sshd: Sshd, collect: Path, config: Path, tmp_path: Path
) -> None:
    config.write_text(lines_for(sshd, f"{RELAY} {tmp_path}/record %h %p"))
    (collect / "cback.collect").touch()
    look = "import os; print(sorted(os.listdir('/proc/self/fd')))"
    before = subprocess.run([sys.executable, "-c", look], close_fds=False, capture_output=True, check=True).stdout
    with peer_of(sshd, collect) as peer:
        assert peer.checkCollectIndicator()
        during = subprocess.run([sys.executable, "-c", look], close_fds=False, capture_output=True, check=True).stdout
        (pid,) = pids(tmp_path / "record")
        held = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
    assert during == before
    assert len([one for one in held if one.startswith("socket:")]) == 3, "in and out, errors, and its own connection"


SCRIPT = """
import os, sys
from peerstage import RemotePeer, SSHOptions
name, identity, known_hosts, user, collect, target, way = sys.argv[1:]
options = SSHOptions(identity=identity, known_hosts=known_hosts, agent=False)
def told(progress):
    print("on", flush=True)
peer = RemotePeer(name, collect, "/tmp", user, ssh=options, on_progress=told)
peer.__enter__()
if way == "exit":
    peer.checkCollectIndicator()
    print("on", flush=True)
    sys.exit(3)
peer.stagePeer(target)
"""


@pytest.mark.parametrize(("way", "status"), [("exit", 3), ("interrupt", -signal.SIGINT), ("kill", -signal.SIGKILL)])
def test_the_command_does_not_outlive_the_program(
    sshd: Sshd, collect: Path, config: Path, target: Path, tmp_path: Path, way: str, status: int
) -> None:
    config.write_text(lines_for(sshd, f"{RELAY} {tmp_path}/record %h %p"))
    with (collect / "big").open("wb") as file:
        file.truncate(2 << 30)
    command = [sys.executable, "-c", SCRIPT, "db1", sshd.identity, sshd.known_hosts, sshd.user, collect, target, way]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "on\n"
        if way != "exit":
            running.send_signal(signal.SIGINT if way == "interrupt" else signal.SIGKILL)
        _, said = running.communicate(timeout=30)
    assert running.returncode in (status, 1) if way == "interrupt" else running.returncode == status, said
    assert gone(*pids(tmp_path / "record"))


def test_a_forked_child_leaves_the_command_alone(
    leaves_nothing: None, sshd: Sshd, collect: Path, config: Path, target: Path, tmp_path: Path
) -> None:
    config.write_text(lines_for(sshd, f"{RELAY} {tmp_path}/record %h %p"))
    (collect / "cback.collect").touch()
    with peer_of(sshd, collect) as peer:
        assert peer.checkCollectIndicator()
        in_child(lambda: peer.__exit__(None, None, None))
        assert peer.stagePeer(str(target)) == 1
        assert len(pids(tmp_path / "record")) == 1
        in_child(lambda: peer.stagePeer(str(target)))
        assert len(pids(tmp_path / "record")) == 2, "the child has one of its own"
        assert peer.checkCollectIndicator(), "the parent's was not ended"


def test_a_hop_has_a_command_of_its_own(
    leaves_nothing: None, own_sshd: Callable[..., Sshd], collect: Path, target: Path, config: Path, tmp_path: Path
) -> None:
    server, gate = own_sshd(), own_sshd()
    (gate.home / "authorized_keys").write_bytes((server.home / "id.pub").read_bytes())
    known = server.known_hosts.read_bytes() + gate.known_hosts.read_bytes()
    text = (
        f"Host gate\n HostName {gate.host}\n Port {gate.port}\n User {gate.user}\n"
        f" ProxyCommand {RELAY} {tmp_path}/record %h %p {{}}\n"
        f"Host db1\n HostName {server.host}\n Port {server.port}\n ProxyJump gate\n ProxyCommand false\n"
    )
    config.write_text(text.format(""))
    with (collect / "big").open("wb") as file:
        file.truncate(50 * MIB)
    assert peer_of(server, collect, known_hosts=known).stagePeer(str(target)) == 1
    (pid,) = pids(tmp_path / "record")
    assert (tmp_path / "record").read_text() == f"{pid} {gate.host} {gate.port}\n"
    config.write_text(text.format(f"{5 * MIB} 'the gate fell shut'"))
    with pytest.raises(ConnectionLost, match="the gate fell shut"):
        peer_of(server, collect, known_hosts=known).stagePeer(str(target))
    config.write_text(text.replace(RELAY, "sh -c 'echo no gate >&2; exit 1' "))
    with pytest.raises(ConnectError, match=r"Jump host gate: .*saying no gate"):
        peer_of(server, collect, known_hosts=known).stagePeer(str(target))


def test_a_socket_that_is_handed_in_needs_no_command(sshd: Sshd, collect: Path, config: Path) -> None:
    config.write_text(lines_for(sshd, "false"))
    (collect / "cback.collect").touch()
    sock = socket.create_connection((sshd.host, sshd.port))
    assert peer_of(sshd, collect, sock=sock).checkCollectIndicator()

"""ProxyCommand: the connection runs through a program that ends with the run."""

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
from peerstage.reasons import Reason
from peerstage.records import Progress
from peerstage.ssh.connect.proxy_command import ProxyCommand
from support import relay
from support.children import run_in_fork
from support.programs import require_program
from support.sshd import Sshd
from support.waiting import exits_within, wait_until

MIB = 1 << 20
RELAY = f"{shlex.quote(sys.executable)} {shlex.quote(relay.__file__)}"


@pytest.fixture
def config(own_home: Path) -> Path:
    (own_home / ".ssh").mkdir(mode=0o700)
    return own_home / ".ssh" / "config"


def peer_of(server: Sshd, collect: Path, name: str = "db1", **options: Any) -> RemotePeer:
    """Return a peer whose port and address only ssh's configuration has."""
    options = {"port": None, "config": None, **options}
    return RemotePeer(name, str(collect), "/tmp", server.user, ssh=server.options(**options), retry=Retry(tries=1))


def lines_for(server: Sshd, command: str) -> str:
    return f"Host db1\n HostName {server.host}\n Port {server.port}\n ProxyCommand {command}\n"


def pids(record: Path) -> list[int]:
    return [int(line.split()[0]) for line in record.read_text().splitlines()]


@pytest.mark.parametrize("transport", ["sftp", "scp"])
def test_a_peer_is_staged_through_a_command_that_leaves_no_process(
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


def test_ssh_w_is_a_proxy_command(
    leaves_nothing: None, own_sshd: Callable[..., Sshd], collect: Path, target: Path, config: Path
) -> None:
    server, gate = own_sshd(), own_sshd()
    ssh = shlex.join([require_program("ssh"), *gate.ssh_arguments(), "-W", "[%h]:%p", f"{gate.user}@{gate.host}"])
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
def test_the_shell_gets_the_same_arguments_as_from_ssh(
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
    subprocess.run(
        [require_program("ssh"), "-F", str(config), "-l", sshd.user, "DB1"], capture_output=True, check=False
    )
    assert ours == (tmp_path / "line").read_text()
    assert ours.startswith("-c|exec nc ")


def test_a_token_that_proxycommand_does_not_have_is_rejected(sshd: Sshd, collect: Path, config: Path) -> None:
    for letter in "uiLlCdj":
        config.write_text(f"ProxyCommand true %{letter}\n")
        done = subprocess.run(
            [require_program("ssh"), "-F", str(config), "db1"], capture_output=True, text=True, check=False
        )
        assert "unknown key" in done.stderr
        with pytest.raises(ConfigurationError, match=rf"config:1: unknown token %{letter}"):
            peer_of(sshd, collect).stagePeer("/")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("sh -c 'echo no route to heaven >&2; exit 3'", r"\(status 3\) and printed no route to heaven"),
        ("sh -c 'printf \"one\\n\\ntwo\\033[1m\\n\" >&2; kill -9 $$'", r"\(signal 9\) and printed one; two\\x1b\[1m"),
        ("/nonexistent/proxy %h", r"\(status 12[67]\) and printed .*(not found|No such file)"),
        ("true", r"\(status 0\) and printed nothing"),
        ("sh -c 'exec <&- >&-; sleep 1000'", "hangs up|closed the connection"),
    ],
)
def test_the_status_and_output_of_a_failed_command_are_in_the_error(
    leaves_nothing: None, sshd: Sshd, collect: Path, config: Path, target: Path, command: str, words: str
) -> None:
    config.write_text(lines_for(sshd, command) + " ConnectTimeout 5\n")
    with pytest.raises(StageError, match=words) as caught:
        peer_of(sshd, collect).stagePeer(str(target))
    assert str(caught.value).isprintable()
    assert list(target.iterdir()) == []


def test_output_of_a_working_command_does_not_hide_the_cause(
    leaves_nothing: None, own_sshd: Callable[..., Sshd], collect: Path, config: Path, target: Path, tmp_path: Path
) -> None:
    server = own_sshd(extra="Ciphers aes256-ctr")
    script = tmp_path / "chatty"
    script.write_text(f"#!/bin/sh\necho take care >&2\nexec {RELAY} {tmp_path}/record $1 $2\n")
    script.chmod(0o755)
    config.write_text("Ciphers aes128-gcm@openssh.com\n" + lines_for(server, f"{script} %h %p"))
    with pytest.raises(ConnectError, match=r"No common algorithm: .*take care"):
        peer_of(server, collect).stagePeer(str(target))
    config.write_text(lines_for(server, f"{script} %h %p"))
    with pytest.raises(UnknownHostKey) as caught:
        peer_of(server, collect, known_hosts=()).stagePeer(str(target))
    assert "take care" not in str(caught.value)


def test_a_missing_shell_is_named(
    leaves_nothing: None, sshd: Sshd, collect: Path, config: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHELL", "/nonexistent/shell")
    config.write_text(lines_for(sshd, "nc"))
    with pytest.raises(ConnectError, match=r"/nonexistent/shell: No such file.*Correct the environment variable SHELL"):
        peer_of(sshd, collect).stagePeer(str(target))


@pytest.mark.parametrize("command", ["x" * 200_000, "nc \0"], ids=["too long", "a zero byte"])
def test_a_command_that_no_shell_can_run_is_not_the_fault_of_the_shell(leaves_nothing: None, command: str) -> None:
    with pytest.raises(ConnectError, match=r"Correct the ProxyCommand\.$"):
        ProxyCommand(command)


def test_a_lack_of_threads_is_explained_once(leaves_nothing: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("threading.Thread.start", refuse)
    with pytest.raises(StageError) as caught:
        ProxyCommand("true")
    assert caught.value.reason is Reason.OUT_OF_THREADS
    assert str(caught.value).count("ulimit -u") == 1


def test_long_error_output_is_shortened_and_does_not_block_the_command(
    leaves_nothing: None, sshd: Sshd, collect: Path, config: Path, target: Path, tmp_path: Path
) -> None:
    flood = tmp_path / "flood.py"
    flood.write_text("import sys\nsys.exit('x' * 20_000_000)\n")
    config.write_text(lines_for(sshd, f"{shlex.quote(sys.executable)} {flood}"))
    with pytest.raises(ConnectError) as caught:
        peer_of(sshd, collect).stagePeer(str(target))
    assert 1000 < len(str(caught.value)) < 4000


def test_a_command_that_exits_during_a_transfer_ends_the_run_and_its_output_is_in_the_error(
    leaves_nothing: None, sshd: Sshd, collect: Path, config: Path, target: Path, tmp_path: Path
) -> None:
    with (collect / "big").open("wb") as file:
        file.truncate(100 * MIB)
    config.write_text(lines_for(sshd, f"{RELAY} {tmp_path}/record %h %p {10 * MIB} 'the tunnel fell in'"))
    started = time.monotonic()
    with pytest.raises(ConnectionLost, match=r"\(status 7\) and printed the tunnel fell in"):
        peer_of(sshd, collect).stagePeer(str(target))
    assert time.monotonic() - started < 10
    assert list(target.iterdir()) == []


def test_a_command_that_exits_is_run_again_and_the_stage_resumes(
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
    assert all(exits_within(pid) for pid in pids(tmp_path / "record"))


def test_a_silent_command_is_limited_by_connecttimeout(
    leaves_nothing: None, sshd: Sshd, collect: Path, config: Path, target: Path, tmp_path: Path
) -> None:
    command = f"sh -c 'echo $$ >{tmp_path}/pid; echo still trying >&2; exec sleep 1000'"
    config.write_text(lines_for(sshd, command) + " ConnectTimeout 1\n")
    started = time.monotonic()
    with pytest.raises(LimitExceeded, match=r"answer as an SSH server within 1 s.*printed: still trying"):
        peer_of(sshd, collect).stagePeer(str(target))
    assert time.monotonic() - started < 8
    assert exits_within(int((tmp_path / "pid").read_text()))


def test_a_command_that_ignores_signals_is_killed_with_its_children(
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
    assert all(exits_within(int(pid)) for pid in (tmp_path / "pids").read_text().split())


def test_cancel_and_an_error_of_on_progress_end_the_command(
    leaves_nothing: None, sshd: Sshd, collect: Path, config: Path, target: Path, tmp_path: Path
) -> None:
    with (collect / "big").open("wb") as file:
        file.truncate(100 * MIB)
    config.write_text(lines_for(sshd, f"{RELAY} {tmp_path}/record %h %p"))
    peer = peer_of(sshd, collect)

    def cancel_once_begun(progress: Progress) -> None:
        if progress.bytes_done:
            peer.cancel()

    peer.on_progress = cancel_once_begun
    with peer, pytest.raises(Cancelled):
        peer.stagePeer(str(target))

    def fail(progress: Progress) -> None:
        raise RuntimeError("enough")

    peer.on_progress = fail
    with pytest.raises(RuntimeError, match="enough"):
        peer.stagePeer(str(target))
    config.write_text(lines_for(sshd, f"sh -c 'echo $$ 0 0 >>{tmp_path}/record; exec sleep 1000'"))
    with peer:

        def cancel_while_connecting() -> None:
            wait_until(lambda: len(pids(tmp_path / "record")) == 3)
            peer.cancel()

        canceller = threading.Thread(target=cancel_while_connecting)
        canceller.start()
        with pytest.raises(Cancelled):
            peer.stagePeer(str(target))
        canceller.join()
    assert len(pids(tmp_path / "record")) == 3
    assert all(exits_within(pid) for pid in pids(tmp_path / "record"))


def test_other_child_processes_do_not_inherit_its_sockets(
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
    assert len([path for path in held if path.startswith("socket:")]) == 3, "in and out, errors, and its own connection"


SCRIPT = """
import os, sys
from peerstage import RemotePeer, SSHOptions
name, identity, known_hosts, user, collect, target, end = sys.argv[1:]
options = SSHOptions(identity=identity, known_hosts=known_hosts, agent=False)
def print_progress(progress):
    print("on", flush=True)
peer = RemotePeer(name, collect, "/tmp", user, ssh=options, on_progress=print_progress)
peer.__enter__()
if end == "exit":
    peer.checkCollectIndicator()
    print("on", flush=True)
    sys.exit(3)
peer.stagePeer(target)
"""


@pytest.mark.parametrize(("end", "status"), [("exit", 3), ("interrupt", -signal.SIGINT), ("kill", -signal.SIGKILL)])
def test_the_command_does_not_outlive_the_program(
    sshd: Sshd, collect: Path, config: Path, target: Path, tmp_path: Path, end: str, status: int
) -> None:
    config.write_text(lines_for(sshd, f"{RELAY} {tmp_path}/record %h %p"))
    with (collect / "big").open("wb") as file:
        file.truncate(2 << 30)
    command = [sys.executable, "-c", SCRIPT, "db1", sshd.identity, sshd.known_hosts, sshd.user, collect, target, end]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "on\n"
        if end != "exit":
            running.send_signal(signal.SIGINT if end == "interrupt" else signal.SIGKILL)
        _, stderr = running.communicate(timeout=30)
    assert running.returncode in (status, 1) if end == "interrupt" else running.returncode == status, stderr
    assert exits_within(*pids(tmp_path / "record"))


def test_a_forked_child_does_not_end_the_command(
    leaves_nothing: None, sshd: Sshd, collect: Path, config: Path, target: Path, tmp_path: Path
) -> None:
    config.write_text(lines_for(sshd, f"{RELAY} {tmp_path}/record %h %p"))
    (collect / "cback.collect").touch()
    with peer_of(sshd, collect) as peer:
        assert peer.checkCollectIndicator()
        run_in_fork(lambda: peer.__exit__(None, None, None))
        assert peer.stagePeer(str(target)) == 1
        assert len(pids(tmp_path / "record")) == 1
        run_in_fork(lambda: peer.stagePeer(str(target)))
        assert len(pids(tmp_path / "record")) == 2, "the child starts its own"
        assert peer.checkCollectIndicator(), "the parent's is still running"


def test_a_jump_host_has_a_proxy_command_of_its_own(
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
    with pytest.raises(ConnectError, match=r"Jump host gate: .*printed no gate"):
        peer_of(server, collect, known_hosts=known).stagePeer(str(target))


def test_a_socket_in_the_options_replaces_the_command(sshd: Sshd, collect: Path, config: Path) -> None:
    config.write_text(lines_for(sshd, "false"))
    (collect / "cback.collect").touch()
    sock = socket.create_connection((sshd.host, sshd.port))
    assert peer_of(sshd, collect, sock=sock).checkCollectIndicator()

"""``peerstage doctor``: the file that it writes on the peer is removed."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import paramiko
import pytest

from cli.doctor_setup import DoctorSetup, beside, failed
from support.children import pending_signals
from support.local_user import LOCAL_USER
from support.ssh_server import (
    Policy,
    listening,
    paramiko_handler,
)
from support.waiting import wait_until


class WhenCreated(Policy):
    """Serves SFTP by OpenSSH's program, and calls *then* once when the trial file exists."""

    directory = Path()
    then: Callable[[paramiko.Channel], object] | None = None

    def serve(self, channel: paramiko.Channel) -> None:
        with subprocess.Popen([self.program()], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
            assert server.stdin is not None
            assert server.stdout is not None
            answers = threading.Thread(target=self.answer, args=(channel, server.stdout.fileno()), daemon=True)
            answers.start()
            while data := channel.recv(65536):
                server.stdin.write(data)
                server.stdin.flush()
            server.stdin.close()
            answers.join(10)

    def answer(self, channel: paramiko.Channel, source: int) -> None:
        with contextlib.suppress(OSError):
            while data := os.read(source, 65536):
                then = WhenCreated.then
                if then is not None and list(self.directory.glob(".peerstage-doctor-*")):
                    WhenCreated.then = None
                    then(channel)
                channel.sendall(data)

    @staticmethod
    def program() -> str:
        places = ("/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/lib/ssh/sftp-server")
        return next(path for path in places if os.path.exists(path))


@pytest.fixture
def when_created(setup: DoctorSetup) -> Iterator[Callable[..., int]]:
    """Starts a server that calls a function when the trial file exists; returns its port."""
    setup.start()
    with contextlib.ExitStack() as stack:

        def start(then: Callable[[paramiko.Channel], object]) -> int:
            WhenCreated.directory, WhenCreated.then = setup.collect, staticmethod(then)
            key = paramiko.Ed25519Key.from_private_key_file(str(setup.sshd.home / "host"))
            port = stack.enter_context(listening(paramiko_handler(WhenCreated, key=key)))
            beside(setup, port)
            return port

        yield start


def test_after_a_lost_connection_the_file_is_removed_over_a_new_one(
    setup: DoctorSetup, when_created: Callable[..., int]
) -> None:
    port = when_created(lambda channel: channel.get_transport().close())
    report = setup.doctor("--port", port, once=True)
    assert WhenCreated.then is None
    failed(report, "write", "connection-lost")
    assert sorted(os.listdir(setup.collect)) == ["cback.collect", "data"]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_waits_until_the_file_is_removed(
    setup: DoctorSetup, when_created: Callable[..., int], signum: int
) -> None:
    processes: list[subprocess.Popen[str]] = []

    def interrupt(channel: paramiko.Channel) -> None:
        pid = processes[0].pid
        processes[0].send_signal(signum)
        wait_until(lambda: signum not in pending_signals(pid))

    port = when_created(interrupt)
    spec = f"{setup.sshd.user}@db1:{setup.collect}"
    with setup.command.start("doctor", "--port", port, spec) as process:
        processes.append(process)
        process.communicate(timeout=60)
    assert process.returncode == -signum
    assert WhenCreated.then is None
    assert sorted(os.listdir(setup.collect)) == ["cback.collect", "data"]


def test_an_interrupted_child_of_another_user_removes_the_file_first(
    setup: DoctorSetup, when_created: Callable[..., int], public_path: Path
) -> None:
    processes: list[subprocess.Popen[str]] = []

    def interrupt(channel: paramiko.Channel) -> None:
        pid = processes[0].pid
        processes[0].send_signal(signal.SIGINT)
        wait_until(lambda: signal.SIGINT not in pending_signals(pid))
        time.sleep(2)  # longer than a child that is ended gets to clean up

    port = when_created(interrupt)
    for name in ("id_ed25519", "known_hosts"):
        shutil.copy(setup.home / ".ssh" / name, public_path / name)
        shutil.chown(public_path / name, LOCAL_USER)
    files = ["--identity", public_path / "id_ed25519", "--known-hosts", public_path / "known_hosts"]
    spec = f"{setup.sshd.user}@127.0.0.1:{setup.collect}"
    options = ["--local-user", LOCAL_USER, "--no-config", *files, "--port", port]
    with setup.command.start("doctor", *options, spec) as process:
        processes.append(process)
        process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert WhenCreated.then is None
    assert sorted(os.listdir(setup.collect)) == ["cback.collect", "data"]

"""``peerstage doctor``: what it writes on the peer, it removes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import paramiko
import pytest

from cli.patient import Patient, beside, failed
from support.children import status_of
from support.ssh_server import (
    Policy,
    listening,
    made_of_paramiko,
)
from support.waiting import wait_until


class WhenCreated(Policy):
    """Serves SFTP by the real program, and does something once, when the trial file is there."""

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


def pending(pid: int) -> set[int]:
    """Return the signals that were sent to a process and that it has not taken yet."""
    status = status_of(pid)
    bits = int(status["SigPnd"][0], 16) | int(status["ShdPnd"][0], 16)
    return {number for number in range(1, 65) if bits >> (number - 1) & 1}


@pytest.fixture
def when_created(patient: Patient) -> Iterator[Callable[..., int]]:
    """Starts a server that does something when the trial file is there; returns its port."""
    patient.healthy()
    with contextlib.ExitStack() as stack:

        def start(then: Callable[[paramiko.Channel], object]) -> int:
            WhenCreated.directory, WhenCreated.then = patient.collect, staticmethod(then)
            key = paramiko.Ed25519Key.from_private_key_file(str(patient.sshd.home / "host"))
            port = stack.enter_context(listening(made_of_paramiko(WhenCreated, key=key)))
            beside(patient, port)
            return port

        yield start


def test_a_file_whose_connection_was_lost_is_removed_over_another(
    patient: Patient, when_created: Callable[..., int]
) -> None:
    port = when_created(lambda channel: channel.get_transport().close())
    told = patient.doctor("--port", port, once=True)
    assert WhenCreated.then is None
    failed(told, "write", "connection-lost")
    assert sorted(os.listdir(patient.collect)) == ["cback.collect", "data"]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_waits_until_the_file_is_removed(
    patient: Patient, when_created: Callable[..., int], signum: int
) -> None:
    processes: list[subprocess.Popen[str]] = []

    def interrupt(channel: paramiko.Channel) -> None:
        pid = processes[0].pid
        processes[0].send_signal(signum)
        wait_until(lambda: signum not in pending(pid))

    port = when_created(interrupt)
    spec = f"{patient.sshd.user}@db1:{patient.collect}"
    with patient.command.start("doctor", "--port", port, spec) as process:
        processes.append(process)
        process.communicate(timeout=60)
    assert process.returncode == -signum
    assert WhenCreated.then is None
    assert sorted(os.listdir(patient.collect)) == ["cback.collect", "data"]

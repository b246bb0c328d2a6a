"""Signals: the command cleans up, publishes nothing, and ends by the signal that it got."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from cli.command import Command
from support.waiting import wait_until

SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]


def arrived(target: Path) -> int:
    """Return how many bytes have come down into a private directory."""
    return sum(path.stat().st_size for path in target.glob(".peerstage-*/*") if path.name != "lock")


def arriving(target: Path) -> bool:
    """Whether bytes are coming down in a private directory."""
    return arrived(target) > 1 << 20


@pytest.fixture
def large(collect: Path) -> Path:
    """A file that takes a while."""
    with (collect / "large").open("wb") as file:
        file.truncate(1 << 31)
    (collect / "small").write_bytes(b"small")
    return collect


@pytest.mark.parametrize("signum", SIGNALS)
def test_signal_in_mid_transfer_leaves_nothing(command: Command, large: Path, target: Path, signum: int) -> None:
    with command.start("stage", *command.reaching, command.spec(large), target) as process:
        wait_until(lambda: arriving(target))
        process.send_signal(signum)
        out, err = process.communicate(timeout=60)
    assert process.returncode == -signum
    assert os.listdir(target) == []
    assert (out, err) == ("", "")


def test_second_signal_does_not_disturb_the_cleaning_up(command: Command, large: Path, target: Path) -> None:
    with command.start("stage", *command.reaching, command.spec(large), target) as process:
        wait_until(lambda: arriving(target))
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode in (-signal.SIGTERM, -signal.SIGINT)
    assert os.listdir(target) == []


def test_shell_sees_128_and_the_signal(command: Command, large: Path, target: Path) -> None:
    argv = command.argv("stage", *command.reaching, command.spec(large), target)
    script = '"$@" & echo $!; wait $!; echo $?'
    with subprocess.Popen(
        ["sh", "-c", script, "sh", *argv], stdout=subprocess.PIPE, text=True, env=command.environ()
    ) as shell:
        assert shell.stdout is not None
        started = int(shell.stdout.readline())
        wait_until(lambda: arriving(target))
        os.kill(started, signal.SIGTERM)
        assert int(shell.stdout.readline()) == 128 + signal.SIGTERM


def test_ignored_signal_stays_ignored(command: Command, large: Path, target: Path) -> None:
    def ignore() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    with command.start("stage", *command.reaching, command.spec(large), target, preexec_fn=ignore) as process:
        wait_until(lambda: arriving(target))
        process.send_signal(signal.SIGHUP)
        before = arrived(target)
        wait_until(lambda: arrived(target) > before + (32 << 20))
        assert process.poll() is None
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM
    assert os.listdir(target) == []


@pytest.mark.parametrize("verb", ["check", "mark", "stage", "dry-run"])
def test_signal_ends_the_wait_for_a_silent_peer(command: Command, target: Path, verb: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        arguments = ["stage", "--dry-run"] if verb == "dry-run" else [verb]
        arguments += ["--no-config", "--port", str(port), "root@127.0.0.1:/x"]
        arguments += [str(target)] if "stage" in arguments else []
        with command.start(*arguments) as process:
            silent.settimeout(60)
            connection, _ = silent.accept()
            process.terminate()
            out, err = process.communicate(timeout=60)
            connection.close()
    assert (process.returncode, out, err) == (-signal.SIGTERM, "", "")
    assert os.listdir(target) == []

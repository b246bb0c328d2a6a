"""Signals: the command cleans up, publishes nothing, and ends by the signal."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cli.command import Command
from support.children import caught_signals, pending_signals
from support.waiting import wait_until

SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]


def arrived(target: Path) -> int:
    """Return the number of bytes in private directories."""
    return sum(path.stat().st_size for path in target.glob(".peerstage-*/*") if path.name != "lock")


def arriving(target: Path) -> bool:
    """Return whether a transfer is in progress."""
    return arrived(target) > 1 << 20


def has_open(pid: int, path: Path) -> bool:
    """Return whether a process has opened *path*."""
    with contextlib.suppress(OSError):  # a descriptor that is closed at the same time
        return any(os.readlink(link) == str(path) for link in Path(f"/proc/{pid}/fd").iterdir())
    return False


@pytest.fixture
def large(collect: Path) -> Path:
    """A collect directory with a file that takes a while."""
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


def test_a_second_sigterm_does_not_cut_the_cleanup_short(command: Command, large: Path, target: Path) -> None:
    with command.start("stage", *command.reaching, command.spec(large), target) as process:
        wait_until(lambda: arriving(target))
        for _ in range(3):
            process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGHUP)
        process.communicate(timeout=60)
    assert process.returncode in (-signal.SIGTERM, -signal.SIGHUP)
    assert os.listdir(target) == []


@pytest.mark.parametrize("signum", SIGNALS)
def test_signal_ends_a_verification_in_the_middle_of_a_file(command: Command, target: Path, signum: int) -> None:
    with (target / "large").open("wb") as file:
        file.truncate(1 << 36)
    (target / "peerstage.sha256").write_text(f"{'0' * 64}  large\n")
    with command.start("verify", target) as process:
        wait_until(lambda: has_open(process.pid, target / "large"))
        process.send_signal(signum)
        out, err = process.communicate(timeout=60)
    assert process.returncode == -signum
    assert (out, err) == ("", "")


#: The command with a cleanup that hangs: in an operation on a peer, or outside of one.
HANGING_CLEANUP = """
import sys, time
from peerstage.__main__ import main
from peerstage.cli import {module}

def hang(*arguments, **options):
    try:
        print("running", flush=True)
        time.sleep(600)
    finally:
        print("cleaning up", flush=True)
        {hang}

{module}.{function} = hang
sys.exit(main())
"""
PLACES = {"an operation": ("host_scan", "scan_host_key", ["trust"]), "elsewhere": ("verbs", "sweep", ["sweep"])}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_ctrl_c_ends_a_cleanup_that_hangs(command: Command, tmp_path: Path, place: str, first: int) -> None:
    module, function, arguments = PLACES[place]
    # in an operation, the signal only cancels: `time.sleep` goes on, as a cleanup that hangs
    script = HANGING_CLEANUP.format(module=module, function=function, hang="time.sleep(600)")
    places = ["127.0.0.1"] if place == "an operation" else [str(tmp_path)]
    argv = [sys.executable, "-c", script, *arguments, *places]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=command.environ()) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "running\n"
            process.send_signal(first)
            if place == "elsewhere":
                assert process.stdout.readline() == "cleaning up\n"
            wait_until(lambda: first not in pending_signals(process.pid))
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(1)
            if first == signal.SIGTERM:
                process.send_signal(signal.SIGINT)
            wait_until(lambda: signal.SIGINT not in caught_signals(process.pid))
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == -signal.SIGINT
        finally:
            process.kill()


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

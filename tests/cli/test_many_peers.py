"""Many peers at once: dead ones time out in parallel, and results keep the order given."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from cli.command import Command
from support.ssh_server import listening, sends_nothing
from support.waiting import wait_until


@pytest.mark.parametrize("verb", ["check", "mark"])
def test_dead_peers_time_out_in_parallel_and_results_keep_their_order(
    command: Command, collect: Path, tmp_path: Path, verb: str
) -> None:
    (collect / "cback.collect").touch()
    config = tmp_path / "config"
    with listening(sends_nothing) as port:
        config.write_text(
            f"Host dead*\n HostName 127.0.0.1\n Port {port}\n"
            f"Host alive*\n HostName 127.0.0.1\n Port {command.sshd.port}\n IdentityFile {command.sshd.identity}\n"
            f" UserKnownHostsFile {command.sshd.known_hosts}\n"
        )
        names = [f"{'alive' if number in (3, 20) else 'dead'}{number}" for number in range(32)]
        specs = [f"{command.sshd.user}@{name}:{collect}" for name in names]
        started = time.monotonic()
        done = command(verb, "--json", "--config", config, "--connect-timeout", "2", *specs)
        seconds = time.monotonic() - started
    assert seconds < 32 * 2 / 3, "one after the other it would be 60 s"
    message = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["peer"] for one in message] == names
    assert {one["peer"] for one in message if one["exit"] == 0} == {"alive3", "alive20"}
    assert [line.split()[1].rstrip(":") for line in done.stderr.splitlines()] == [n for n in names if n[0] == "d"]
    assert done.returncode == 4


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all_of_them_at_once(command: Command, signum: int) -> None:
    asked = []

    def notes(sock: object) -> None:
        asked.append(sock)
        sends_nothing(sock)  # type: ignore[arg-type]

    with listening(notes) as port:
        specs = [f"root@127.0.0.1:/{number}" for number in range(50)]
        with command.start("check", "--no-config", "--port", port, "--connect-timeout", "600", *specs) as process:
            wait_until(lambda: len(asked) >= 16)
            process.send_signal(signum)
            started = time.monotonic()
            out, err = process.communicate(timeout=60)
    assert time.monotonic() - started < 20
    assert (process.returncode, out, err) == (-signum, "", "")
    assert len(asked) == 16, "no more than that are asked at once"

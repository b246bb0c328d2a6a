"""``peerstage run`` as a process of its own: signals, and a terminal."""

from __future__ import annotations

import datetime
import json
import os
import pty
import signal
import subprocess
from pathlib import Path

import pytest

from cli.plan_setup import PlanSetup
from cli.test_signals import arriving
from support.waiting import wait_until

pytestmark = pytest.mark.usefixtures("fresh_interpreter")


def peer_directory(fleet: PlanSetup, name: str) -> Path:
    return next(iter(fleet.staging.glob(f"2*/*/*/{name}")), fleet.staging / "none")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_in_an_orderly_way_and_another_run_continues_it(fleet: PlanSetup, signum: int) -> None:
    first = fleet.collected("db1", done=b"done")
    collect = fleet.collected("db2", small=b"small")
    fleet.collected("db3", last=b"last")
    with (collect / "large").open("wb") as file:
        file.truncate(1 << 31)
    fleet.write(top="parallel = 1")
    with fleet.command.start("run", "--plan", fleet.plan) as process:
        wait_until(lambda: arriving(peer_directory(fleet, "db2")))
        process.send_signal(signum)
        out, err = process.communicate(timeout=60)
    assert process.returncode == -signum
    assert err == ""
    assert "3 peers: 1 failed, 1 not started, 1 staged" in out
    assert "Ended by a signal." in out
    assert "Run it again safely: only what is missing is fetched." in out
    assert os.listdir(peer_directory(fleet, "db2")) == []
    [record] = [json.loads(path.read_text()) for path in (fleet.staging / ".peerstage-runs").glob("*.json")]
    assert record["ended_by"] == "signal"
    assert [result["verdict"] for result in record["results"]] == ["staged", "failed", "not-started"]

    (first / "cback.collect").unlink()  # another run does not ask it
    with (collect / "large").open("wb") as file:
        file.truncate(10)
    assert fleet("run").returncode == 0
    assert (peer_directory(fleet, "db2") / "large").read_bytes() == bytes(10)
    assert (collect / "cback.stage").exists()


def test_a_signal_ends_the_wait_for_a_peer_that_is_not_ready(fleet: PlanSetup) -> None:
    collect = fleet.collected("db1")
    (collect / "cback.collect").unlink()
    until = datetime.datetime.now() + datetime.timedelta(hours=1)
    fleet.write(top=f'until = "{until:%H:%M}"')
    with fleet.command.start("run", "--plan", fleet.plan, "--json") as process:
        assert process.stdout is not None
        while json.loads(process.stdout.readline())["event"] != "peer-waiting":
            pass
        process.terminate()
        out, _ = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM
    events = [json.loads(line) for line in out.splitlines()]
    assert [event["event"] for event in events] == ["peer-finished", "run-finished"]
    assert events[1]["ended_by"] == "signal"


def test_a_signal_ends_a_hook_and_so_the_run(fleet: PlanSetup, tmp_path: Path) -> None:
    fleet.collected("db1", data=b"d")
    before = json.dumps(["sh", "-c", f"touch {tmp_path}/running; sleep 600"])
    fleet.write(tables=f'[hooks]\nbefore = {before}\nafter = ["touch", "{tmp_path}/after"]\n')
    with fleet.command.start("run", "--plan", fleet.plan) as process:
        wait_until((tmp_path / "running").exists)
        process.terminate()
        out, err = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM
    assert err == ""
    assert "1 peer: 1 not started" in out
    assert not (tmp_path / "after").exists()
    assert not (tmp_path / "peers" / "db1" / "cback.stage").exists()


def test_a_terminal_shows_how_many_peers_are_done_and_then_the_table(fleet: PlanSetup, tmp_path: Path) -> None:
    fleet.collected("db1", data=b"d")
    before = json.dumps(["sh", "-c", f"for _ in $(seq 1000); do test -e {tmp_path}/seen && break; sleep 0.02; done"])
    fleet.write(tables=f"[hooks]\nbefore = {before}\n")
    main, other = pty.openpty()
    with fleet.command.start("run", "--plan", fleet.plan, stdout=other, stderr=subprocess.DEVNULL) as process:
        os.close(other)
        shown = bytearray()
        try:
            while data := os.read(main, 65536):
                shown += data
                if b"0 of 1 peer done" in shown:
                    (tmp_path / "seen").touch()
        except OSError:  # the other end is closed
            pass
    os.close(main)
    assert process.returncode == 0
    text = shown.decode()
    assert "0 of 1 peer done" in text
    assert text.index("0 of 1 peer done") < text.index("1 peer: 1 staged")
    assert "\x1b[32mstaged" in text


def test_a_run_whose_output_cannot_be_written_stages_all_the_same(fleet: PlanSetup) -> None:
    fleet.collected("db1", data=b"d")
    fleet.write(tables='[hooks]\nafter = ["false"]\n')
    with open("/dev/full", "w") as full, fleet.command.start("run", "--plan", fleet.plan, stdout=full) as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 6
    assert (peer_directory(fleet, "db1") / "data").read_bytes() == b"d"
    hook, output = err.splitlines()
    assert "after: " in hook
    assert "Standard output cannot be written: No space left on device." in output

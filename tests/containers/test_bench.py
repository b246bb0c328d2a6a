"""The test bench itself: loud where it can not run, and gone when it is stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kinds import KINDS

from support.containers import ROOT, Bench, docker, services_in_file

HERE = str(Path(__file__).parent)

#: pytest as in front of a terminal, even where these tests run in the background, with SIGINT ignored.
STOPPABLE = (
    "import signal, sys, pytest\n"
    "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "sys.exit(pytest.main(sys.argv[1:]))"
)


def run_pytest(*arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run the container tests in a process of their own."""
    environment = {**os.environ, **({} if path is None else {"PATH": path})}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", HERE, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)


def test_without_an_engine_one_line_says_what_to_install(tmp_path: Path) -> None:
    done = run_pytest("-k", "stages_and_starts", path=str(tmp_path))
    assert done.returncode == 1
    line = "There is no docker: install an engine (Debian: apt-get install docker.io docker-compose), or leave"
    assert [one for one in done.stdout.splitlines() if one.startswith(line)] != []
    assert "tests need it" in done.stdout
    assert "1 failed" in done.stdout
    assert "Traceback" not in done.stdout


def test_told_to_go_without_docker_the_last_line_says_how_many_are_left_out(tmp_path: Path) -> None:
    done = run_pytest("--without-docker", "-k", "stages_and_starts or every_kind", path=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.strip().splitlines()[-1].split(maxsplit=1)
    assert int(last[0]) >= 6
    assert last[1] == "container tests were left out (--without-docker)."
    assert "1 passed" in done.stdout


@pytest.mark.kind("openssh92")
def test_ctrl_c_leaves_no_container_network_or_volume(bench: Bench, tmp_path: Path) -> None:
    command = [sys.executable, "-c", STOPPABLE, "-q", "-p", "no:cacheprovider", HERE, "-k", "real_files and openssh92"]
    with open(tmp_path / "said", "wb") as said:
        process = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=said, start_new_session=True)
    mine = f"name=peerstage-{process.pid}-"
    try:
        until = time.monotonic() + 60
        while not docker("ps", "-aq", "--filter", mine) and process.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        before = docker("ps", "-aq", "--filter", mine).decode().split()
        volumes = docker("inspect", "--format", "{{range .Mounts}}{{.Name}} {{end}}", *before).split() if before else []
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to everything that runs in front
        status = process.wait(60)
    finally:
        process.kill()
    words = (tmp_path / "said").read_text()
    assert (len(before), status) == (1, 2), words
    assert docker("ps", "-aq", "--filter", mine) == b""
    assert docker("network", "ls", "-q", "--filter", mine) == b""
    assert len(volumes) == 1
    assert volumes[0] not in docker("volume", "ls", "-q").split()


def test_every_service_is_a_kind_or_has_a_part_of_its_own() -> None:
    assert set(services_in_file()) == {kind.name for kind in KINDS} | {
        *("bastion", "gate", "client", "faults", "master", "sudo")
    }

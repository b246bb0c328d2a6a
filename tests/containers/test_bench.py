"""The test bench itself: it fails loudly where it cannot run, and leaves nothing behind when interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kinds import KINDS

from support.bench_run import OWNER, PLAN, Plan, group_by_container, next_group
from support.containers import ROOT, Bench, docker, list_services
from support.engine import PROJECT, remove_project
from support.random_files import random_bytes

HERE = Path(__file__).parent
PYTEST = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:hypothesispytest"]

#: Runs a command with SIGINT's default, even where these tests run in the background, with SIGINT ignored.
RESTORE_SIGINT = (
    "import os, signal, sys\n"
    "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "os.execv(sys.argv[1], sys.argv[1:])"
)


def run_pytest(*arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run container tests in another process."""
    environment = {**os.environ, **({} if path is None else {"PATH": path})}
    command = [*PYTEST, "-q", str(HERE / "test_client.py"), str(HERE / "test_bench.py"), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)


@pytest.mark.usefixtures("fresh_interpreter")
@pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["alone", "a worker"])
def test_without_an_engine_one_line_names_what_to_install(tmp_path: Path, workers: tuple[str, ...]) -> None:
    done = run_pytest("-k", "stage_starts", *workers, path=str(tmp_path))
    assert done.returncode == 1, done.stdout + done.stderr
    line = "There is no docker: install an engine (Debian: apt-get install docker.io docker-compose), or leave"
    assert [one for one in done.stdout.splitlines() if one.startswith(line)] != [], done.stdout + done.stderr
    assert "tests need it" in done.stdout
    assert "1 failed" in done.stdout
    assert "Traceback" not in done.stdout


@pytest.mark.usefixtures("fresh_interpreter")
@pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["alone", "a worker"])
def test_without_docker_the_last_line_counts_the_deselected_tests(tmp_path: Path, workers: tuple[str, ...]) -> None:
    done = run_pytest("--without-docker", "-k", "stage_starts or one_worker", *workers, path=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.strip().splitlines()[-1].split(maxsplit=1)
    assert int(last[0]) >= 6
    assert last[1] == "container tests were left out (--without-docker)."
    assert "1 passed" in done.stdout


class ForegroundCommand:
    """A command as a terminal runs it: Ctrl-C reaches its whole process group.

    Args:
        command: The argument vector.
        directory: For its output and temporary files.
    """

    def __init__(self, command: list[str], directory: Path) -> None:
        self._marker = f"PEERSTAGE_STARTED_BY={uuid.uuid4().hex}"
        self._temporary = Path(tempfile.mkdtemp(dir=directory))
        self._output = directory / "output"
        name, value = self._marker.split("=")
        environment = {**os.environ, name: value, "TMPDIR": str(self._temporary)}
        with open(self._output, "wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", RESTORE_SIGINT, *command],
                cwd=ROOT,
                env=environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return self._output.read_text()

    def wait_until(self, happened: Callable[[], object]) -> None:
        """Wait until *happened* returns true, while the command runs."""
        until = time.monotonic() + 240
        while not happened():
            assert self.process.poll() is None, self.output
            assert time.monotonic() < until, self.output
            time.sleep(0.2)  # the condition may start a program

    def interrupt(self, *, repeatedly: bool) -> int:
        """Press Ctrl-C, if *repeatedly* until it has exited; return its status."""
        os.killpg(self.process.pid, signal.SIGINT)
        until = time.monotonic() + 60
        while repeatedly and self.process.poll() is None and time.monotonic() < until:
            time.sleep(0.1)
            os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(60)

    def end(self) -> None:
        """Kill it if it still runs, and remove its containers and networks."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        label = f'{{{{.Label "{PROJECT}"}}}}'
        for project in {*self._list("ps", "-a", label), *self._list("network", "ls", label)}:
            remove_project(project)

    def containers(self) -> list[str]:
        """Return its containers."""
        return self._list("ps", "-a", "{{.ID}}")

    def _list(self, *command: str) -> list[str]:
        *words, columns = command
        return docker(*words, "--filter", f"name=-{self.process.pid}[-_]", "--format", columns).decode().split()

    def volumes(self) -> list[str]:
        """Return the volumes of its containers, one of which a test may be replacing."""
        mounts = "{{range .Mounts}}{{.Name}} {{end}}"
        done = subprocess.run(["docker", "inspect", "--format", mounts, *self.containers()], capture_output=True)
        return done.stdout.decode().split()

    def find_leftovers(self, patience: float = 10.0) -> dict[str, list[str]]:
        """Return everything that it leaves behind."""
        until = time.monotonic() + patience
        while (found := self._found()) and time.monotonic() < until:
            time.sleep(0.2)
        return found

    def _found(self) -> dict[str, list[str]]:
        found = {
            "containers": self.containers(),
            "networks": self._list("network", "ls", "{{.Name}}"),
            "processes": [path.parent.name for path in Path("/proc").glob("[0-9]*/environ") if self._has_marker(path)],
            "directories": [path.name for path in self._temporary.glob("peerstage-*")],
        }
        return {what: names for what, names in found.items() if names}

    def _has_marker(self, environment: Path) -> bool:
        try:
            return self._marker.encode() in environment.read_bytes().split(b"\0")
        except OSError:  # it has ended, or is another user's
            return False


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[list[str]], ForegroundCommand]]:
    """Starts commands as a terminal does, and ends them after the test."""
    started: list[ForegroundCommand] = []

    def start(command: list[str]) -> ForegroundCommand:
        started.append(ForegroundCommand(command, tmp_path))
        return started[-1]

    yield start
    for one in started:
        one.end()


#: Two groups for two workers, one of which has a volume.
TWO_GROUPS = [*PYTEST, "-v", str(HERE / "test_sudo.py"), str(HERE / "test_container_faults.py"), "-k", "sudo or paused"]


@pytest.mark.kind("faults", "sudo")
@pytest.mark.parametrize(
    ("workers", "repeatedly"),
    [((), True), (("-n", "2"), False), (("-n", "2"), True)],
    ids=["alone, repeatedly", "two workers, once", "two workers, repeatedly"],
)
def test_ctrl_c_during_tests_leaves_nothing_behind(
    bench: Bench, start: Callable[[list[str]], ForegroundCommand], workers: tuple[str, ...], repeatedly: bool
) -> None:
    run = start([*TWO_GROUPS, *workers])
    run.wait_until(lambda: "PASSED" in run.output and run.volumes())
    volumes = run.volumes()
    assert run.interrupt(repeatedly=repeatedly) == 2, run.output
    assert run.find_leftovers() == {}, run.output
    assert not set(volumes) & set(docker("volume", "ls", "-q").decode().split())


@pytest.mark.kind("faults", "sudo")
def test_ctrl_c_while_containers_start_leaves_nothing(
    bench: Bench, start: Callable[[list[str]], ForegroundCommand]
) -> None:
    run = start([*TWO_GROUPS, "-n", "2"])
    run.wait_until(run.containers)
    assert run.interrupt(repeatedly=True) == 2, run.output
    assert run.find_leftovers() == {}, run.output


@pytest.mark.kind("faults", "sudo")
@pytest.mark.parametrize("when", ["while it starts", "when it is up"])
def test_docker_peer_removes_its_peer_after_repeated_ctrl_c(
    bench: Bench, start: Callable[[list[str]], ForegroundCommand], when: str
) -> None:
    peer = start([sys.executable, str(ROOT / "docker" / "peer"), "sudo"])
    peer.wait_until(peer.containers if when == "while it starts" else lambda: "Ctrl-C removes it." in peer.output)
    assert peer.interrupt(repeatedly=True) == 0, peer.output
    assert "Traceback" not in peer.output
    assert peer.find_leftovers() == {}, peer.output


@pytest.mark.kind("faults", "sudo")
def test_one_shell_runs_many_commands_and_is_reopened_after_a_restart(bench: Bench) -> None:
    container = bench.container("sudo")
    data = random_bytes(300_000)
    assert container.execute("cat", stdin=data) == data
    assert container.execute("head", "-c", "3", stdin=data) == data[:3]  # unread input is no command
    assert container.execute("printf", "%s|", "a b", "$HOME", "'\n", "\udcff") == b"a b|$HOME|'\n|\xff|"
    with pytest.raises(RuntimeError, match=r"sudo: ls /missing ended with status 2: .*No such file"):
        container.execute("ls", "/missing")
    assert len(container.execute("ls", "/tmp").split()) == 1  # the one shell's files
    docker("restart", "-t", "0", container.id)
    assert container.execute("echo", "again") == b"again\n"
    container.restart()
    assert container.banner.startswith("SSH-2.0-OpenSSH")


def test_tests_that_share_a_container_run_on_one_worker() -> None:
    needs = {"a": ("master", "guard"), "b": ("guard",), "c": ("client", "far"), "d": ("far",), "e": ("client",)}
    groups = group_by_container(needs)
    assert groups["a"] == groups["b"]
    assert groups["c"] == groups["d"]
    assert len(set(groups.values())) == 3


@pytest.mark.parametrize(
    ("up", "order"),
    [
        (False, ["plain", "the other", "containers of far", "containers of guard"]),
        (True, ["containers of guard", "containers of far", "plain", "the other"]),
    ],
)
def test_container_tests_are_scheduled_once_containers_are_up_longest_first(up: bool, order: list[str]) -> None:
    plan = Plan({"a": ("far",), "b": ("far",), "c": ("guard",)}, special_tests=["c"])
    config: Any = SimpleNamespace(stash={PLAN: plan, OWNER: SimpleNamespace(has_started=up)})
    waiting, given = ["plain", "containers of far", "the other", "containers of guard"], []
    while waiting:
        given.append(next_group(config, waiting) or waiting[0])
        waiting.remove(given[-1])
    assert given == order


def test_every_service_is_a_kind_or_has_tests_of_its_own() -> None:
    assert set(list_services()) == {kind.name for kind in KINDS} | {
        *("bastion", "gate", "client", "faults", "master", "sudo")
    }

"""The test bench itself: loud where it can not run, and gone when it is stopped, however impatiently."""

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

from support.bench_run import OWNER, PLAN, Plan, groups_of, next_group
from support.containers import ROOT, Bench, docker, services_in_file
from support.engine import PROJECT, remove_project
from support.random_files import random_bytes

HERE = Path(__file__).parent
PYTEST = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:hypothesispytest"]

#: pytest as in front of a terminal, even where these tests run in the background, with SIGINT ignored.
IN_FRONT = (
    "import os, signal, sys\n"
    "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "os.execv(sys.argv[1], sys.argv[1:])"
)


def run_pytest(*arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run the container tests in a process of their own."""
    environment = {**os.environ, **({} if path is None else {"PATH": path})}
    command = [*PYTEST, "-q", str(HERE / "test_client.py"), str(HERE / "test_bench.py"), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)


@pytest.mark.usefixtures("fresh_interpreter")
@pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["alone", "a worker"])
def test_without_an_engine_one_line_says_what_to_install(tmp_path: Path, workers: tuple[str, ...]) -> None:
    done = run_pytest("-k", "stages_and_starts", *workers, path=str(tmp_path))
    assert done.returncode == 1, done.stdout + done.stderr
    line = "There is no docker: install an engine (Debian: apt-get install docker.io docker-compose), or leave"
    assert [one for one in done.stdout.splitlines() if one.startswith(line)] != [], done.stdout + done.stderr
    assert "tests need it" in done.stdout
    assert "1 failed" in done.stdout
    assert "Traceback" not in done.stdout


@pytest.mark.usefixtures("fresh_interpreter")
@pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["alone", "a worker"])
def test_told_to_go_without_docker_the_last_line_says_how_many_are_left_out(
    tmp_path: Path, workers: tuple[str, ...]
) -> None:
    done = run_pytest("--without-docker", "-k", "stages_and_starts or one_worker", *workers, path=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.strip().splitlines()[-1].split(maxsplit=1)
    assert int(last[0]) >= 6
    assert last[1] == "container tests were left out (--without-docker)."
    assert "1 passed" in done.stdout


class Started:
    """A command as a terminal runs it: Ctrl-C goes to everything that it has started and that did not leave its group.

    Args:
        command: What is run.
        directory: For its output and its temporary files.
    """

    def __init__(self, command: list[str], directory: Path) -> None:
        self._mark = f"PEERSTAGE_STARTED_BY={uuid.uuid4().hex}"
        self._temporary = Path(tempfile.mkdtemp(dir=directory))
        self._output = directory / "output"
        name, value = self._mark.split("=")
        environment = {**os.environ, name: value, "TMPDIR": str(self._temporary)}
        with open(self._output, "wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", IN_FRONT, *command],
                cwd=ROOT,
                env=environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    @property
    def words(self) -> str:
        """What it has printed."""
        return self._output.read_text()

    def wait_until(self, happened: Callable[[], object]) -> None:
        """Wait until something has happened, while it runs."""
        until = time.monotonic() + 240
        while not happened():
            assert self.process.poll() is None, self.words
            assert time.monotonic() < until, self.words
            time.sleep(0.02)

    def interrupt(self, *, again: bool) -> int:
        """Press Ctrl-C, if *again* until it has ended; return its status."""
        os.killpg(self.process.pid, signal.SIGINT)
        until = time.monotonic() + 60
        while again and self.process.poll() is None and time.monotonic() < until:
            time.sleep(0.1)
            os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(60)

    def end(self) -> None:
        """End it if it has not ended, and remove what it has left."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        label = f'{{{{.Label "{PROJECT}"}}}}'
        for project in {*self._mine("ps", "-a", label), *self._mine("network", "ls", label)}:
            remove_project(project)

    def containers(self) -> list[str]:
        """Return its containers."""
        return self._mine("ps", "-a", "{{.ID}}")

    def _mine(self, *command: str) -> list[str]:
        *words, columns = command
        return docker(*words, "--filter", f"name=-{self.process.pid}[-_]", "--format", columns).decode().split()

    def volumes(self) -> list[str]:
        """Return the volumes of its containers; a test may be making one of these anew."""
        mounts = "{{range .Mounts}}{{.Name}} {{end}}"
        done = subprocess.run(["docker", "inspect", "--format", mounts, *self.containers()], capture_output=True)
        return done.stdout.decode().split()

    def left(self, patience: float = 10.0) -> dict[str, list[str]]:
        """Return everything of it that does not go away."""
        until = time.monotonic() + patience
        while (found := self._found()) and time.monotonic() < until:
            time.sleep(0.05)
        return found

    def _found(self) -> dict[str, list[str]]:
        found = {
            "containers": self.containers(),
            "networks": self._mine("network", "ls", "{{.Name}}"),
            "processes": [path.parent.name for path in Path("/proc").glob("[0-9]*/environ") if self._has_mark(path)],
            "directories": [path.name for path in self._temporary.glob("peerstage-*")],
        }
        return {what: names for what, names in found.items() if names}

    def _has_mark(self, environment: Path) -> bool:
        try:
            return self._mark.encode() in environment.read_bytes().split(b"\0")
        except OSError:  # it has ended, or is another user's
            return False


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[list[str]], Started]]:
    """Starts a command as a terminal does, and sees to it that it ends."""
    started: list[Started] = []

    def start(command: list[str]) -> Started:
        started.append(Started(command, tmp_path))
        return started[-1]

    yield start
    for one in started:
        one.end()


#: Two groups for two workers, one of which has a volume.
TWO_GROUPS = [*PYTEST, "-v", str(HERE / "test_sudo.py"), str(HERE / "test_container_faults.py"), "-k", "sudo or paused"]


@pytest.mark.kind("faults", "sudo")
@pytest.mark.parametrize(
    ("workers", "again"),
    [((), True), (("-n", "2"), False), (("-n", "2"), True)],
    ids=["alone, impatiently", "two workers, once", "two workers, impatiently"],
)
def test_ctrl_c_in_mid_run_leaves_nothing(
    bench: Bench, start: Callable[[list[str]], Started], workers: tuple[str, ...], again: bool
) -> None:
    run = start([*TWO_GROUPS, *workers])
    run.wait_until(lambda: "PASSED" in run.words and run.volumes())
    volumes = run.volumes()
    assert run.interrupt(again=again) == 2, run.words
    assert run.left() == {}, run.words
    assert not set(volumes) & set(docker("volume", "ls", "-q").decode().split())


@pytest.mark.kind("faults", "sudo")
def test_ctrl_c_while_containers_start_leaves_nothing(bench: Bench, start: Callable[[list[str]], Started]) -> None:
    run = start([*TWO_GROUPS, "-n", "2"])
    run.wait_until(run.containers)
    assert run.interrupt(again=True) == 2, run.words
    assert run.left() == {}, run.words


@pytest.mark.kind("faults", "sudo")
@pytest.mark.parametrize("when", ["while it starts", "when it is up"])
def test_a_peer_that_was_kept_up_is_gone_after_ctrl_c_however_impatient(
    bench: Bench, start: Callable[[list[str]], Started], when: str
) -> None:
    peer = start([sys.executable, str(ROOT / "docker" / "peer"), "sudo"])
    peer.wait_until(peer.containers if when == "while it starts" else lambda: "Ctrl-C removes it." in peer.words)
    assert peer.interrupt(again=True) == 0, peer.words
    assert "Traceback" not in peer.words
    assert peer.left() == {}, peer.words


@pytest.mark.kind("faults", "sudo")
def test_one_shell_runs_command_after_command_and_is_opened_again_behind_a_restart(bench: Bench) -> None:
    container = bench.container("sudo")
    data = random_bytes(300_000)
    assert container.execute("cat", stdin=data) == data
    assert container.execute("head", "-c", "3", stdin=data) == data[:3]  # what is not read is not the next command
    assert container.execute("printf", "%s|", "a b", "$HOME", "'\n", "\udcff") == b"a b|$HOME|'\n|\xff|"
    with pytest.raises(RuntimeError, match=r"sudo: ls /missing ended with status 2: .*No such file"):
        container.execute("ls", "/missing")
    assert len(container.execute("ls", "/tmp").split()) == 1  # the one shell's files
    docker("restart", "-t", "0", container.id)
    assert container.execute("echo", "again") == b"again\n"
    container.restart()
    assert container.banner.startswith("SSH-2.0-OpenSSH")


def test_tests_that_use_one_container_go_to_one_worker() -> None:
    needs = {"a": ("master", "guard"), "b": ("guard",), "c": ("client", "far"), "d": ("far",), "e": ("client",)}
    groups = groups_of(needs)
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
def test_tests_in_containers_are_given_out_once_these_are_up_and_the_longest_first(up: bool, order: list[str]) -> None:
    plan = Plan({"a": ("far",), "b": ("far",), "c": ("guard",)}, stories=["c"])
    config: Any = SimpleNamespace(stash={PLAN: plan, OWNER: SimpleNamespace(has_started=up)})
    waiting, given = ["plain", "containers of far", "the other", "containers of guard"], []
    while waiting:
        given.append(next_group(config, waiting) or waiting[0])
        waiting.remove(given[-1])
    assert given == order


def test_every_service_is_a_kind_or_has_a_part_of_its_own() -> None:
    assert set(services_in_file()) == {kind.name for kind in KINDS} | {
        *("bastion", "gate", "client", "faults", "master", "sudo")
    }

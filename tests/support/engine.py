"""The container engine: whether it is usable, its commands, and the removal of everything that a run created."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
COMPOSE_FILE = DOCKER / "docker-compose.yml"

#: Labels that compose sets: the project of an object, and the service of a container.
PROJECT, SERVICE = "com.docker.compose.project", "com.docker.compose.service"

OnLine = Callable[[str], object]


@cache
def engine_problem() -> str | None:
    """Return one line that names what is missing and what to install; None if nothing is missing."""
    instead = "or leave the container tests out with --without-docker."
    if shutil.which("docker") is None:
        return f"There is no docker: install an engine (Debian: apt-get install docker.io docker-compose), {instead}"
    if subprocess.run(["docker", "version"], capture_output=True).returncode != 0:
        return f"No Docker engine answers: start it (systemctl start docker; is this user in the group?), {instead}"
    if compose_command() is None:
        return f"There is no docker compose: install it (Debian: apt-get install docker-compose), {instead}"
    return None


@cache
def compose_command() -> tuple[str, ...] | None:
    """Return the command of Compose 2 or 1, whichever is installed."""
    version_2 = ("docker", "compose")
    if subprocess.run([*version_2, "version"], capture_output=True).returncode == 0:
        return version_2
    return ("docker-compose",) if shutil.which("docker-compose") else None  # to run it takes a third of a second


def compose_arguments(variables: Path, project: str, *words: str) -> list[str]:
    """Return the argument vector of a compose subcommand."""
    command = compose_command()
    if command is None:
        raise RuntimeError(engine_problem())
    return [*command, "--env-file", str(variables), "-f", str(COMPOSE_FILE), "-p", project, *words]


def docker(*arguments: str, stdin: bytes | None = None) -> bytes:
    """Run docker in its own session, so that Ctrl-C does not reach it, and return its output.

    Raises:
        RuntimeError: If it fails; the message is its stderr.
    """
    done = subprocess.run(["docker", *arguments], input=stdin, capture_output=True, start_new_session=True)
    if done.returncode != 0:
        raise RuntimeError(f"docker {' '.join(arguments)[:200]}: {done.stderr.decode(errors='replace').strip()[-500:]}")
    return done.stdout


def remove_project(project: str) -> None:
    """Remove every container, volume and network of a project.

    The engine may still be creating objects for a killed command: repeat until two searches in a row are empty.

    Raises:
        RuntimeError: If something remains; the message is the engine's.
    """
    label, problem, empty_searches = f"label={PROJECT}={project}", "", 0
    for _ in range(10):
        containers = docker("ps", "-aq", "--filter", label).decode().split()
        networks = docker("network", "ls", "-q", "--filter", label).decode().split()
        empty_searches = 0 if containers or networks else empty_searches + 1
        if empty_searches == 2:
            return
        for command, ids in ((("rm", "-f", "-v"), containers), (("network", "rm"), networks)):
            try:
                docker(*command, *ids) if ids else time.sleep(0.1)
            except RuntimeError as exc:
                problem = str(exc)
    raise RuntimeError(f"{project} could not be removed completely: {problem}")


class RunnerStopped(Exception):
    """`CommandRunner.stop` was called: nothing more is started."""


class CommandRunner:
    """Runs long commands, one at a time, each in its own session, so that Ctrl-C does not reach them.

    They are terminated when the caller is interrupted, or when another thread calls `stop`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: subprocess.Popen[str] | None = None
        self._stopped = False

    def run(self, command: Sequence[str | Path], on_line: OnLine | None = None) -> str:
        """Run a command, call *on_line* with each line of its output, and return the whole output.

        Raises:
            RuntimeError: If it fails; the message is the end of its output.
            RunnerStopped: If `stop` was called.
        """
        with self._lock:
            if self._stopped:
                raise RunnerStopped
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
            )
            self._running = process
        lines = []
        with process:
            try:
                for line in process.stdout or ():
                    lines.append(line)
                    if on_line is not None:
                        on_line(line.strip())
            except BaseException:
                _terminate(process)
                raise
        if self._stopped:
            raise RunnerStopped
        if process.returncode != 0:
            raise RuntimeError(f"{Path(command[0]).name}: {' '.join(line.strip() for line in lines[-5:])[-1000:]}")
        return "".join(lines)

    def stop(self) -> None:
        """Terminate the running command, and start no other."""
        with self._lock:
            self._stopped = True
            running = self._running
        if running is not None and running.poll() is None:
            _terminate(running)


def _terminate(process: subprocess.Popen[str], patience: float = 20.0) -> None:
    """Terminate a process group; SIGTERM lets its traps run, SIGKILL follows."""
    for number, seconds in ((signal.SIGTERM, patience), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            return

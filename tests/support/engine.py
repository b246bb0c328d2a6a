"""The container engine: what is missing of it, its commands, and the removal of everything that a run has made."""

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

#: The labels by which compose finds what is a project's, and which service a container is of.
PROJECT, SERVICE = "com.docker.compose.project", "com.docker.compose.service"

Say = Callable[[str], object]


@cache
def engine_problem() -> str | None:
    """Return one line that says what is missing and what to install, None if everything is there."""
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
    """Return the command of Compose 2 or 1, whichever is there."""
    for command in (("docker", "compose"), ("docker-compose",)):
        if shutil.which(command[0]) and subprocess.run([*command, "version"], capture_output=True).returncode == 0:
            return command
    return None


def compose_line(variables: Path, project: str, *words: str) -> list[str]:
    """Return the command line of a sub-command of compose."""
    command = compose_command()
    if command is None:
        raise RuntimeError(engine_problem())
    return [*command, "--env-file", str(variables), "-f", str(COMPOSE_FILE), "-p", project, *words]


def docker(*arguments: str, stdin: bytes | None = None) -> bytes:
    """Run docker, out of reach of a terminal's Ctrl-C, and return its output.

    Raises:
        RuntimeError: If it fails; with its own words.
    """
    done = subprocess.run(["docker", *arguments], input=stdin, capture_output=True, start_new_session=True)
    if done.returncode != 0:
        raise RuntimeError(f"docker {' '.join(arguments)[:200]}: {done.stderr.decode(errors='replace').strip()[-500:]}")
    return done.stdout


def remove_project(project: str) -> None:
    """Remove every container, volume and network of a project.

    The engine may still be making some of it for a command that was killed: look until nothing shows up twice in a row.

    Raises:
        RuntimeError: If something is left; with the engine's words.
    """
    label, words, quiet = f"label={PROJECT}={project}", "", 0
    for _ in range(10):
        containers = docker("ps", "-aq", "--filter", label).decode().split()
        networks = docker("network", "ls", "-q", "--filter", label).decode().split()
        quiet = 0 if containers or networks else quiet + 1
        if quiet == 2:
            return
        for command, ids in ((("rm", "-f", "-v"), containers), (("network", "rm"), networks)):
            try:
                docker(*command, *ids) if ids else time.sleep(0.1)
            except RuntimeError as exc:
                words = str(exc)
    raise RuntimeError(f"Something of {project} is left: {words}")


class Stopped(Exception):
    """The owner of the containers is leaving: nothing more is started."""


class Commands:
    """Runs long commands, one at a time, each in a session of its own: Ctrl-C in a terminal does not reach them.

    They end when the caller is interrupted, or when another thread calls `stop`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: subprocess.Popen[str] | None = None
        self._stopped = False

    def run(self, command: Sequence[str | Path], say: Say | None = None) -> str:
        """Run a command, pass each line that it prints to *say*, and return all of them.

        Raises:
            RuntimeError: If it fails; with its last words.
            Stopped: If `stop` was called.
        """
        with self._lock:
            if self._stopped:
                raise Stopped
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
            )
            self._running = process
        lines = []
        with process:
            try:
                for line in process.stdout or ():
                    lines.append(line)
                    if say is not None:
                        say(line.strip())
            except BaseException:
                _end(process)
                raise
        if self._stopped:
            raise Stopped
        if process.returncode != 0:
            raise RuntimeError(f"{Path(command[0]).name}: {' '.join(line.strip() for line in lines[-5:])[-1000:]}")
        return "".join(lines)

    def stop(self) -> None:
        """End the command that runs, and start no other."""
        with self._lock:
            self._stopped = True
            running = self._running
        if running is not None and running.poll() is None:
            _end(running)


def _end(process: subprocess.Popen[str], patience: float = 20.0) -> None:
    """End a command and what it has started; its own traps run first."""
    for number, seconds in ((signal.SIGTERM, patience), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            return

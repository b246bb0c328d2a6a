"""Who owns the containers of a run: the process that a person started. Its workers only use them."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from support.bench_home import VARIABLES, lay_out, variables
from support.containers import SUITES, find_containers, hops_to
from support.engine import DOCKER, Commands, Say, compose_line, docker, remove_project
from support.wheels import make_wheels

#: Services that run us, by the same Python.
_WITH_PYTHON = ("client", "master")

#: The file in the bench's home that says how starting has ended: empty, or what went wrong.
_ENDED = "ended"


class BenchOwner:
    """Builds and starts the containers of a run, and removes them whatever became of the processes that use them.

    Args:
        project: Compose's name for the run.
        say: Tells the person who waits.
        kept: A directory that outlives the run, for what takes long to make.

    Attributes:
        home: A directory of the run's own.
        banners: What each service says that it is, once all are up.
    """

    def __init__(self, project: str, say: Say, kept: Path | None = None) -> None:
        self.project = project
        self.home = Path(tempfile.mkdtemp(prefix="peerstage-bench-"))
        self.banners: dict[str, str] = {}
        self._say = say
        self._kept = kept or self.home / "kept"
        self._commands = Commands()
        self._thread: threading.Thread | None = None

    def begin(self, services: Iterable[str]) -> None:
        """Start the services while the caller does something else; `wait_for_start` tells how it went."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._try, args=(sorted(services),), name="bench-owner")
            self._thread.start()

    @property
    def has_started(self) -> bool:
        """Whether starting has ended, well or not."""
        return (self.home / _ENDED).exists()

    def start(self, services: Iterable[str]) -> None:
        """Build what is not built yet, start, wait for the banners, and make the wheels for those with a Python.

        Raises:
            RuntimeError: If that fails.
        """
        lay_out(self.home)
        wanted = sorted({one for service in services for one in (service, *hops_to(service))})
        self._build(wanted)
        self._say(f"starting {', '.join(wanted)}")
        self._commands.run(compose_line(self.home / VARIABLES, self.project, "up", "-d", "--no-build", *wanted))
        containers = find_containers(self.project)
        for service, container in containers.items():
            container.wait()
            self.banners[service] = container.banner
        for container in [containers[service] for service in _WITH_PYTHON if service in containers][:1]:
            (self.home / "wheels").symlink_to(make_wheels(container, self._kept / "wheels", self._commands))
            container.close()

    def remove(self) -> None:
        """Stop starting, and remove everything that was started.

        Raises:
            RuntimeError: If something is left.
        """
        self._commands.stop()
        if self._thread is not None:
            self._thread.join()
        try:
            if (self.home / VARIABLES).exists():
                remove_project(self.project)
        finally:
            shutil.rmtree(self.home, ignore_errors=True)

    def _try(self, services: list[str]) -> None:
        problem = ""
        try:
            self.start(services)
        except Exception as exc:
            problem = str(exc) or type(exc).__name__
        (self.home / "ending").write_text(problem)
        (self.home / "ending").rename(self.home / _ENDED)

    def _build(self, services: list[str]) -> None:
        tag = variables(self.home)["PEERSTAGE_BUILD"]
        told = docker("image", "ls", "--format", "{{.Repository}} {{.Tag}}", "--filter", "reference=peerstage-*")
        there = [line.split() for line in told.decode().splitlines()]
        missing = [service for service in services if [f"peerstage-{service}", tag] not in there]
        if not missing:
            return
        suites = sorted({SUITES.get(service, "bookworm") for service in missing})
        self._commands.run([DOCKER / "base", *suites], lambda line: self._say(line.removeprefix("docker/base: ")))
        self._say(f"building {', '.join(missing)}")
        self._commands.run(compose_line(self.home / VARIABLES, self.project, "build", "--force-rm", *missing))
        for name, old in there:
            if name.removeprefix("peerstage-") in missing and old != tag:
                subprocess.run(["docker", "image", "rm", f"{name}:{old}"], capture_output=True)


def wait_for_start(home: Path, seconds: float) -> None:
    """Wait until the owner of *home* has started the containers.

    Raises:
        RuntimeError: If that failed.
        TimeoutError: If it takes longer.
    """
    until = time.monotonic() + seconds
    while not (home / _ENDED).exists():
        if time.monotonic() > until:
            raise TimeoutError(f"The containers are not up after {seconds:.0f} s.")
        time.sleep(0.05)
    problem = (home / _ENDED).read_text()
    if problem:
        raise RuntimeError(problem)

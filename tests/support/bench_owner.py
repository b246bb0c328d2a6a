"""The owner of a run's containers: the process that the user started. Its workers only use them."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from support.bench_home import VARIABLES, create_bench_home, read_variables
from support.containers import SUITES, find_containers, jump_hosts_of
from support.engine import DOCKER, CommandRunner, OnLine, compose_arguments, docker, remove_project
from support.wheels import make_wheels

#: Services in which peerstage runs; both have the same Python.
_WITH_PYTHON = ("client", "master")

#: The file in the bench's home that appears when the start has finished: empty, or an error message.
_STARTED = "started"


class BenchOwner:
    """Builds and starts the containers of a run, and removes them, whatever happened to the processes that use them.

    Args:
        project: Compose's name for the run.
        on_message: Called with lines about the progress.
        cache: A directory that outlives the run, for what takes long to build.

    Attributes:
        home: The directory of the run.
        banners: The SSH identification string of each service, once all are up.
    """

    def __init__(self, project: str, on_message: OnLine, cache: Path | None = None) -> None:
        self.project = project
        self.home = Path(tempfile.mkdtemp(prefix="peerstage-bench-"))
        self.banners: dict[str, str] = {}
        self._on_message = on_message
        self._cache = cache or self.home / "cache"
        self._commands = CommandRunner()
        self._thread: threading.Thread | None = None

    def start_in_background(self, services: Iterable[str]) -> None:
        """Start the services in a thread; `wait_for_start` waits for the result."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._start_and_report, args=(sorted(services),), name="bench-owner")
            self._thread.start()

    @property
    def has_started(self) -> bool:
        """Whether the start has finished, successfully or not."""
        return (self.home / _STARTED).exists()

    def start(self, services: Iterable[str]) -> None:
        """Build missing images, start the services, wait for their banners, and build wheels for those with a Python.

        Raises:
            RuntimeError: If that fails.
        """
        create_bench_home(self.home)
        wanted = sorted({one for service in services for one in (service, *jump_hosts_of(service))})
        self._build(wanted)
        self._on_message(f"starting {', '.join(wanted)}")
        self._commands.run(compose_arguments(self.home / VARIABLES, self.project, "up", "-d", "--no-build", *wanted))
        containers = find_containers(self.project)
        for service, container in containers.items():
            container.wait()
            self.banners[service] = container.banner
        for container in [containers[service] for service in _WITH_PYTHON if service in containers][:1]:
            (self.home / "wheels").symlink_to(make_wheels(container, self._cache / "wheels", self._commands))
            container.close()

    def remove(self) -> None:
        """Abort the start, and remove everything that was started.

        Raises:
            RuntimeError: If something remains.
        """
        self._commands.stop()
        if self._thread is not None:
            self._thread.join()
        try:
            if (self.home / VARIABLES).exists():
                remove_project(self.project)
        finally:
            shutil.rmtree(self.home, ignore_errors=True)

    def _start_and_report(self, services: list[str]) -> None:
        problem = ""
        try:
            self.start(services)
        except Exception as exc:
            problem = str(exc) or type(exc).__name__
        (self.home / "starting").write_text(problem)
        (self.home / "starting").rename(self.home / _STARTED)

    def _build(self, services: list[str]) -> None:
        tag = read_variables(self.home)["PEERSTAGE_BUILD"]
        listing = docker("image", "ls", "--format", "{{.Repository}} {{.Tag}}", "--filter", "reference=peerstage-*")
        existing = [line.split() for line in listing.decode().splitlines()]
        missing = [service for service in services if [f"peerstage-{service}", tag] not in existing]
        if not missing:
            return
        suites = sorted({SUITES.get(service, "bookworm") for service in missing})
        self._commands.run(
            [DOCKER / "base", *suites], lambda line: self._on_message(line.removeprefix("docker/base: "))
        )
        self._on_message(f"building {', '.join(missing)}")
        self._commands.run(compose_arguments(self.home / VARIABLES, self.project, "build", "--force-rm", *missing))
        for name, old in existing:
            if name.removeprefix("peerstage-") in missing and old != tag:
                subprocess.run(["docker", "image", "rm", f"{name}:{old}"], capture_output=True)


def wait_for_start(home: Path, seconds: float) -> None:
    """Wait until the owner of *home* has started the containers.

    Raises:
        RuntimeError: If the start failed.
        TimeoutError: If it takes longer.
    """
    until = time.monotonic() + seconds
    while not (home / _STARTED).exists():
        if time.monotonic() > until:
            raise TimeoutError(f"The containers are not up after {seconds:.0f} s.")
        time.sleep(0.05)
    problem = (home / _STARTED).read_text()
    if problem:
        raise RuntimeError(problem)

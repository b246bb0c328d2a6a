"""The client container: it stages from the other containers, where no ssh program could be started."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.containers import USER, Bench, docker, hops_to, seen_as
from support.once import make_once


class Client:
    """The container that stages from the others: it has Python and our wheel, and no ssh program."""

    DRIVER = Path(__file__).with_name("client_driver.py")

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.container = bench.container("client")
        make_once(bench.home / "client", self._install)
        self._driver: subprocess.Popen[str] | None = None

    def _install(self) -> None:
        docker("cp", f"{self.bench.home}/wheels/.", f"{self.container.id}:/wheels")
        for name in ("id", "id-cert.pub"):
            docker("cp", str(self.bench.home / name), f"{self.container.id}:/opt/{name}")
        docker("cp", str(self.DRIVER), f"{self.container.id}:/opt/driver.py")
        pip = ("/opt/venv/bin/python", "-m", "pip", "install", "--quiet", "--no-index", "--find-links", "/wheels")
        self.container.execute(*pip, "--disable-pip-version-check", "peerstage")

    def run(
        self,
        service: str,
        *,
        meanwhile: Callable[[], object] | None = None,
        afterwards: Callable[[], object] | None = None,
        limits: dict[str, Any] | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Check, stage and mark a peer from the client, and return what its driver says.

        Args:
            service: The peer.
            meanwhile: Called while the client holds in mid-transfer.
            afterwards: Called behind that, while the client goes on.
            limits: Fields of `Limits`.
            options: More for the driver.
        """
        place = self.bench.address(service)
        known_hosts = self.bench.known_hosts_line(service, place)
        hops = hops_to(service)
        if hops:
            known_hosts += "".join(self.bench.known_hosts_line(hop, self.bench.address(hop)) for hop in hops)
            options.setdefault("ssh", {})["jump"] = ",".join(f"{USER}@{self.bench.address(hop)}" for hop in hops)
        job = {
            "host": place,
            "user": USER,
            "collect": seen_as(service),
            "known_hosts": known_hosts,
            "hold": meanwhile is not None,
            "limits": limits or {},
            **options,
        }
        answer = self._ask(job)
        if "holding" in answer and meanwhile is not None:
            meanwhile()
            self._send("go on")
            if afterwards is not None:
                afterwards()
            answer = self._answer()
        assert "started" in answer, answer
        return answer

    def close(self) -> None:
        """End its driver."""
        driver, self._driver = self._driver, None
        if driver is not None:
            driver.communicate()

    def _ask(self, job: dict[str, Any]) -> dict[str, Any]:
        if self._driver is None or self._driver.poll() is not None:
            command = ["docker", "exec", "-i", self.container.id, "/opt/venv/bin/python", "-I", "/opt/driver.py"]
            pipe = subprocess.PIPE
            self._driver = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, start_new_session=True)
        self._send(json.dumps(job))
        return self._answer()

    def _send(self, line: str) -> None:
        assert self._driver is not None
        assert self._driver.stdin is not None
        self._driver.stdin.write(f"{line}\n")
        self._driver.stdin.flush()

    def _answer(self) -> dict[str, Any]:
        assert self._driver is not None
        assert self._driver.stdout is not None
        line = self._driver.stdout.readline()
        assert line, "The driver has ended."
        answer: dict[str, Any] = json.loads(line)
        return answer

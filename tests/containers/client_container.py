"""The client container: it stages from the others and has no ssh program."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.containers import USER, Bench, docker, jump_hosts_of, visible_collect_directory
from support.once import make_once


class ClientContainer:
    """The container that stages from the others: Python and peerstage, but no ssh program."""

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
        on_hold: Callable[[], object] | None = None,
        after_resume: Callable[[], object] | None = None,
        limits: dict[str, Any] | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Check, stage and mark a peer from the client, and return the driver's answer.

        Args:
            service: The peer.
            on_hold: Called while the client pauses in the middle of the transfer.
            after_resume: Called once the client continues.
            limits: Fields of `Limits`.
            options: Further fields of the job.
        """
        address = self.bench.address(service)
        known_hosts = self.bench.known_hosts_line(service, address)
        hops = jump_hosts_of(service)
        if hops:
            known_hosts += "".join(self.bench.known_hosts_line(hop, self.bench.address(hop)) for hop in hops)
            options.setdefault("ssh", {})["jump"] = ",".join(f"{USER}@{self.bench.address(hop)}" for hop in hops)
        job = {
            "host": address,
            "user": USER,
            "collect": visible_collect_directory(service),
            "known_hosts": known_hosts,
            "hold": on_hold is not None,
            "limits": limits or {},
            **options,
        }
        answer = self._request(job)
        if "holding" in answer and on_hold is not None:
            on_hold()
            self._send("go on")
            if after_resume is not None:
                after_resume()
            answer = self._read_answer()
        assert "started" in answer, answer
        return answer

    def close(self) -> None:
        """End the driver."""
        driver, self._driver = self._driver, None
        if driver is not None:
            driver.communicate()

    def _request(self, job: dict[str, Any]) -> dict[str, Any]:
        if self._driver is None or self._driver.poll() is not None:
            command = ["docker", "exec", "-i", self.container.id, "/opt/venv/bin/python", "-I", "/opt/driver.py"]
            pipe = subprocess.PIPE
            self._driver = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, start_new_session=True)
        self._send(json.dumps(job))
        return self._read_answer()

    def _send(self, line: str) -> None:
        assert self._driver is not None
        assert self._driver.stdin is not None
        self._driver.stdin.write(f"{line}\n")
        self._driver.stdin.flush()

    def _read_answer(self) -> dict[str, Any]:
        assert self._driver is not None
        assert self._driver.stdout is not None
        line = self._driver.stdout.readline()
        assert line, "The driver has ended."
        answer: dict[str, Any] = json.loads(line)
        return answer

"""The client container: it stages from the other containers, where no ssh program could be started."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.containers import ROOT, USER, Bench, Container, docker, hops_to, seen_as


class Client:
    """The container that stages from the others: it has Python and our wheel, and no ssh program."""

    DRIVER = Path(__file__).with_name("client_driver.py")

    def __init__(self, bench: Bench, wheels: Path) -> None:
        self.bench = bench
        self.container = bench.container("client")
        folder = wheels_for(self.container, wheels)
        docker("cp", f"{folder}/.", f"{self.container.id}:/wheels")
        for name in ("id", "id-cert.pub"):
            docker("cp", str(bench.home / name), f"{self.container.id}:/opt/{name}")
        docker("cp", str(self.DRIVER), f"{self.container.id}:/opt/driver.py")
        pip = ("/opt/venv/bin/python", "-m", "pip", "install", "--quiet", "--no-index", "--find-links", "/wheels")
        self.container.execute(*pip, "--disable-pip-version-check", "peerstage")

    def run(
        self,
        service: str,
        *,
        meanwhile: Callable[[], object] | None = None,
        limits: dict[str, Any] | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Check, stage and mark a peer from the client, and return what its driver says.

        Args:
            service: The peer.
            meanwhile: Called while the client holds in mid-transfer.
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
        command = ["docker", "exec", "-i", self.container.id, "/opt/venv/bin/python", "-I", "/opt/driver.py"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
            answer: dict[str, Any] = {}
            for line in process.stdout:
                answer = json.loads(line)
                if answer.get("holding") and meanwhile is not None:
                    meanwhile()
                    process.stdin.write("go on\n")
                    process.stdin.flush()
        assert "started" in answer, answer
        return answer


def wheels_for(container: Container, wheels: Path, *others: str) -> Path:
    """Return a directory with our wheel and those of what it needs, for a container's Python; made once a source.

    Args:
        container: It has the Python.
        wheels: Where the directory is made, and kept for the next run.
        others: More that is wanted.
    """
    digest = hashlib.sha256(repr(others).encode())
    for path in sorted([ROOT / "pyproject.toml", ROOT / "README.md", *(ROOT / "src").rglob("*.py")]):
        digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    folder = wheels / digest.hexdigest()[:12]
    if not folder.exists():
        shutil.rmtree(wheels, ignore_errors=True)
        making = wheels / "making"
        question = "import platform as p; print(p.python_version(), p.machine(), p.libc_ver()[1])"
        version, machine, libc = container.execute("python3", "-c", question).decode().split()
        minors = range(17, int(libc.split(".")[1]) + 1)
        platforms = [f"manylinux2014_{machine}", *(f"manylinux_2_{minor}_{machine}" for minor in minors)]
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        _run([*pip, "wheel", "--no-deps", "--wheel-dir", str(making), str(ROOT)])
        ours = str(next(making.glob("peerstage-*.whl")))
        only = [word for one in platforms for word in ("--platform", one)]
        suits = ["--only-binary=:all:", "--python-version", version.rpartition(".")[0], *only]
        _run([*pip, "download", "--dest", str(making), *suits, ours, *others])
        making.rename(folder)
    return folder


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command[:6])}: {done.stderr.strip()[-500:]}")

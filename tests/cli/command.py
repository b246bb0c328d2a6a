"""What the tests of the command line share: the real command, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import peerstage
from support.sshd import Sshd

SOURCE = Path(peerstage.__file__).parents[1]


@dataclass
class Command:
    """Runs ``python -m peerstage`` against a server."""

    sshd: Sshd
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def reaching(self) -> list[str]:
        """The options that lead to the server, and nowhere near this machine's configuration."""
        sshd = self.sshd
        return ["--port", str(sshd.port), "--identity", str(sshd.identity), "--known-hosts", str(sshd.known_hosts),
                "--no-config"]  # fmt: skip

    def spec(self, directory: Path | str) -> str:
        return f"{self.sshd.user}@{self.sshd.host}:{directory}"

    def argv(self, *arguments: object) -> list[str]:
        return [sys.executable, "-m", "peerstage", *map(str, arguments)]

    def start(self, *arguments: object, **changes: object) -> subprocess.Popen[str]:
        options: dict[str, object] = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
            "env": self.environ(),
        }
        return subprocess.Popen(self.argv(*arguments), **{**options, **changes})  # type: ignore[call-overload, no-any-return]

    def environ(self) -> dict[str, str]:
        paths = [self.environment.get("PYTHONPATH", ""), str(SOURCE)]
        return {**os.environ, **self.environment, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}

    def __call__(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        with self.start(*arguments) as process:
            out, err = process.communicate(timeout=120)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def reach(self, verb: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Run a verb with the options that lead to the server."""
        return self(verb, *self.reaching, *arguments)

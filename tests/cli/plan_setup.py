"""A master with a plan, and peers that servers in this process serve."""

from __future__ import annotations

import subprocess
from contextlib import ExitStack
from pathlib import Path

from cli.command import Command
from support.file_server import Master, serves_files
from support.ssh_server import listening


class PlanSetup:
    """The files of a master, and what its peers have collected.

    Args:
        root: An empty directory.
        stack: Stops the servers.

    Attributes:
        plan: The file of the plan.
        staging: The staging pool.
        known_hosts: What ssh knows of the peers.
    """

    def __init__(self, root: Path, stack: ExitStack) -> None:
        self.root = root
        self.plan = root / "plan.toml"
        self.staging = root / "staging"
        self.staging.mkdir()
        (root / "master").mkdir()
        self.master = Master(root / "master")
        self.known_hosts = root / "master" / "known_hosts"
        self.port = stack.enter_context(listening(serves_files(self.master.key)))
        self.known_hosts.write_text(self._known_line(self.port))
        self.command = Command(None)  # type: ignore[arg-type]  # which needs a server only for its options
        self._peers: dict[str, str] = {}

    def collected(self, name: str, **files: bytes) -> Path:
        """Return the collect directory of a peer that has collected *files*, and add it to the plan."""
        directory = self.root / "peers" / name
        directory.mkdir(parents=True)
        for file, data in files.items():
            (directory / file).write_bytes(data)
        (directory / "cback.collect").touch()
        self.add(name, collect_dir=str(directory))
        return directory

    def add(self, name: str, **keys: object) -> None:
        """Add keys of a peer to the plan."""
        values = [f"{key} = {_to_toml(value)}" for key, value in keys.items()]
        self._peers[name] = ", ".join(filter(None, (self._peers.get(name), *values)))

    def write(self, top: str = "", tables: str = "", **defaults: object) -> None:
        """Write the plan, with lines at its *top*, more *tables*, and other *defaults* than those for the server."""
        values: dict[str, object] = {
            "host": "127.0.0.1",
            "port": self.port,
            "user": "backup",
            "identity": str(self.root / "master" / "id"),
            "known_hosts": str(self.known_hosts),
            **defaults,
        }
        lines = [f'staging = "{self.staging}"', top, "[defaults]"]
        lines += [f"{key} = {_to_toml(value)}" for key, value in values.items()]
        lines += ["[peers]", *(f"{name} = {{ {keys} }}" for name, keys in self._peers.items()), tables]
        self.plan.write_text("\n".join(lines) + "\n")

    def __call__(self, verb: str, *arguments: object, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
        """Run a verb with the plan, in this process."""
        return self.command(verb, *arguments, "--plan", self.plan, stdin=stdin)

    def _known_line(self, port: int) -> str:
        return f"[127.0.0.1]:{port} {self.master.key.get_name()} {self.master.key.get_base64()}\n"


def _to_toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{key} = {_to_toml(item)}' for key, item in value.items())} }}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_to_toml, value))}]"
    return str(value) if isinstance(value, (int, float)) else f'"{value}"'

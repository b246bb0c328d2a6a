"""A master and its peers, as the examples of the guide assume them: real files, and a server in this process."""

from __future__ import annotations

import getpass
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from cli.command import Command
from guide.dask_cluster import DaskCluster
from support.file_server import Master, new_identity
from support.guide_blocks import find_block


class Site:
    """Stands in for the machines of the examples, each of which may be replaced.

    Args:
        home: The home directory of the user who runs the examples.
        root: A directory for everything else.
        key: The host key of the server.
        port: Where the server listens.

    Attributes:
        collect: What the examples call /var/backup/collect and /srv/collect; its peer has collected.
        staging: What they call /srv/staging.
        replacements: What stands in for other words of the examples.
    """

    def __init__(self, home: Path, root: Path, key: Any, port: int) -> None:
        self.ssh_directory = home / ".ssh"
        self.ssh_directory.mkdir()
        new_identity(self.ssh_directory / "backup_ed25519")
        master = Master(self.ssh_directory)
        master.key = key
        for name in ("db1", "db2", "web1", "db1.example.com", "db2.example.com"):
            master.add_host(name, port, "IdentityFile ~/.ssh/backup_ed25519")
        self.collect = root / "backup" / "collect"
        self.staging = root / "staging"
        self.target = self.staging / "2026/11/23/db1"
        for path in (self.collect, self.target):
            path.mkdir(parents=True)
        (self.collect / "cback.collect").touch()
        (self.collect / "data.tar.gz").write_bytes(b"x" * 1000)
        self.host_key = key
        self.plan: Path | None = None
        self.cluster = DaskCluster(root / "dask")
        self.command = Command(None)  # type: ignore[arg-type]  # which needs a server only for its options
        self.replacements = {
            "/var/backup/collect": str(self.collect),
            "/srv/collect": str(self.collect),
            "/var/backup": str(self.collect.parent),
            "/srv/staging": str(self.staging),
            "port=2222": f"port={port}",
            "--local-user backup": f"--local-user {getpass.getuser()}",
        }

    def localize(self, example: str) -> str:
        """Return *example* with what it assumes about its machines replaced by what stands in for it."""
        words = "|".join(re.escape(word) for word in self.replacements)
        return re.sub(words, lambda found: self.replacements[found[0]], example)

    def write_plan(self) -> None:
        """Write the plan of the page every-night, with a collect directory of its own for each peer."""

        def add_directory(found: re.Match[str]) -> str:
            directory = self.collect.parent / found["name"]
            shutil.copytree(self.collect, directory)
            keys = [f'collect_dir = "{directory}"', *filter(None, [found["keys"].strip()])]
            return f"{found['name']} = {{ {', '.join(keys)} }}"

        text = self.localize(find_block("every-night", "staging ="))
        top, peers = text.split("[peers]")
        peers = re.sub(r"^(?P<name>\w+) = \{(?P<keys>.*?)\}", add_directory, peers, flags=re.MULTILINE)
        self.plan = self.staging.parent / "plan.toml"
        self.plan.write_text(f"{top}[peers]{peers}")
        self.replacements["/etc/peerstage/plan.toml"] = str(self.plan)

    def run_verb(self, words: list[str], stdin: str = "") -> None:
        """Run ``peerstage`` in this process, with the plan if there is one; it has to succeed."""
        if self.plan is not None:
            words = [*words, "--plan", str(self.plan)]
        done = self.command(*words, stdin=stdin.encode())
        assert done.returncode == 0, (words, done.stdout, done.stderr)

    def run_shell(self, script: str) -> None:
        subprocess.run(["sh", "-c", script], check=True)

"""A master and its peers, as the examples of the guide assume them: real files, and a server in this process."""

from __future__ import annotations

import getpass
import re
import subprocess
from pathlib import Path
from typing import Any

from cli.command import Command
from support.file_server import Master, new_identity


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
        for name in ("db1", "db2", "db1.example.com", "db2.example.com"):
            master.add_host(name, port, "IdentityFile ~/.ssh/backup_ed25519")
        self.collect = root / "backup" / "collect"
        self.staging = root / "staging"
        self.target = self.staging / "2026/11/23/db1"
        for path in (self.collect, self.target):
            path.mkdir(parents=True)
        (self.collect / "cback.collect").touch()
        (self.collect / "data.tar.gz").write_bytes(b"x" * 1000)
        self.host_key = key
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

    def run_verb(self, words: list[str], stdin: str = "") -> None:
        """Run ``peerstage`` in this process; it has to succeed."""
        done = self.command(*words, stdin=stdin.encode())
        assert done.returncode == 0, (words, done.stdout, done.stderr)

    def run_shell(self, script: str) -> None:
        subprocess.run(["sh", "-c", script], check=True)

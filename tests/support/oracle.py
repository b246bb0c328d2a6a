"""ssh itself as the oracle: what ``ssh -G`` makes of a configuration, and what our reader does."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from peerstage import SSHOptions
from peerstage.errors import ConfigurationError
from peerstage.session.config import Destination, resolve_destination
from peerstage.session.settings import Settings
from peerstage.session.ssh_config import Source, SSHConfig
from support.programs import program


def ask_ssh(file: Path, name: str, *options: str) -> dict[str, list[str]] | None:
    """Return what ssh makes of a configuration; None if it refuses."""
    command = [program("ssh"), "-G", "-F", str(file), "-l", "backup", *options, name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return None
    answer: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        keyword, _, value = line.partition(" ")
        answer.setdefault(keyword, []).append(value)
    return answer


def ask_ours(file: Path, name: str) -> SSHConfig | None:
    """Return what our reader makes of it; None if it refuses what ssh, too, is to refuse."""
    try:
        config = SSHConfig.read(
            [Source(str(file), required=True, checked=False, base=str(file.parent))], name, "backup"
        )
        Settings(config).attempts()
    except ConfigurationError as exc:
        assert str(exc).isprintable()
        assert str(file.parent) in str(exc)
        return None
    return config


def reach(text: str, file: Path, name: str = "db1", **options: Any) -> Destination:
    """Return how a host is reached if *file*, which is ~/.ssh/config, holds *text*."""
    file.write_text(text)
    return resolve_destination(name, "backup", SSHOptions(**options))

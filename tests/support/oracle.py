"""ssh as an oracle: how ``ssh -G`` and peerstage read a configuration."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from peerstage import SSHOptions
from peerstage.errors import ConfigurationError
from peerstage.ssh.config.destination import Destination
from peerstage.ssh.config.read_config import ConfigFile, read_ssh_config
from peerstage.ssh.config.resolve import connection_attempts, resolve_destination
from peerstage.ssh.config.ssh_config import SSHConfig
from support.programs import require_program


def ask_ssh(file: Path, name: str, *options: str) -> dict[str, list[str]] | None:
    """Return the output of ``ssh -G``, arguments by keyword; None if ssh rejects the configuration."""
    command = [require_program("ssh"), "-G", "-F", str(file), "-l", "backup", *options, name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return None
    answer: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        keyword, _, value = line.partition(" ")
        answer.setdefault(keyword, []).append(value)
    return answer


def read_ours(file: Path, name: str) -> SSHConfig | None:
    """Return the configuration as peerstage reads it; None if peerstage rejects it."""
    try:
        read = ConfigFile(str(file), is_required=True, is_private=False, include_base=str(file.parent))
        config = read_ssh_config([read], name, "backup")
        connection_attempts(config)
    except ConfigurationError as exc:
        assert str(exc).isprintable()
        assert str(file.parent) in str(exc)
        return None
    return config


def resolve_with(text: str, file: Path, name: str = "db1", **options: Any) -> Destination:
    """Return the destination *name* resolves to if *file*, which is ~/.ssh/config, contains *text*."""
    file.write_text(text)
    return resolve_destination(name, "backup", SSHOptions(**options))

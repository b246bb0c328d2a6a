"""Host keys of servers, and OpenSSH's verdict on a known_hosts file."""

from __future__ import annotations

import base64
import subprocess
from collections.abc import Callable
from pathlib import Path

from peerstage.ssh.keys.public_keys import fingerprint
from support.programs import require_program
from support.sshd import Sshd

Trust = Callable[..., subprocess.CompletedProcess[str]]

#: A key that no server has.
OTHER = "AAAAC3NzaC1lZDI1NTE5AAAAI" + base64.b64encode(b"o" * 33).decode()[:43]


def blob(sshd: Sshd) -> bytes:
    return base64.b64decode((sshd.home / "host.pub").read_text().split()[1])


def fingerprint_of(sshd: Sshd) -> str:
    return fingerprint(blob(sshd))


def at(sshd: Sshd) -> str:
    return f"[{sshd.host}]:{sshd.port}"


def found_by_keygen(path: Path, name: str) -> bool:
    done = subprocess.run([require_program("ssh-keygen"), "-F", name, "-f", str(path)], capture_output=True, timeout=30)
    return done.returncode == 0

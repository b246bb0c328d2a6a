"""Logging in as a configuration says it: what we offer, and what ``ssh -v`` offers with the same files."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peerstage import RemotePeer, SSHOptions
from support.keys import public
from support.programs import program
from support.sshd import Sshd


def configure(ssh: Path, server: Sshd, *lines: str) -> None:
    """Write how the server is reached, and what is to be tried there."""
    lines = (f"Port {server.port}", f"UserKnownHostsFile {server.known_hosts}", *lines)
    (ssh / "config").write_text("\n".join(lines) + "\n")


def log_in(server: Sshd, target: Path, **options: Any) -> None:
    """Stage from the server as the configuration says it; raise what comes of it."""
    collect = target.with_name("collected")
    collect.mkdir(exist_ok=True)
    (collect / "file").touch()
    peer = RemotePeer(server.host, str(collect), "/tmp", server.user, ssh=SSHOptions(**options))
    assert peer.stagePeer(str(target)) == 1


def offered_to(server: Sshd) -> list[str]:
    """Return fingerprints of what a server was offered, in order; certificates with their kind."""
    shown = re.findall(
        r"(?:Accepted|Failed|Postponed) publickey for \S+ from \S+ port \d+ ssh2: (\S+) (SHA256:\S+)", server.log
    )
    return [f"{kind} {one}" for kind, one in shown]


def ssh_offers(ssh: Path, server: Sshd) -> list[str]:
    """Return the same of ssh itself, without repeats."""
    told = run_ssh(ssh, server).stderr
    found = [f"{kind} {one}" for kind, one in re.findall(r"Offering public key: .* (\S+) (SHA256:\S+)", told)]
    return list(dict.fromkeys(found))  # what was refused once is not worth another of the server's MaxAuthTries


def run_ssh(ssh: Path, server: Sshd) -> subprocess.CompletedProcess[str]:
    """Log in by ssh itself; return its status and what it tells."""
    settings = [f"HostKeyAlias={server.host}", "StrictHostKeyChecking=no", "BatchMode=yes"]
    words = [word for setting in settings for word in ("-o", setting)]
    command = [program("ssh"), "-v", "-F", str(ssh / "config"), *words, "-l", server.user, server.host, "true"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)


def certified_server(own_sshd: Callable[..., Sshd], authority: Path, extra: str = "") -> Sshd:
    """A server that takes certificates of *authority*, and no keys."""
    trusted = authority.with_name("trusted")
    trusted.write_text(public(authority) + "\n")
    return own_sshd(extra=f"{extra}\nTrustedUserCAKeys {trusted}\nAuthorizedKeysFile none")

"""Logins with an ssh_config: the keys that peerstage offers, and those that ``ssh -v`` offers."""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from peerstage import Limits, RemotePeer, SSHOptions
from peerstage.ssh.config.resolve import resolve_destination
from peerstage.ssh.session import Session
from peerstage.watchdog import Watchdog
from support.keys import public_key
from support.programs import require_program
from support.sshd import Sshd


def configure(ssh: Path, server: Sshd, *lines: str) -> None:
    """Write an ssh_config for the server, with *lines* for what to log in with."""
    lines = (f"Port {server.port}", f"UserKnownHostsFile {server.known_hosts}", *lines)
    (ssh / "config").write_text("\n".join(lines) + "\n")


def log_in(server: Sshd, target: Path, **options: Any) -> None:
    """Stage from the server with that configuration."""
    collect = target.with_name("collected")
    collect.mkdir(exist_ok=True)
    (collect / "file").touch()
    peer = RemotePeer(server.host, str(collect), "/tmp", server.user, ssh=SSHOptions(**options))
    assert peer.stagePeer(str(target)) == 1


@contextlib.contextmanager
def open_session(host: str, user: str, options: SSHOptions) -> Iterator[tuple[Session, Watchdog]]:
    """Yield a session with the host, and its watchdog."""
    watchdog = Watchdog(Limits())
    destination = resolve_destination(host, user, options)
    session = Session.connect(destination, options, watchdog=watchdog)
    try:
        yield session, watchdog
    finally:
        session.close()
        watchdog.close()


def find_offered_keys(server: Sshd) -> list[str]:
    """Return type and fingerprint of each key that a server was offered, in order."""
    offered = re.findall(
        r"(?:Accepted|Failed|Postponed) publickey for \S+ from \S+ port \d+ ssh2: (\S+) (SHA256:\S+)", server.log
    )
    return [f"{key_type} {fingerprint}" for key_type, fingerprint in offered]


def find_keys_offered_by_ssh(ssh: Path, server: Sshd) -> list[str]:
    """Return the same for ssh itself, without repeats."""
    log = run_ssh(ssh, server).stderr
    offered = [" ".join(key) for key in re.findall(r"Offering public key: .* (\S+) (SHA256:\S+)", log)]
    return list(dict.fromkeys(offered))  # ssh offers some keys twice; each time uses up one of MaxAuthTries


def run_ssh(ssh: Path, server: Sshd) -> subprocess.CompletedProcess[str]:
    """Log in with ssh."""
    settings = [f"HostKeyAlias={server.host}", "StrictHostKeyChecking=no", "BatchMode=yes"]
    words = [word for setting in settings for word in ("-o", setting)]
    command = [require_program("ssh"), "-v", "-F", str(ssh / "config"), *words, "-l", server.user, server.host, "true"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)


def start_certified_server(own_sshd: Callable[..., Sshd], authority: Path, extra: str = "") -> Sshd:
    """Start a server that accepts certificates of *authority*, and no plain keys."""
    trusted = authority.with_name("trusted")
    trusted.write_text(public_key(authority) + "\n")
    return own_sshd(extra=f"{extra}\nTrustedUserCAKeys {trusted}\nAuthorizedKeysFile none")

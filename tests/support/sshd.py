"""The system's OpenSSH sshd on a loopback port, with its own keys and configuration."""

from __future__ import annotations

import contextlib
import getpass
import itertools
import os
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peerstage.records import Progress
from peerstage.ssh.options import SSHOptions
from support.keys import fingerprint_of, make_key
from support.leaks import expected_children
from support.programs import require_program
from support.waiting import wait_until


@dataclass
class Sshd:
    """A running server."""

    home: Path
    port: int
    user: str
    process: subprocess.Popen[bytes] = field(repr=False)
    host: str = "127.0.0.1"

    @property
    def identity(self) -> Path:
        return self.home / "id"

    @property
    def known_hosts(self) -> Path:
        return self.home / "known_hosts"

    @property
    def host_key(self) -> str:
        """Return the fingerprint of the host key."""
        return fingerprint_of(self.home / "host")

    @property
    def log(self) -> str:
        return (self.home / "log").read_text(errors="replace")

    def options(self, **changes: object) -> SSHOptions:
        """Return options that reach it without this machine's own configuration."""
        values: dict[str, object] = {
            "port": self.port,
            "identity": str(self.identity),
            "known_hosts": str(self.known_hosts),
            "config": (),
            "agent": False,
        }
        return SSHOptions(**{**values, **changes})  # type: ignore[arg-type]

    def ssh_arguments(self) -> list[str]:
        """Return the same for OpenSSH's programs, for comparison."""
        return ["-F", "none", "-o", f"UserKnownHostsFile={self.known_hosts}", "-o", f"IdentityFile={self.identity}",
                "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", f"Port={self.port}"]  # fmt: skip

    def sessions(self) -> list[int]:
        """Return the process ids that serve the connections."""
        pid = self.process.pid
        try:
            return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        except OSError:  # it has ended
            return []

    def kill_sessions(self) -> None:
        """Kill the processes that serve the connections, and wait until they have exited."""

        def none_is_left() -> bool:
            for pid in (pids := self.sessions()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return not pids

        wait_until(none_is_left)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.kill_sessions()
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        """Restart it with its current configuration. Not for a server of a pool."""
        self.stop()
        command = [require_program("sshd"), "-D", "-f", str(self.home / "sshd_config"), "-E", str(self.home / "log")]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        assert _listens(self.host, self.port, self.process), self.log[-500:]


class SshdPool:
    """Running servers for exclusive use by one test after another; each test gets one in its initial state.

    Starting a server costs more than most tests. A server that a test stopped is not used again.

    Args:
        home: The directory of the servers' directories.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self._started = 0
        self._idle: dict[str, list[Sshd]] = {}
        self._kept: dict[int, tuple[str, dict[Path, tuple[bytes, int]]]] = {}

    def take(self, **changes: Any) -> Sshd:
        """Return a server that was started with *changes* (see `start_sshd`); `give_back` returns it to the pool."""
        key = repr(sorted(changes.items()))
        while idle := self._idle.get(key):
            server = idle.pop()
            if server.process.poll() is None:
                return server
        self._started += 1
        server = start_sshd(self._home / str(self._started), **changes)
        files = (path for path in server.home.iterdir() if path.name != "log")
        self._kept[server.process.pid] = key, {path: (path.read_bytes(), path.stat().st_mode) for path in files}
        expected_children.add(server.process.pid)
        return server

    def give_back(self, server: Sshd) -> None:
        """Reset a server to its initial state (no connections, initial files, empty log) and keep it."""
        if server.process.poll() is not None:
            expected_children.discard(server.process.pid)
            return
        server.kill_sessions()
        key, files = self._kept[server.process.pid]
        for path in server.home.iterdir():
            if path.name == "log":
                os.truncate(path, 0)
            elif path not in files:
                path.unlink()
        for path, (content, mode) in files.items():
            path.write_bytes(content)
            path.chmod(mode)
        self._idle.setdefault(key, []).append(server)

    def stop(self) -> None:
        for server in itertools.chain.from_iterable(self._idle.values()):
            server.stop()


class KillsSessions:
    """An ``on_progress`` that kills a server's connections once, after *after* bytes.

    Attributes:
        killed_at: When it did, by the monotonic clock; None before.
    """

    def __init__(self, server: Sshd, *, after: int) -> None:
        self._server = server
        self._after = after
        self.killed_at: float | None = None

    def __call__(self, progress: Progress) -> None:
        if self.killed_at is None and progress.bytes_done > self._after:
            for pid in self._server.sessions():
                os.kill(pid, signal.SIGKILL)
            self.killed_at = time.monotonic()


def start_sshd(
    home: Path,
    *,
    user: str | None = None,
    extra: str = "",
    sftp: str = "internal-sftp",
    subsystem: bool = True,
    address: str = "127.0.0.1",
) -> Sshd:
    """Start a server; *extra* comes first in its configuration, so that its values win.

    Args:
        home: A directory for keys, configuration and log.
        user: The login, with a shell and a home; by default the user who runs the tests.
        sftp: The command of the SFTP subsystem.
        subsystem: Whether to configure the SFTP subsystem.
        address: The address to listen on.
    """
    sshd = require_program("sshd")
    home.mkdir(parents=True, exist_ok=True)
    home.chmod(0o755)
    for name in ("host", "id"):
        make_key(home / name)
    (home / "authorized_keys").write_bytes((home / "id.pub").read_bytes())
    (home / "authorized_keys").chmod(0o644)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    if user is None:  # else the login shell would run this machine's ~/.bashrc
        extra = f"{extra}\nSetEnv HOME={home}"
    for _ in range(5):
        port = free_port(address)
        (home / "sshd_config").write_text(
            f"{extra}\nPort {port}\nListenAddress {address}\nHostKey {home}/host\nPidFile none\n"
            f"AuthorizedKeysFile {home}/authorized_keys\nStrictModes no\nUsePAM no\nPermitRootLogin yes\n"
            f"{f'Subsystem sftp {sftp}' if subsystem else ''}\nLogLevel VERBOSE\nMaxStartups 200\n"
            "KexAlgorithms -sntrup761*\n"  # costs client and server 0.1 s each, and tests nothing here
        )
        command = [sshd, "-D", "-f", str(home / "sshd_config"), "-E", str(home / "log")]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        if _listens(address, port, process):
            key_type, blob = (home / "host.pub").read_text().split()[:2]
            (home / "known_hosts").write_text(f"[{address}]:{port} {key_type} {blob}\n")
            return Sshd(home, port, user or getpass.getuser(), process, address)
        process.kill()
        process.wait()
    raise RuntimeError(f"sshd does not start: {(home / 'log').read_text(errors='replace')[-500:]}")


def free_port(address: str = "127.0.0.1") -> int:
    """Return a port on which nothing listens at the moment."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as sock:
        sock.bind((address, 0))
        return int(sock.getsockname()[1])


def _listens(address: str, port: int, process: subprocess.Popen[bytes]) -> bool:
    until = time.monotonic() + 10
    while time.monotonic() < until and process.poll() is None:
        try:
            with socket.create_connection((address, port), timeout=1) as sock:
                return sock.recv(4) == b"SSH-"
        except OSError:
            time.sleep(0.02)
    return False


def ssh_trusts(sshd: Sshd, path: Path) -> bool:
    """Return whether ssh trusts the server with the known_hosts file *path* alone."""
    done = subprocess.run(
        [require_program("ssh"), "-o", f"UserKnownHostsFile={path}", "-o", "GlobalKnownHostsFile=none",
         "-o", "StrictHostKeyChecking=yes", *sshd.ssh_arguments(), sshd.host, "true"],
        capture_output=True, timeout=60,
    )  # fmt: skip
    return done.returncode == 0

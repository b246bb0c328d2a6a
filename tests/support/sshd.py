"""The system's OpenSSH sshd on a loopback port, with keys and configuration of the run's own."""

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
from peerstage.session.options import SSHOptions
from support.keys import fingerprint, make_key
from support.leaks import expected_children
from support.programs import program
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
        """The fingerprint of its host key."""
        return fingerprint(self.home / "host")

    @property
    def log(self) -> str:
        return (self.home / "log").read_text(errors="replace")

    def options(self, **changes: object) -> SSHOptions:
        """How to reach it: nothing of this machine's own configuration is used."""
        values: dict[str, object] = {
            "port": self.port,
            "identity": str(self.identity),
            "known_hosts": str(self.known_hosts),
            "config": (),
            "agent": False,
        }
        return SSHOptions(**{**values, **changes})  # type: ignore[arg-type]

    def ssh_arguments(self) -> list[str]:
        """The same for OpenSSH's own programs, for comparison."""
        return ["-F", "none", "-o", f"UserKnownHostsFile={self.known_hosts}", "-o", f"IdentityFile={self.identity}",
                "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", f"Port={self.port}"]  # fmt: skip

    def sessions(self) -> list[int]:
        """Process ids of the servers of single connections."""
        pid = self.process.pid
        try:
            return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        except OSError:  # it has ended
            return []

    def kill_sessions(self) -> None:
        """Kill the servers of single connections, and wait until they are gone."""

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
        """Start it again, with its configuration as it is now. Not for a server of a pool."""
        self.stop()
        command = [program("sshd"), "-D", "-f", str(self.home / "sshd_config"), "-E", str(self.home / "log")]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        assert _listens(self.host, self.port, self.process), self.log[-500:]


class SshdPool:
    """Running servers that one test after the other has to itself, each time as they were when they were started.

    Starting one costs more than most tests do with it. A server that a test has stopped is not used again.

    Args:
        home: A directory for the servers' own.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self._started = 0
        self._idle: dict[str, list[Sshd]] = {}
        self._kept: dict[int, tuple[str, dict[Path, tuple[bytes, int]]]] = {}

    def take(self, **changes: Any) -> Sshd:
        """Return a server that was started with *changes*, see `start_sshd`; it is to be given back."""
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
        """Take back a server, without connections, and with the files and the empty log that it began with."""
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
    """An ``on_progress`` that kills a server's connections once, when more than so many bytes have come.

    Attributes:
        at: When it did, by the monotonic clock; None if it has not.
    """

    def __init__(self, server: Sshd, *, after: int) -> None:
        self._server = server
        self._after = after
        self.at: float | None = None

    def __call__(self, progress: Progress) -> None:
        if self.at is None and progress.bytes_done > self._after:
            for pid in self._server.sessions():
                os.kill(pid, signal.SIGKILL)
            self.at = time.monotonic()


def start_sshd(
    home: Path,
    *,
    user: str | None = None,
    extra: str = "",
    sftp: str = "internal-sftp",
    subsystem: bool = True,
    address: str = "127.0.0.1",
) -> Sshd:
    """Start a server; *extra* is more of its configuration, and comes first, so that it wins.

    Args:
        home: A directory for keys, configuration and log.
        user: Who logs in, with a shell and a home; by default whoever runs the tests.
        sftp: The command of the SFTP subsystem.
        subsystem: Whether there is one.
        address: Where it listens.
    """
    sshd = program("sshd")
    home.mkdir(parents=True, exist_ok=True)
    home.chmod(0o755)
    for name in ("host", "id"):
        make_key(home / name)
    (home / "authorized_keys").write_bytes((home / "id.pub").read_bytes())
    (home / "authorized_keys").chmod(0o644)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    if user is None:  # the shell of a command would run this machine's ~/.bashrc
        extra = f"{extra}\nSetEnv HOME={home}"
    for _ in range(5):
        port = free_port(address)
        (home / "sshd_config").write_text(
            f"{extra}\nPort {port}\nListenAddress {address}\nHostKey {home}/host\nPidFile none\n"
            f"AuthorizedKeysFile {home}/authorized_keys\nStrictModes no\nUsePAM no\nPermitRootLogin yes\n"
            f"{f'Subsystem sftp {sftp}' if subsystem else ''}\nLogLevel VERBOSE\nMaxStartups 200\n"
            "KexAlgorithms -sntrup761*\n"  # costs an ssh and a server 0.1 s each, and the tests learn nothing from it
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
    """A port that nobody listens on right now."""
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
    """Whether OpenSSH reaches the server by the keys in the known_hosts file *path*, and by nothing else."""
    done = subprocess.run(
        [program("ssh"), "-o", f"UserKnownHostsFile={path}", "-o", "GlobalKnownHostsFile=none",
         "-o", "StrictHostKeyChecking=yes", *sshd.ssh_arguments(), sshd.host, "true"],
        capture_output=True, timeout=60,
    )  # fmt: skip
    return done.returncode == 0

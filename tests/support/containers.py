"""The peers of docker/docker-compose.yml as tests use them: fill, connect, inspect."""

from __future__ import annotations

import io
import itertools
import re
import shlex
import socket
import stat
import subprocess
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peerstage import RemotePeer, SSHOptions
from peerstage.testing.contract import Source
from support.archive import UID as UID
from support.archive import FileTree as FileTree
from support.archive import StoredFile as StoredFile
from support.bench_home import USER as USER
from support.bench_home import VARIABLES, read_variables
from support.bench_home import list_services as list_services
from support.engine import PROJECT, SERVICE, compose_command
from support.engine import ROOT as ROOT
from support.engine import docker as docker
from support.programs import rcp_command
from support.shell import Shell, ShellEnded

COLLECT = "/srv/collect"

#: Debian suites of the services that are not on bookworm.
SUITES = {"openssh84": "bullseye", "openssh100": "trixie", "client": "trixie", "master": "trixie"}
#: The collect directory as a chrooted user sees it.
_VISIBLE_COLLECT_DIRECTORIES = {"sftp-only": "/collect"}
#: Services that are reached through jump hosts, the nearest first.
_JUMP_HOSTS = {"behind": ("bastion",), "far": ("bastion", "gate")}
#: The last octet of the address that docker-compose.yml assigns.
_FIXED_ADDRESSES = {"faults": 200}


def jump_hosts_of(service: str) -> tuple[str, ...]:
    """Return the jump hosts of a service, the nearest first."""
    return _JUMP_HOSTS.get(service, ())


def visible_collect_directory(service: str) -> str:
    """Return the collect directory as the user of a service sees it."""
    return _VISIBLE_COLLECT_DIRECTORIES.get(service, COLLECT)


@dataclass
class Container:
    """A running service."""

    service: str
    id: str
    banner: str = ""

    _ports: tuple[int, ...] | None = field(default=None, repr=False, compare=False)
    _shell: Shell | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def ports(self) -> tuple[int, ...]:
        """The published ports of its port 22; `restart` changes them."""
        if self._ports is None:
            self._ports = parse_published_ports(docker("port", self.id).decode())
        return self._ports

    def execute(self, *command: str, stdin: bytes | None = None) -> bytes:
        """Run a command in the container as root, and return its stdout.

        Raises:
            RuntimeError: If it fails, or if the container is not running.
        """
        line = shlex.join(command)
        try:
            status, output, error = self._in_shell(line, stdin or b"")
        except ShellEnded as exc:
            raise RuntimeError(f"{self.service}: {line[:200]}: {exc}") from None
        if status != 0:
            message = error.decode(errors="replace").strip()[-500:]
            raise RuntimeError(f"{self.service}: {line[:200]} ended with status {status}: {message}")
        return output

    def _in_shell(self, line: str, stdin: bytes) -> tuple[int, bytes, bytes]:
        if self._shell is not None:
            try:
                return self._shell.run(line, stdin)
            except ShellEnded:  # the container was restarted, perhaps
                self._shell = None
        shell = Shell(self.id)
        answer = shell.run(line, stdin)
        self._shell = shell
        return answer

    def restart(self) -> None:
        """Restart the container, and wait until its server answers."""
        self.close()
        docker("restart", "-t", "0", self.id)
        self.banner, self._ports = "", None
        self.wait()

    def reload(self) -> None:
        """Let its sshd reload its configuration, and wait until it listens again."""
        listening = "awk '$2 ~ /:0016$/ && $4 == \"0A\" {print $10}' /proc/net/tcp /proc/net/tcp6"
        script = (  # on as many sockets as before: IPv6 may be open before IPv4
            f'now() {{ {listening}; }}; count() {{ echo "$1" | wc -w; }}; before=$(now); kill -HUP 1; '
            'while after=$(now); [ "$(count "$after")" -lt "$(count "$before")" ] || [ "$after" = "$before" ]; '
            "do sleep 0.01; done"
        )
        self.execute("sh", "-c", script)

    def close(self) -> None:
        """End the shell that `execute` keeps open."""
        shell, self._shell = self._shell, None
        if shell is not None:
            shell.close()

    def fill(self, files: FileTree | None = None, *, directory: str = COLLECT, empty_first: bool = False) -> None:
        """Extract *files* into the collect directory; if *empty_first*, delete its contents before."""
        empty = "find . -mindepth 1 -delete; chmod 755 .;" if empty_first else ""
        self.execute(
            "sh",
            "-c",
            f'mkdir -p "$1"; cd "$1"; {empty} exec tar -x -p --numeric-owner --no-overwrite-dir',
            "fill",
            directory,
            stdin=(files or FileTree()).to_tar(),
        )

    def unpack(self, archive: Path) -> None:
        """Extract a tar archive, which lies in the run's keys directory, into the collect directory."""
        self.execute("tar", "-x", "-p", "--no-overwrite-dir", "-C", COLLECT, "-f", f"/run/keys/{archive.name}")

    def files(self, directory: str = COLLECT) -> dict[bytes, StoredFile]:
        """Return the regular files of the collect directory."""
        found = {}
        raw = io.BytesIO(self.execute("tar", "-c", "-C", directory, "--format=gnu", "."))
        with tarfile.open(fileobj=raw, encoding="utf-8", errors="surrogateescape") as tar:
            for info in tar:
                if info.isreg() and (file := tar.extractfile(info)) is not None:
                    name = info.name.removeprefix("./").encode("utf-8", "surrogateescape")
                    found[name] = StoredFile(file.read(), stat.S_IMODE(info.mode), info.uid)
        return found

    def wait(self, seconds: float = 30.0) -> None:
        """Wait until the container runs, and until its SSH server identifies itself if a port is published."""
        until = time.monotonic() + seconds
        while not self._answers():
            if docker("inspect", "--format", "{{.State.Running}}", self.id).strip() != b"true":
                raise RuntimeError(f"{self.service} does not come up: {self._log()}")
            if not self.ports:
                return
            if time.monotonic() > until:
                raise RuntimeError(f"{self.service} does not answer: {self._log()}")
            time.sleep(0.05)

    def _answers(self) -> bool:
        for port in self.ports[:1]:
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=2) as sock, sock.makefile("rb") as file:
                    line = file.readline(256)
            except OSError:
                return False
            self.banner = line.decode(errors="replace").strip() if line.startswith(b"SSH-") else ""
        return bool(self.banner)

    def _log(self) -> str:
        done = subprocess.run(["docker", "logs", self.id], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        return done.stdout.decode(errors="replace")[-500:]


class ContainerSource(Source):
    """The collect directory of a container. Writes are buffered until `settle` is called."""

    def __init__(self, container: Container) -> None:
        self.directory = visible_collect_directory(container.service).encode()
        self._container = container
        self._pending: FileTree | None = None

    def write(self, name: bytes, data: bytes, mode: int = 0o644, mtime: int | None = None) -> None:
        self._pending = (self._pending or FileTree()).add_file(name, data, mode, mtime=mtime)

    def make_directory(self, name: bytes) -> None:
        self._pending = (self._pending or FileTree()).add_directory(name).add_file(name + b"/inside", b"never staged")

    def read(self, name: bytes) -> bytes | None:
        self.settle()
        found = self._container.files().get(name)
        return None if found is None else found.data

    def settle(self) -> None:
        """Write what is buffered."""
        pending, self._pending = self._pending, None
        if pending is not None:
            self._container.fill(pending)


@dataclass
class BenchPeer:
    """A peer of the bench for one test, with an empty collect directory."""

    bench: Bench = field(repr=False)
    container: Container
    user: str = USER

    def __post_init__(self) -> None:
        self.container.fill(empty_first=True)

    @property
    def service(self) -> str:
        return self.container.service

    @property
    def host(self) -> str:
        return self.service if self.hops else "127.0.0.1"

    @property
    def port(self) -> int:
        return 22 if self.hops else self.container.ports[0]

    @property
    def hops(self) -> list[tuple[str, str, int]]:
        """Its jump hosts: service, host and port of each."""
        services = _JUMP_HOSTS.get(self.service, ())
        first = [(one, "127.0.0.1", self.bench.container(one).ports[0]) for one in services[:1]]
        return [*first, *((one, one, 22) for one in services[1:])]

    @property
    def collect(self) -> str:
        """The collect directory as the peer's user sees it."""
        return visible_collect_directory(self.service)

    @property
    def identity(self) -> Path:
        return self.bench.home / "id"

    @property
    def known_hosts(self) -> Path:
        """A known_hosts file with the keys of host and jump hosts, or the authority of a host certificate."""
        hosts = [(self.service, self.host, self.port), *self.hops]
        patterns = [(service, f"[{host}]:{port}" if port != 22 else host) for service, host, port in hosts]
        path = self.bench.home / f"known_hosts_{self.service}"
        path.write_text("".join(self.bench.known_hosts_line(service, pattern) for service, pattern in patterns))
        return path

    def options(self, **changes: Any) -> SSHOptions:
        """Return options that reach it without this machine's own configuration."""
        values: dict[str, Any] = {
            "port": self.port,
            "identity": str(self.identity),
            "known_hosts": str(self.known_hosts),
            "config": (),
            "agent": False,
        }
        if self.hops:
            values["jump"] = ",".join(f"{USER}@{host}:{port}" for _, host, port in self.hops)
        if self.service == "certs":
            values["certificate"] = str(self.bench.home / "id-cert.pub")
        return SSHOptions(**{**values, **changes})

    def ssh_arguments(self) -> list[str]:
        """Return the same for OpenSSH's programs, which find the certificate beside the key."""
        quick = "KexAlgorithms=-sntrup761*"  # which costs both sides 0.1 s
        settings = ("BatchMode=yes", "IdentitiesOnly=yes", f"IdentityFile={self.identity}", quick)
        files = (f"UserKnownHostsFile={self.known_hosts}", "GlobalKnownHostsFile=none")
        common = ["-F", "none", *(word for setting in (*settings, *files) for word in ("-o", setting))]
        arguments = [*common, "-o", f"Port={self.port}"]
        proxy: list[str] = []
        stops = [*self.hops, (self.service, self.host, self.port)]
        for (_, host, port), (_, next_host, next_port) in itertools.pairwise(stops):
            hop = ["ssh", *common, *proxy, "-p", str(port), "-W", f"{next_host}:{next_port}", f"{USER}@{host}"]
            proxy = ["-o", f"ProxyCommand={shlex.join(hop)}"]
        return [*arguments, *proxy]

    def remote(self, transport: str = "sftp", *, ssh: SSHOptions | None = None, **options: Any) -> RemotePeer:
        """Return a `RemotePeer`; *transport* may also be "guarded"."""
        choice: dict[str, Any] = {"guarded": True} if transport == "guarded" else {"transport": transport}
        if transport == "rcp":
            choice["rcpCommand"] = rcp_command(self.ssh_arguments())
        collect = options.pop("collectDir", self.collect)
        return RemotePeer(self.host, collect, "/tmp", self.user, ssh=ssh or self.options(), **choice, **options)


class Bench:
    """The containers of one run; `BenchOwner` starts and removes them.

    Args:
        home: The directory that `create_bench_home` filled.
        project: Compose's name of the run.
    """

    def __init__(self, home: Path, project: str) -> None:
        self.home = home
        self.project = project
        self._containers: dict[str, Container] = {}

    def container(self, service: str) -> Container:
        """Return a service's container."""
        if service not in self._containers:
            self._containers = {**find_containers(self.project), **self._containers}
        return self._containers[service]

    @property
    def compose_command(self) -> str:
        """The compose command line with this run's variables, quoted for a shell."""
        return shlex.join([*(compose_command() or ()), "--env-file", str(self.home / VARIABLES)])

    def recreate(self, service: str, compose: Callable[[str], object]) -> Container:
        """Replace the container of a service by a new one, whatever state the old one is in.

        Args:
            service: A service that only one test uses.
            compose: Runs a compose subcommand.
        """
        self.unpause()
        self.container(service).close()
        for words in ("rm -fsv", "up -d --no-build --no-deps"):  # rm also removes the volume, unlike up
            compose(f"{words} {service}")
        del self._containers[service]
        container = self.container(service)
        container.wait()
        return container

    def unpause(self) -> None:
        """Unpause paused containers."""
        label = f"label={PROJECT}={self.project}"
        for one in docker("ps", "-q", "--filter", label, "--filter", "status=paused").decode().split():
            docker("unpause", one)

    def close(self) -> None:
        """End the shells in the containers."""
        for container in self._containers.values():
            container.close()

    def peer(self, service: str) -> BenchPeer:
        """Return a peer with an empty collect directory."""
        return BenchPeer(self, self.container(service))

    def known_hosts_line(self, service: str, pattern: str) -> str:
        """Return the known_hosts line of a service that is reached at *pattern*, ``HOST`` or ``[HOST]:PORT``."""
        if service == "certs":
            return f"@cert-authority {pattern} {(self.home / 'ca.pub').read_text()}"
        return f"{pattern} {(self.home / 'keys' / f'host_{service}.pub').read_text()}"

    def address(self, service: str) -> str:
        """Return how other containers reach a service: by its fixed address, or by its name."""
        octet = _FIXED_ADDRESSES.get(service)
        return service if octet is None else f"{read_variables(self.home)['PEERSTAGE_NET']}.{octet}"

    @property
    def network(self) -> str:
        """The name of the network that the client shares with its peers."""
        return f"{self.project}_bench"


def find_containers(project: str) -> dict[str, Container]:
    """Return the containers of a project, by service."""
    columns = f'{{{{.ID}}}}\t{{{{.Label "{SERVICE}"}}}}\t{{{{.Ports}}}}'
    listing = docker("ps", "-a", "--no-trunc", "--filter", f"label={PROJECT}={project}", "--format", columns)
    rows = (line.split("\t") for line in listing.decode().splitlines())
    return {service: Container(service, id_, _ports=parse_published_ports(ports)) for id_, service, ports in rows}


def parse_published_ports(text: str) -> tuple[int, ...]:
    """Parse the local ports from the output of ``docker ps`` or ``docker port``."""
    return tuple(int(port) for port in re.findall(r"127\.0\.0\.1:(\d+)", text))

"""The peers of docker/docker-compose.yml, as tests use them: filled with files, reached, looked into."""

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
from support.archive import Files as Files
from support.archive import Found as Found
from support.bench_home import USER as USER
from support.bench_home import VARIABLES, variables
from support.bench_home import services_in_file as services_in_file
from support.engine import PROJECT, SERVICE, compose_command
from support.engine import ROOT as ROOT
from support.engine import docker as docker
from support.programs import rcp_command
from support.shell import Shell, ShellGone

COLLECT = "/srv/collect"

#: Debian suites of the services that are not on bookworm.
SUITES = {"openssh84": "bullseye", "openssh100": "trixie", "client": "trixie", "master": "trixie"}
#: How a chrooted user sees the collect directory.
_SEEN_AS = {"sftp-only": "/collect"}
#: Services that are reached through others, the nearest of these first.
_THROUGH = {"behind": ("bastion",), "far": ("bastion", "gate")}
#: The one whose address stays, as docker-compose.yml says it.
_FIXED = {"faults": 200}


def hops_to(service: str) -> tuple[str, ...]:
    """Return the services through which a service is reached, the nearest first."""
    return _THROUGH.get(service, ())


def seen_as(service: str) -> str:
    """Return the collect directory of a service as its user sees it."""
    return _SEEN_AS.get(service, COLLECT)


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
        """The ports of this machine that lead to its port 22; `restart` changes them."""
        if self._ports is None:
            self._ports = published(docker("port", self.id).decode())
        return self._ports

    def execute(self, *command: str, stdin: bytes | None = None) -> bytes:
        """Run a command in it as root, and return what it says.

        Raises:
            RuntimeError: If it fails, or the container does not run.
        """
        line = shlex.join(command)
        try:
            status, output, error = self._in_shell(line, stdin or b"")
        except ShellGone as exc:
            raise RuntimeError(f"{self.service}: {line[:200]}: {exc}") from None
        if status != 0:
            words = error.decode(errors="replace").strip()[-500:]
            raise RuntimeError(f"{self.service}: {line[:200]} ended with status {status}: {words}")
        return output

    def _in_shell(self, line: str, stdin: bytes) -> tuple[int, bytes, bytes]:
        if self._shell is not None:
            try:
                return self._shell.run(line, stdin)
            except ShellGone:  # with the container, which may be up again
                self._shell = None
        shell = Shell(self.id)
        answer = shell.run(line, stdin)
        self._shell = shell
        return answer

    def restart(self) -> None:
        """Start it again, and wait until it answers."""
        self.close()
        docker("restart", "-t", "0", self.id)
        self.banner, self._ports = "", None
        self.wait()

    def reload(self) -> None:
        """Have its sshd read its configuration again, and wait until it listens again."""
        listening = "awk '$2 ~ /:0016$/ && $4 == \"0A\" {print $10}' /proc/net/tcp /proc/net/tcp6"
        script = (  # on as many sockets as before: that of IPv6 may be open before the one of IPv4 is
            f'now() {{ {listening}; }}; count() {{ echo "$1" | wc -w; }}; before=$(now); kill -HUP 1; '
            'while after=$(now); [ "$(count "$after")" -lt "$(count "$before")" ] || [ "$after" = "$before" ]; '
            "do sleep 0.01; done"
        )
        self.execute("sh", "-c", script)

    def close(self) -> None:
        """End the shell in it that `execute` keeps."""
        shell, self._shell = self._shell, None
        if shell is not None:
            shell.close()

    def fill(self, files: Files | None = None, *, directory: str = COLLECT, fresh: bool = False) -> None:
        """Lay *files* into the collect directory; if *fresh*, whatever was in it goes first."""
        empty = "find . -mindepth 1 -delete; chmod 755 .;" if fresh else ""
        self.execute(
            "sh",
            "-c",
            f'mkdir -p "$1"; cd "$1"; {empty} exec tar -x -p --numeric-owner --no-overwrite-dir',
            "fill",
            directory,
            stdin=(files or Files()).archive(),
        )

    def unpack(self, archive: Path) -> None:
        """Lay what a tar archive among the keys of the run holds into the collect directory."""
        self.execute("tar", "-x", "-p", "--no-overwrite-dir", "-C", COLLECT, "-f", f"/run/keys/{archive.name}")

    def files(self, directory: str = COLLECT) -> dict[bytes, Found]:
        """Return the regular files of the collect directory."""
        found = {}
        raw = io.BytesIO(self.execute("tar", "-c", "-C", directory, "--format=gnu", "."))
        with tarfile.open(fileobj=raw, encoding="utf-8", errors="surrogateescape") as tar:
            for info in tar:
                if info.isreg() and (file := tar.extractfile(info)) is not None:
                    name = info.name.removeprefix("./").encode("utf-8", "surrogateescape")
                    found[name] = Found(file.read(), stat.S_IMODE(info.mode), info.uid)
        return found

    def wait(self, seconds: float = 30.0) -> None:
        """Wait until it runs, and says that it speaks SSH if it has a published port."""
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
    """The collect directory of a container. Writes are gathered and go in together when `settle` is called."""

    def __init__(self, container: Container) -> None:
        self.directory = seen_as(container.service).encode()
        self._container = container
        self._pending: Files | None = None

    def write(self, name: bytes, data: bytes, mode: int = 0o644) -> None:
        self._pending = (self._pending or Files()).file(name, data, mode)

    def make_directory(self, name: bytes) -> None:
        self._pending = (self._pending or Files()).directory(name).file(name + b"/inside", b"never staged")

    def read(self, name: bytes) -> bytes | None:
        self.settle()
        found = self._container.files().get(name)
        return None if found is None else found.data

    def settle(self) -> None:
        """Bring what was written into the container."""
        pending, self._pending = self._pending, None
        if pending is not None:
            self._container.fill(pending)


@dataclass
class BenchPeer:
    """A peer of the bench as one test is given it, with an empty collect directory."""

    bench: Bench = field(repr=False)
    container: Container
    user: str = USER

    def __post_init__(self) -> None:
        self.container.fill(fresh=True)

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
        """The services on the way to it, with host and port of each."""
        services = _THROUGH.get(self.service, ())
        first = [(one, "127.0.0.1", self.bench.container(one).ports[0]) for one in services[:1]]
        return [*first, *((one, one, 22) for one in services[1:])]

    @property
    def collect(self) -> str:
        """The collect directory as the peer's user sees it."""
        return seen_as(self.service)

    @property
    def identity(self) -> Path:
        return self.bench.home / "id"

    @property
    def known_hosts(self) -> Path:
        """A known_hosts file with the host's key, or where it has a certificate, the authority's."""
        on_the_way = [(self.service, self.host, self.port), *self.hops]
        places = [(service, f"[{host}]:{port}" if port != 22 else host) for service, host, port in on_the_way]
        path = self.bench.home / f"known_hosts_{self.service}"
        path.write_text("".join(self.bench.known_hosts_line(service, place) for service, place in places))
        return path

    def options(self, **changes: Any) -> SSHOptions:
        """How to reach it: nothing of this machine's own configuration is used."""
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
        """The same for OpenSSH's own programs; they find the certificate beside the key."""
        quick = "KexAlgorithms=-sntrup761*"  # which costs both sides 0.1 s
        settings = ("BatchMode=yes", "IdentitiesOnly=yes", f"IdentityFile={self.identity}", quick)
        files = (f"UserKnownHostsFile={self.known_hosts}", "GlobalKnownHostsFile=none")
        common = ["-F", "none", *(word for setting in (*settings, *files) for word in ("-o", setting))]
        arguments = [*common, "-o", f"Port={self.port}"]
        way: list[str] = []
        stops = [*self.hops, (self.service, self.host, self.port)]
        for (_, host, port), (_, onward, its_port) in itertools.pairwise(stops):
            hop = ["ssh", *common, *way, "-p", str(port), "-W", f"{onward}:{its_port}", f"{USER}@{host}"]
            way = ["-o", f"ProxyCommand={shlex.join(hop)}"]
        return [*arguments, *way]

    def remote(self, transport: str = "sftp", *, ssh: SSHOptions | None = None, **options: Any) -> RemotePeer:
        """Return the library's peer; *transport* may be "guarded" too."""
        way: dict[str, Any] = {"guarded": True} if transport == "guarded" else {"transport": transport}
        if transport == "rcp":
            way["rcpCommand"] = rcp_command(self.ssh_arguments())
        collect = options.pop("collectDir", self.collect)
        return RemotePeer(self.host, collect, "/tmp", self.user, ssh=ssh or self.options(), **way, **options)


class Bench:
    """The containers of one run, as one process uses them; their owner starts and removes them.

    Args:
        home: Where `lay_out` made everything.
        project: Compose's name for the run.
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
        """The command of compose with this run's variables, as a shell takes it."""
        return shlex.join([*(compose_command() or ()), "--env-file", str(self.home / VARIABLES)])

    def recreate(self, service: str, compose: Callable[[str], object]) -> Container:
        """Replace a service's container by a new one, whatever was done to the old one.

        Args:
            service: It belongs to one test.
            compose: Runs a sub-command of compose.
        """
        self.thaw()
        self.container(service).close()
        for words in ("rm -fsv", "up -d --no-build --no-deps"):  # rm takes its volume too, unlike up
            compose(f"{words} {service}")
        del self._containers[service]
        container = self.container(service)
        container.wait()
        return container

    def thaw(self) -> None:
        """Unpause what is paused."""
        label = f"label={PROJECT}={self.project}"
        for one in docker("ps", "-q", "--filter", label, "--filter", "status=paused").decode().split():
            docker("unpause", one)

    def close(self) -> None:
        """End what is kept open in the containers."""
        for container in self._containers.values():
            container.close()

    def peer(self, service: str) -> BenchPeer:
        """Return a peer with an empty collect directory."""
        return BenchPeer(self, self.container(service))

    def known_hosts_line(self, service: str, place: str) -> str:
        """Return the line of known_hosts for a service that is reached at *place*."""
        if service == "certs":
            return f"@cert-authority {place} {(self.home / 'ca.pub').read_text()}"
        return f"{place} {(self.home / 'keys' / f'host_{service}.pub').read_text()}"

    def address(self, service: str) -> str:
        """What other containers call a service: its fixed address, or its name."""
        last = _FIXED.get(service)
        return service if last is None else f"{variables(self.home)['PEERSTAGE_NET']}.{last}"

    @property
    def network(self) -> str:
        """The name of the network that the client shares with its peers."""
        return f"{self.project}_bench"


def find_containers(project: str) -> dict[str, Container]:
    """Return the containers of a project by their services."""
    columns = f'{{{{.ID}}}}\t{{{{.Label "{SERVICE}"}}}}\t{{{{.Ports}}}}'
    told = docker("ps", "-a", "--no-trunc", "--filter", f"label={PROJECT}={project}", "--format", columns)
    rows = (line.split("\t") for line in told.decode().splitlines())
    return {service: Container(service, number, _ports=published(ports)) for number, service, ports in rows}


def published(text: str) -> tuple[int, ...]:
    """Return the ports of this machine that lead to port 22, as ``docker ps`` or ``docker port`` tell them."""
    return tuple(int(port) for port in re.findall(r"127\.0\.0\.1:(\d+)", text))

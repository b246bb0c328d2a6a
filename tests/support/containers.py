"""The peers of docker/docker-compose.yml: what is needed is built and started, filled with files and looked into."""

from __future__ import annotations

import hashlib
import io
import ipaddress
import itertools
import json
import random
import re
import shlex
import shutil
import socket
import stat
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from peerstage import RemotePeer, SSHOptions
from peerstage.testing.contract import Source
from support.programs import program, rcp_command

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
COMPOSE_FILE = DOCKER / "docker-compose.yml"

USER = "backup"
COLLECT = "/srv/collect"
#: Debian's fixed number of that user and its group.
UID = 34

#: Debian suites of the services that are not on bookworm.
_SUITES = {"openssh84": "bullseye", "openssh100": "trixie", "client": "trixie", "master": "trixie"}
#: How a chrooted user sees the collect directory.
_SEEN_AS = {"sftp-only": "/collect"}
#: Services that are reached through others, the nearest of these first.
_THROUGH = {"behind": ("bastion",), "far": ("bastion", "gate")}
#: The one whose address stays, as docker-compose.yml says it.
_FIXED = {"faults": 200}

Say = Callable[[str], object]


# The engine and its compose command.


@cache
def engine_problem() -> str | None:
    """Return one line that says what is missing and what to install, None if everything is there."""
    instead = "or leave the container tests out with --without-docker."
    if shutil.which("docker") is None:
        return f"There is no docker: install an engine (Debian: apt-get install docker.io docker-compose), {instead}"
    if subprocess.run(["docker", "version"], capture_output=True).returncode != 0:
        return f"No Docker engine answers: start it (systemctl start docker; is this user in the group?), {instead}"
    if _compose() is None:
        return f"There is no docker compose: install it (Debian: apt-get install docker-compose), {instead}"
    return None


@cache
def _compose() -> str | None:
    for command in ("docker compose", "docker-compose"):
        if shutil.which(command.split()[0]) and (
            subprocess.run([*command.split(), "version"], capture_output=True).returncode == 0
        ):
            return command
    return None


def docker(*arguments: str, stdin: bytes | None = None) -> bytes:
    """Run docker and return what it says.

    Raises:
        RuntimeError: It failed; with its own words.
    """
    done = subprocess.run(["docker", *arguments], input=stdin, capture_output=True)
    if done.returncode != 0:
        raise RuntimeError(f"docker {' '.join(arguments)[:200]}: {done.stderr.decode(errors='replace').strip()[-500:]}")
    return done.stdout


# What is made for one run: keys, a network's address, the variables of docker-compose.yml.


def lay_out(home: Path) -> str:
    """Make everything of this run in *home*, and return the compose command that knows of it."""
    keys = home / "keys"
    keys.mkdir()
    _make_keys(home, keys)
    variables = {"PEERSTAGE_KEYS": keys, "PEERSTAGE_NET": _free_network(), "PEERSTAGE_BUILD": _build()}
    (home / "variables").write_text("".join(f"{name}={value}\n" for name, value in variables.items()))
    command = _compose()
    if command is None:
        raise RuntimeError(engine_problem())
    return f'{command} --env-file "{home / "variables"}"'


def services_in_file() -> list[str]:
    """Return the services of docker-compose.yml."""
    section = COMPOSE_FILE.read_text().split("\nservices:\n")[1].split("\nnetworks:\n")[0]
    return re.findall(r"^  ([a-z0-9-]+):$", section, re.MULTILINE)


def _make_keys(home: Path, keys: Path) -> None:
    """Make the user's key and certificate in *home*, and what containers may see of keys in *keys*."""
    keygen = program("ssh-keygen")

    def run(*arguments: str) -> None:
        subprocess.run([keygen, "-q", *arguments], check=True, capture_output=True)

    def make(path: Path) -> None:
        run("-t", "ed25519", "-N", "", "-C", path.name, "-f", str(path))

    for name in ("id", "ca"):
        make(home / name)
        shutil.copy(home / f"{name}.pub", keys)
    run("-s", str(home / "ca"), "-I", USER, "-n", USER, str(home / "id.pub"))
    for service in (*services_in_file(), "another"):
        make(keys / f"host_{service}")
    run("-s", str(home / "ca"), "-I", "certs", "-h", "-n", "certs,127.0.0.1", str(keys / "host_certs.pub"))
    for path in keys.iterdir():
        path.chmod(0o644)  # a container's root is not always this user; the directory above is closed


def _free_network() -> str:
    """Return the first three numbers of a network that neither the engine nor this machine uses."""
    ids = docker("network", "ls", "--quiet").split()
    told = json.loads(docker("network", "inspect", *(one.decode() for one in ids)))
    taken = [one["Subnet"] for network in told for one in network["IPAM"]["Config"] or () if "Subnet" in one]
    taken += _routes()
    used = [ipaddress.ip_network(one) for one in taken if ":" not in one]
    while True:
        prefix = f"10.{random.randrange(64, 250)}.{random.randrange(256)}"
        if not any(ipaddress.ip_network(f"{prefix}.0/24").overlaps(one) for one in used):
            return prefix


def _routes() -> list[str]:
    found = []
    try:
        lines = Path("/proc/net/route").read_text().splitlines()[1:]
    except OSError:
        return []
    for line in lines:
        destination, mask = (int.from_bytes(bytes.fromhex(line.split()[at]), "little") for at in (1, 7))
        if mask:
            found.append(f"{ipaddress.ip_address(destination)}/{mask.bit_count()}")
    return found


def _build() -> str:
    """Return a tag for the images that changes with what they are made from."""
    digest = hashlib.sha256()
    for path in sorted(DOCKER.rglob("*")):
        if path.is_file() and path.name not in ("base", "peer", COMPOSE_FILE.name):
            digest.update(f"{path.relative_to(DOCKER)}\0{path.stat().st_mode & 0o111}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def hops_to(service: str) -> tuple[str, ...]:
    """Return the services through which a service is reached, the nearest first."""
    return _THROUGH.get(service, ())


def seen_as(service: str) -> str:
    """Return the collect directory of a service as its user sees it."""
    return _SEEN_AS.get(service, COLLECT)


# Files on their way in and out.


class Files:
    """Files of a collect directory that is still to be filled, of every kind that tar knows."""

    def __init__(self, **files: bytes) -> None:
        self._entries: list[tuple[tarfile.TarInfo, bytes]] = []
        for name, data in files.items():
            self.file(name, data)

    def file(
        self, name: str | bytes, data: bytes = b"", mode: int = 0o644, *, mtime: int | None = None, owner: int = UID
    ) -> Files:
        """Add a regular file."""
        return self._add(name, tarfile.REGTYPE, mode, data=data, mtime=mtime, owner=owner)

    def directory(self, name: str | bytes) -> Files:
        """Add a directory."""
        return self._add(name, tarfile.DIRTYPE, 0o755)

    def link(self, name: str | bytes, to: str) -> Files:
        """Add a symbolic link."""
        return self._add(name, tarfile.SYMTYPE, 0o777, to=to)

    def fifo(self, name: str | bytes) -> Files:
        """Add a FIFO."""
        return self._add(name, tarfile.FIFOTYPE, 0o644)

    def archive(self) -> bytes:
        """Return them as a tar archive."""
        raw = io.BytesIO()
        how: dict[str, Any] = {"format": tarfile.GNU_FORMAT, "encoding": "utf-8", "errors": "surrogateescape"}
        with tarfile.open(fileobj=raw, mode="w", **how) as tar:
            for info, data in self._entries:
                tar.addfile(info, io.BytesIO(data))
        return raw.getvalue()

    def _add(
        self,
        name: str | bytes,
        kind: bytes,
        mode: int,
        *,
        data: bytes = b"",
        to: str = "",
        mtime: int | None = None,
        owner: int = UID,
    ) -> Files:
        text = name if isinstance(name, str) else name.decode("utf-8", "surrogateescape")
        info = tarfile.TarInfo(f"./{text}")
        info.type, info.mode, info.size, info.linkname = kind, mode, len(data), to
        info.uid = info.gid = owner
        info.mtime = int(time.time()) if mtime is None else mtime
        self._entries.append((info, data))
        return self


@dataclass(frozen=True)
class Found:
    """A regular file as it lies in a container."""

    data: bytes
    mode: int
    uid: int


@dataclass
class Container:
    """A running service."""

    service: str
    id: str
    banner: str = ""

    @property
    def ports(self) -> tuple[int, ...]:
        """The ports of this machine that lead to its port 22; they change when it is started again."""
        told = docker("port", self.id).decode()
        return tuple(int(port) for port in re.findall(r"^22/tcp -> 127\.0\.0\.1:(\d+)$", told, re.MULTILINE))

    def execute(self, *command: str, stdin: bytes | None = None) -> bytes:
        """Run a command in it as root, and return what it says."""
        return docker("exec", *(("-i",) if stdin is not None else ()), self.id, *command, stdin=stdin)

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
        while not self.banner:
            if docker("inspect", "--format", "{{.State.Running}}", self.id).strip() != b"true":
                raise RuntimeError(f"{self.service} does not come up: {self._log()}")
            ports = self.ports
            if not ports:
                return
            try:
                with socket.create_connection(("127.0.0.1", ports[0]), timeout=2) as sock:
                    line = sock.makefile("rb").readline(256)
                    self.banner = line.decode(errors="replace").strip() if line.startswith(b"SSH-") else ""
            except OSError:
                pass
            if not self.banner:
                if time.monotonic() > until:
                    raise RuntimeError(f"{self.service} does not answer: {self._log()}")
                time.sleep(0.05)

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
        settings = ("BatchMode=yes", "IdentitiesOnly=yes", f"IdentityFile={self.identity}")
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
    """The containers of one run.

    Args:
        home: Where `lay_out` made everything.
        project: Compose's name for the run.
        compose: Runs a sub-command of compose.
        say: Tells the person who waits.
    """

    def __init__(self, home: Path, project: str, compose: Callable[[str], object], say: Say) -> None:
        self.home = home
        self._project = project
        self._compose = compose
        self._say = say
        self._containers: dict[str, Container] = {}
        lines = (home / "variables").read_text().splitlines()
        self._variables = dict(line.split("=", 1) for line in lines)

    def start(self, services: Iterable[str]) -> None:
        """Build what is not built yet, start, and wait for the banners."""
        wanted = sorted({one for service in services for one in (service, *_THROUGH.get(service, ()))})
        tag = self._variables["PEERSTAGE_BUILD"]
        told = docker("image", "ls", "--format", "{{.Repository}} {{.Tag}}", "--filter", "reference=peerstage-*")
        there = [line.split() for line in told.decode().splitlines()]
        missing = [service for service in wanted if [f"peerstage-{service}", tag] not in there]
        if missing:
            self._provide_bases({_SUITES.get(service, "bookworm") for service in missing})
            self._say(f"building {', '.join(missing)}")
            self._compose(f"build --force-rm {' '.join(missing)}")
            for name, old in there:
                if name.removeprefix("peerstage-") in missing and old != tag:
                    subprocess.run(["docker", "image", "rm", f"{name}:{old}"], capture_output=True)
        self._say(f"starting {', '.join(wanted)}")
        self._compose(f"up -d --no-build {' '.join(wanted)}")
        for service in wanted:
            self.container(service).wait()

    def _provide_bases(self, suites: Iterable[str]) -> None:
        with subprocess.Popen([DOCKER / "base", *sorted(suites)], stderr=subprocess.PIPE, text=True) as process:
            said = []
            try:
                for line in process.stderr or ():
                    said.append(line.strip())
                    self._say(said[-1].removeprefix("docker/base: "))
            except BaseException:
                process.terminate()
                raise
        if process.returncode != 0:
            raise RuntimeError("; ".join(said[-3:]))

    def container(self, service: str) -> Container:
        """Return a service's container."""
        if service not in self._containers:
            labels = (f"com.docker.compose.project={self._project}", f"com.docker.compose.service={service}")
            filters = [word for label in labels for word in ("--filter", f"label={label}")]
            self._containers[service] = Container(service, docker("ps", "-aq", *filters).decode().split()[0])
        return self._containers[service]

    def recreate(self, service: str) -> Container:
        """Make a service's container anew, whatever was done to the old one."""
        self.thaw()
        self._compose(f"rm -fsv {service}")  # its volume too, as up --force-recreate would not
        self._compose(f"up -d --no-build --no-deps {service}")
        self._containers.pop(service, None)
        container = self.container(service)
        container.wait()
        return container

    def thaw(self) -> None:
        """Unpause what is paused, or it can not be removed."""
        label = f"label=com.docker.compose.project={self._project}"
        for one in docker("ps", "-q", "--filter", label, "--filter", "status=paused").decode().split():
            docker("unpause", one)

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
        return service if last is None else f"{self._variables['PEERSTAGE_NET']}.{last}"

    @property
    def network(self) -> str:
        """The name of the network that the client shares with its peers."""
        return f"{self._project}_bench"

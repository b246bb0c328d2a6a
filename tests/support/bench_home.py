"""The home directory of one run of the bench: keys, and the variables of docker-compose.yml."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import random
import re
import shutil
import subprocess
from pathlib import Path

from support.engine import COMPOSE_FILE, DOCKER, docker
from support.programs import require_program

USER = "backup"

#: The file in the bench's home that compose reads.
VARIABLES = "variables"


def create_bench_home(home: Path) -> None:
    """Create the keys and variables of this run in *home*."""
    keys = home / "keys"
    keys.mkdir()
    _make_keys(home, keys)
    variables = {"PEERSTAGE_KEYS": keys, "PEERSTAGE_NET": _free_network(), "PEERSTAGE_BUILD": _build()}
    (home / VARIABLES).write_text("".join(f"{name}={value}\n" for name, value in variables.items()))


def read_variables(home: Path) -> dict[str, str]:
    """Return the variables of docker-compose.yml."""
    return dict(line.split("=", 1) for line in (home / VARIABLES).read_text().splitlines())


def list_services() -> list[str]:
    """Return the services of docker-compose.yml."""
    section = COMPOSE_FILE.read_text().split("\nservices:\n")[1].split("\nnetworks:\n")[0]
    return re.findall(r"^  ([a-z0-9-]+):$", section, re.MULTILINE)


def _make_keys(home: Path, keys: Path) -> None:
    """Create the user's key and certificate in *home*, and in *keys* those that containers may read."""
    keygen = require_program("ssh-keygen")

    def run(*arguments: str) -> None:
        subprocess.run([keygen, "-q", *arguments], check=True, capture_output=True)

    def make(path: Path) -> None:
        run("-t", "ed25519", "-N", "", "-C", path.name, "-f", str(path))

    for name in ("id", "ca"):
        make(home / name)
        shutil.copy(home / f"{name}.pub", keys)
    run("-s", str(home / "ca"), "-I", USER, "-n", USER, str(home / "id.pub"))
    for service in (*list_services(), "another"):
        make(keys / f"host_{service}")
    run("-s", str(home / "ca"), "-I", "certs", "-h", "-n", "certs,127.0.0.1", str(keys / "host_certs.pub"))
    for path in keys.iterdir():
        path.chmod(0o644)  # root in a container is not always this user; the parent directory is private


def _free_network() -> str:
    """Return the first three octets of a /24 network that neither the engine nor this machine uses."""
    ids = docker("network", "ls", "--quiet").split()
    networks = json.loads(docker("network", "inspect", *(one.decode() for one in ids)))
    subnets = [one["Subnet"] for network in networks for one in network["IPAM"]["Config"] or () if "Subnet" in one]
    subnets += _routes()
    used = [ipaddress.ip_network(one) for one in subnets if ":" not in one]
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
    """Return an image tag that changes with the files of the build context."""
    digest = hashlib.sha256()
    for path in sorted(DOCKER.rglob("*")):
        if path.is_file() and path.name not in ("base", "peer", COMPOSE_FILE.name):
            digest.update(f"{path.relative_to(DOCKER)}\0{path.stat().st_mode & 0o111}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]

"""The master container: cback3 and peerstage, installed as on a site, and run as cron runs them."""

from __future__ import annotations

import io
import re
import stat
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from subprocess import PIPE, STDOUT, CompletedProcess, run
from typing import NamedTuple

from support.containers import USER, Bench, Container, docker
from support.guide_blocks import CBACK3_BIN, CBACK3_EXTENSION

STAGING = "/srv/staging"
CONFIG = "/etc/cback3.conf"
LOG = "/var/log/cback3.log"

#: The environment of root's cron jobs (crontab(5)).
CRON = ("env", "-i", "HOME=/root", "LOGNAME=root", "SHELL=/bin/sh", "PATH=/usr/bin:/bin", "/bin/sh", "-c")


class TreeEntry(NamedTuple):
    """A file or directory in a container. Times are left out, since two runs differ in them."""

    kind: str
    mode: int
    owner: tuple[int, int]
    data: bytes


@dataclass(frozen=True)
class PeerEntry:
    """A ``<peer>`` of cback3's stage section."""

    name: str
    collect: str = "/srv/collect"
    kind: str = "remote"
    ignore: str | None = None
    more: str = ""

    def xml(self) -> str:
        ignore = f"<ignore_failures>{self.ignore}</ignore_failures>" if self.ignore else ""
        fields = f"<name>{self.name}</name><type>{self.kind}</type><collect_dir>{self.collect}</collect_dir>"
        return f"    <peer>{fields}{ignore}{self.more}</peer>\n"


@dataclass
class CronRun:
    """The result of a run of cback3."""

    status: int
    output: str
    log: list[tuple[str, str]] = field(repr=False)

    def levels(self, words: str) -> dict[str, str]:
        """Return the level of each log line with *words*, by the peer that it names."""
        found = [(re.search(rf"[Pp]eer \[?([\w.-]+)\]? {words}", text), level) for level, text in self.log]
        return {match[1]: level for match, level in found if match}


class MasterContainer:
    """The container that stages from the others as root, with its backup user's keys."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.container: Container = bench.container("master")
        docker("cp", f"{bench.home}/wheels/.", f"{self.container.id}:/wheels")
        docker("cp", str(bench.home / "id"), f"{self.container.id}:/opt/id")
        pip = f"{CBACK3_BIN}/python -m pip install --quiet --no-index --find-links /wheels --disable-pip-version-check"
        self.run_script(
            f"{pip} peerstage cedar-backup3 && install -o {USER} -g {USER} -m 600 /opt/id ~{USER}/.ssh/id_ed25519"
        )
        self.run_script("install -d -o backup -g backup -m 700 /var/lib/cback3")

    def run_script(self, script: str, stdin: bytes = b"") -> bytes:
        """Run a script as root."""
        return self.container.execute("sh", "-euc", script, stdin=stdin)

    def write(self, path: str, text: str, mode: int = 0o644, owner: str = "root") -> None:
        """Write a file."""
        self.run_script(f"cat >{path}; chmod {mode:o} {path}; chown {owner}: {path}", text.encode())

    def trust_hosts(self, services: Sequence[str], ssh_config: str = "") -> None:
        """Write the host keys of *services* to the backup user's known_hosts."""
        lines = "".join(self.bench.known_hosts_line(service, self.bench.address(service)) for service in services)
        self.write(f"/home/{USER}/.ssh/known_hosts", lines, owner=USER)
        quick = "Host *\n  KexAlgorithms -sntrup761*\n"  # which costs both sides 0.1 s
        self.write(f"/home/{USER}/.ssh/config", ssh_config + quick, mode=0o600, owner=USER)

    def configure(
        self,
        peers: Sequence[PeerEntry],
        *,
        ours: bool,
        staging: str = STAGING,
        day: str = "monday",
        settings: str = "",
        more: str = "",
    ) -> None:
        """Write cback3's configuration; if *ours*, with the extension; with *settings*, peerstage's own file too."""
        extension = f"{CBACK3_EXTENSION}\n" if ours else ""
        self.write(
            CONFIG,
            "<?xml version='1.0'?>\n<cb_config>\n  <options>\n"
            f"    <starting_day>{day}</starting_day><working_dir>/var/lib/cback3</working_dir>\n"
            f"    <backup_user>{USER}</backup_user><backup_group>{USER}</backup_group>\n"
            "    <rcp_command>/usr/bin/scp -B -q -C</rcp_command>\n  </options>\n"
            f"  <stage>\n    <staging_dir>{staging}</staging_dir>\n"
            f"{''.join(peer.xml() for peer in peers)}  </stage>\n{more}{extension}</cb_config>\n",
        )
        if settings:
            self.write("/etc/cback3.peerstage.ini", settings)
        else:
            self.run_script("rm -f /etc/cback3.peerstage.ini")

    def run_as_cron(self, line: str) -> CronRun:
        """Run a crontab line's command as cron does."""
        self.run_script(f"rm -f {LOG}")
        done: CompletedProcess[str] = run(
            ["docker", "exec", self.container.id, *CRON, line], stdin=None, stdout=PIPE, stderr=STDOUT, text=True
        )
        log = self.run_script(f"cat {LOG} 2>/dev/null || true").decode()
        return CronRun(done.returncode, done.stdout, re.findall(r"--> \[(\w+) *\] (.*)", log))

    def tree(self, directory: str) -> dict[str, TreeEntry]:
        """Return everything below *directory*."""
        raw = io.BytesIO(self.container.execute("tar", "-c", "-C", directory, "--numeric-owner", "--format=gnu", "."))
        return read_tree(raw)

    def remove(self, *directories: str) -> None:
        """Remove directories."""
        self.run_script("rm -rf " + " ".join(directories))


def read_tree(raw: io.BytesIO) -> dict[str, TreeEntry]:
    """Return the entries of a tar archive."""
    found = {}
    with tarfile.open(fileobj=raw, encoding="utf-8", errors="surrogateescape") as tar:
        for info in tar:
            file = tar.extractfile(info) if info.isreg() else None
            data = file.read() if file is not None else info.linkname.encode()
            found[info.name] = TreeEntry(str(info.type), stat.S_IMODE(info.mode), (info.uid, info.gid), data)
    return found

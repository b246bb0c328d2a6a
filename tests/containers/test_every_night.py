"""The guide's page every-night, followed literally: from nothing to the second night, as systemd and cron run it."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from master_container import CRON, STAGING, MasterContainer

from support.containers import Bench, Container, docker
from support.guide_blocks import MASTER_SETUP, PEER_SETUP, TIMER_SETUP, find_block

pytestmark = pytest.mark.kind("master", "openssh92", "openssh100", "scp-only")

#: The peers of the page: the host of each, and the container that answers to this name.
HOSTS = {"db1": ("db1", "openssh92"), "db2": ("db2.example.com", "openssh100"), "web1": ("web1", "scp-only")}
#: All that is replaced in the page: sshd of these containers reads another file, and no systemd runs in them.
SUBSTITUTIONS = {"~backup/.ssh/authorized_keys": "/etc/ssh/authorized_keys", "enable --now": "enable"}

#: What systemd gives a service of root: no HOME, no terminal, no input.
SYSTEMD = ("env", "-i", "LANG=C.UTF-8", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin", "INVOCATION_ID=0")
#: The environment in which the local time is that of the day before.
YESTERDAY = "TZ=YESTERDAY+24"


def page(beginning: str) -> str:
    """Return the block of the page that starts with *beginning*."""
    return find_block("every-night", beginning)


def localize(text: str) -> str:
    """Return a block as it runs here."""
    for old, new in SUBSTITUTIONS.items():
        text = text.replace(old, new)
    return text


UNIT = "[Unit]\nDescription=Stage what the backup peers have collected"
UNITS = {"peerstage.service": page(f"{UNIT}\n"), "peerstage.timer": page(f"{UNIT},")}
COLLECT = "/var/backup/collect"

#: More bytes than SSH, SFTP and SCP need to log in, list and mark; fewer than any dump has.
_OVERHEAD = 50_000


class Done(NamedTuple):
    """The result of a command: its exit status, and all that it printed."""

    status: int
    output: str


class Stored(NamedTuple):
    """A file in the pool."""

    inode: int
    links: int
    size: int
    owner: int


class Site:
    """The master and its three peers, as the page sets them up.

    Args:
        bench: The containers.
        master: The master.
    """

    def __init__(self, bench: Bench, master: MasterContainer) -> None:
        self.master = master
        self.peers = {name: bench.container(service) for name, (_, service) in HOSTS.items()}
        addresses = [f"{_address(self.peers[name])} {host}" for name, (host, _) in HOSTS.items()]
        master.run_script("cat >>/etc/hosts", "".join(f"{line}\n" for line in addresses).encode())

    def set_up(self) -> None:
        """Follow the page up to the first run, and install the timer."""
        self.master.run_script(f"export PIP_NO_INDEX=1 PIP_FIND_LINKS=/wheels\n{MASTER_SETUP}")
        for peer in self.peers.values():
            peer.execute("sh", "-c", "cat >master.pub", stdin=self.master.run_script("cat ~/.ssh/id_ed25519.pub"))
            peer.execute("sh", "-euc", localize(PEER_SETUP))
            peer.execute("sh", "-c", "cat >/usr/local/sbin/collect", stdin=page("#!/bin/sh").encode())
            peer.execute("chmod", "755", "/usr/local/sbin/collect")
        self.collect()
        self.master.run_script(page("peerstage init"))
        self.master.run_script("cat >/etc/peerstage/plan.toml", page("staging =").encode())
        self.master.run_script(page("peerstage trust"))  # and the doctor, and a check
        for name, text in UNITS.items():
            self.master.write(f"/etc/systemd/system/{name}", text)
        self.master.run_script(localize(TIMER_SETUP))

    def clear(self) -> None:
        """Remove what `set_up` created."""
        self.master.run_script(
            "rm -rf /usr/local/bin/peerstage ~/.ssh /etc/peerstage /srv/staging /etc/systemd/system/peerstage.*"
        )
        for peer in self.peers.values():
            peer.execute("rm", "-rf", "/var/backup", "/usr/local/sbin/collect", "/master.pub", "/etc/every-night")

    def collect(self) -> None:
        """Let the nightly job of each peer run as cron runs it."""
        command = page("0 2 *").split(maxsplit=6)[6]
        for peer in self.peers.values():
            done = run(peer, *CRON, command)
            assert (done.status, set(done.output.splitlines()) - {"tar: etc: file changed as we read it"}) == (0, set())

    def run_service(self, *environment: str) -> Done:
        """Run what the timer starts."""
        unit = configparser.ConfigParser(interpolation=None)
        unit.read_string(UNITS["peerstage.service"])
        return run(self.master.container, *SYSTEMD, *environment, *shlex.split(unit["Service"]["ExecStart"]))

    def run_cron(self, *environment: str) -> Done:
        """Run the line of the crontab."""
        command = page("MAILTO").splitlines()[1].split(maxsplit=6)[6]
        return run(self.master.container, *CRON[:2], *environment, *CRON[2:], command)

    @property
    def day(self) -> str:
        """The day of the last run, such as ``2026/11/23``."""
        return self.master.run_script(f"readlink {STAGING}/latest").decode().strip()

    def files(self, day: str) -> dict[str, Stored]:
        """Return the files of a day."""
        listing = self.master.run_script(f"cd {STAGING}/{day}; find . -type f -printf '%P %i %n %s %U\\n'").decode()
        rows = (line.split() for line in listing.splitlines())
        return {name: Stored(*map(int, numbers)) for name, *numbers in rows}

    def record(self) -> dict[str, Any]:
        """Return the record of the last run, by peer."""
        text = self.master.run_script(f'cat "$(ls {STAGING}/.peerstage-runs/*.json | tail -n 1)"')
        return {result["peer"]: result for result in json.loads(text)["results"]}

    def is_marked(self, name: str) -> bool:
        return b"cback.stage" in self.peers[name].execute("ls", COLLECT)


def run(container: Container, *command: str) -> Done:
    """Run a command in the root directory, without a terminal and without input."""
    done = subprocess.run(
        ["docker", "exec", "-w", "/", container.id, *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return Done(done.returncode, done.stdout)


def _address(container: Container) -> str:
    networks = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
    return docker("inspect", "--format", networks, container.id).decode().strip()


def sent_bytes(container: Container) -> int:
    """Return how much a container has sent over the network."""
    return int(container.execute("cat", "/sys/class/net/eth0/statistics/tx_bytes"))


def without_numbers(text: str) -> str:
    return re.sub(r"\d+", "0", re.sub(r"[\d.]+ [kM]?B\b", "SIZE", text))


@pytest.fixture(scope="module")
def prepared(bench: Bench, master: MasterContainer) -> Iterator[Site]:
    site = Site(bench, master)
    site.clear()
    site.set_up()
    yield site
    site.clear()


@pytest.fixture
def site(prepared: Site) -> Site:
    """The site before its first night: the peers have collected."""
    prepared.master.run_script(f"rm -rf {STAGING}/* {STAGING}/.p*")
    for peer in prepared.peers.values():
        peer.execute("sh", "-c", f"rm -rf {COLLECT}/* /etc/every-night")
    prepared.collect()
    return prepared


def test_the_service_of_the_page_stages_three_peers(site: Site) -> None:
    done = site.run_service()
    assert done.status == 0
    assert without_numbers(done.output) == without_numbers(page("3 peers ->") + "\n")
    ours = ("peerstage.json", "peerstage.sha256")
    expected = {f"{name}/{file}" for name in HOSTS for file in ("etc.tar.gz", "cback.collect", *ours)}
    files = site.files(site.day)
    assert files.keys() == {"cback.stage", *expected}
    assert {file.owner for file in files.values()} == {0}
    for name, peer in site.peers.items():
        data = peer.files(COLLECT)[b"etc.tar.gz"].data
        assert site.master.run_script(f"cat {STAGING}/latest/{name}/etc.tar.gz") == data
    assert {name: site.is_marked(name) for name in HOSTS} == {"db1": True, "db2": True, "web1": False}


def test_the_line_of_cron_is_silent_and_the_next_run_does_nothing(site: Site) -> None:
    assert site.run_cron() == Done(0, "")
    first = site.files(site.day)
    assert len(first) == 13
    assert site.master.run_script(page("peerstage run")).count(b"by an earlier run") == 3
    assert site.files(site.day) == first
    printed = site.master.run_script(
        "exec /opt/peerstage/bin/python -", page("from peerstage import read_plan").encode()
    )
    assert printed.decode() == page("db1: staged") + "\n"


def test_the_line_of_cron_tells_of_a_peer_that_cannot_be_staged(site: Site) -> None:
    site.peers["db2"].execute("rm", "-r", COLLECT)
    done = site.run_cron()
    site.peers["db2"].execute("sh", "-euc", localize(PEER_SETUP))
    assert done.status == 4
    assert done.output.splitlines()[0] == f"3 peers: 1 failed, 2 staged -> {STAGING}/{site.day}"
    assert "next: peerstage doctor db2\n" in done.output


def test_the_second_night_transfers_nothing_that_is_unchanged(site: Site) -> None:
    for peer in site.peers.values():  # a second dump, both from two hours ago
        peer.execute("sh", "-euc", f"head -c 1000000 /dev/urandom >{COLLECT}/orders; chown backup {COLLECT}/orders")
        peer.execute("sh", "-euc", f"touch -d '-2 hours' {COLLECT}/*")
    assert site.run_service(YESTERDAY).status == 0
    first, yesterday = site.files(site.day), site.day
    site.peers["db1"].execute("sh", "-c", "head -c 50000 /dev/urandom >/etc/every-night")
    site.collect()
    before = {name: sent_bytes(peer) for name, peer in site.peers.items()}
    assert site.run_cron() == Done(0, "")
    sent = {name: sent_bytes(peer) - before[name] for name, peer in site.peers.items()}
    assert site.day > yesterday
    second = site.files(site.day)
    assert second.keys() == first.keys()
    linked = {name for name in first if second[name].inode == first[name].inode}
    assert linked == {f"{name}/{file}" for name in HOSTS for file in ("etc.tar.gz", "orders")} - {"db1/etc.tar.gz"}
    new = second["db1/etc.tar.gz"].size
    assert new > 50_000
    assert {name: result["report"]["received"] for name, result in site.record().items()} == {
        "db1": new,
        "db2": 0,
        "web1": 0,
    }
    assert new < sent["db1"] < new + _OVERHEAD
    assert max(sent["db2"], sent["web1"]) < _OVERHEAD
    printed = site.master.run_script("peerstage verify db1 db2 web1").decode()
    assert printed.count("all intact") == 3

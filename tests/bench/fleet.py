"""Benchmark check, stage and mark of many small peers: a plan, a thread pool, and a shell loop around scp.

usage: python tests/bench/fleet.py [--peers N] [--rounds N] [--threads N] [--only NAME ...] [--equal-kex]
                                   [--directory DIR]

Each peer has an indicator and ten files of 4 KiB. All peers are on one local sshd. In each round, each contender gets
peers and a target of its own, and nothing is removed before the end: file systems are slower after many removals.

stage_fleet       ``stage_fleet(plan)``, with records, manifests and everything else that it does by default
RemotePeer        a `ThreadPoolExecutor` loop over `RemotePeer`, which is what one would write instead
scp, scp -O       ``xargs -P16`` around the original's three commands for each peer: scp copies the indicator, then
                  ``DIR/*``, then an empty file to the peer

All end with their data on the disk. CPU is that of the contender and its child processes, not that of the server; the
time includes the server's, which runs on the same machine. The server has OpenSSH's defaults. From 9.0 on that is a key
exchange by sntrup761, which paramiko lacks, and on which scp and the server then spend most of their time; --equal-kex
leaves it out. Not part of the tests: the results depend on the machine.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

sys.path[:0] = [str(Path(__file__).parents[1])]

from support.programs import require_program  # noqa: E402
from support.sshd import Sshd, start_sshd  # noqa: E402

FILES = 10
#: Peers that the shell loop handles at a time.
PROCESSES = 16
#: Peers of a run before the measurement, which fills caches.
WARM_UP = 32
#: More logins at a time than any contender begins.
SSHD_SETTINGS = "MaxStartups 1000\nPerSourceMaxStartups none"
#: The defaults, of which support.sshd leaves out sntrup761; paramiko has this one, too.
SSHD_DEFAULT_KEX = "KexAlgorithms +curve25519-sha256"

#: Of both programs. Peak memory is not that of getrusage, which includes the process that forked this one.
SETUP = """
import os, sys
from concurrent.futures import ThreadPoolExecutor
from peerstage import FleetPlan, PeerJob, RemotePeer, SSHOptions, stage_fleet
port, home, user, source, target, threads = sys.argv[1:]
ssh = SSHOptions(port=int(port), identity=home + "/id", known_hosts=home + "/known_hosts", config=(), agent=False)
names = sys.stdin.read().split()

def print_peak_memory():
    print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""

STAGE_FLEET = f"""{SETUP}
jobs = [PeerJob(name=name, host="127.0.0.1", user=user, collect_dir=source + "/" + name, ssh=ssh) for name in names]
report = stage_fleet(FleetPlan(staging=target, peers=tuple(jobs), parallel=int(threads)))
failed = [result for result in report.results if not result.marked]
assert not failed and report.error is None, (report.counts, report.error, failed[:1])
print_peak_memory()
"""

REMOTE_PEER = f"""{SETUP}
def stage(name):
    os.mkdir(target + "/" + name)
    with RemotePeer("127.0.0.1", source + "/" + name, "/tmp", user, ssh=ssh) as peer:
        assert peer.checkCollectIndicator()
        peer.stagePeer(target + "/" + name)
        peer.writeStageIndicator()

with ThreadPoolExecutor(int(threads)) as pool:
    list(pool.map(stage, names))
print_peak_memory()
"""

#: Arguments: the scp command, ``USER@HOST:SOURCE``, the target, an empty file, the peer.
SCP = """
set -e
mkdir "$3/$5"
$1 "$2/$5/cback.collect" "$3/$5/"
$1 "$2/$5/*" "$3/$5/"
$1 "$4" "$2/$5/cback.stage"
"""


class Contender(NamedTuple):
    """A way to stage peers, whose names a command reads from its standard input.

    Attributes:
        command: The command's words; {source} and {target} stand for directories.
        is_durable: Whether it leaves its data on the disk; otherwise sync(1) follows.
    """

    command: list[str]
    is_durable: bool


class Measurement(NamedTuple):
    """What a contender needed.

    Attributes:
        seconds: Wall time.
        cpu: CPU seconds of the contender and its child processes.
        output: Its output.
    """

    seconds: float
    cpu: float
    output: str


def main() -> None:
    """Run every contender in turn, and print a table."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--peers", type=int, default=1000)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--threads", type=int, default=32, help="peers at a time, but for scp")
    arguments.add_argument("--only", action="append", default=[], help="run only the contenders of these names")
    arguments.add_argument("--equal-kex", action="store_true", help="the server does not offer sntrup761")
    arguments.add_argument("--directory", help="where peers and targets are created; by default in $TMPDIR")
    options = arguments.parse_args()
    settings = SSHD_SETTINGS if options.equal_kex else f"{SSHD_SETTINGS}\n{SSHD_DEFAULT_KEX}"
    with tempfile.TemporaryDirectory(prefix="peerstage-bench-", dir=options.directory) as name:
        directory = Path(name)
        directory.chmod(0o755)
        server = start_sshd(directory / "sshd", extra=settings)
        try:
            contenders = make_contenders(server, options.threads)
            chosen = {name: one for name, one in contenders.items() if not options.only or name in options.only}
            race(chosen, options.peers, options.rounds, directory)
        finally:
            server.stop()


def make_contenders(server: Sshd, threads: int) -> dict[str, Contender]:
    """Return the contenders by name, stage_fleet first."""
    config, empty = server.home / "config", server.home / "empty"
    empty.touch()
    settings = [word.replace("=", " ", 1) for word in server.ssh_arguments() if "=" in word]
    config.write_text("\n".join(settings) + "\n")
    source = f"{server.user}@{server.host}:{{source}}"

    def python(program: str) -> Contender:
        arguments = [str(server.port), str(server.home), server.user, "{source}", "{target}", str(threads)]
        return Contender([sys.executable, "-c", program, *arguments], is_durable=True)

    def shell(*flags: str) -> Contender:
        scp = shlex.join([require_program("scp"), "-B", "-q", *flags, "-F", str(config)])
        command = ["xargs", f"-P{PROCESSES}", "-n1", "sh", "-c", SCP, "sh", scp, source, "{target}", str(empty)]
        return Contender(command, is_durable=False)

    return {
        "stage_fleet": python(STAGE_FLEET),
        "RemotePeer": python(REMOTE_PEER),
        "scp": shell(),
        "scp -O": shell("-O"),
    }


def make_peers(source: Path, count: int) -> list[str]:
    """Create the collect directories of *count* peers in *source*, and return their names."""
    source.mkdir()
    names = [f"peer{number:04d}" for number in range(count)]
    for name in names:
        (source / name).mkdir()
        (source / name / "cback.collect").touch()
        for number in range(FILES):
            (source / name / f"file{number}").write_bytes(os.urandom(4096))
    return names


def measure(contender: Contender, source: Path, target: Path, names: list[str]) -> Measurement:
    """Stage the peers *names* of *source* to *target*."""
    os.sync()
    command = [word.replace("{source}", str(source)).replace("{target}", str(target)) for word in contender.command]
    started = time.monotonic()
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n".join(names))
    process.stdin.close()
    output = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stdout.close()
    if not contender.is_durable:
        subprocess.run(["sync", "-f", str(target)], check=True)
    seconds = time.monotonic() - started
    assert process.returncode == 0, f"exit status {process.returncode}"
    marks = sum((source / name / "cback.stage").exists() for name in names)
    staged = sum(1 for path in target.glob("**/file*") if path.stat().st_size == 4096)
    assert (marks, staged) == (len(names), FILES * len(names)), "not all peers were staged"
    return Measurement(seconds, used.ru_utime + used.ru_stime, output)


def race(contenders: dict[str, Contender], count: int, rounds: int, directory: Path) -> None:
    """Run every contender *rounds* times, in turn, and print medians."""
    found: dict[str, list[Measurement]] = {name: [] for name in contenders}
    for round_number in range(rounds + 1):
        peers = count if round_number else min(count, WARM_UP)
        for number, (name, contender) in enumerate(contenders.items()):
            source, target = (directory / f"{what}{round_number}-{number}" for what in ("source", "target"))
            target.mkdir()
            measured = measure(contender, source, target, make_peers(source, peers))
            if round_number:
                found[name].append(measured)
                print(f"round {round_number}: {name}: {measured.seconds:.1f} s", file=sys.stderr)
    first = statistics.median(one.seconds for one in next(iter(found.values())))
    print(f"\n{count} peers with {FILES} files, {rounds} rounds, {os.cpu_count()} processors")
    print(f"{'':12}{'median s':>10}{'min':>8}{'max':>8}{'CPU ms/peer':>13}{'peak MiB':>10}{'first / it':>12}")
    for name, measurements in found.items():
        seconds = [one.seconds for one in measurements]
        median = statistics.median(seconds)
        cpu = statistics.median(one.cpu for one in measurements) / count * 1000
        peak = f"{max(int(one.output) for one in measurements) / 1024:.0f}" if measurements[0].output else ""
        print(
            f"{name:12}{median:10.1f}{min(seconds):8.1f}{max(seconds):8.1f}{cpu:13.1f}{peak:>10}{first / median:12.2f}"
        )


if __name__ == "__main__":
    main()

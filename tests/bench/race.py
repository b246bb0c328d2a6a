"""Benchmark peerstage against the programs that it replaces, on the same server and files: medians and ratios.

usage: python tests/bench/race.py [--rounds N] [--scale X] [--bare] [--only NAME ...]
                                  [--rival NAME='command with {source} {target} {port} {home}']

Every contender ends with its data on the disk (``sync -f TARGET``); with --bare it does not, and peerstage uses
StageOptions(durable=False). Not part of the tests: the results depend on the machine.
"""

from __future__ import annotations

import argparse
import os
import resource
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1])]

from support.programs import rcp_command, require_program  # noqa: E402
from support.sshd import Sshd, start_sshd  # noqa: E402

Contender = Callable[[Path, Path], None]

OURS = """
import shlex, sys
from pathlib import Path
from peerstage import RemotePeer, SSHOptions, StageOptions
port, home, user, source, target, transport, durable, local_user, rcp = sys.argv[1:]
home = Path(home)
options = SSHOptions(
    port=int(port), pkey=(home / "id").read_bytes(), known_hosts=(home / "known_hosts").read_bytes(), config=()
)
peer = RemotePeer(
    "127.0.0.1", source, "/tmp", user, rcp or None, local_user or None, ssh=options, transport=transport,
    stage=StageOptions(durable=durable == "durable"),
)
peer.stagePeer(target)
"""

#: The `localUser` of the contenders that drop root; it has its own copy of the key, as ssh requires.
LOCAL_USER = "games"
PARAMIKO = """
import os, sys, paramiko
port, home, user, source, target = sys.argv[1:]
client = paramiko.SSHClient()
client.load_host_keys(home + "/known_hosts")
client.connect("127.0.0.1", int(port), user, key_filename=home + "/id", allow_agent=False, look_for_keys=False)
sftp = client.open_sftp()
for name in sftp.listdir(source):
    sftp.get(source + "/" + name, target + "/" + name)
client.close()
"""


def main() -> None:
    """Run every contender on every workload, and print a table."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--scale", type=float, default=1.0, help="1.0 is 1 GiB and 5,000 files")
    arguments.add_argument("--rival", action="append", default=[], help="NAME=command, a further contender")
    arguments.add_argument("--only", action="append", default=[], help="run only the contenders of these names")
    arguments.add_argument("--bare", action="store_true", help="do not wait for the disk")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="peerstage-bench-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        server = start_sshd(directory / "sshd")
        try:
            for workload, source in make_workloads(directory, options.scale).items():
                all_contenders = make_contenders(server, options.rival, bare=options.bare)
                chosen = {name: run for name, run in all_contenders.items() if not options.only or name in options.only}
                race(workload, source, chosen, options.rounds, directory, bare=options.bare)
        finally:
            server.stop()


def make_workloads(directory: Path, scale: float) -> dict[str, Path]:
    """Create the directories to stage."""
    big, small, empty = directory / "big", directory / "small", directory / "empty"
    for source in (big, small, empty):
        source.mkdir()
    (empty / "cback.collect").touch()
    megabytes, files = max(1, int(1024 * scale)), max(1, int(5000 * scale))
    with (big / "big").open("wb") as file:
        for _ in range(megabytes):
            file.write(os.urandom(1 << 20))
    for number in range(files):
        (small / f"file{number:05d}").write_bytes(os.urandom(4096))
    return {f"{megabytes} MiB in one file": big, f"{files} files of 4 KiB": small, "one empty file": empty}


def make_contenders(server: Sshd, rivals: list[str], *, bare: bool) -> dict[str, Contender]:
    """Return the contenders by name, peerstage first."""
    ssh = server.ssh_arguments()
    login = f"{server.user}@{server.host}"
    ours = [sys.executable, "-c", OURS, str(server.port), str(server.home), server.user]
    theirs = [sys.executable, "-c", PARAMIKO, str(server.port), str(server.home), server.user]

    def command(*parts: str) -> None:
        subprocess.run(parts, check=True, stdout=subprocess.DEVNULL)

    def peerstage(transport: str, local_user: str = "", rcp: str = "") -> Contender:
        settings = (transport, "bare" if bare else "durable", local_user, rcp)
        return lambda s, t: command(*ours, str(s), str(t), *settings)

    found: dict[str, Contender] = {"peerstage": peerstage("sftp"), "peerstage scp": peerstage("scp")}
    if os.geteuid() == 0:
        their_key = server.home / "id-of-local-user"
        shutil.copy(server.identity, their_key)
        shutil.chown(their_key, LOCAL_USER)
        as_user = [part.replace(str(server.identity), str(their_key)) for part in ssh]
        found |= {
            "peerstage rcp": peerstage("rcp", rcp=rcp_command(ssh)),
            "localUser": peerstage("sftp", LOCAL_USER),
            "localUser scp": peerstage("scp", LOCAL_USER),
            "localUser rcp": peerstage("rcp", LOCAL_USER, rcp_command(as_user)),
        }
    found |= {
        "scp": lambda s, t: command(
            require_program("scp"), "-q", *ssh, *(f"{login}:{s}/{name}" for name in ["*"]), f"{t}/"
        ),
        "scp -O": lambda s, t: command(require_program("scp"), "-O", "-q", *ssh, f"{login}:{s}/*", f"{t}/"),
        "rsync": lambda s, t: command(
            require_program("rsync"), "-a", "-e", shlex.join(["ssh", *ssh]), f"{login}:{s}/", f"{t}/"
        ),
        "paramiko get": lambda s, t: command(*theirs, str(s), str(t)),
    }
    for rival in rivals:
        name, _, line = rival.partition("=")
        found[name] = lambda s, t, line=line: command(  # type: ignore[misc]
            *shlex.split(line.format(source=s, target=t, port=server.port, home=server.home))
        )
    return found


def race(
    workload: str, source: Path, contenders: dict[str, Contender], rounds: int, directory: Path, *, bare: bool
) -> None:
    """Run every contender *rounds* times, in turn, and print medians."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    cpu: dict[str, list[float]] = {name: [] for name in contenders}
    for round_number in range(rounds + 1):
        for name, run in contenders.items():
            target = directory / "target"
            target.mkdir()
            os.sync()
            before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
            run(source, target)
            if not bare and not name.startswith("peerstage"):
                subprocess.run(["sync", "-f", str(target)], check=True)
            elapsed, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
            if round_number:  # the first round warms the caches
                seconds[name].append(elapsed)
                cpu[name].append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
            shutil.rmtree(target)
    ours = statistics.median(seconds.get("peerstage") or next(iter(seconds.values())))
    print(f"\n{workload}, {'bare' if bare else 'on the disk'}, {rounds} rounds")
    print(f"{'':16}{'median s':>10}{'min':>8}{'max':>8}{'CPU s':>8}{'ours / it':>12}")
    for name, times in seconds.items():
        median = statistics.median(times)
        print(
            f"{name:16}{median:10.2f}{min(times):8.2f}{max(times):8.2f}"
            f"{statistics.median(cpu[name]):8.2f}{ours / median:12.2f}"
        )


if __name__ == "__main__":
    main()

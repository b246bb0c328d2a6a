"""peerstage beside the programs that it replaces, in turn, on the same server and files: medians and ratios.

usage: python tests/bench/race.py [--rounds N] [--scale X] [--bare] [--only NAME ...]
                                  [--rival NAME='command with {source} {target} {port} {home}']

Every contender ends with its data on the disk (``sync -f TARGET``); "bare" is without that, ours with durable=False.
Not part of the tests: what it prints depends on the machine.
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

from support.programs import program, rcp_command  # noqa: E402
from support.sshd import Sshd, start_sshd  # noqa: E402

Contender = Callable[[Path, Path], None]

OURS = """
import shlex, sys
from pathlib import Path
from peerstage import RemotePeer, SSHOptions
port, home, user, source, target, transport, durable, local_user, rcp = sys.argv[1:]
home = Path(home)
options = SSHOptions(
    port=int(port), pkey=(home / "id").read_bytes(), known_hosts=(home / "known_hosts").read_bytes(), config=()
)
peer = RemotePeer(
    "127.0.0.1", source, "/tmp", user, rcp or None, local_user or None, ssh=options, transport=transport,
    durable=durable == "durable",
)
peer.stagePeer(target)
"""

#: Whom root copies as, where it is to give up root; each has a key of its own, as ssh wants it.
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
    """Run every contender on every work, and print a table."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--scale", type=float, default=1.0, help="1.0 is 1 GiB and 5,000 files")
    arguments.add_argument("--rival", action="append", default=[], help="NAME=command, to race too")
    arguments.add_argument("--only", action="append", default=[], help="let only these race, by name")
    arguments.add_argument("--bare", action="store_true", help="without waiting for the disk")
    asked = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="peerstage-bench-") as name:
        lab = Path(name)
        lab.chmod(0o755)
        server = start_sshd(lab / "sshd")
        try:
            for work, source in make_works(lab, asked.scale).items():
                racers = contenders(server, asked.rival, bare=asked.bare)
                chosen = {name: run for name, run in racers.items() if not asked.only or name in asked.only}
                race(work, source, chosen, asked.rounds, lab, bare=asked.bare)
        finally:
            server.stop()


def make_works(lab: Path, scale: float) -> dict[str, Path]:
    """Make the directories to stage."""
    big, small, one = lab / "big", lab / "small", lab / "one"
    for directory in (big, small, one):
        directory.mkdir()
    (one / "cback.collect").touch()
    megabytes, files = max(1, int(1024 * scale)), max(1, int(5000 * scale))
    with (big / "big").open("wb") as file:
        for _ in range(megabytes):
            file.write(os.urandom(1 << 20))
    for number in range(files):
        (small / f"file{number:05d}").write_bytes(os.urandom(4096))
    return {f"{megabytes} MiB in one file": big, f"{files} files of 4 KiB": small, "one empty file": one}


def contenders(server: Sshd, rivals: list[str], *, bare: bool) -> dict[str, Contender]:
    """Return who races, ours first."""
    ssh = server.ssh_arguments()
    at = f"{server.user}@{server.host}"
    ours = [sys.executable, "-c", OURS, str(server.port), str(server.home), server.user]
    theirs = [sys.executable, "-c", PARAMIKO, str(server.port), str(server.home), server.user]

    def command(*parts: str) -> None:
        subprocess.run(parts, check=True, stdout=subprocess.DEVNULL)

    def peerstage(transport: str, local_user: str = "", rcp: str = "") -> Contender:
        how = (transport, "bare" if bare else "durable", local_user, rcp)
        return lambda s, t: command(*ours, str(s), str(t), *how)

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
        "scp": lambda s, t: command(program("scp"), "-q", *ssh, *(f"{at}:{s}/{name}" for name in ["*"]), f"{t}/"),
        "scp -O": lambda s, t: command(program("scp"), "-O", "-q", *ssh, f"{at}:{s}/*", f"{t}/"),
        "rsync": lambda s, t: command(program("rsync"), "-a", "-e", shlex.join(["ssh", *ssh]), f"{at}:{s}/", f"{t}/"),
        "paramiko get": lambda s, t: command(*theirs, str(s), str(t)),
    }
    for rival in rivals:
        name, _, line = rival.partition("=")
        found[name] = lambda s, t, line=line: command(  # type: ignore[misc]
            *shlex.split(line.format(source=s, target=t, port=server.port, home=server.home))
        )
    return found


def race(work: str, source: Path, racers: dict[str, Contender], rounds: int, lab: Path, *, bare: bool) -> None:
    """Let everyone run *rounds* times, in turn, and print medians."""
    seconds: dict[str, list[float]] = {name: [] for name in racers}
    cpu: dict[str, list[float]] = {name: [] for name in racers}
    for turn in range(rounds + 1):
        for name, run in racers.items():
            target = lab / "target"
            target.mkdir()
            os.sync()
            before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
            run(source, target)
            if not bare and not name.startswith("peerstage"):
                subprocess.run(["sync", "-f", str(target)], check=True)
            took, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
            if turn:  # the first turn warms the caches
                seconds[name].append(took)
                cpu[name].append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
            shutil.rmtree(target)
    mine = statistics.median(seconds.get("peerstage") or next(iter(seconds.values())))
    print(f"\n{work}, {'bare' if bare else 'on the disk'}, {rounds} rounds")
    print(f"{'':16}{'median s':>10}{'min':>8}{'max':>8}{'CPU s':>8}{'ours / it':>12}")
    for name, took in seconds.items():
        median = statistics.median(took)
        print(
            f"{name:16}{median:10.2f}{min(took):8.2f}{max(took):8.2f}"
            f"{statistics.median(cpu[name]):8.2f}{mine / median:12.2f}"
        )


if __name__ == "__main__":
    main()

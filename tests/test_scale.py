"""Large and many files: the same bytes as rsync and scp copy, in little memory."""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from peerstage import RemotePeer, Retry, StageOptions
from peerstage.errors import ConnectionLost
from peerstage.testing.contract import ODD_NAMES
from support.programs import require_program
from support.ssh_server import listening
from support.sshd import Sshd

MIB = 1 << 20

STAGE = """
import re, sys
from peerstage import RemotePeer, SSHOptions
port, home, user, source, target = sys.argv[1:]
options = SSHOptions(port=int(port), identity=home + "/id", known_hosts=home + "/known_hosts", config=(), agent=False)
count = RemotePeer("127.0.0.1", source, "/tmp", user, ssh=options).stagePeer(target)
status = open("/proc/self/status").read()  # not getrusage: its maximum includes the process that forked this one
print(count, int(re.search(r"VmHWM:\\s+(\\d+) kB", status).group(1)) // 1024)
"""


def stage_in_a_process(sshd: Sshd, source: Path, target: Path) -> tuple[int, int]:
    """Return the number of files, and the peak memory of the process in MiB."""
    out = subprocess.run(
        [sys.executable, "-c", STAGE, str(sshd.port), str(sshd.home), sshd.user, str(source), str(target)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    count, megabytes = out.stdout.split()
    return int(count), int(megabytes)


@pytest.mark.bulk
def test_a_file_of_one_gibibyte_takes_little_memory(sshd: Sshd, collect: Path, target: Path) -> None:
    with (collect / "big").open("wb") as file:
        for number in range(64):
            file.write(os.urandom(MIB))
            file.seek(16 * MIB * (number + 1))
        file.truncate(1024 * MIB)
    count, megabytes = stage_in_a_process(sshd, collect, target)
    assert count == 1
    assert megabytes < 128
    subprocess.run(["cmp", str(collect / "big"), str(target / "big")], check=True)


def test_five_thousand_files_take_little_memory(sshd: Sshd, collect: Path, target: Path) -> None:
    content = {f"file{number:05d}": os.urandom(4096) for number in range(5000)}
    for name, data in content.items():
        (collect / name).write_bytes(data)
    count, megabytes = stage_in_a_process(sshd, collect, target)
    assert count == 5000
    assert megabytes < 128
    assert {path.name: path.read_bytes() for path in target.iterdir()} == content


@pytest.mark.parametrize("oracle", ["rsync", "scp"])
def test_staged_files_equal_those_of_rsync_and_scp(
    sshd: Sshd, peer: RemotePeer, collect: Path, target: Path, tmp_path: Path, oracle: str
) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    names = [name for name in ODD_NAMES if oracle == "rsync" or b"\n" not in name]
    for number, name in enumerate((*names, b"empty")):
        path = os.fsencode(collect) + b"/" + name
        with open(path, "wb") as file:
            file.write(os.urandom(0 if name == b"empty" else 1000 * number + 7))
        os.chmod(path, (0o644, 0o600, 0o755, 0o440)[number % 4])
    source = f"{sshd.user}@{sshd.host}:{collect}"
    if oracle == "rsync":
        ssh = shlex.join([require_program("ssh"), *sshd.ssh_arguments()])
        subprocess.run([require_program("rsync"), "-a", "-e", ssh, f"{source}/", f"{theirs}/"], check=True)
    else:
        subprocess.run(
            [require_program("scp"), "-q", "-p", *sshd.ssh_arguments(), f"{source}/*", f"{theirs}/"], check=True
        )
    assert peer.stagePeer(str(target)) == len(names) + 1
    assert tree(target) == tree(theirs)


def tree(directory: Path) -> dict[bytes, tuple[int, bytes]]:
    """Return mode and content of each file in *directory*, by name."""
    found = {}
    root = os.fsencode(directory)
    for name in os.listdir(root):
        path = root + b"/" + name
        with open(path, "rb") as file:
            found[name] = (stat.S_IMODE(os.stat(path).st_mode), file.read())
    return found


class CutLine:
    """Forwards to the server's port, and cuts each connection once it has carried *max_bytes* to the client.

    Attributes:
        max_bytes: As above; it may be changed.
        carried: Bytes that all connections have carried to the client.
    """

    def __init__(self, port: int, max_bytes: int) -> None:
        self.carried = 0
        self._port = port
        self.max_bytes = max_bytes

    def carry(self, client: socket.socket) -> None:
        left = self.max_bytes
        with socket.create_connection(("127.0.0.1", self._port)) as server:
            requests = threading.Thread(target=self._forward_requests, args=(client, server), daemon=True)
            requests.start()
            while left and (data := server.recv(min(left, MIB))):
                client.sendall(data)
                self.carried += len(data)
                left -= len(data)
            for sock in (client, server):
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            requests.join()

    @staticmethod
    def _forward_requests(client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                server.sendall(data)
            server.shutdown(socket.SHUT_WR)


@pytest.mark.bulk
@pytest.mark.timeout(1800)
def test_five_gigabytes_that_are_interrupted_ten_times_are_hardly_transferred_twice(
    sshd: Sshd, collect: Path, target: Path, tmp_path: Path
) -> None:
    """Each interruption costs at most what is in flight, 24 MiB, and what is compared, 2 MiB."""
    size = 5 * 1024 * MIB
    with (collect / "big").open("wb") as file:
        for offset in range(0, size, 100 * MIB):
            file.seek(offset)
            file.write(os.urandom(MIB))
        file.truncate(size)
    stage = StageOptions(partial_dir=str(tmp_path / "partial"))
    line = CutLine(sshd.port, size // 11)
    for _ in range(10):
        with listening(line.carry) as port:
            ssh = sshd.options(port=port, host_key=sshd.host_key)
            peer = RemotePeer(sshd.host, str(collect), "/tmp", sshd.user, ssh=ssh, stage=stage, retry=Retry(tries=1))
            with pytest.raises(ConnectionLost):
                peer.stagePeer(str(target))
        assert os.listdir(target) == []
    line.max_bytes = size
    with listening(line.carry) as port:
        peer.ssh = sshd.options(port=port, host_key=sshd.host_key)
        assert peer.stagePeer(str(target)) == 1
    print(f"{line.carried - size} bytes more than {size}, {(line.carried - size) / MIB:.1f} MiB")
    assert line.carried < size + 10 * (24 + 2) * MIB
    assert peer.last_report is not None
    assert [result.outcome for result in peer.last_report.files] == ["resumed"]
    assert list((tmp_path / "partial").iterdir()) == []
    subprocess.run(["cmp", str(collect / "big"), str(target / "big")], check=True)

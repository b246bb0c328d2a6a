"""Hostile local users while root stages: they swap links, write to the target, and hold files open."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest

from peerstage import Limits, RemotePeer, sweep
from peerstage.errors import IncompleteStage, LimitExceeded, StageError, TargetError
from peerstage.records import Entry, Ownership
from peerstage.target import DirectoryTarget, private_directory
from peerstage.testing.contract import files_in
from support.accounts import Account
from support.children import isolated_children, process_status
from support.local_user import options_by_value
from support.sshd import Sshd
from support.waiting import wait_until

pytestmark = pytest.mark.usefixtures("leaves_nothing")

#: Swaps the entries of a directory for links to a file of root, and back, as fast as it can. It writes "p" for each
#: private directory of a run and "f" for each file that it has swapped. It can only rename another user's directory.
SWAPS = """
import os, sys
directory, precious = sys.argv[1:]
os.chdir(directory)
print("ready", flush=True)
turn = 0
while True:
    turn += 1
    for name in os.listdir("."):
        if name.startswith("mine"):
            continue
        try:
            os.rename(name, f"mine{turn}")
            os.write(1, b"p" if name.startswith(".") else b"f")
            if turn % 3 == 0:
                os.symlink(precious, name)
            elif turn % 3 == 1:
                os.mkdir(name)
                for number in range(20):
                    os.symlink(precious, f"{name}/{number}")
            else:
                os.rename(f"mine{turn}", name)
        except OSError:
            pass
"""


#: Swaps of either kind that are enough to hit every step of a run.
MIN_SWAPS = 300


def run_as(user: Account, command: list[str]) -> subprocess.Popen[bytes]:
    become = ["setpriv", f"--reuid={user.uid}", f"--regid={user.gid}", "--clear-groups"]
    return subprocess.Popen([*become, *command], stdout=subprocess.PIPE, cwd="/")


def python() -> str:
    """A Python that every user can run."""
    for path in ("/usr/bin/python3", "/usr/local/bin/python3"):
        if os.path.exists(path) and "/root/" not in os.path.realpath(path):
            return path
    raise RuntimeError("These tests need a Python that every user can run: install Debian's package python3.")


@dataclass
class Swapping:
    """A target of a user who swaps links in it all the time, and a file of root that must stay untouched.

    Attributes:
        private: Number of swapped private directories.
        files: Number of swapped files.
    """

    target: Path
    precious: Path
    output: IO[bytes]
    private: int = 0
    files: int = 0

    def check(self) -> None:
        """Count the swaps since the last check, and fail if the file of root has changed."""
        output = self.output.read() or b""
        self.private += output.count(b"p")
        self.files += output.count(b"f")
        assert is_untouched(self.precious)


@pytest.fixture
def swapping(public_path: Path, user: Account) -> Iterator[Swapping]:
    """Starts the swapping process."""
    target, precious = public_path / "target", public_path / "precious"
    target.mkdir()
    user.chown_tree(target)
    precious.write_bytes(b"precious")
    precious.chmod(0o600)
    swaps = run_as(user, [python(), "-c", SWAPS, str(target), str(precious)])
    assert swaps.stdout is not None
    assert swaps.stdout.readline() == b"ready\n"
    os.set_blocking(swaps.stdout.fileno(), False)
    try:
        yield Swapping(target, precious, swaps.stdout)
    finally:
        swaps.kill()
        swaps.wait()
        swaps.stdout.close()


def is_untouched(precious: Path) -> bool:
    found = precious.lstat()
    return (precious.read_bytes(), found.st_uid, found.st_nlink, stat.S_IMODE(found.st_mode)) == (
        b"precious", 0, 1, 0o600,
    )  # fmt: skip


def test_swapped_links_are_not_followed_while_root_changes_ownership(swapping: Swapping, user: Account) -> None:
    until = time.monotonic() + 60
    published = 0
    while swapping.private < MIN_SWAPS or swapping.files < MIN_SWAPS or not published:
        assert time.monotonic() < until, (swapping, published)
        try:
            owner = Ownership(user.uid, user.gid)
            with DirectoryTarget(str(swapping.target), ownership=owner, permissions=0o644) as staging_target:
                for slot in staging_target.admit([Entry(b"%d" % number, 4) for number in range(20)]):
                    slot.write(0, [b"data"])
                    slot.finish()
                staging_target.commit()
            published += 1
        except StageError as exc:
            assert str(exc).isprintable()
        swapping.check()


def test_swapped_links_are_not_followed_in_a_whole_run(
    swapping: Swapping, user: Account, sshd: Sshd, collect: Path
) -> None:
    for number in range(50):
        (collect / f"{number}").write_bytes(b"data")
    peer = RemotePeer(sshd.host, str(collect), "/tmp", sshd.user, None, user.name, ssh=options_by_value(sshd))
    with peer:
        for _ in range(5):
            try:
                peer.stagePeer(str(swapping.target))
            except StageError as exc:
                assert isinstance(exc, (TargetError, IncompleteStage))
            swapping.check()
    assert swapping.private
    assert swapping.files


def test_an_exchanged_private_directory_is_refused_and_not_emptied(
    public_path: Path, user: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, theirs = public_path / "target", public_path / "theirs"
    target.mkdir()
    theirs.mkdir()
    (theirs / "file").touch()
    real = os.mkdir

    for foreign in (True, False):
        os.chown(theirs, *((user.uid, user.gid) if foreign else (0, 0)))

        def exchange(path: str, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
            real(path, mode, dir_fd=dir_fd)
            os.rename(path, public_path / path, src_dir_fd=dir_fd)
            os.rename(theirs, path, dst_dir_fd=dir_fd)

        monkeypatch.setattr(os, "mkdir", exchange)
        with pytest.raises(TargetError, match="Another user replaced"), DirectoryTarget(str(target)):
            raise AssertionError("The exchanged directory was accepted.")
        monkeypatch.undo()
        (exchanged,) = target.iterdir()
        assert (exchanged / "file").exists()
        os.rename(exchanged, theirs)
        (theirs / "lock").unlink(missing_ok=True)


#: Creates directories, one inside the other, until its argument exists. The process that starts it exits once this one
#: has left its session and environment: the pipe is closed by execve(2).
FILLS = """
import os, sys, time
n = 0
while not os.path.exists(sys.argv[1]):
    n += 1
    if n > 3000:
        time.sleep(0.01)
        continue
    try:
        os.mkdir(f"d{n}"); os.chdir(f"d{n}"); open("f", "w").close()
    except OSError: pass
"""
LEAVES_FILLING = """
import os, sys
open("good", "w").close()
begun, begins = os.pipe()
if os.fork() == 0:
    os.setsid()
    os.execve(sys.executable, [sys.executable, "-c", FILLS, sys.argv[1]], {})
os.close(begins)
os.read(begun, 1)
"""


# What a command leaves in its workspace


class Command:
    """A shell script that the local user runs as the rcp-like command; its workspace is ``.``."""

    def __init__(self, directory: Path, user: Account) -> None:
        self._path = directory / "rcp"
        self._user = user

    def peer(self, script: str, **options: object) -> RemotePeer:
        self._path.write_text(f"{script}\n")
        options.setdefault("limits", Limits(stall_timeout=2, deadline=20))
        line = f"/bin/sh {self._path}"
        return RemotePeer("db1", "/collect", "/tmp", "backup", line, self._user.name, **options)  # type: ignore[arg-type]


@pytest.fixture
def command(public_path: Path, user: Account) -> Command:
    return Command(public_path, user)


@pytest.fixture(params=["the user's", "another user's"])
def owner(request: pytest.FixtureRequest, user: Account) -> Ownership | None:
    """The owner of the staged files; it decides whether they are renamed or copied."""
    return None if request.param == "the user's" else Ownership(12345, 54321)


def test_files_of_the_command_are_staged(
    command: Command, target: Path, user: Account, owner: Ownership | None
) -> None:
    peer = command.peer(
        "echo one >one; : >'with space'; chmod 4777 one; chmod 600 'with space'; head -c 9000000 /dev/urandom >big"
    )
    assert peer.stagePeer(str(target), owner) == 3
    assert (target / "one").read_bytes() == b"one\n"
    for name, mode in (("one", 0o755), ("with space", 0o600)):
        found = (target / name).stat()
        assert (found.st_uid, found.st_gid) == (owner or (user.uid, user.gid))
        assert stat.S_IMODE(found.st_mode) == mode
    assert peer.last_report is not None
    assert (peer.last_report.transport, peer.last_report.bytes) == ("rcp", 9_000_004)


@pytest.mark.parametrize(
    "commands",
    [
        "ln -s /etc/shadow bad",
        "ln -s nowhere bad",
        "ln -s /dev/zero bad",
        "mkdir -p bad/deep && echo x >bad/deep/file",
        "mkfifo bad",
        "echo x >bad && ln bad other-name",
        "mkdir bad && chmod 0 bad",
    ],
)
def test_entries_that_are_not_its_own_regular_files_are_refused(
    command: Command, target: Path, commands: str, owner: Ownership | None
) -> None:
    with pytest.raises(IncompleteStage) as caught:
        command.peer(f"echo good >good; {commands}").stagePeer(str(target), owner)
    assert caught.value.report is not None
    assert "bad" in [entry.name for entry in caught.value.report.refused]
    assert files_in(target) == {b"good": b"good\n"}


def test_a_hard_link_to_a_file_of_root_is_not_published(
    command: Command, public_path: Path, owner: Ownership | None
) -> None:
    """A user can create it where fs.protected_hardlinks is 0; here root does."""
    target, precious = public_path / "target", public_path / "target" / "precious"
    target.mkdir()
    precious.write_bytes(b"precious")
    precious.chmod(0o600)
    ended = threading.Event()

    def link_once_begun() -> None:
        while not (begun := list(target.glob(".peerstage-*/workspace/begun"))) and not ended.wait(0.01):
            pass
        os.link(precious, begun[0].with_name("bad"))

    thread = threading.Thread(target=link_once_begun)
    thread.start()
    try:
        with pytest.raises(StageError, match="bad"):
            command.peer(": >begun; until [ -e bad ]; do sleep 0.02; done; echo a >a").stagePeer(str(target), owner)
    finally:
        ended.set()
        thread.join()
    assert files_in(target) == {b"a": b"a\n", b"begun": b"", b"precious": b"precious"}
    assert is_untouched(precious)


#: Leaves a file, and a process that keeps writing to it, in its own session and with its own environment.
HOLDS_OPEN = """
import os, sys
fd = os.open("held", os.O_RDWR | os.O_CREAT, 0o644)
os.write(fd, b"good")
begun, begins = os.pipe()
if os.fork() == 0:
    os.setsid()
    os.dup2(fd, 9)
    os.execve(sys.executable, [sys.executable, "-c", WRITES, sys.argv[1]], {} if HIDES else os.environ)
os.close(begins)
os.read(begun, 1)
"""
#: Writes to the file, and the number of writes to another one.
WRITES = """
import os, sys, time
count = os.open(sys.argv[1], os.O_WRONLY)
for number in range(10_000):
    os.pwrite(9, b"%04d" % number, 0)
    os.pwrite(count, b"%d" % number, 0)
    time.sleep(0.005)
"""


@pytest.mark.parametrize("hides", [True, False])
def test_a_process_that_holds_a_file_open_cannot_change_it_after_publication(
    command: Command, target: Path, public_path: Path, hides: bool, user: Account
) -> None:
    script, count = public_path / "holds.py", public_path / "count"
    script.write_text(f"WRITES = {WRITES!r}\nHIDES = {hides}\n{HOLDS_OPEN}")
    count.write_text("0")
    user.chown_tree(count)
    try:
        command.peer(f"{python()} {script} {count}").stagePeer(str(target), Ownership(12345, 54321))
        staged, written = (target / "held").read_bytes(), int(count.read_text())
        assert bool(processes_of(user)) == hides, "a process with the marker is found and killed"
        while hides and int(count.read_text()) < written + 5:
            assert processes_of(user)
        assert (target / "held").read_bytes() == staged
        assert (target / "held").stat().st_nlink == 1
    except IncompleteStage as exc:
        assert hides
        assert "changed while it was copied" in str(exc)
    finally:
        for pid in processes_of(user):
            os.kill(pid, signal.SIGKILL)


def test_a_workspace_that_is_filled_while_it_is_removed_does_not_block_and_is_swept_later(
    command: Command, target: Path, public_path: Path, user: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process has left its session and environment, so that it is not found."""
    fills, stop = public_path / "fills.py", public_path / "stop"
    fills.write_text(f"FILLS = {FILLS!r}\n{LEAVES_FILLING}")
    peer = command.peer(f"{python()} {fills} {stop}", limits=Limits())
    try:
        with monkeypatch.context() as patch, contextlib.suppress(StageError):
            patch.setattr(private_directory, "_MAX_DIRECTORIES", 1000)
            peer.stagePeer(str(target), Ownership(12345, 54321))
        assert processes_of(user), "the process survives"
        stop.touch()
        wait_until(lambda: not processes_of(user))
        sweep(target)
        assert sorted(os.listdir(target)) in ([], ["good"])
    finally:
        subprocess.run(["rm", "-rf", *target.glob(".peerstage-*")], check=True)  # too deep for Python


@pytest.mark.parametrize("script", ["exec sleep 1000", "sleep 1000 & wait", "trap '' TERM; while :; do sleep 1; done"])
def test_a_command_that_hangs_is_killed_with_its_children(
    command: Command, target: Path, script: str, user: Account
) -> None:
    with pytest.raises(LimitExceeded, match="stall_timeout"):
        command.peer(script, limits=Limits(stall_timeout=0.5, deadline=20)).stagePeer(str(target))
    assert files_in(target) == {}
    assert processes_of(user) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_the_command_of_a_killed_or_stopped_child_is_killed(
    command: Command, target: Path, public_path: Path, user: Account, number: int
) -> None:
    """The command is in its own session, outside the process group of the child."""
    begun = public_path / "begun"
    begun.touch()
    user.chown_tree(begun)
    peer = command.peer(f"echo yes >{begun}; sleep 1000 & sleep 1000", limits=Limits(stall_timeout=2))
    pids: list[int] = []

    def disturb() -> None:
        wait_until(lambda: begun.read_text() and len(processes_of(user)) >= 3)  # the child, the shell and a sleep
        pids.extend(processes_of(user))
        for pid in isolated_children():
            os.kill(pid, number)

    thread = threading.Thread(target=disturb)
    thread.start()
    with pytest.raises(StageError, match=r"killed by signal 9|process sent nothing"):
        peer.stagePeer(str(target))
    thread.join()
    assert len(pids) >= 3
    assert processes_of(user) == []
    assert files_in(target) == {}


def processes_of(user: Account) -> list[int]:
    """Return the user's processes, except zombies."""
    found = []
    for name in os.listdir("/proc"):
        try:
            if (
                name.isdigit()
                and os.stat(f"/proc/{name}/exe").st_ino
                and process_status(int(name))["Uid"][0] == str(user.uid)
            ):
                found.append(int(name))
        except OSError:
            continue
    return found

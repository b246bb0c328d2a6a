"""However a run ends, it leaves no process, thread or descriptor, and publishes no incomplete file."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from peerstage import Limits, Progress, RemotePeer, Retry
from peerstage.errors import Cancelled, LimitExceeded, NotAvailable, StageError, TargetError
from peerstage.isolation.parent.isolated_transport import IsolatedTransport
from peerstage.testing.contract import files_in
from peerstage.transport.factory import TransportOptions
from peerstage.watchdog import Watchdog
from support.children import is_reaped, isolated_children, process_status
from support.filesystems import tmpfs
from support.local_user import LOCAL_USER, options_by_value
from support.sshd import Sshd
from support.waiting import exits_within

MIB = 1 << 20
#: More than a child, its pipe and a server hold, so that what happens after the first bytes happens in mid-transfer.
SIZE = 160 * MIB

pytestmark = pytest.mark.usefixtures("leaves_nothing")


@pytest.fixture(params=["localUser", "isolated"])
def isolated_peer(request: pytest.FixtureRequest, sshd: Sshd, collect: Path) -> RemotePeer:
    """A peer that uses a child, with a file that takes a moment to transfer."""
    with (collect / "big").open("wb") as file:
        file.truncate(SIZE)
    peer = RemotePeer(sshd.host, str(collect), "/tmp", sshd.user, ssh=options_by_value(sshd))
    if request.param == "localUser":
        peer.localUser = LOCAL_USER
    else:
        peer.isolated = True
    return peer


@pytest.fixture
def old(target: Path) -> Iterator[Path]:
    """The target with an old file, which must be all that it holds in the end."""
    (target / "big").write_bytes(b"old")
    yield target
    assert files_in(target) == {b"big": b"old"}
    assert isolated_children() == []


class Once:
    """An ``on_progress`` that acts once, after the first bytes."""

    def __init__(self, action: Callable[[], object]) -> None:
        self._action = action
        self.at: float | None = None
        self.children: list[int] = []

    def __call__(self, progress: Progress) -> None:
        if self.at is None and progress.bytes_done > MIB:
            self.at = time.monotonic()
            self.children = isolated_children()
            self._action()

    @property
    def seconds_since(self) -> float:
        assert self.at is not None
        return time.monotonic() - self.at


def send_signal(number: int) -> Callable[[], None]:
    return lambda: [os.kill(pid, number) for pid in isolated_children()] and None


def test_a_killed_child_publishes_nothing_and_is_reported(isolated_peer: RemotePeer, old: Path) -> None:
    isolated_peer.on_progress = once = Once(send_signal(signal.SIGKILL))
    with pytest.raises(StageError, match=r"killed by signal 9 .*OOM killer") as caught:
        isolated_peer.stagePeer(str(old))
    assert str(caught.value).startswith(isolated_peer.name)
    assert once.seconds_since < 3


def test_the_next_call_after_a_killed_child_starts_another(isolated_peer: RemotePeer, target: Path) -> None:
    isolated_peer.on_progress = Once(send_signal(signal.SIGKILL))
    with isolated_peer:
        with pytest.raises(StageError):
            isolated_peer.stagePeer(str(target))
        isolated_peer.on_progress = None
        assert isolated_peer.stagePeer(str(target)) == 1
        assert not isolated_peer.checkCollectIndicator()
    assert (target / "big").stat().st_size == SIZE


def test_a_child_that_died_between_two_calls_is_replaced(isolated_peer: RemotePeer, collect: Path) -> None:
    with isolated_peer:
        isolated_peer.checkCollectIndicator()
        (child,) = isolated_children()
        os.kill(child, signal.SIGKILL)
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        isolated_peer.writeStageIndicator()
        assert is_reaped(child)
    assert (collect / "cback.stage").exists()
    assert isolated_children() == []


def test_the_parent_enforces_the_stall_timeout_on_a_stopped_child(isolated_peer: RemotePeer, old: Path) -> None:
    isolated_peer.on_progress = once = Once(send_signal(signal.SIGSTOP))
    isolated_peer.limits = Limits(stall_timeout=1.0)
    with pytest.raises(LimitExceeded, match=r"sent nothing for 1 s \(Limits.stall_timeout\)"):
        isolated_peer.stagePeer(str(old))
    assert once.children
    assert all(is_reaped(pid) for pid in once.children)


def test_the_parent_waits_for_a_child_whose_command_is_silent(sshd: Sshd) -> None:
    limits = Limits(stall_timeout=1)
    watchdog = Watchdog(limits)
    options = TransportOptions(name=sshd.host, user=sshd.user, ssh=sshd.options())
    output: list[bytes] = []
    with IsolatedTransport(options, None, limits=limits, retry=Retry(), watchdog=watchdog, grace=0.5) as transport:
        assert transport.execute(b"sleep 3; echo done", lambda data: output.append(bytes(data))) == 0
    assert b"".join(output) == b"done\n"


def test_the_child_reports_its_own_deadline_if_it_can(isolated_peer: RemotePeer, old: Path) -> None:
    isolated_peer.on_progress = Once(lambda: time.sleep(2))
    isolated_peer.limits = Limits(deadline=1.5)
    with pytest.raises(LimitExceeded, match="deadline"):
        isolated_peer.stagePeer(str(old))


def test_cancel_from_another_thread_ends_the_run_at_once(isolated_peer: RemotePeer, old: Path) -> None:
    isolated_peer.on_progress = once = Once(lambda: threading.Thread(target=isolated_peer.cancel).start())
    with pytest.raises(Cancelled, match=isolated_peer.name):
        isolated_peer.stagePeer(str(old))
    assert once.seconds_since < 3


def test_cancel_in_a_with_block_holds_for_the_block(isolated_peer: RemotePeer, collect: Path) -> None:
    (collect / "cback.collect").touch()
    with isolated_peer:
        assert isolated_peer.checkCollectIndicator()
        isolated_peer.cancel()
        assert not isolated_peer.checkCollectIndicator()
        with pytest.raises(Cancelled):
            isolated_peer.writeStageIndicator()
    assert isolated_peer.checkCollectIndicator()


@pytest.mark.parametrize("kind", [KeyError, KeyboardInterrupt, SystemExit])
def test_an_exception_of_on_progress_is_raised_after_the_cleanup(
    isolated_peer: RemotePeer, old: Path, kind: type[BaseException]
) -> None:
    def fail() -> None:
        raise kind("mine")

    isolated_peer.on_progress = once = Once(fail)
    with pytest.raises(kind, match="mine"):
        isolated_peer.stagePeer(str(old))
    assert once.seconds_since < 3


def test_an_interrupt_while_waiting_for_the_child_ends_it(isolated_peer: RemotePeer, old: Path) -> None:
    def stop_and_interrupt() -> None:
        send_signal(signal.SIGSTOP)()
        signal.setitimer(signal.ITIMER_REAL, 0.3)

    isolated_peer.on_progress = Once(stop_and_interrupt)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            isolated_peer.stagePeer(str(old))
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_full_disk_ends_the_child(isolated_peer: RemotePeer, tmp_path: Path) -> None:
    with tmpfs(tmp_path / "small", "size=24m") as small:
        for transport in ("sftp", "scp"):
            isolated_peer.transport = transport
            with pytest.raises(TargetError, match="are free"):
                isolated_peer.stagePeer(str(small))
            assert os.listdir(small) == []
    assert isolated_children() == []


def test_no_thread_is_started_in_this_process(isolated_peer: RemotePeer, target: Path) -> None:
    def threads() -> int:
        return int(process_status(os.getpid())["Threads"][0])

    seen: set[int] = set()
    isolated_peer.on_progress = lambda progress: seen.add(threads())
    before = threads()
    isolated_peer.stagePeer(str(target))
    assert seen == {before}


def test_progress_is_reported_in_the_calling_thread_up_to_the_total(isolated_peer: RemotePeer, target: Path) -> None:
    reported: list[tuple[Progress, threading.Thread]] = []
    isolated_peer.on_progress = lambda progress: reported.append((progress, threading.current_thread()))
    isolated_peer.stagePeer(str(target))
    assert {thread for _, thread in reported} == {threading.current_thread()}
    assert reported[-1][0] == Progress(1, 1, SIZE, SIZE)
    assert [progress.bytes_done for progress, _ in reported] == sorted(progress.bytes_done for progress, _ in reported)


def test_a_child_that_cannot_be_started_is_reported(
    isolated_peer: RemotePeer, old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/does/not/exist")
    with pytest.raises(NotAvailable, match=f"{isolated_peer.name}: Cannot start a Python child process"):
        isolated_peer.stagePeer(str(old))
    monkeypatch.setattr(sys, "executable", None)
    with pytest.raises(NotAvailable, match=r"sys\.executable is empty"):
        isolated_peer.stagePeer(str(old))
    monkeypatch.undo()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for free in range(3, 14):
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + free, hard))
        try:
            isolated_peer.writeStageIndicator()
        except StageError as exc:
            assert str(exc).isprintable()
        else:
            break
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert 3 < free < 13, "some are too few, and some suffice"


def test_the_child_exits_if_its_parent_is_killed(sshd: Sshd, collect: Path, target: Path) -> None:
    (collect / "cback.collect").touch()
    caller = subprocess.Popen([sys.executable, "-c", caller_script(sshd, collect)], stdout=subprocess.PIPE)
    assert caller.stdout is not None
    child = int(caller.stdout.readline())
    assert not is_reaped(child)
    caller.kill()
    caller.wait()
    caller.stdout.close()
    assert exits_within(child)


def test_a_peer_may_be_used_by_another_thread_after_the_one_that_connected_has_ended(sshd: Sshd, collect: Path) -> None:
    """PR_SET_PDEATHSIG reports the end of the thread that started a child, which is not the end of its parent."""
    (collect / "cback.collect").touch()
    peer = RemotePeer(sshd.host, str(collect), "/tmp", sshd.user, None, LOCAL_USER, ssh=options_by_value(sshd))
    answers: list[bool] = []
    with peer:
        for _ in range(3):
            thread = threading.Thread(target=lambda: answers.append(peer.checkCollectIndicator()))
            thread.start()
            thread.join()
            (pid,) = isolated_children()
            time.sleep(0.1)
        assert isolated_children() == [pid]
    assert answers == [True] * 3


def caller_script(sshd: Sshd, collect: Path) -> str:
    """Return a program that connects as another user, prints the id of its child, and waits."""
    return f"""
import sys, time
sys.path[:0] = {sys.path!r}
from pathlib import Path
from peerstage import RemotePeer, SSHOptions
from support.children import isolated_children
options = SSHOptions(
    port={sshd.port}, config=(), pkey=Path({str(sshd.identity)!r}).read_bytes(),
    known_hosts=Path({str(sshd.known_hosts)!r}).read_bytes(),
)
peer = RemotePeer({sshd.host!r}, {str(collect)!r}, "/tmp", {sshd.user!r}, None, {LOCAL_USER!r}, ssh=options)
with peer:
    assert peer.checkCollectIndicator()
    print(*isolated_children(), flush=True)
    time.sleep(1000)
"""

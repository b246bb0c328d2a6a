"""However a run ends, no process, thread or descriptor of it is left, and nothing half is published."""

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
from peerstage.errors import Cancelled, LandingError, LimitExceeded, NotAvailable, StageError
from peerstage.isolation.transport import IsolatedTransport
from peerstage.session.watchdog import Watchdog
from peerstage.testing.contract import landed
from peerstage.transport.choose import Route
from support.children import children_apart, is_gone, status_of
from support.filesystems import tmpfs
from support.local_user import LOCAL_USER, by_value
from support.sshd import Sshd

MIB = 1 << 20

pytestmark = pytest.mark.usefixtures("leaves_nothing")


@pytest.fixture(params=["localUser", "isolated"])
def apart(request: pytest.FixtureRequest, sshd: Sshd, collect: Path) -> RemotePeer:
    """A peer whose work is done in a child, with a file that takes a moment."""
    with (collect / "big").open("wb") as file:
        file.truncate(128 * MIB)
    peer = RemotePeer(sshd.host, str(collect), "/tmp", sshd.user, ssh=by_value(sshd))
    if request.param == "localUser":
        peer.localUser = LOCAL_USER
    else:
        peer.isolated = True
    return peer


@pytest.fixture
def old(target: Path) -> Iterator[Path]:
    """The target with an older file, which has to be all that is in it in the end."""
    (target / "big").write_bytes(b"old")
    yield target
    assert landed(target) == {b"big": b"old"}
    assert children_apart() == []


class Once:
    """An ``on_progress`` that does something once, when some bytes have come."""

    def __init__(self, action: Callable[[], object]) -> None:
        self._action = action
        self.at: float | None = None
        self.children: list[int] = []

    def __call__(self, progress: Progress) -> None:
        if self.at is None and progress.bytes_done > MIB:
            self.at = time.monotonic()
            self.children = children_apart()
            self._action()

    @property
    def since(self) -> float:
        assert self.at is not None
        return time.monotonic() - self.at


def signals(number: int) -> Callable[[], None]:
    return lambda: [os.kill(pid, number) for pid in children_apart()] and None


def test_a_child_that_is_killed_publishes_nothing_and_is_one_error(apart: RemotePeer, old: Path) -> None:
    apart.on_progress = once = Once(signals(signal.SIGKILL))
    with pytest.raises(StageError, match="killed by signal 9") as caught:
        apart.stagePeer(str(old))
    assert str(caught.value).startswith(apart.name)
    assert once.since < 3


def test_after_a_child_was_killed_the_next_call_has_another(apart: RemotePeer, target: Path) -> None:
    apart.on_progress = Once(signals(signal.SIGKILL))
    with apart:
        with pytest.raises(StageError):
            apart.stagePeer(str(target))
        apart.on_progress = None
        assert apart.stagePeer(str(target)) == 1
        assert not apart.checkCollectIndicator()
    assert (target / "big").stat().st_size == 128 * MIB


def test_a_child_that_is_stopped_is_ended_by_the_stall_bound_from_outside(apart: RemotePeer, old: Path) -> None:
    apart.on_progress = once = Once(signals(signal.SIGSTOP))
    apart.limits = Limits(stall_timeout=1.0)
    with pytest.raises(LimitExceeded, match=r"said nothing for 1 s \(Limits.stall_timeout\)"):
        apart.stagePeer(str(old))
    assert once.children
    assert all(is_gone(pid) for pid in once.children)


def test_a_child_whose_command_is_silent_for_long_is_waited_for(sshd: Sshd) -> None:
    limits = Limits(stall_timeout=1)
    watchdog = Watchdog(limits)
    route = Route(name=sshd.host, user=sshd.user, ssh=sshd.options())
    said: list[bytes] = []
    with IsolatedTransport(route, None, limits=limits, retry=Retry(), watchdog=watchdog, grace=0.5) as transport:
        assert transport.execute(b"sleep 3; echo done", lambda words: said.append(bytes(words))) == 0
    assert b"".join(said) == b"done\n"


def test_the_childs_own_deadline_is_what_is_told_where_it_can(apart: RemotePeer, old: Path) -> None:
    apart.on_progress = Once(lambda: time.sleep(2))
    apart.limits = Limits(deadline=1.5)
    with pytest.raises(LimitExceeded, match="deadline"):
        apart.stagePeer(str(old))


def test_cancel_from_another_thread_ends_it_at_once(apart: RemotePeer, old: Path) -> None:
    apart.on_progress = once = Once(lambda: threading.Thread(target=apart.cancel).start())
    with pytest.raises(Cancelled, match=apart.name):
        apart.stagePeer(str(old))
    assert once.since < 3


def test_cancel_in_a_with_block_holds_for_the_block(apart: RemotePeer, collect: Path) -> None:
    (collect / "cback.collect").touch()
    with apart:
        assert apart.checkCollectIndicator()
        apart.cancel()
        assert not apart.checkCollectIndicator()
        with pytest.raises(Cancelled):
            apart.writeStageIndicator()
    assert apart.checkCollectIndicator()


@pytest.mark.parametrize("kind", [KeyError, KeyboardInterrupt, SystemExit])
def test_what_on_progress_raises_comes_out_after_clean_up(
    apart: RemotePeer, old: Path, kind: type[BaseException]
) -> None:
    def fail() -> None:
        raise kind("mine")

    apart.on_progress = once = Once(fail)
    with pytest.raises(kind, match="mine"):
        apart.stagePeer(str(old))
    assert once.since < 3


def test_an_interrupt_while_the_child_is_waited_for_ends_it(apart: RemotePeer, old: Path) -> None:
    def stop_and_interrupt() -> None:
        signals(signal.SIGSTOP)()
        signal.setitimer(signal.ITIMER_REAL, 0.3)

    apart.on_progress = Once(stop_and_interrupt)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            apart.stagePeer(str(old))
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_full_disk_ends_the_child_too(apart: RemotePeer, tmp_path: Path) -> None:
    with tmpfs(tmp_path / "small", "size=32m") as small:
        for transport in ("sftp", "scp"):
            apart.transport = transport
            with pytest.raises(LandingError, match="room"):
                apart.stagePeer(str(small))
            assert os.listdir(small) == []
    assert children_apart() == []


def test_no_thread_is_started_in_this_process(apart: RemotePeer, target: Path) -> None:
    def threads() -> int:
        return int(status_of(os.getpid())["Threads"][0])

    seen: set[int] = set()
    apart.on_progress = lambda progress: seen.add(threads())
    before = threads()
    apart.stagePeer(str(target))
    assert seen == {before}


def test_progress_comes_in_the_calling_thread_and_ends_with_the_totals(apart: RemotePeer, target: Path) -> None:
    told: list[tuple[Progress, threading.Thread]] = []
    apart.on_progress = lambda progress: told.append((progress, threading.current_thread()))
    apart.stagePeer(str(target))
    assert {thread for _, thread in told} == {threading.current_thread()}
    assert told[-1][0] == Progress(1, 1, 128 * MIB, 128 * MIB)
    assert [progress.bytes_done for progress, _ in told] == sorted(progress.bytes_done for progress, _ in told)


def test_a_child_that_can_not_be_started_says_so(apart: RemotePeer, old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/does/not/exist")
    with pytest.raises(NotAvailable, match=f"{apart.name}: A child process of Python can not be started"):
        apart.stagePeer(str(old))
    monkeypatch.setattr(sys, "executable", None)
    with pytest.raises(NotAvailable, match="does not say where it lies"):
        apart.stagePeer(str(old))
    monkeypatch.undo()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for few in range(3, 14):
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + few, hard))
        try:
            apart.writeStageIndicator()
        except StageError as exc:
            assert str(exc).isprintable()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_caller_that_is_killed_takes_the_child_with_it(sshd: Sshd, collect: Path, target: Path) -> None:
    (collect / "cback.collect").touch()
    caller = subprocess.Popen([sys.executable, "-c", caller_script(sshd, collect)], stdout=subprocess.PIPE)
    assert caller.stdout is not None
    child = int(caller.stdout.readline())
    assert not is_gone(child)
    caller.kill()
    caller.wait()
    caller.stdout.close()
    until = time.monotonic() + 15
    while not is_gone(child) and time.monotonic() < until:
        time.sleep(0.05)
    assert is_gone(child)


def test_a_peer_may_move_on_to_another_thread_when_the_one_that_connected_has_ended(sshd: Sshd, collect: Path) -> None:
    """The kernel tells a child of the end of the thread that started it, and that is not the end of its parent."""
    (collect / "cback.collect").touch()
    peer = RemotePeer(sshd.host, str(collect), "/tmp", sshd.user, None, LOCAL_USER, ssh=by_value(sshd))
    answers: list[bool] = []
    with peer:
        for _ in range(3):
            thread = threading.Thread(target=lambda: answers.append(peer.checkCollectIndicator()))
            thread.start()
            thread.join()
            (pid,) = children_apart()
            time.sleep(0.1)
        assert children_apart() == [pid]
    assert answers == [True] * 3


def caller_script(sshd: Sshd, collect: Path) -> str:
    """A program that connects as another user, says its child's number, and waits."""
    return f"""
import sys, time
sys.path[:0] = {sys.path!r}
from pathlib import Path
from peerstage import RemotePeer, SSHOptions
from support.children import children_apart
options = SSHOptions(
    port={sshd.port}, config=(), pkey=Path({str(sshd.identity)!r}).read_bytes(),
    known_hosts=Path({str(sshd.known_hosts)!r}).read_bytes(),
)
peer = RemotePeer({sshd.host!r}, {str(collect)!r}, "/tmp", {sshd.user!r}, None, {LOCAL_USER!r}, ssh=options)
with peer:
    assert peer.checkCollectIndicator()
    print(*children_apart(), flush=True)
    time.sleep(1000)
"""

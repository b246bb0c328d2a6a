"""``StageOptions(bwlimit=...)`` over a connection: what a server may send ahead, retries, and what it excludes."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import paramiko
import pytest

from peerstage import Limits, LocalPeer, RemotePeer, StageOptions
from peerstage.errors import Cancelled, LimitExceeded
from peerstage.rates import BandwidthLimit
from peerstage.staging import stage
from peerstage.target import DirectoryTarget
from peerstage.testing import MemoryFile, MemoryTransport
from peerstage.testing.contract import files_in
from peerstage.watchdog import Watchdog
from support.clock import Clock
from support.file_server import serves_files
from support.ssh_server import listening, options_for
from support.window_observer import ObservesWindow, stage_under_observation

KEY = paramiko.ECDSAKey.generate()
RATE = 1 << 20
SIZE = RATE // 4


class SendsText(ObservesWindow):
    """Sends more on stderr than the window of a slow channel holds, as a login script may, and then a file."""

    stderr = b"Welcome! " * 4000


class IsDistant(ObservesWindow):
    """Takes a moment to open a channel, as over a long line."""

    def check_channel_request(self, kind: str, chanid: int) -> int:
        time.sleep(0.3)
        return super().check_channel_request(kind, chanid)


@pytest.mark.parametrize("transport", ["sftp", "scp"])
def test_a_server_may_send_less_than_a_second_of_the_limit_ahead(collect: Path, target: Path, transport: str) -> None:
    (collect / "file").write_bytes(os.urandom(SIZE))
    windows, report = stage_under_observation(collect, target, transport=transport, stage=StageOptions(bwlimit=RATE))
    assert max(windows) <= RATE
    assert report.seconds > 0.6 * SIZE / RATE, "it cannot be faster"
    windows, _ = stage_under_observation(collect, target, transport=transport)
    assert windows[0] > 20 * RATE, "without a limit"


@pytest.mark.usefixtures("fresh_interpreter")
@pytest.mark.parametrize("transport", ["sftp", "scp"])
def test_an_isolated_child_enforces_the_limit(collect: Path, target: Path, transport: str) -> None:
    (collect / "file").write_bytes(os.urandom(SIZE))
    options = StageOptions(bwlimit=RATE)
    windows, report = stage_under_observation(collect, target, transport=transport, stage=options, isolated=True)
    assert max(windows) <= RATE
    assert report.seconds > 0.6 * SIZE / RATE


@pytest.mark.parametrize("transport", ["sftp", "scp"])
def test_the_window_is_as_small_as_the_least_limit(collect: Path, target: Path, transport: str) -> None:
    (collect / "file").write_bytes(b"x" * 200)
    windows, _ = stage_under_observation(collect, target, transport=transport, stage=StageOptions(bwlimit=1024))
    assert max(windows) <= 1024


def test_a_distant_server_may_send_more_ahead(collect: Path, target: Path) -> None:
    (collect / "file").write_bytes(os.urandom(SIZE))
    options = StageOptions(bwlimit=RATE)
    windows, _ = stage_under_observation(collect, target, IsDistant, transport="scp", stage=options)
    assert windows[0] < max(windows) <= RATE


def test_output_on_stderr_does_not_use_up_the_window(collect: Path, target: Path) -> None:
    (collect / "file").write_bytes(b"x" * 700)
    options = StageOptions(bwlimit=20 * 1024)
    limits = Limits(stall_timeout=5.0)
    stage_under_observation(collect, target, SendsText, transport="scp", stage=options, limits=limits)


def test_cancel_ends_a_wait(collect: Path, target: Path) -> None:
    (collect / "file").write_bytes(bytes(1 << 20))
    with listening(serves_files(KEY)) as port:
        ssh = options_for(port, KEY, password="sesame")
        peer = RemotePeer("127.0.0.1", str(collect), "/tmp", "backup", ssh=ssh, stage=StageOptions(bwlimit=RATE // 16))
        has_data = threading.Event()
        peer.on_progress = lambda progress: has_data.set() if progress.bytes_done else None
        with ThreadPoolExecutor(1) as pool:
            cancelled = pool.submit(lambda: has_data.wait(30) and peer.cancel())
            with pytest.raises(Cancelled):
                peer.stagePeer(str(target))
            cancelled.result()
    assert files_in(target) == {}


@pytest.mark.parametrize("seconds", [150, 153])
def test_the_deadline_of_the_commit_includes_the_time_of_the_limit(
    target: Path, monkeypatch: pytest.MonkeyPatch, seconds: int
) -> None:
    clock = Clock()
    monkeypatch.setattr("peerstage.staging.time", SimpleNamespace(time=clock, monotonic=clock))
    watchdog = Watchdog(Limits(deadline=100), bandwidth=BandwidthLimit(1024))
    files = {b"file": MemoryFile(bytes(50 * 1024))}
    transport = MemoryTransport({b"/c": files}, before_write=lambda written: setattr(clock, "now", seconds))
    failure = pytest.raises(LimitExceeded, match="did not complete within 151 s")
    staged = contextlib.nullcontext() if seconds < 151 else failure
    with staged:
        stage(transport, b"/c", DirectoryTarget(str(target), peer="peer"), watchdog=watchdog)
    assert list(files_in(target)) == ([b"file"] if seconds < 151 else [])


# What cannot be limited.


@pytest.mark.parametrize("options", [{"transport": "rcp"}, {"rcpCommand": "/usr/bin/scp"}], ids=["rcp", "rcpCommand"])
@pytest.mark.parametrize("isolated", [False, True])
def test_an_rcp_command_cannot_be_limited(target: Path, options: dict[str, Any], isolated: bool) -> None:
    limited = StageOptions(bwlimit=1024)
    peer = RemotePeer("127.0.0.1", "/c", "/tmp", "backup", stage=limited, isolated=isolated, **options)
    with pytest.raises(ValueError, match=r"StageOptions\(bwlimit=\.\.\.\) cannot limit an rcp command.* scp -l"):
        peer.stagePeer(str(target))


def test_a_local_peer_cannot_be_limited() -> None:
    with pytest.raises(ValueError, match=r"^StageOptions\(bwlimit=\.\.\.\) limits a connection"):
        LocalPeer("local", "/c", stage=StageOptions(bwlimit=1024))

"""`RemotePeer.bandwidth`: peers that share a limit, in threads and in child processes."""

from __future__ import annotations

import copy
import os
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import paramiko
import pytest

from peerstage import BandwidthLimit, Limits, RemotePeer, StageOptions
from peerstage.testing.contract import files_in
from support.file_server import serves_files
from support.ssh_server import listening, options_for
from support.window_observer import stage_under_observation

KEY = paramiko.ECDSAKey.generate()
RATE = 512 * 1024


def stage_together(collect: Path, target: Path, count: int, bandwidth: BandwidthLimit, **options: Any) -> float:
    """Stage from *count* peers at a time into directories of their own; return how many seconds they took."""

    def stage_one(number: int) -> None:
        (target / str(number)).mkdir()
        ssh = options_for(port, KEY, password="sesame")
        peer = RemotePeer("127.0.0.1", str(collect), "/tmp", "backup", ssh=ssh, **options)
        peer.bandwidth = bandwidth
        peer.stagePeer(str(target / str(number)))

    with listening(serves_files(KEY)) as port, ThreadPoolExecutor(count) as pool:
        started = time.monotonic()
        list(pool.map(stage_one, range(count)))
        seconds = time.monotonic() - started
    for number in range(count):
        assert files_in(target / str(number)) == files_in(collect)
    return seconds


def test_peers_in_threads_share_a_limit(collect: Path, target: Path) -> None:
    (collect / "file").write_bytes(os.urandom(RATE // 4))
    assert stage_together(collect, target, 4, BandwidthLimit(RATE)) > 0.7, "it cannot be faster"


@pytest.mark.usefixtures("fresh_interpreter")
def test_isolated_peers_share_a_limit_and_the_wait_counts_for_no_limit(collect: Path, target: Path) -> None:
    (collect / "file").write_bytes(os.urandom(RATE))
    limits = Limits(deadline=4.0, stall_timeout=4.0)  # each takes 6 s, since it gets a third
    assert stage_together(collect, target, 3, BandwidthLimit(RATE // 2), isolated=True, limits=limits) > 4.0


def test_the_limit_of_a_peer_takes_the_place_of_its_option(collect: Path, target: Path) -> None:
    (collect / "file").write_bytes(b"x" * 700)
    slow = StageOptions(bwlimit=1024)
    windows, _ = stage_under_observation(collect, target, stage=slow, bandwidth=BandwidthLimit(RATE))
    assert max(windows) >= RATE // 4
    windows, _ = stage_under_observation(collect, target, bandwidth=BandwidthLimit(RATE))
    assert max(windows) <= RATE


def test_a_limit_is_not_pickled_or_copied() -> None:
    peer = RemotePeer("db1", "/c", "/tmp", "backup")
    assert peer.bandwidth is None
    peer.bandwidth = BandwidthLimit(RATE)
    assert pickle.loads(pickle.dumps(peer)).bandwidth is None
    assert copy.copy(peer).bandwidth is None
    assert peer.bandwidth.rate == RATE


@pytest.mark.parametrize("value", [RATE, "20M", StageOptions()])
def test_a_limit_is_an_object_that_can_be_shared(value: object) -> None:
    peer = RemotePeer("db1", "/c", "/tmp", "backup")
    with pytest.raises(ValueError, match="bandwidth must be of type BandwidthLimit"):
        peer.bandwidth = value  # type: ignore[assignment]


@pytest.mark.parametrize("options", [{"transport": "rcp"}, {"rcpCommand": "/usr/bin/scp"}], ids=["rcp", "rcpCommand"])
def test_an_rcp_command_cannot_be_limited(target: Path, options: dict[str, Any]) -> None:
    peer = RemotePeer("127.0.0.1", "/c", "/tmp", "backup", **options)
    peer.bandwidth = BandwidthLimit(RATE)
    with pytest.raises(ValueError, match=r"cannot limit an rcp command"):
        peer.stagePeer(str(target))

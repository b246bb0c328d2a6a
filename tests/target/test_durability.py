"""Durability: syncs, their errors, and early write-back that no write waits for."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from target_cases import MIB, memory_peer_of, stage_into

from peerstage.records import Entry
from peerstage.stage_options import StageOptions
from peerstage.target import DirectoryTarget, durability
from peerstage.target.writeback import DIRTY_BYTES, EarlyWriteback
from peerstage.testing.contract import files_in
from support.incoming import admit_one

EXT4, TMPFS, FUSE, OVERLAY, NFS = 0xEF53, 0x01021994, 0x65735546, 0x794C7630, 0x6969


@pytest.mark.parametrize(
    ("release", "reports"),
    [
        ("4.19.0-27-amd64", False),
        ("5.7.19-generic", False),
        ("5.8.0", True),
        ("5.10.0-30-amd64", True),
        ("6.1.0", True),
        ("10.0-rc1", True),
        ("4.4.0", False),
        ("unheard of", False),
    ],
)
def test_syncfs_is_reliable_where_linux_reports_its_errors(
    monkeypatch: pytest.MonkeyPatch, release: str, reports: bool
) -> None:
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(release=release))
    monkeypatch.setattr(durability, "_file_system_type", lambda fd: EXT4)
    assert durability.is_syncfs_reliable(-1) == reports


@pytest.mark.parametrize("kind", [FUSE, OVERLAY, NFS, 0])
def test_syncfs_is_not_reliable_if_it_does_less_than_fsync(monkeypatch: pytest.MonkeyPatch, kind: int) -> None:
    monkeypatch.setattr(durability, "_file_system_type", lambda fd: kind)
    assert not durability.is_syncfs_reliable(-1)


def test_the_file_system_type_comes_from_fstatfs(quick_target: Path) -> None:
    fd = os.open(quick_target, os.O_RDONLY)
    try:
        if str(quick_target).startswith("/dev/shm"):
            assert durability._file_system_type(fd) == TMPFS
        assert durability._file_system_type(fd) != 0
    finally:
        os.close(fd)
    assert durability._file_system_type(-1) == 0, "an invalid descriptor has no type"


def test_on_an_older_linux_each_of_many_files_is_synced(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    fsync = os.fsync

    def recording_fsync(fd: int) -> None:
        synced.append(stat.S_ISREG(os.fstat(fd).st_mode))
        fsync(fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "uname", lambda: SimpleNamespace(release="5.4.0-216-generic"))
        patch.setattr(os, "fsync", recording_fsync)
        stage_into(target, memory_peer_of({b"f%d" % number: b"x" for number in range(durability.MAX_FSYNCS + 5)}))
    assert synced == [True] * (durability.MAX_FSYNCS + 5) + [False]


class FullDevice:
    """A device whose queue is full: write-back blocks until it has space."""

    def __init__(self) -> None:
        self.has_space = threading.Event()
        self.threads: set[str] = set()
        self.written: list[int] = []

    def start_writeback(self, fd: int) -> None:
        self.threads.add(threading.current_thread().name)
        self.written.append(os.fstat(fd).st_size)
        assert self.has_space.wait(30)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> FullDevice:
    full = FullDevice()
    monkeypatch.setattr(durability, "start_writeback", full.start_writeback)
    return full


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("size", [64 * 1024, 24 * MIB])
@pytest.mark.usefixtures("leaves_nothing")
def test_a_full_device_queue_blocks_no_write_and_takes_few_descriptors(
    quick_target: Path, device: FullDevice, size: int
) -> None:
    content = bytes(64 * 1024)
    before = descriptors()
    with DirectoryTarget(str(quick_target)) as staging_target:
        for number in range(48 * MIB // size):
            incoming = admit_one(staging_target, Entry(b"f%d" % number, size, 0o644, 1))
            for at in range(0, size, len(content)):
                incoming.write(at, [content])
            incoming.finish()
        assert descriptors() - before < 256
        staging_target.commit()
        assert sum(path.stat().st_size for path in quick_target.glob("f*")) == 48 * MIB
        device.has_space.set()
    assert device.threads == {"peerstage-writeback"}


@pytest.mark.usefixtures("leaves_nothing")
def test_a_run_that_is_cut_off_ends_its_writeback_thread(quick_target: Path, device: FullDevice) -> None:
    def cut_off(written: int) -> None:
        if written >= 2 * DIRTY_BYTES:
            device.has_space.set()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stage_into(quick_target, memory_peer_of({b"a": bytes(40 * MIB)}, before_write=cut_off))
    assert files_in(quick_target) == {}


def test_dirty_bytes_are_counted_per_run_and_not_per_file(quick_target: Path, device: FullDevice) -> None:
    device.has_space.set()
    size, count = 128 * 1024, 2 * DIRTY_BYTES // (128 * 1024)
    stage_into(quick_target, memory_peer_of({b"f%d" % number: bytes(size) for number in range(count)}))
    assert len(device.written) > count // 4
    assert set(device.written) == {size}


@pytest.mark.parametrize("options", [{"options": StageOptions(durable=False)}, {"threads": False}])
def test_no_thread_is_started_if_disabled(quick_target: Path, device: FullDevice, options: dict[str, bool]) -> None:
    stage_into(quick_target, memory_peer_of({b"a": bytes(3 * DIRTY_BYTES)}), **options)
    assert device.threads == set()


@pytest.mark.usefixtures("leaves_nothing")
def test_if_no_thread_can_be_started_the_sync_writes_the_data(
    quick_target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refused)
        stage_into(quick_target, memory_peer_of({b"a": bytes(3 * DIRTY_BYTES)}))
    assert files_in(quick_target) == {b"a": bytes(3 * DIRTY_BYTES)}


@pytest.mark.usefixtures("leaves_nothing")
def test_writeback_may_be_closed_twice_and_unused() -> None:
    writeback = EarlyWriteback(4, lambda fd: None)
    writeback.close()
    writeback.close()

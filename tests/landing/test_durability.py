"""What is durable is on the disk, and a failed write is told; data goes there early, and nobody waits for that."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from landing_cases import MIB, serving_names, stage_into, syncs_all

from peerstage.landing import DirectoryLanding, durability
from peerstage.landing.writeback import DIRTY_BYTES, EarlyWriteback
from peerstage.records import Entry
from peerstage.testing.contract import landed

EXT4, FUSE, OVERLAY, NFS = 0xEF53, 0x65735546, 0x794C7630, 0x6969


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
def test_syncfs_is_relied_on_from_the_linux_on_that_reports_errors(target: Path, release: str, reports: bool) -> None:
    assert durability.can_sync_all(-1, release=release, kind=EXT4) == reports


@pytest.mark.parametrize("kind", [FUSE, OVERLAY, NFS, 0])
def test_syncfs_is_not_relied_on_where_it_does_less_than_fsync(kind: int) -> None:
    assert not durability.can_sync_all(-1, release="6.1.0", kind=kind)


def test_the_type_of_a_file_system_is_what_the_system_says(quick_target: Path) -> None:
    if str(quick_target).startswith("/dev/shm"):
        assert syncs_all(quick_target) == (durability.can_sync_all(-1, kind=0x01021994))
    assert not durability.can_sync_all(-1, release="6.1.0"), "of no descriptor it can not be told"


def test_before_that_linux_each_of_many_files_is_synced(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    fsync = os.fsync

    def noting_fsync(fd: int) -> None:
        synced.append(stat.S_ISREG(os.fstat(fd).st_mode))
        fsync(fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "uname", lambda: SimpleNamespace(release="5.4.0-216-generic"))
        patch.setattr(os, "fsync", noting_fsync)
        stage_into(target, serving_names({b"f%d" % number: b"x" for number in range(durability.FEW + 5)}))
    assert synced == [True] * (durability.FEW + 5) + [False]


class FullDevice:
    """A device whose queue is full: write-back blocks until it has room."""

    def __init__(self) -> None:
        self.has_room = threading.Event()
        self.threads: set[str] = set()
        self.written: list[int] = []

    def start_writeback(self, fd: int) -> None:
        self.threads.add(threading.current_thread().name)
        self.written.append(os.fstat(fd).st_size)
        assert self.has_room.wait(30)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> FullDevice:
    full = FullDevice()
    monkeypatch.setattr(durability, "start_writeback", full.start_writeback)
    return full


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("size", [64 * 1024, 24 * MIB])
@pytest.mark.usefixtures("leaves_nothing")
def test_a_full_device_keeps_nobody_waiting_and_takes_few_descriptors(
    quick_target: Path, device: FullDevice, size: int
) -> None:
    content = bytes(64 * 1024)
    before = descriptors()
    with DirectoryLanding(str(quick_target)) as landing:
        for number in range(48 * MIB // size):
            slot = landing.open(Entry(b"f%d" % number, size, 0o644, 1))
            for at in range(0, size, len(content)):
                slot.write(at, [content])
            slot.finish()
        assert descriptors() - before < 256
        landing.commit()
        assert sum(path.stat().st_size for path in quick_target.glob("f*")) == 48 * MIB
        device.has_room.set()
    assert device.threads == {"peerstage-writeback"}


@pytest.mark.usefixtures("leaves_nothing")
def test_a_run_that_is_cut_off_ends_its_write_back(quick_target: Path, device: FullDevice) -> None:
    def cut_off(written: int) -> None:
        if written >= 2 * DIRTY_BYTES:
            device.has_room.set()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stage_into(quick_target, serving_names({b"a": bytes(40 * MIB)}, before_piece=cut_off))
    assert landed(quick_target) == {}


def test_dirty_bytes_are_counted_for_the_run_and_not_for_a_file(quick_target: Path, device: FullDevice) -> None:
    device.has_room.set()
    size, count = 128 * 1024, 2 * DIRTY_BYTES // (128 * 1024)
    stage_into(quick_target, serving_names({b"f%d" % number: bytes(size) for number in range(count)}))
    assert len(device.written) > count // 4
    assert set(device.written) == {size}


@pytest.mark.parametrize("options", [{"durable": False}, {"threads": False}])
def test_no_thread_is_started_where_none_is_wanted(
    quick_target: Path, device: FullDevice, options: dict[str, bool]
) -> None:
    stage_into(quick_target, serving_names({b"a": bytes(3 * DIRTY_BYTES)}), **options)
    assert device.threads == set()


@pytest.mark.usefixtures("leaves_nothing")
def test_where_no_thread_can_be_started_the_data_is_left_to_the_sync(
    quick_target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refused)
        stage_into(quick_target, serving_names({b"a": bytes(3 * DIRTY_BYTES)}))
    assert landed(quick_target) == {b"a": bytes(3 * DIRTY_BYTES)}


@pytest.mark.usefixtures("leaves_nothing")
def test_closing_twice_and_without_work_is_allowed() -> None:
    writeback = EarlyWriteback(4, lambda fd: None)
    writeback.close()
    writeback.close()

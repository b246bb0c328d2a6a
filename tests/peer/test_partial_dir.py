"""`StageOptions.partial_dir` as callers use it: remote and local peers, child processes, transports that cannot."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from peerstage import LocalPeer, RemotePeer, Retry, StageOptions
from peerstage.errors import Cancelled, ConnectionLost, NothingToStage, TargetError
from peerstage.records import KIB, MIB, RESUMED, STAGED
from peerstage.testing import EmbeddedServer, Faults, ssh_server
from peerstage.testing.contract import files_in
from peerstage.testing.memory import MemoryFile
from peerstage.testing.peers import memory_peer
from support.kept import Peer, scaled_down, stage_from
from support.local_user import LOCAL_USER

DATA = random.Random(0).randbytes(12 * MIB)
ONCE = Retry(tries=1)


@pytest.fixture
def options(tmp_path: Path) -> StageOptions:
    return StageOptions(durable=False, partial_dir=str(tmp_path / "partial"))


def kept_in(options: StageOptions) -> list[str]:
    return os.listdir(str(options.partial_dir))


def test_a_remote_peer_continues_what_an_earlier_run_has_left(target: Path, options: StageOptions) -> None:
    files = {"big": MemoryFile(DATA, mtime=1), "small": MemoryFile(b"small", mtime=1)}
    peer = memory_peer(files, lose_after=10 * MIB, retry=ONCE, stage=options)
    with pytest.raises(ConnectionLost):
        peer.stagePeer(str(target))
    assert len(kept_in(options)) == 1
    progress: list[int] = []
    peer = memory_peer(files, stage=options, on_progress=lambda now: progress.append(now.bytes_done))
    assert peer.stagePeer(str(target)) == 2
    assert files_in(target) == {b"big": DATA, b"small": b"small"}
    assert peer.last_report is not None
    assert {file.name: file.outcome for file in peer.last_report.files} == {"big": RESUMED, "small": STAGED}
    assert 8 * MIB - 64 * 1024 <= peer.last_report.resumed_bytes < 10 * MIB
    assert progress[0] >= 8 * MIB - 64 * 1024
    assert progress[-1] == len(DATA) + len(b"small")
    assert kept_in(options) == []


def test_fewer_than_eight_mebibytes_are_not_kept(target: Path, options: StageOptions) -> None:
    peer = memory_peer({"big": DATA}, lose_after=8 * MIB - 64 * 1024, retry=ONCE, stage=options)
    with pytest.raises(ConnectionLost):
        peer.stagePeer(str(target))
    assert kept_in(options) == []


def test_a_local_peer_continues_what_an_earlier_run_has_left(
    collect: Path, target: Path, options: StageOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    (collect / "big").write_bytes(DATA)
    peer = LocalPeer("here", str(collect), stage=options)
    original = os.pread
    read: list[int] = []

    def counting(fd: int, length: int, offset: int) -> bytes:
        read.append(length)
        if len(read) == 10:
            peer.cancel()
        return original(fd, length, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", counting)
        with pytest.raises(Cancelled):
            peer.stagePeer(str(target))
    assert len(kept_in(options)) == 1
    assert peer.stagePeer(str(target)) == 1
    assert files_in(target) == {b"big": DATA}
    assert peer.last_report is not None
    assert [file.outcome for file in peer.last_report.files] == [RESUMED]


@pytest.mark.parametrize(
    "how",
    [
        {"transport": "scp"},
        {"transport": "scp", "guarded": True},
        {"guarded": True},
        {"transport": "rcp"},
        {"rcpCommand": "/usr/bin/scp -B"},
        {"transport": "rcp", "isolated": True},
    ],
    ids=str,
)
def test_a_transport_that_cannot_fetch_parts_of_files_is_refused_before_connecting(
    how: dict[str, Any], target: Path, options: StageOptions
) -> None:
    peer = RemotePeer("192.0.2.1", "/c", "/tmp", "backup", stage=options, **how)
    with pytest.raises(ValueError, match=r"StageOptions\(partial_dir=\.\.\.\) requires SFTP"):
        peer.validate()
    with pytest.raises(ValueError, match=r"StageOptions\(partial_dir=\.\.\.\) requires SFTP"):
        peer.stagePeer(str(target))
    assert not Path(str(options.partial_dir)).exists()


def test_a_directory_that_cannot_be_used_is_refused_before_connecting(target: Path, options: StageOptions) -> None:
    Path(str(options.partial_dir)).mkdir(mode=0o755)
    peer = memory_peer({"big": DATA}, stage=options)
    with pytest.raises(TargetError, match="must be 0700"):
        peer.stagePeer(str(target))
    assert peer.host.connection_count == 0


def test_a_file_of_other_content_starts_over(target: Path, options: StageOptions) -> None:
    peer = memory_peer({"big": MemoryFile(DATA, mtime=1)}, lose_after=10 * MIB, retry=ONCE, stage=options)
    with pytest.raises(ConnectionLost):
        peer.stagePeer(str(target))
    peer = memory_peer({"big": MemoryFile(DATA[::-1], mtime=1)}, stage=options)
    assert peer.stagePeer(str(target)) == 1
    assert files_in(target) == {b"big": DATA[::-1]}
    assert peer.last_report is not None
    assert [file.outcome for file in peer.last_report.files] == [STAGED]


# Real connections, and less data

PART = DATA[: 3 * MIB // 2]


@pytest.fixture
def filled(collect: Path, fresh_interpreter: str) -> Iterator[Path]:
    (collect / "big").write_bytes(PART)
    (collect / "small").write_bytes(b"small")
    with scaled_down():
        yield collect


def keep_a_part(filled: Path, target: Path, options: StageOptions, host: str) -> None:
    """Keep what a run leaves that has lost its connection to *host* after a MiB."""
    big = MemoryFile(PART, mtime=int((filled / "big").stat().st_mtime))
    partial_dir = Path(str(options.partial_dir))
    with pytest.raises(ConnectionLost):
        stage_from(Peer({b"big": big}, MIB, chunk_size=64 * KIB), target, partial_dir, peer=host, directory=b"/")
    assert len(kept_in(options)) == 1


def peer_of(server: EmbeddedServer, **options: Any) -> RemotePeer:
    return RemotePeer(server.host, "/", None, server.username, ssh=server.options, **options)


@pytest.mark.parametrize("how", [{}, {"isolated": True}, {"localUser": LOCAL_USER}], ids=str)
def test_what_a_cut_connection_leaves_is_continued(
    how: dict[str, Any], filled: Path, target: Path, options: StageOptions, leaves_nothing: None
) -> None:
    if "localUser" in how and os.geteuid() != 0:
        pytest.fail("This test needs root: run it as root, or leave it out with -m 'not slow'.")
    with ssh_server(filled, faults=Faults(cut_after=MIB, faulty_connections=1)) as server:
        with pytest.raises(ConnectionLost):
            peer_of(server, stage=options, retry=ONCE, **how).stagePeer(str(target))
        assert len(kept_in(options)) == 1
        peer = peer_of(server, stage=options, **how)
        assert peer.stagePeer(str(target)) == 2
        assert files_in(target) == {b"big": PART, b"small": b"small"}
        assert peer.last_report is not None
        assert {file.name: file.outcome for file in peer.last_report.files} == {"big": RESUMED, "small": STAGED}
        assert peer.last_report.resumed_bytes > MIB // 2
        assert kept_in(options) == []
        assert (target / "big").stat().st_uid == peer_owner(how)


def peer_owner(how: dict[str, Any]) -> int:
    import pwd

    return pwd.getpwnam(how["localUser"]).pw_uid if "localUser" in how else os.geteuid()


def test_a_child_process_starts_over_a_file_of_other_content(filled: Path, target: Path, options: StageOptions) -> None:
    with ssh_server(filled) as server:
        keep_a_part(filled, target, options, server.host)
        mtime = (filled / "big").stat().st_mtime
        (filled / "big").write_bytes(PART[::-1])
        os.utime(filled / "big", (mtime, mtime))
        peer = peer_of(server, stage=options, isolated=True)
        assert peer.stagePeer(str(target)) == 2
    assert files_in(target)[b"big"] == PART[::-1]
    assert kept_in(options) == []
    assert peer.last_report is not None
    assert [file.outcome for file in peer.last_report.files] == [STAGED, STAGED]


def test_a_fallback_to_scp_fetches_whole_files_and_says_so(
    filled: Path, target: Path, options: StageOptions, caplog: pytest.LogCaptureFixture
) -> None:
    with ssh_server(filled, sftp=False) as server, caplog.at_level(logging.WARNING):
        keep_a_part(filled, target, options, server.host)
        peer = peer_of(server, stage=options)
        assert peer.stagePeer(str(target)) == 2
        assert "SCP cannot fetch parts of files" in caplog.text
        assert peer.stagePeer(str(target)) == 2
    assert files_in(target) == {b"big": PART, b"small": b"small"}
    assert peer.last_report is not None
    assert {file.outcome for file in peer.last_report.files} == {STAGED}
    assert [note for note in peer.last_report.notes if "modification times of large files are unknown" in note]


def test_a_peer_with_nothing_is_no_reason_to_give_up_what_is_kept(target: Path, options: StageOptions) -> None:
    files = {"big": MemoryFile(DATA, mtime=1)}
    with pytest.raises(ConnectionLost):
        memory_peer(files, lose_after=10 * MIB, retry=ONCE, stage=options).stagePeer(str(target))
    with pytest.raises(NothingToStage):
        memory_peer({}, stage=options).stagePeer(str(target))
    assert len(kept_in(options)) == 1

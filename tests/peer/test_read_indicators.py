"""`readIndicators`: whether a peer has collected, and whether it has been staged since."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from peerstage import Indicators, LocalPeer, Reason, RemoteFile
from peerstage.errors import ConnectError, RemoteError, RemoteNotFound, StageError
from peerstage.peer.base import BackupPeer
from peerstage.testing import MemoryFile, MemoryPeer, memory_peer

NOON = 1_700_000_000


def peer_in_memory(**mtimes: int) -> MemoryPeer:
    """Return a peer whose files, given by the last parts of their names, have these times."""
    return memory_peer({f"cback.{name}": MemoryFile(mtime=mtime) for name, mtime in mtimes.items()})


def write_at(path: Path, mtime: float, data: bytes = b"") -> None:
    path.write_bytes(data)
    os.utime(path, (mtime, mtime))


@pytest.mark.parametrize(
    ("collect", "stage", "is_newer"),
    [
        (None, None, False),
        (None, RemoteFile(0, NOON), False),
        (RemoteFile(0, NOON), None, False),
        (RemoteFile(0, NOON), RemoteFile(0, NOON - 1), False),
        (RemoteFile(0, NOON), RemoteFile(0, NOON), False),
        (RemoteFile(0, NOON), RemoteFile(0, NOON + 1), True),
        (RemoteFile(0), RemoteFile(0, NOON), False),
        (RemoteFile(0, NOON), RemoteFile(0), False),
        (RemoteFile(0), RemoteFile(0), False),
    ],
)
def test_only_a_stage_indicator_that_is_known_to_be_of_a_later_second_is_newer(
    collect: RemoteFile | None, stage: RemoteFile | None, is_newer: bool
) -> None:
    assert Indicators(collect, stage).stage_is_newer is is_newer


def test_a_peer_that_was_staged_and_has_not_collected_since_has_a_newer_stage_indicator() -> None:
    staged = peer_in_memory(collect=NOON, stage=NOON + 60).readIndicators()
    assert staged == Indicators(RemoteFile(0, NOON), RemoteFile(0, NOON + 60))
    assert staged.stage_is_newer
    collected_again = peer_in_memory(collect=NOON + 3600, stage=NOON + 60).readIndicators()
    assert not collected_again.stage_is_newer


def test_a_peer_that_is_marked_now_has_a_newer_stage_indicator() -> None:
    peer = memory_peer({"cback.collect": MemoryFile(mtime=NOON), "cback.stage": MemoryFile(mtime=NOON - 86400)})
    assert not peer.readIndicators().stage_is_newer
    peer.writeStageIndicator()
    assert peer.readIndicators().stage_is_newer


def test_the_stage_indicator_is_not_asked_for_before_the_peer_has_collected() -> None:
    assert peer_in_memory(stage=NOON).readIndicators() == Indicators()


def test_indicators_of_other_names_are_read() -> None:
    peer = memory_peer({"mine": MemoryFile(b"12", mtime=NOON), "theirs": MemoryFile(mtime=NOON)})
    assert peer.readIndicators("mine", "theirs") == Indicators(RemoteFile(2, NOON), RemoteFile(0, NOON))


def test_an_unreachable_peer_is_an_error_and_not_one_without_indicators() -> None:
    refused = ConnectError("Connection refused.", reason=Reason.CONNECTION_REFUSED)
    peer = memory_peer(error=refused)
    with pytest.raises(ConnectError) as caught:
        peer.readIndicators()
    assert caught.value.peer == "peer"
    assert str(peer.last_error) == str(caught.value)
    peer.host.error = None
    peer.readIndicators()
    assert peer.last_error is None


def test_one_login_is_enough_for_both_indicators() -> None:
    peer = peer_in_memory(collect=NOON, stage=NOON)
    peer.readIndicators()
    assert peer.host.connection_count == 1


@pytest.mark.parametrize("indicator", ["a/b", "..", "", 7])
def test_both_indicators_are_plain_file_names(collect: Path, indicator: Any) -> None:
    peers: list[BackupPeer] = [memory_peer(), LocalPeer("here", collect)]
    for peer in peers:
        for arguments in ((indicator, None), (None, indicator)):
            with pytest.raises(ValueError, match="Indicator"):
                peer.readIndicators(*arguments)


def test_a_remote_peer_without_a_collect_directory_has_no_indicators_to_read() -> None:
    peer = memory_peer()
    peer.collectDir = None
    with pytest.raises(ValueError, match="no collect directory"):
        peer.readIndicators()


# Local peers.


def test_a_local_peer_tells_sizes_and_whole_seconds(collect: Path) -> None:
    peer = LocalPeer("here", collect)
    assert peer.readIndicators() == Indicators()
    write_at(collect / "cback.collect", NOON + 0.25, b"text")
    assert peer.readIndicators() == Indicators(RemoteFile(4, NOON))
    write_at(collect / "cback.stage", NOON + 0.75)
    assert peer.readIndicators() == Indicators(RemoteFile(4, NOON), RemoteFile(0, NOON))


def test_a_local_peer_follows_no_symlink_to_an_indicator(collect: Path, tmp_path: Path) -> None:
    peer = LocalPeer("here", collect)
    write_at(tmp_path / "elsewhere", NOON)
    (collect / "cback.collect").symlink_to(tmp_path / "elsewhere")
    assert peer.checkCollectIndicator(), "as the original"
    assert peer.readIndicators() == Indicators()
    (collect / "cback.collect").unlink()
    write_at(collect / "cback.collect", NOON)
    (collect / "cback.stage").symlink_to(tmp_path / "elsewhere")
    assert peer.readIndicators() == Indicators(RemoteFile(0, NOON))


def test_only_regular_files_of_a_local_peer_are_indicators(collect: Path) -> None:
    peer = LocalPeer("here", collect)
    (collect / "cback.collect").mkdir()
    assert peer.readIndicators() == Indicators()
    (collect / "cback.collect").rmdir()
    os.mkfifo(collect / "cback.collect")
    assert peer.readIndicators() == Indicators()


def test_a_missing_collect_directory_of_a_local_peer_is_an_error(tmp_path: Path) -> None:
    peer = LocalPeer("here", tmp_path / "missing")
    with pytest.raises(RemoteNotFound, match=r"^here .*/missing: There is no such directory") as caught:
        peer.readIndicators()
    assert str(peer.last_error) == str(caught.value)
    (tmp_path / "file").touch()
    peer.collectDir = tmp_path / "file"
    with pytest.raises(RemoteError) as refused:
        peer.readIndicators()
    assert refused.value.reason is Reason.NOT_A_DIRECTORY
    assert isinstance(refused.value, StageError)

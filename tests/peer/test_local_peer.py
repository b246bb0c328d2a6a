"""`LocalPeer` behaves as cback3's local peer does."""

from __future__ import annotations

import os
import pickle
import stat
from pathlib import Path

import pytest

from peerstage import Limits, LocalPeer, RemotePeer, StageError, StageOptions
from peerstage.errors import LimitExceeded, TargetError
from peerstage.reasons import Reason
from support.files import write_files


def test_dotfiles_are_staged_too(collect: Path, target: Path) -> None:
    write_files(collect, a=b"a", **{".hidden": b"h", "cback.collect": b""})
    peer = LocalPeer("here", str(collect))
    assert peer.checkCollectIndicator()
    assert peer.stagePeer(str(target)) == 3
    assert sorted(os.listdir(target)) == [".hidden", "a", "cback.collect"]
    assert peer.last_report is not None
    assert peer.last_report.transport == "local"


def test_directories_are_checked_in_the_order_of_cback3(collect: Path, target: Path, tmp_path: Path) -> None:
    peer = LocalPeer("here", str(tmp_path / "missing"))
    with pytest.raises(ValueError, match="Target directory must be an absolute"):
        peer.stagePeer("relative")
    with pytest.raises(ValueError, match="Collect directory"):
        peer.stagePeer(str(tmp_path / "also-missing"))
    peer.collectDir = str(collect)
    with pytest.raises(ValueError, match="Target directory must exist"):
        peer.stagePeer(str(tmp_path / "also-missing"))


@pytest.mark.parametrize("kind", ["local", "remote"])
def test_a_missing_target_is_a_value_error_and_a_target_error(collect: Path, tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").touch()
    peer = LocalPeer("here", str(collect)) if kind == "local" else RemotePeer("here", str(collect), "/tmp", "backup")
    for name, reason in (
        ("missing", Reason.TARGET_MISSING),
        ("file", Reason.TARGET_NOT_A_DIRECTORY),
        ("file/below", Reason.TARGET_NOT_A_DIRECTORY),
    ):
        with pytest.raises(ValueError, match="Target directory must exist") as caught:
            peer.stagePeer(str(tmp_path / name))
        assert isinstance(caught.value, TargetError)
        assert (caught.value.reason, caught.value.peer) == (reason, "here")


@pytest.mark.parametrize("obstacle", ["directory", "link", "fifo"])
def test_an_entry_that_is_not_a_regular_file_is_a_stage_error_and_a_value_error(
    collect: Path, target: Path, obstacle: str
) -> None:
    write_files(collect, a=b"a", b=b"b")
    {
        "directory": lambda: (collect / "x").mkdir(),
        "link": lambda: (collect / "x").symlink_to("a"),
        "fifo": lambda: os.mkfifo(collect / "x"),
    }[obstacle]()
    with pytest.raises(ValueError, match="x") as caught:
        LocalPeer("here", str(collect)).stagePeer(str(target))
    assert isinstance(caught.value, StageError)
    assert sorted(os.listdir(target)) == ["a", "b"]
    assert isinstance(pickle.loads(pickle.dumps(caught.value)), ValueError)


def test_a_local_peer_keeps_times_and_has_limits_if_they_are_given(collect: Path, target: Path) -> None:
    write_files(collect, a=b"a", b=b"b")
    os.utime(collect / "a", (1_000_000_000, 1_000_000_000))
    LocalPeer("here", str(collect), stage=StageOptions(preserve_times=True)).stagePeer(str(target))
    assert (target / "a").stat().st_mtime == 1_000_000_000
    with pytest.raises(LimitExceeded, match="entries"):
        LocalPeer("here", str(collect), limits=Limits(entries=1)).stagePeer(str(target))


def test_entries_that_are_left_out_do_not_make_a_stage_incomplete(collect: Path, target: Path) -> None:
    write_files(collect, a=b"a", **{".hidden": b"h", "large": b"l" * 100})
    (collect / "lost+found").mkdir()
    (collect / "link").symlink_to("a")
    peer = LocalPeer("here", str(collect), stage=StageOptions(exclude=(".*", "l?st+found", "link"), max_size=50))
    assert peer.stagePeer(str(target)) == 1
    assert os.listdir(target) == ["a"]
    assert peer.last_report is not None
    assert len(peer.last_report.left_out) == 4


def test_an_empty_collect_directory_is_an_os_error(collect: Path, target: Path) -> None:
    with pytest.raises(OSError, match="no file"):
        LocalPeer("here", str(collect)).stagePeer(str(target))


def test_without_its_collect_directory_a_check_is_false_and_the_rest_are_value_errors(
    tmp_path: Path, target: Path
) -> None:
    peer = LocalPeer("here", str(tmp_path / "missing"))
    assert not peer.checkCollectIndicator()
    with pytest.raises(ValueError, match="Collect directory"):
        peer.stagePeer(str(target))
    with pytest.raises(ValueError, match="Collect directory"):
        peer.writeStageIndicator()


def test_the_stage_indicator_gets_ownership_and_permissions(collect: Path) -> None:
    owner = (12345, 54321) if os.geteuid() == 0 else (os.getuid(), os.getgid())
    LocalPeer("here", str(collect)).writeStageIndicator(None, owner, 0o604)
    found = (collect / "cback.stage").stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (*owner, 0o604)


def test_a_link_in_place_of_the_stage_indicator_is_not_followed(collect: Path, tmp_path: Path) -> None:
    write_files(tmp_path, precious=b"precious")
    (collect / "cback.stage").symlink_to(tmp_path / "precious")
    with pytest.raises(StageError):
        LocalPeer("here", str(collect)).writeStageIndicator()
    assert (tmp_path / "precious").read_bytes() == b"precious"

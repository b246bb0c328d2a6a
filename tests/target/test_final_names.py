"""Final names that exist already: what happens to them, and to everything around them."""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
from target_cases import NOBODY, memory_peer, memory_peer_of, requires_mount, run_in_child, stage_into

from peerstage.errors import IncompleteStage
from peerstage.reasons import Reason
from peerstage.testing.contract import files_in


def snapshot(root: Path) -> dict[str, tuple[Any, ...]]:
    """Return mode, owner, time, number of links, and content or link target of everything below *root*, by path."""
    found = {}
    for path in sorted(root.rglob("*")):
        of = path.lstat()
        inside = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        found[str(path.relative_to(root))] = (of.st_mode, of.st_uid, of.st_gid, of.st_mtime_ns, of.st_nlink, inside)
    return found


def test_a_regular_file_is_replaced_as_a_whole(target: Path) -> None:
    (target / "a").write_bytes(b"old and longer than the new one")
    with (target / "a").open("rb") as reader:
        stage_into(target, memory_peer(a=b"new"))
        assert reader.read() == b"old and longer than the new one"
    assert files_in(target) == {b"a": b"new"}


@pytest.mark.parametrize("destination", ["precious", "../precious", "dangling", "a", "/"])
def test_a_symlink_is_replaced_and_never_followed(target: Path, destination: str) -> None:
    for precious in (target / "precious", target.parent / "precious"):
        precious.write_bytes(b"precious")
        precious.chmod(0o600)
    (target / "a").symlink_to(destination)
    stage_into(target, memory_peer(a=b"new"), permissions=0o666)
    assert files_in(target) == {b"a": b"new", b"precious": b"precious"}
    assert not (target / "a").is_symlink()
    for precious in (target / "precious", target.parent / "precious"):
        assert precious.read_bytes() == b"precious"
        assert stat.S_IMODE(precious.stat().st_mode) == 0o600


def test_a_symlink_to_a_directory_is_replaced_and_not_followed(target: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (target / "a").symlink_to(tmp_path / "elsewhere")
    stage_into(target, memory_peer(a=b"new"))
    assert files_in(target) == {b"a": b"new"}
    assert os.listdir(tmp_path / "elsewhere") == []


def test_a_fifo_is_replaced_and_never_opened(target: Path) -> None:
    os.mkfifo(target / "a")
    stage_into(target, memory_peer(a=b"new"))
    assert files_in(target) == {b"a": b"new"}


def test_a_socket_is_replaced() -> None:
    with tempfile.TemporaryDirectory(prefix="s") as short, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{short}/a")
        stage_into(Path(short), memory_peer(a=b"new"))
        assert files_in(Path(short)) == {b"a": b"new"}


def test_a_hard_link_of_the_old_file_keeps_the_old_bytes(target: Path) -> None:
    (target / "a").write_bytes(b"old")
    os.link(target / "a", target / "other")
    (target / "other").chmod(0o600)
    stage_into(target, memory_peer(a=b"new"), permissions=0o644)
    assert files_in(target) == {b"a": b"new", b"other": b"old"}
    assert stat.S_IMODE((target / "other").stat().st_mode) == 0o600
    assert (target / "other").stat().st_nlink == 1


@pytest.mark.parametrize("inside", [[], ["file"]])
def test_a_directory_with_the_name_fails_that_entry_and_stays(target: Path, inside: list[str]) -> None:
    (target / "a").mkdir()
    for name in inside:
        (target / "a" / name).write_bytes(b"inside")
    pieces: list[int] = []
    with pytest.raises(IncompleteStage, match="a: A directory has this name in the target") as raised:
        stage_into(target, memory_peer_of({b"a": b"new", b"good": b"good"}, before_write=pieces.append))
    assert files_in(target) == {b"a": b"<not a regular file>", b"good": b"good"}
    assert os.listdir(target / "a") == inside
    assert len(pieces) == 1, "a file that cannot be published is not fetched"
    assert raised.value.report is not None
    assert [(failed.name, failed.reason) for failed in raised.value.report.failed] == [("a", Reason.NAME_TAKEN)]


def test_a_directory_that_appears_during_the_transfer_fails_that_entry(target: Path) -> None:
    def appear(written: int) -> None:
        (target / "a").mkdir(exist_ok=True)

    with pytest.raises(IncompleteStage, match="a: A directory has this name in the target"):
        stage_into(target, memory_peer_of({b"a": b"new", b"good": b"good"}, before_write=appear))
    assert files_in(target) == {b"a": b"<not a regular file>", b"good": b"good"}


def test_anything_else_in_the_target_is_untouched(target: Path) -> None:
    (target / "deep" / "er").mkdir(parents=True)
    (target / "deep" / "er" / "file").write_bytes(b"deep")
    (target / "file").write_bytes(b"file")
    (target / ".hidden").write_bytes(b"hidden")
    (target / "peerstage-00000000").write_bytes(b"not ours")
    (target / "link").symlink_to("deep")
    (target / "dangling").symlink_to("nowhere")
    os.link(target / "file", target / "second name")
    os.mkfifo(target / "fifo")
    before = snapshot(target)
    stage_into(target, memory_peer(staged=b"staged"))
    after = snapshot(target)
    assert after.pop("staged")[-1] == b"staged"
    assert after == before


@pytest.mark.parametrize("name", [b"x" * 256, b"x" * 5000, "é".encode() * 128])
def test_a_name_that_is_too_long_fails_that_entry(target: Path, name: bytes) -> None:
    with pytest.raises(IncompleteStage, match="refuses the name") as raised:
        stage_into(target, memory_peer_of({name: b"x", b"good": b"good"}))
    assert files_in(target) == {b"good": b"good"}
    assert raised.value.report is not None
    assert [failed.reason for failed in raised.value.report.failed] == [Reason.NAME_NOT_REPRESENTABLE]


def test_the_longest_name_and_unusual_bytes_are_accepted(target: Path) -> None:
    names = [b"x" * 255, b"\xff\xfe", b"new\nline", b" ", b"-rf", b"lock", b"0", "☃".encode()]
    stage_into(target, memory_peer_of({name: name for name in names}))
    assert files_in(target) == {name: name for name in names}


@pytest.mark.usefixtures("leaves_nothing")
@pytest.mark.parametrize("when", ["before the transfer", "at the rename"])
def test_a_name_that_only_the_file_system_refuses_fails_that_entry(
    target: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    function = {"before the transfer": "stat", "at the rename": "rename"}[when]
    original = getattr(os, function)

    def refuses_bytes_that_are_not_utf_8(name: Any, *arguments: Any, **options: Any) -> Any:
        if b"\xff" in (name, *arguments):
            raise OSError(errno.EILSEQ, os.strerror(errno.EILSEQ))
        return original(name, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, function, refuses_bytes_that_are_not_utf_8)
        with pytest.raises(IncompleteStage, match=r"\\xff: The target's file system refuses the name"):
            stage_into(target, memory_peer_of({b"\xff": b"x", b"good": b"good"}))
    assert files_in(target) == {b"good": b"good"}


@pytest.mark.usefixtures("root")
@requires_mount
def test_a_mount_point_with_the_name_fails_that_entry(target: Path, tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"other")
    (target / "a").write_bytes(b"old")
    subprocess.run(["mount", "--bind", str(tmp_path / "other"), str(target / "a")], check=True)
    try:
        with pytest.raises(IncompleteStage, match=r"a: .*busy"):
            stage_into(target, memory_peer(a=b"new", good=b"good"))
        assert files_in(target) == {b"a": b"other", b"good": b"good"}
    finally:
        subprocess.run(["umount", str(target / "a")], check=True)
    assert files_in(target) == {b"a": b"old", b"good": b"good"}


@pytest.mark.usefixtures("root")
def test_a_file_of_another_user_in_a_sticky_directory_fails_that_entry(public_path: Path) -> None:
    if os.geteuid() != 0:
        raise RuntimeError("Only root can make files of two users: run the tests as root.")
    target = public_path / "target"
    target.mkdir()
    target.chmod(0o1777)
    (target / "a").write_bytes(b"old")

    def staged_by_nobody() -> None:
        with pytest.raises(IncompleteStage, match="a: The target's file system refuses the name"):
            stage_into(target, memory_peer(a=b"new", good=b"good"))

    run_in_child(staged_by_nobody, user=NOBODY)
    assert files_in(target) == {b"a": b"old", b"good": b"good"}

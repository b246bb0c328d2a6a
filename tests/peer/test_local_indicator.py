"""The stage indicator of a `LocalPeer`, in a directory whose owner tries to make root truncate or chown a file."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from peerstage import LocalPeer, StageError
from peerstage.records import Limits, validate_permissions
from peerstage.staging import stage
from peerstage.target import DirectoryTarget
from peerstage.testing.contract import files_in
from peerstage.testing.memory import MemoryFile, MemoryTransport
from peerstage.transport.local import LocalTransport
from peerstage.watchdog import Watchdog


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """A file outside the collect directory."""
    path = tmp_path / "precious"
    path.write_bytes(b"precious")
    path.chmod(0o600)
    return path


def write_indicator(collect: Path, *arguments: Any) -> None:
    LocalPeer("here", str(collect)).writeStageIndicator(None, *arguments)


def state_of(path: Path) -> tuple[bytes, int, int, int]:
    found = path.stat()
    return path.read_bytes(), found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)


def test_a_hard_link_in_place_of_the_indicator_is_refused_and_its_file_unchanged(collect: Path, precious: Path) -> None:
    os.link(precious, collect / "cback.stage")
    before = state_of(precious)
    with pytest.raises(StageError, match=r"^here .*/cback.stage: .*link"):
        write_indicator(collect, (os.getuid(), os.getgid()), 0o666)
    assert state_of(precious) == before


def test_a_hard_link_that_is_removed_during_the_check_does_not_truncate_its_file(
    collect: Path, precious: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner of the directory acts between any two system calls of root (TOCTOU)."""
    names = [name for name in ("open", "stat", "lstat", "fstat", "unlink", "link", "rename") if hasattr(os, name)]
    originals = {name: getattr(os, name) for name in names}
    planted = collect / "cback.stage"
    before = state_of(precious)

    def plant(is_there: bool) -> None:
        if is_there:
            if originals["lstat"](precious).st_nlink == 1:
                try:
                    originals["unlink"](planted)
                except FileNotFoundError:
                    pass
                originals["link"](precious, planted)
        else:
            try:
                originals["unlink"](planted)
            except FileNotFoundError:
                pass

    for pattern in range(1 << 6):  # whether the link is there at the first call, the second ...
        calls = 0

        def between(name: str) -> Any:
            def call(*arguments: Any, **options: Any) -> Any:
                nonlocal calls
                plant(bool(pattern >> min(calls, 5) & 1))  # noqa: B023
                calls += 1
                return originals[name](*arguments, **options)

            return call

        with monkeypatch.context() as patch:
            for name in names:
                patch.setattr(os, name, between(name))
            try:
                write_indicator(collect, (os.getuid(), os.getgid()), 0o666)
            except StageError:
                pass
        assert state_of(precious) == before, bin(pattern)


@pytest.mark.parametrize("kind", ["fifo", "fifo with a reader", "socket", "directory", "device", "link"])
@pytest.mark.usefixtures("leaves_nothing")
def test_anything_but_a_regular_file_is_refused_without_blocking(collect: Path, kind: str) -> None:
    import socket

    path = collect / "cback.stage"
    reader = -1
    if kind.startswith("fifo"):
        os.mkfifo(path)
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK) if "reader" in kind else -1
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(path))
    elif kind == "directory":
        path.mkdir()
    elif kind == "device":
        if os.geteuid() != 0:
            os.mkfifo(path)  # only root makes devices
        else:
            os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    else:
        path.symlink_to("nowhere")
    before = path.lstat()
    caught: list[BaseException] = []

    def write() -> None:
        try:
            write_indicator(collect, (os.getuid(), os.getgid()), 0o604)
        except StageError as exc:
            caught.append(exc)

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    writer.join(10)
    assert not writer.is_alive(), "it blocks until there is a reader"
    if reader >= 0:
        os.close(reader)
    assert "regular file" in str(caught[0])
    after = path.lstat()
    assert (after.st_ino, after.st_mode, after.st_uid) == (before.st_ino, before.st_mode, before.st_uid)


def test_an_existing_indicator_is_truncated_and_gets_owner_and_mode(collect: Path) -> None:
    (collect / "cback.stage").write_bytes(b"old")
    (collect / "cback.stage").chmod(0o600)
    owner = (12345, 54321) if os.geteuid() == 0 else (os.getuid(), os.getgid())
    write_indicator(collect, owner, 0o604)
    assert state_of(collect / "cback.stage") == (b"", *owner, 0o604)
    assert os.listdir(collect) == ["cback.stage"]


def test_the_umask_does_not_affect_the_mode_of_the_indicator(collect: Path) -> None:
    before = os.umask(0o077)
    try:
        write_indicator(collect, None, 0o644)
    finally:
        os.umask(before)
    assert state_of(collect / "cback.stage")[3] == 0o644


def test_the_parent_of_a_path_in_the_root_directory_is_the_root_directory() -> None:
    transport = LocalTransport(Watchdog(Limits()))
    with pytest.raises(StageError, match="regular file"):
        transport.touch(b"/tmp")


# Permissions


@pytest.mark.parametrize("mode", [640, 644, 600, 755, 777, 0o1777, 0o4755, -1, True, "640", 6.4])
def test_permissions_in_decimal_are_refused_everywhere(collect: Path, target: Path, mode: Any) -> None:
    (collect / "a").write_bytes(b"a")
    peer = LocalPeer("here", str(collect))
    memory = MemoryTransport({b"/c": {b"a": MemoryFile(b"a")}})
    for call in (
        lambda: validate_permissions(mode),
        lambda: peer.stagePeer(str(target), None, mode),
        lambda: peer.writeStageIndicator(None, None, mode),
        lambda: stage(memory, b"/c", DirectoryTarget(str(target), permissions=mode)),
        lambda: DirectoryTarget(str(target), permissions=mode),
        lambda: LocalTransport(Watchdog(Limits())).touch(os.fsencode(collect / "x"), permissions=mode),
    ):
        with pytest.raises(ValueError, match="octal mode such as 0o640"):
            call()
    assert files_in(target) == {}
    assert os.listdir(collect) == ["a"]


@pytest.mark.parametrize("mode", [0, 0o640, 0o777, None])
def test_permissions_up_to_0777_are_accepted(mode: int | None) -> None:
    assert validate_permissions(mode) == mode

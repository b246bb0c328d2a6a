"""The stage indicator of a `LocalPeer`, in a directory whose owner would have root empty or give away a file."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from peerstage import LocalPeer, StageError
from peerstage.landing import DirectoryLanding
from peerstage.records import Limits, permissions_of
from peerstage.session.watchdog import Watchdog
from peerstage.staging import stage
from peerstage.testing.contract import landed
from peerstage.testing.memory import MemoryFile, MemoryTransport
from peerstage.transport.local import LocalTransport


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """A file that lies outside the collect directory."""
    path = tmp_path / "precious"
    path.write_bytes(b"precious")
    path.chmod(0o600)
    return path


def write_indicator(collect: Path, *arguments: Any) -> None:
    LocalPeer("here", str(collect)).writeStageIndicator(None, *arguments)


def state_of(path: Path) -> tuple[bytes, int, int, int]:
    found = path.stat()
    return path.read_bytes(), found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)


def test_a_hard_link_planted_as_the_indicator_is_refused_and_its_file_left_as_it_was(
    collect: Path, precious: Path
) -> None:
    os.link(precious, collect / "cback.stage")
    before = state_of(precious)
    with pytest.raises(StageError, match=r"^here .*/cback.stage: .*link"):
        write_indicator(collect, (os.getuid(), os.getgid()), 0o666)
    assert state_of(precious) == before


def test_a_hard_link_that_is_removed_while_it_is_looked_at_does_not_empty_its_file(
    collect: Path, precious: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner of the directory sees the system calls of root, and acts between any two of them."""
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
def test_what_is_no_regular_file_is_refused_without_waiting(collect: Path, kind: str) -> None:
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
    assert not writer.is_alive(), "it waits for a reader"
    if reader >= 0:
        os.close(reader)
    assert "regular file" in str(caught[0])
    after = path.lstat()
    assert (after.st_ino, after.st_mode, after.st_uid) == (before.st_ino, before.st_mode, before.st_uid)


def test_an_indicator_that_is_there_becomes_an_empty_file_of_the_asked_owner_and_mode(collect: Path) -> None:
    (collect / "cback.stage").write_bytes(b"old")
    (collect / "cback.stage").chmod(0o600)
    owner = (12345, 54321) if os.geteuid() == 0 else (os.getuid(), os.getgid())
    write_indicator(collect, owner, 0o604)
    assert state_of(collect / "cback.stage") == (b"", *owner, 0o604)
    assert os.listdir(collect) == ["cback.stage"]


def test_a_mode_for_the_indicator_is_not_narrowed_by_the_umask(collect: Path) -> None:
    before = os.umask(0o077)
    try:
        write_indicator(collect, None, 0o644)
    finally:
        os.umask(before)
    assert state_of(collect / "cback.stage")[3] == 0o644


def test_an_indicator_in_the_root_directory_is_reached(tmp_path: Path) -> None:
    transport = LocalTransport(Watchdog(Limits()), Limits())
    with pytest.raises(StageError, match="regular file"):
        transport.touch(b"/tmp")


# Permissions


@pytest.mark.parametrize("slip", [640, 644, 600, 755, 777, 0o1777, 0o4755, -1, True, "640", 6.4])
def test_permissions_written_in_decimal_are_refused_wherever_they_are_taken(
    collect: Path, target: Path, slip: Any
) -> None:
    (collect / "a").write_bytes(b"a")
    peer = LocalPeer("here", str(collect))
    memory = MemoryTransport({b"/c": {b"a": MemoryFile(b"a")}})
    for call in (
        lambda: permissions_of(slip),
        lambda: peer.stagePeer(str(target), None, slip),
        lambda: peer.writeStageIndicator(None, None, slip),
        lambda: stage(memory, b"/c", str(target), permissions=slip),
        lambda: DirectoryLanding(str(target), permissions=slip),
        lambda: LocalTransport(Watchdog(Limits()), Limits()).touch(os.fsencode(collect / "x"), permissions=slip),
    ):
        with pytest.raises(ValueError, match="octal mode such as 0o640"):
            call()
    assert landed(target) == {}
    assert os.listdir(collect) == ["a"]


@pytest.mark.parametrize("mode", [0, 0o640, 0o777, None])
def test_permissions_up_to_0777_are_taken(mode: int | None) -> None:
    assert permissions_of(mode) == mode

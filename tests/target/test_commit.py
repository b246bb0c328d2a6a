"""The commit: cancelled or late before the first rename, it publishes nothing; cut off after it, it reports."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from target_cases import FailsAt, has_reliable_syncfs, memory_peer, memory_peer_of, stage_into

from peerstage import Limits, LocalPeer, RemotePeer, StageOptions
from peerstage.errors import Cancelled, LimitExceeded, TargetError
from peerstage.target import durability
from peerstage.testing import ssh_server
from peerstage.testing.contract import files_in
from peerstage.watchdog import Watchdog

FEW, MANY = 3, durability.MAX_FSYNCS + 3


class CallsFirst:
    """A function whose *number*-th call calls *first* before the original."""

    def __init__(self, original: Callable[..., Any], first: Callable[[], object], number: int) -> None:
        self.original = original
        self.first = first
        self.remaining = number

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.remaining -= 1
        if self.remaining == 0:
            self.first()
        return self.original(*arguments, **options)


class CallsBefore:
    """A function that calls *first* before the original, each time."""

    def __init__(self, original: Callable[..., Any], first: Callable[[], object]) -> None:
        self.original = original
        self.first = first

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.first()
        return self.original(*arguments, **options)


def fill(collect: Path, count: int) -> None:
    for number in range(count):
        (collect / f"f{number:02}").write_bytes(b"new")


@pytest.mark.parametrize("count", [FEW, MANY])
def test_on_commit_is_called_after_the_last_sync_of_data_and_before_the_first_rename(
    collect: Path, target: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    fill(collect, count)
    peer = LocalPeer("here", str(collect), stage=StageOptions(manifest=True))
    order: list[str] = []
    for module, name in ((os, "fsync"), (durability, "syncfs"), (os, "rename")):
        recording = CallsBefore(getattr(module, name), lambda name=name: order.append(name))  # type: ignore[misc]
        monkeypatch.setattr(module, name, recording)
    peer.on_commit = lambda: order.append("on_commit")
    assert peer.stagePeer(str(target)) == count
    called = order.index("on_commit")
    assert set(order[:called]) <= {"fsync", "syncfs"}
    assert order[called + 1 :] == ["rename"] * count + ["fsync"] + ["rename"] * 2 + ["fsync"]


@pytest.mark.parametrize("count", [FEW, MANY])
@pytest.mark.usefixtures("leaves_nothing")
def test_a_run_that_is_cancelled_during_the_sync_publishes_nothing(
    collect: Path, target: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    fill(collect, count)
    (target / "f00").write_bytes(b"old")
    peer = LocalPeer("here", str(collect))
    function, number = (os, "fsync"), FEW
    if count == MANY and has_reliable_syncfs(target):
        function, number = (durability, "syncfs"), 1  # type: ignore[assignment]
    monkeypatch.setattr(*function, CallsFirst(getattr(*function), peer.cancel, number))
    with pytest.raises(Cancelled, match=r"^here"):
        peer.stagePeer(str(target))
    assert files_in(target) == {b"f00": b"old"}
    assert peer.last_report is None


@pytest.mark.usefixtures("fresh_interpreter")
@pytest.mark.parametrize("isolated", [False, True])
def test_a_remote_run_that_is_cancelled_during_the_sync_publishes_nothing(
    collect: Path, target: Path, monkeypatch: pytest.MonkeyPatch, isolated: bool
) -> None:
    fill(collect, FEW)
    with ssh_server(collect) as server:
        peer = RemotePeer(server.host, "/", "/tmp", server.username, ssh=server.options, isolated=isolated)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", CallsFirst(os.fsync, peer.cancel, FEW))
            with pytest.raises(Cancelled, match=r"^127"):
                peer.stagePeer(str(target))
        assert files_in(target) == {}
        assert peer.last_report is None
        assert peer.stagePeer(str(target)) == FEW, "a later call is a new run"


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("number", [1, FEW])
def test_a_deadline_that_passes_during_the_sync_publishes_nothing(
    target: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    (target / "a").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", CallsFirst(os.fsync, lambda: time.sleep(1.1), number))
    with pytest.raises(LimitExceeded, match=r"^peer: The operation did not complete within 1 s .*Nothing was staged"):
        stage_into(target, memory_peer(a=b"a", b=b"b", c=b"c"), watchdog=Watchdog(Limits(deadline=1)))
    assert files_in(target) == {b"a": b"old"}


@pytest.mark.parametrize("number", [1, 2, 4])
def test_a_disk_that_fails_between_two_renames_reports_which_files_were_published(
    collect: Path, target: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    fill(collect, 4)
    for name in ("f00", "f03"):
        (target / name).write_bytes(b"old")
    peer = LocalPeer("here", str(collect))
    monkeypatch.setattr(os, "rename", FailsAt(os.rename, errno.EIO, number=number))
    with pytest.raises(TargetError) as raised:
        peer.stagePeer(str(target))
    report = raised.value.report
    assert peer.last_report is report
    names = [f"f{at:02}" for at in range(4)]
    new = names[: number - 1]
    assert {name.decode() for name, data in files_in(target).items() if data == b"new"} == set(new)
    if number == 1:
        assert report is None
        return
    assert report is not None
    assert [file.name for file in report.files if file.error is None] == new
    assert report.count == len(new)
    assert report.bytes == 3 * len(new)
    assert [file.name for file in report.failed] == names[number - 1 :]
    assert {file.error for file in report.failed} == {"The run ended before the file was renamed."}


def test_a_refused_name_does_not_shift_the_report(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = os.rename
    calls = 0

    def second_refused_and_third_broken(*arguments: Any, **options: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > 1:
            code = errno.EINVAL if calls == 2 else errno.EIO
            raise OSError(code, os.strerror(code))
        rename(*arguments, **options)

    monkeypatch.setattr(os, "rename", second_refused_and_third_broken)
    with pytest.raises(TargetError) as raised:
        stage_into(target, memory_peer_of({b"a": b"a", b"b": b"b", b"c": b"c", b"d": b"d"}))
    assert raised.value.report is not None
    assert {file.name: (file.error or "")[:14] for file in raised.value.report.files} == {
        "a": "",
        "b": "The target's f",
        "c": "The run ended ",
        "d": "The run ended ",
    }
    assert files_in(target) == {b"a": b"a"}


def test_a_directory_that_cannot_be_synced_reports_that_all_were_published(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", FailsAt(os.fsync, errno.EIO, number=3))
    with pytest.raises(TargetError) as raised:
        stage_into(target, memory_peer(a=b"a", b=b"b"))
    assert raised.value.report is not None
    assert raised.value.report.count == 2

"""The end of a run: cancelled or too late before the first name, it publishes nothing; cut off after it, it tells."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from landing_cases import FailsAt, serving, serving_names, stage_into, syncs_all

from peerstage import Limits, LocalPeer, RemotePeer
from peerstage.errors import Cancelled, LandingError, LimitExceeded
from peerstage.landing import durability
from peerstage.session.watchdog import Watchdog
from peerstage.testing import ssh_server
from peerstage.testing.contract import landed

FEW, MANY = 3, durability.FEW + 3


class Before:
    """A function that does something else first, at its *number*-th call."""

    def __init__(self, original: Callable[..., Any], first: Callable[[], object], number: int) -> None:
        self.original = original
        self.first = first
        self.left = number

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            self.first()
        return self.original(*arguments, **options)


def fill(collect: Path, count: int) -> None:
    for number in range(count):
        (collect / f"f{number:02}").write_bytes(b"new")


@pytest.mark.parametrize("count", [FEW, MANY])
@pytest.mark.usefixtures("leaves_nothing")
def test_a_run_that_is_cancelled_while_the_disk_syncs_publishes_nothing(
    collect: Path, target: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    fill(collect, count)
    (target / "f00").write_bytes(b"old")
    peer = LocalPeer("here", str(collect))
    where, last = (os, "fsync"), FEW
    if count == MANY and syncs_all(target):
        where, last = (durability, "syncfs"), 1  # type: ignore[assignment]
    monkeypatch.setattr(*where, Before(getattr(*where), peer.cancel, last))
    with pytest.raises(Cancelled, match=r"^here"):
        peer.stagePeer(str(target))
    assert landed(target) == {b"f00": b"old"}
    assert peer.last_report is None


@pytest.mark.usefixtures("fresh_interpreter")
@pytest.mark.parametrize("isolated", [False, True])
def test_a_remote_run_that_is_cancelled_while_the_disk_syncs_publishes_nothing(
    collect: Path, target: Path, monkeypatch: pytest.MonkeyPatch, isolated: bool
) -> None:
    fill(collect, FEW)
    with ssh_server(collect) as server:
        peer = RemotePeer(server.host, "/", "/tmp", server.username, ssh=server.options, isolated=isolated)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", Before(os.fsync, peer.cancel, FEW))
            with pytest.raises(Cancelled, match=r"^127"):
                peer.stagePeer(str(target))
        assert landed(target) == {}
        assert peer.last_report is None
        assert peer.stagePeer(str(target)) == FEW, "a later call is another run"


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("number", [1, FEW])
def test_a_deadline_that_passes_while_the_disk_syncs_publishes_nothing(
    target: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    (target / "a").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", Before(os.fsync, lambda: time.sleep(1.1), number))
    with pytest.raises(LimitExceeded, match=r"^peer: Not done within 1 s .*Nothing was published"):
        stage_into(target, serving(a=b"a", b=b"b", c=b"c"), watchdog=Watchdog(Limits(deadline=1)))
    assert landed(target) == {b"a": b"old"}


@pytest.mark.parametrize("number", [1, 2, 4])
def test_a_disk_that_fails_between_two_names_tells_which_files_were_published(
    collect: Path, target: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    fill(collect, 4)
    for name in ("f00", "f03"):
        (target / name).write_bytes(b"old")
    peer = LocalPeer("here", str(collect))
    monkeypatch.setattr(os, "rename", FailsAt(os.rename, errno.EIO, number=number))
    with pytest.raises(LandingError) as caught:
        peer.stagePeer(str(target))
    report = caught.value.report
    assert peer.last_report is report
    names = [f"f{at:02}" for at in range(4)]
    new = names[: number - 1]
    assert {name.decode() for name, data in landed(target).items() if data == b"new"} == set(new)
    if number == 1:
        assert report is None
        return
    assert report is not None
    assert [file.name for file in report.files if file.error is None] == new
    assert report.count == len(new)
    assert report.bytes == 3 * len(new)
    assert [file.name for file in report.failed] == names[number - 1 :]
    assert {file.error for file in report.failed} == {"The run ended before it got its name."}


def test_a_file_whose_name_is_refused_does_not_shift_what_the_report_tells(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    with pytest.raises(LandingError) as caught:
        stage_into(target, serving_names({b"a": b"a", b"b": b"b", b"c": b"c", b"d": b"d"}))
    assert caught.value.report is not None
    assert {file.name: (file.error or "")[:14] for file in caught.value.report.files} == {
        "a": "",
        "b": "The target's f",
        "c": "The run ended ",
        "d": "The run ended ",
    }
    assert landed(target) == {b"a": b"a"}


def test_a_directory_that_can_not_be_synced_in_the_end_tells_that_all_were_published(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", FailsAt(os.fsync, errno.EIO, number=3))
    with pytest.raises(LandingError) as caught:
        stage_into(target, serving(a=b"a", b=b"b"))
    assert caught.value.report is not None
    assert caught.value.report.count == 2

"""A `LocalPeer` enforces its limits, as its directory is not trusted either."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from peerstage import Limits, LocalPeer
from peerstage.errors import Cancelled, LimitExceeded

pytestmark = pytest.mark.usefixtures("leaves_nothing")


def peer_of(collect: Path, **limits: Any) -> LocalPeer:
    return LocalPeer("here", str(collect), limits=Limits(**limits))


class EndlessDirectory:
    """Replaces `os.scandir` for a directory whose listing never ends.

    Attributes:
        read: The number of names read.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, collect: Path, *, same: bool = False) -> None:
        self.read = 0
        self._same = same
        scandir = os.scandir
        wanted = os.fsencode(collect)
        monkeypatch.setattr(os, "scandir", lambda path=".": self._names() if path == wanted else scandir(path))

    @contextlib.contextmanager
    def _names(self) -> Iterator[Iterator[SimpleNamespace]]:
        yield (SimpleNamespace(name=b"name" if self._same else b"%d" % self._count(n)) for n in count())

    def _count(self, number: int) -> int:
        self.read += 1
        return number


def test_an_endless_directory_is_read_up_to_the_limit(
    collect: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = EndlessDirectory(monkeypatch, collect)
    with pytest.raises(LimitExceeded, match=r"here .*has more than 1000 entries \(Limits\.entries\)"):
        peer_of(collect, entries=1000).stagePeer(str(target))
    assert endless.read == 1001
    assert list(target.iterdir()) == []


def test_the_size_of_a_listing_is_limited(collect: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    EndlessDirectory(monkeypatch, collect)
    with pytest.raises(LimitExceeded, match="listing_bytes"):
        peer_of(collect, listing_bytes=10_000).stagePeer(str(target))


def test_the_deadline_ends_a_listing(collect: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    EndlessDirectory(monkeypatch, collect, same=True)
    with pytest.raises(LimitExceeded, match="deadline"):
        peer_of(collect, deadline=0.1).stagePeer(str(target))


@pytest.fixture
def before_each_chunk(collect: Path, monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], object]]:
    """What is called before each mebibyte of a large file is read; empty at first."""
    (collect / "large").write_bytes(bytes(5 << 20))
    calls: list[Callable[[], object]] = []
    pread = os.pread

    def call_and_read(fd: int, length: int, offset: int) -> bytes:
        for call in calls:
            call()
        return pread(fd, length, offset)

    monkeypatch.setattr(os, "pread", call_and_read)
    return calls


def test_the_deadline_ends_a_copy_and_nothing_is_published(
    collect: Path, target: Path, before_each_chunk: list[Callable[[], object]]
) -> None:
    before_each_chunk.append(lambda: time.sleep(0.05))
    with pytest.raises(LimitExceeded, match="deadline"):
        peer_of(collect, deadline=0.1).stagePeer(str(target))
    assert list(target.iterdir()) == []


def test_cancel_ends_a_copy_and_nothing_is_published(
    collect: Path, target: Path, before_each_chunk: list[Callable[[], object]]
) -> None:
    peer = peer_of(collect)
    reads: list[None] = []

    def cancel_elsewhere() -> None:
        reads.append(None)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(peer.cancel).result()

    before_each_chunk.append(cancel_elsewhere)
    with pytest.raises(Cancelled):
        peer.stagePeer(str(target))
    assert len(reads) == 1
    assert list(target.iterdir()) == []

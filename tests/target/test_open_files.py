"""Open files of several runs in one process, as far as its limit goes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from weakref import WeakSet

import pytest

from peerstage.target import run_state
from peerstage.target.run_state import DescriptorPool

pytestmark = pytest.mark.usefixtures("leaves_nothing")


@pytest.fixture(autouse=True)
def limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that may open 160 files, and so 40 for partial files; runs that earlier tests left do not count."""
    monkeypatch.setattr(run_state, "max_open_files", lambda: 160)
    monkeypatch.setattr(DescriptorPool, "_pools", WeakSet())


@pytest.fixture
def dir_fd(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY)
    yield fd
    os.close(fd)


def open_files(pool: DescriptorPool, count: int, start: int = 0) -> None:
    """Open *count* new files in *pool*, which closes some of them again."""
    for number in range(start, start + count):
        opened: list[int] = []
        opened.append(pool.open(f"{id(pool)}-{number}", lambda opened=opened: pool.close(opened[0]), create=True))  # type: ignore[misc]


def test_one_run_has_a_quarter_of_the_limit(dir_fd: int) -> None:
    pool = DescriptorPool(dir_fd)
    open_files(pool, 100)
    assert pool.open_count == 40
    pool.close_all()


def test_runs_share_it(dir_fd: int) -> None:
    pools = [DescriptorPool(dir_fd) for _ in range(4)]
    for pool in pools:
        open_files(pool, 100)
    assert [pool.open_count for pool in pools] == [10] * 4
    for pool in pools[1:]:
        pool.close_all()
    open_files(pools[0], 100, 100)
    assert pools[0].open_count == 40
    pools[0].close_all()


def test_a_run_that_began_alone_gives_files_to_later_ones_and_these_do_with_few_until_then(dir_fd: int) -> None:
    first, second = DescriptorPool(dir_fd), DescriptorPool(dir_fd)
    second.close_all()
    open_files(first, 100)
    second = DescriptorPool(dir_fd)
    open_files(second, 100)
    assert (first.open_count, second.open_count) == (40, 4)
    open_files(first, 1, 100)
    open_files(second, 100, 100)
    assert (first.open_count, second.open_count) == (20, 20)
    for pool in (first, second):
        pool.close_all()


def test_without_a_limit_there_is_a_maximum(dir_fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_state, "max_open_files", lambda: None)
    assert DescriptorPool(dir_fd).max_open == 256

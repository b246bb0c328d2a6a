"""`Limits` on sizes: one file, all files of a stage, and the space that stays free."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from peerstage.errors import IncompleteStage, LimitExceeded, TargetError
from peerstage.reasons import Reason
from peerstage.records import TIB, Entry, Limits
from peerstage.stage_options import StageOptions
from peerstage.staging import stage
from peerstage.target import DirectoryTarget
from peerstage.testing.contract import files_in
from support.scp_server import COLLECT, ScriptedSession, SourceProgram, transport_to
from target.target_cases import memory_peer_of, stage_into

NOT_DURABLE = StageOptions(durable=False)
FILES = {b"a": b"first", b"b": b"x" * 100_000, b"c": b"", b"d": b"y" * 50_000, b"e": b"last"}


def target_with(target: Path, **limits: int) -> DirectoryTarget:
    return DirectoryTarget(str(target), peer="peer", options=NOT_DURABLE, limits=Limits(**limits))


# One file


def test_a_file_that_is_too_large_fails_alone_and_nothing_of_it_is_fetched(target: Path) -> None:
    written: list[int] = []
    transport = memory_peer_of(FILES, before_write=written.append)
    with pytest.raises(
        IncompleteStage, match=r"b: It has 100000 bytes, more than 50000 \(Limits.file_bytes\)"
    ) as caught:
        stage(transport, b"/c", target_with(target, file_bytes=50_000))
    assert files_in(target) == {name: data for name, data in FILES.items() if name != b"b"}
    assert caught.value.report is not None
    assert [(file.name, file.reason) for file in caught.value.report.failed] == [("b", Reason.FILE_TOO_LARGE)]
    assert max(written) < 100_000


def test_scp_is_not_asked_for_the_content_of_a_file_that_is_too_large(target: Path) -> None:
    program = SourceProgram(FILES)
    transport = transport_to(ScriptedSession(lambda command: program))
    with pytest.raises(IncompleteStage, match="b: It has 100000 bytes"):
        stage(transport, COLLECT, target_with(target, file_bytes=50_000))
    assert program.data_sent == sum(len(data) for name, data in FILES.items() if name != b"b")
    assert (target / "d").read_bytes() == FILES[b"d"]


# All files


def test_too_many_bytes_in_a_listing_end_the_run_before_anything_is_written(target: Path) -> None:
    written: list[int] = []
    total = sum(map(len, FILES.values()))
    transport = memory_peer_of(FILES, before_write=written.append)
    with pytest.raises(LimitExceeded, match=rf"more than {total - 1} bytes in all \(Limits.total_bytes\)") as caught:
        stage(transport, b"/c", target_with(target, total_bytes=total - 1))
    assert (caught.value.limit, caught.value.reason, caught.value.peer) == (
        "total_bytes",
        Reason.LIMIT_EXCEEDED,
        "peer",
    )
    assert written == []
    assert os.listdir(target) == []
    assert stage(transport, b"/c", target_with(target, total_bytes=total)).bytes == total


def test_over_scp_the_file_that_exceeds_the_total_ends_the_run(target: Path) -> None:
    program = SourceProgram(FILES)
    transport = transport_to(ScriptedSession(lambda command: program))
    with pytest.raises(LimitExceeded, match=r"Limits\.total_bytes"):
        stage(transport, COLLECT, target_with(target, total_bytes=120_000))
    assert os.listdir(target) == []


def test_a_file_that_is_too_large_by_itself_does_not_count_in_the_total(target: Path) -> None:
    with pytest.raises(IncompleteStage, match="b: It has 100000 bytes"):
        stage(memory_peer_of(FILES), b"/c", target_with(target, file_bytes=60_000, total_bytes=60_000))
    assert (target / "d").read_bytes() == FILES[b"d"]


def test_after_a_lost_connection_a_file_counts_once_with_its_last_size(target: Path) -> None:
    with target_with(target, total_bytes=100) as staging_target:
        staging_target.admit([Entry(b"a", 60, mtime=1), Entry(b"b", 40, mtime=1)])
        staging_target.admit([Entry(b"a", 60, mtime=1), Entry(b"b", 40, mtime=1)])
        staging_target.admit([Entry(b"a", 10, mtime=2)])
        staging_target.admit([Entry(b"c", 50, mtime=1)])
        with pytest.raises(LimitExceeded):
            staging_target.admit([Entry(b"d", 1, mtime=1)])


@pytest.mark.parametrize("size", [16 * TIB + 1, 2**62])
def test_no_stage_is_larger_than_the_default_limit(target: Path, size: int) -> None:
    with target_with(target) as staging_target, pytest.raises(LimitExceeded, match="total_bytes"):
        staging_target.admit([Entry(b"a", size)])


# Free space


@pytest.fixture
def free_space(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What fstatvfs(2) reports: 1000 bytes free."""
    found = SimpleNamespace(f_frsize=1, f_bfree=1000, f_bavail=1000, f_files=0, f_ffree=0, f_favail=0)
    monkeypatch.setattr(os, "fstatvfs", lambda fd: found)
    return found


@pytest.mark.parametrize(("kept", "size"), [(0, 1000), (1, 999), (1000, 0)])
@pytest.mark.usefixtures("free_space")
def test_the_space_that_must_stay_free_is_not_used(target: Path, kept: int, size: int) -> None:
    options: dict[str, Any] = {"options": NOT_DURABLE, "limits": Limits(free_bytes=kept)}
    assert stage_into(target, memory_peer_of({b"a": b"a" * size}), **options).bytes == size
    with pytest.raises(TargetError, match="only 1000 are free") as caught:
        stage_into(target, memory_peer_of({b"a": b"new", b"b": b"b" * (size - 2)}), **options)
    assert caught.value.reason is Reason.NO_SPACE
    assert ("are to be left (Limits.free_bytes)" in caught.value.message) == (kept > 0)
    assert files_in(target) == {b"a": b"a" * size}


def test_empty_files_are_staged_although_less_is_free_than_must_be(target: Path, free_space: SimpleNamespace) -> None:
    free_space.f_bfree = free_space.f_bavail = 10
    limits = Limits(free_bytes=1000)
    assert stage_into(target, memory_peer_of({b"cback.collect": b""}), options=NOT_DURABLE, limits=limits).count == 1

"""SFTP fetches of a kept file what is missing, and what is compared; if that differs, everything."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from peerstage.errors import ConnectionLost
from peerstage.records import RESUMED, STAGED
from peerstage.testing.contract import files_in
from support.kept import COMPARED, names_in, scaled_down, stage_from
from support.sftp_server import DropsConnectionAfter, FakeSFTPServer, Node, transport_to

SIZE = 40_000
FILES = {b"big": Node(random.Random(1).randbytes(SIZE)), b"small": Node(b"small")}


@pytest.fixture(autouse=True, scope="module")
def _scaled_down() -> Iterator[None]:
    with scaled_down():
        yield


def fail_after(bytes_left: int, target: Path, partial_dir: Path) -> int:
    """Stage until the connection is lost; return the number of bytes of the file that arrived."""
    server = DropsConnectionAfter(dict(FILES), max_read_length=1024)
    server.bytes_left = bytes_left
    with pytest.raises(ConnectionLost):
        stage_from(transport_to(server), target, partial_dir)
    return bytes_left


@pytest.mark.parametrize("bytes_left", [3_000, 17_777, 30_000, SIZE])
def test_only_missing_and_compared_ranges_are_requested(bytes_left: int, target: Path, tmp_path: Path) -> None:
    partial_dir = tmp_path / "partial"
    fail_after(bytes_left, target, partial_dir)
    server = FakeSFTPServer(dict(FILES), max_read_length=1024)
    report = stage_from(transport_to(server), target, partial_dir)
    requested = sum(length for _, _, length in server.reads)
    assert requested <= SIZE - bytes_left + 2 * 1024 + COMPARED
    assert requested - len(FILES[b"small"].data) == SIZE - report.resumed_bytes
    assert {file.name: file.outcome for file in report.files} == {"big": RESUMED, "small": STAGED}
    assert files_in(target) == {name: node.data for name, node in FILES.items()}
    assert names_in(partial_dir) == []


def test_each_byte_of_another_version_is_requested_once(target: Path, tmp_path: Path) -> None:
    partial_dir = tmp_path / "partial"
    fail_after(30_000, target, partial_dir)
    other = {b"big": Node(bytes(byte ^ 1 for byte in FILES[b"big"].data)), b"small": FILES[b"small"]}
    server = FakeSFTPServer(dict(other), max_read_length=1024)
    report = stage_from(transport_to(server), target, partial_dir)
    assert sum(length for _, _, length in server.reads) == SIZE + len(FILES[b"small"].data)
    assert {file.outcome for file in report.files} == {STAGED}
    assert files_in(target) == {name: node.data for name, node in other.items()}

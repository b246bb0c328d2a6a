"""RekeyLimit against three versions of sshd, and one with a RekeyLimit of its own."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from peerstage import Retry
from support.containers import Bench, FileTree
from support.random_files import random_bytes

SERVICES = [
    pytest.param(service, marks=pytest.mark.kind(service))
    for service in ("openssh84", "openssh92", "openssh100", "limited")
]


@cache
def files_of_all_sizes() -> dict[str, bytes]:
    """Return files that cause several rekeys during the large one and between the small ones."""
    return {
        "large": random_bytes(5_000_000),
        **{f"small{number}": random_bytes(500 + number) for number in range(100)},
    }


@pytest.mark.parametrize("limit", ["1M", "256K", "64K 1"])
@pytest.mark.parametrize("transport", ["sftp", "scp"])
@pytest.mark.parametrize("service", SERVICES)
def test_everything_arrives_however_often_keys_change(
    bench: Bench, service: str, transport: str, limit: str, tmp_path: Path, target: Path
) -> None:
    config = tmp_path / "config"
    config.write_text(f"RekeyLimit {limit}\n")
    peer = bench.peer(service)
    files = files_of_all_sizes()
    peer.container.fill(FileTree(**files))
    remote = peer.remote(transport, ssh=peer.options(config=str(config)), retry=Retry(tries=1))
    assert remote.stagePeer(str(target)) == len(files)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == files

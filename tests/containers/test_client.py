"""The client container stages from all others without an ssh program, and without starting a process."""

from __future__ import annotations

import hashlib
import os

import pytest
from client_container import ClientContainer
from kinds import REFUSED, UNSUPPORTED, WITHOUT_RCP, Scenario, run_on

from support.containers import BenchPeer, FileTree

pytestmark = pytest.mark.kind("client")


def test_client_has_no_ssh_program(client: ClientContainer) -> None:
    script = "for name in ssh scp sftp dbclient rsync; do command -v $name && exit 1; done; exit 0"
    assert client.container.execute("sh", "-c", script) == b""


@run_on(WITHOUT_RCP)
def test_stage_starts_no_process(scenario: Scenario, bench_peer: BenchPeer, client: ClientContainer) -> None:
    files = {"cback.collect": b"", "small": b"small", "large": os.urandom(5_000_001)}
    bench_peer.container.fill(FileTree(**files))
    failure = UNSUPPORTED.get((scenario.kind.name, "mark"))
    answer = client.run(scenario.kind.name, transport=scenario.transport, mark=failure is None)
    assert answer["error"] is None
    assert answer["ready"] is True
    assert answer["count"] == 3
    assert answer["files"] == {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    assert (answer["started"], answer["threads"]) == ([], [])
    assert (b"cback.stage" in bench_peer.container.files()) == (failure is None)


@run_on(REFUSED)
def test_failing_stage_starts_no_process(scenario: Scenario, bench_peer: BenchPeer, client: ClientContainer) -> None:
    bench_peer.container.fill(FileTree(a=b"a"))
    answer = client.run(scenario.kind.name, transport=scenario.transport)
    assert answer["error"][0] == UNSUPPORTED[scenario.kind.name, scenario.transport].error.__name__
    assert answer["files"] == {}
    assert (answer["started"], answer["threads"]) == ([], [])

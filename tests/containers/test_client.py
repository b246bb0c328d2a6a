"""The client container stages from all others: no ssh program is there, and no process is started."""

from __future__ import annotations

import hashlib
import os

import pytest
from client_side import Client
from kinds import CAN_NOT, ON_OUR_OWN, REFUSED, Way, each

from support.containers import BenchPeer, Files

pytestmark = pytest.mark.kind("client")


def test_no_ssh_program_is_there(client: Client) -> None:
    script = "for name in ssh scp sftp dbclient rsync; do command -v $name && exit 1; done; exit 0"
    assert client.container.execute("sh", "-c", script) == b""


@each(ON_OUR_OWN)
def test_it_stages_and_starts_no_process(way: Way, served: BenchPeer, client: Client) -> None:
    files = {"cback.collect": b"", "small": b"small", "large": os.urandom(5_000_001)}
    served.container.fill(Files(**files))
    failure = CAN_NOT.get((way.kind.name, "mark"))
    answer = client.run(way.kind.name, transport=way.transport, mark=failure is None)
    assert answer["error"] is None
    assert answer["ready"] is True
    assert answer["count"] == 3
    assert answer["files"] == {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    assert (answer["started"], answer["threads"]) == ([], [])
    assert (b"cback.stage" in served.container.files()) == (failure is None)


@each(REFUSED)
def test_what_fails_starts_no_process_either(way: Way, served: BenchPeer, client: Client) -> None:
    served.container.fill(Files(a=b"a"))
    answer = client.run(way.kind.name, transport=way.transport)
    assert answer["error"][0] == CAN_NOT[way.kind.name, way.transport].error.__name__
    assert answer["files"] == {}
    assert (answer["started"], answer["threads"]) == ([], [])

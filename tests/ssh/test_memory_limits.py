"""With little memory (RLIMIT_AS), small files can be staged, and an error names the limit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from peerstage import StageError
from peerstage.staging import with_peer_name
from peerstage.testing import ssh_server
from peerstage.testing.contract import files_in

MIB = 1 << 20
_STAGE = """
import os, resource, sys
from peerstage import RemotePeer, SSHOptions, StageError

limit, port, directory, target, key, known_hosts = sys.argv[1:]
if limit.startswith("+"):
    import paramiko
    limit = int(limit) + os.sysconf("SC_PAGE_SIZE") * int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (int(limit), int(limit)))
options = SSHOptions(port=int(port), pkey=key.encode(), known_hosts=known_hosts, config=(), agent=False)
peer = RemotePeer("127.0.0.1", directory, "/tmp", "backup", ssh=options)
try:
    print("staged", peer.stagePeer(target))
except StageError as exc:
    print(type(exc).__name__, exc)
"""


def stage_with(limit: str, source: Path, target: Path, known_hosts_bytes: int = 0) -> str:
    """Stage *source* in a new interpreter with *limit* bytes of memory (+N: N more than it has); return its output."""
    with ssh_server(source) as server:
        known_hosts = source.parent / "known_hosts"
        options = server.options
        assert isinstance(options.known_hosts, bytes)
        assert isinstance(options.pkey, bytes)
        filler = b"# nothing\n" * (known_hosts_bytes // 10)
        known_hosts.write_bytes(options.known_hosts + filler)
        arguments = [limit, str(options.port), "/", str(target), options.pkey.decode(), str(known_hosts)]
        done = subprocess.run([sys.executable, "-c", _STAGE, *arguments], capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


@pytest.mark.usefixtures("fresh_interpreter")
def test_stage_works_in_250_mib_of_address_space(collect: Path, target: Path) -> None:
    (collect / "a").write_bytes(b"a" * 3 * MIB)
    assert stage_with(str(250 * MIB), collect, target) == "staged 1\n"
    assert files_in(target) == {b"a": b"a" * 3 * MIB}


@pytest.mark.usefixtures("fresh_interpreter")
def test_error_without_memory_names_the_limit_and_nothing_is_published(collect: Path, target: Path) -> None:
    (collect / "a").write_bytes(b"a")
    said = stage_with(f"+{40 * MIB}", collect, target, known_hosts_bytes=60 * MIB)
    assert said.startswith("StageError 127.0.0.1: Memory ran out: this process is limited to ")
    assert " bytes (RLIMIT_AS" in said
    assert files_in(target) == {}


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't start new thread")])
def test_exhausted_memory_is_a_stage_error(error: Exception) -> None:
    words = r"^peer: (Memory ran out|The system refuses another thread\. Raise the limit)"
    with pytest.raises(StageError, match=words), with_peer_name("peer"):
        raise error


def test_other_runtime_errors_are_not_translated() -> None:
    with pytest.raises(RuntimeError, match="a mistake"), with_peer_name("peer"):
        raise RuntimeError("a mistake")

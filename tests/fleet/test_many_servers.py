"""1,000 peers on OpenSSH servers, of which a tenth are dead: verdicts, and what the run takes of the master."""

from __future__ import annotations

import getpass
import os
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path

import pytest

from peerstage import FleetPlan, Limits, PeerJob, Retry, SSHOptions
from peerstage.fleet.pool.run_records import RunRecords
from peerstage.fleet.pool.runs_directory import RunsDirectory
from peerstage.records import MIB
from support.fleet import results_of
from support.fleet_usage import stage_in_a_process
from support.keys import fingerprint_of, make_key
from support.programs import sftp_server_path
from support.ssh_server import listening, sends_nothing
from support.sshd import Sshd, free_port

PEERS, FILES, PARALLEL = 1000, 10, 32
HEALTHY = ("healthy0", "healthy1")

#: The result of a peer of each kind.
DEAD = {
    "down": "failed: connection-refused",
    "silent": "failed: banner-timeout",
    "impostor": "failed: host-key-not-pinned",
    "locked": "failed: login-refused",
    "hung": "failed: stalled",
    "garbled": "failed: protocol-violation",
}


@pytest.fixture
def reached(own_sshd: Callable[..., Sshd], tmp_path: Path) -> Iterator[dict[str, SSHOptions]]:
    """How peers of each kind are reached, those of `HEALTHY` and those of `DEAD`."""

    def start(program: str = "") -> Sshd:
        if not program:
            return own_sshd()
        script = tmp_path / f"program{len(list(tmp_path.glob('program*')))}"
        script.write_text(f"#!/bin/sh\n{sftp_server_path()} | {program}\n")
        script.chmod(0o755)
        return own_sshd(sftp=str(script))

    healthy = [start() for _ in HEALTHY]
    another = make_key(tmp_path / "another")
    with listening(sends_nothing) as port:
        yield {
            **{kind: server.options() for kind, server in zip(HEALTHY, healthy, strict=True)},
            "down": healthy[0].options(port=free_port()),
            "silent": healthy[0].options(port=port, connect_timeout=2),
            "impostor": healthy[0].options(host_key=fingerprint_of(another)),
            "locked": start().options(identity=str(another)),
            "hung": start("dd bs=1 count=20000 status=none; exec cat 3>&1 > /dev/null").options(),
            "garbled": start("{ dd bs=1 count=20000 status=none; exec cat /dev/zero; }").options(),
        }


@pytest.mark.bulk
@pytest.mark.timeout(900)
def test_a_thousand_peers_on_real_servers(reached: dict[str, SSHOptions], pool: Path, tmp_path: Path) -> None:
    healthy, dead = cycle(HEALTHY), cycle(DEAD)
    jobs, expected = [], {}
    for number in range(PEERS):
        name, kind = f"peer{number}", next(healthy if number % 10 else dead)
        collect = make_collect_directory(tmp_path / "peers" / name)
        jobs.append(make_job(name, collect, reached[kind], stall_timeout=5 if kind == "hung" else 60))
        expected[name] = DEAD.get(kind, "staged")
    usage = stage_in_a_process(FleetPlan(staging=str(pool), peers=tuple(jobs), parallel=PARALLEL))
    with RunsDirectory(str(pool)) as runs:
        report = next(RunRecords(runs).newest_first())
    results, errors = results_of(report), {result.peer: result.error for result in report.results}
    assert {name: errors[name] for name in results if results[name] != expected[name]} == {}
    assert list(results) == list(expected)
    assert sorted(usage.finished) == sorted(expected)
    staged = sorted(name for name, result in expected.items() if result == "staged")
    assert sorted(path.parent.name for path in Path(report.target).glob(f"*/file{FILES - 1}")) == staged
    assert sorted(path.parent.name for path in (tmp_path / "peers").glob("*/cback.stage")) == staged
    assert usage.left == [4, 1], "descriptors: the standard streams, and the one that counts them"
    assert usage.peak < 192
    assert usage.descriptors < 30 * PARALLEL
    print(
        f"\n{PEERS} peers: {usage.seconds:.1f} s, {1000 * usage.cpu / PEERS:.1f} ms of CPU per peer, "
        f"{usage.peak:.0f} MiB, {usage.descriptors} descriptors, {usage.threads} threads"
    )


@pytest.mark.bulk
def test_large_files_of_many_peers_at_a_time_take_little_memory(own_sshd: Callable[..., Sshd], tmp_path: Path) -> None:
    ssh, pool, jobs = own_sshd().options(), tmp_path / "pool", []
    pool.mkdir()
    for number in range(PARALLEL):
        collect = make_collect_directory(tmp_path / "peers" / f"peer{number}")
        with (collect / "big").open("wb") as file:
            file.truncate(32 * MIB)
        jobs.append(make_job(f"peer{number}", collect, ssh))
    usage = stage_in_a_process(FleetPlan(staging=str(pool), peers=tuple(jobs), parallel=PARALLEL))
    staged = [path.stat().st_size for path in pool.glob("*/*/*/*/big")]
    assert staged == [32 * MIB] * PARALLEL
    assert usage.peak < 192


def make_collect_directory(path: Path) -> Path:
    """Create the collect directory of a peer that is ready."""
    path.mkdir(parents=True)
    (path / "cback.collect").touch()
    for number in range(FILES):
        (path / f"file{number}").write_bytes(os.urandom(4096))
    return path


def make_job(name: str, collect: Path, ssh: SSHOptions, *, stall_timeout: float = 60) -> PeerJob:
    """Return the job of a peer, which is asked once."""
    return PeerJob(
        name=name,
        host="127.0.0.1",
        user=getpass.getuser(),
        collect_dir=str(collect),
        ssh=ssh,
        limits=Limits(stall_timeout=stall_timeout),
        retry=Retry(tries=1),
    )

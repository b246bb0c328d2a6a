"""``peerstage run``: what it does on peers in memory, what it prints, and how it ends."""

from __future__ import annotations

import datetime
import functools
import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.command import Command
from peerstage.cli import run
from peerstage.errors import ConnectError
from peerstage.exit_codes import ExitCode
from peerstage.fleet.dask import dask_executor
from peerstage.fleet.pool.run_lock import RunLock
from peerstage.fleet.pool.runs_directory import RunsDirectory
from peerstage.fleet.runner import FleetRun
from peerstage.reasons import Reason
from peerstage.testing import MemoryHost, memory_peers
from peerstage.testing.contract import files_in
from support.fleet import FrozenClock, InlineThreads

REFUSED = ConnectError("Connection refused.", reason=Reason.CONNECTION_REFUSED)


class MemoryFleet:
    """A plan whose peers are in memory.

    Attributes:
        plan: The file of the plan.
        staging: The staging pool.
        hosts: The peers by name.
    """

    def __init__(self, root: Path) -> None:
        self.plan = root / "plan.toml"
        self.staging = root / "staging"
        self.staging.mkdir()
        self.hosts: dict[str, MemoryHost] = {}
        self._tables: list[str] = []
        self.command = Command(None)  # type: ignore[arg-type]  # which needs a server only for its options

    def add(self, name: str, keys: str = "", *, files: dict[str, Any] | None = None, **options: Any) -> MemoryHost:
        """Add a peer that has collected *files* to the plan, with lines of TOML."""
        entries = {"cback.collect": b"", "data": name.encode()} if files is None else files
        self.hosts[name] = MemoryHost({"/collect": entries}, **options)
        self._tables.append(f"[peers.{name}]\n{keys}\n")
        return self.hosts[name]

    def write(self, top: str = "", tables: str = "") -> None:
        defaults = '[defaults]\nuser = "backup"\ncollect_dir = "/collect"\n'
        self.plan.write_text("\n".join([f'staging = "{self.staging}"', top, defaults, *self._tables, tables]))

    def __call__(self, *arguments: object, verb: str = "run") -> Any:
        return self.command(verb, *arguments, "--plan", self.plan)

    def staged(self, name: str) -> dict[bytes, bytes]:
        """Return the files of the peer's latest night, without the manifest."""
        found = files_in(self.staging / "latest" / name)
        return {file: data for file, data in found.items() if not file.startswith(b"peerstage.")}

    def is_marked(self, name: str) -> bool:
        return b"cback.stage" in self.hosts[name].directories[b"/collect"]


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[MemoryFleet]:
    fleet = MemoryFleet(tmp_path)
    with memory_peers(fleet.hosts):
        yield fleet


def events_of(done: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_peer_is_staged_and_marked_in_the_directory_of_today(fleet: MemoryFleet) -> None:
    for name in ("db1", "db2"):
        fleet.add(name)
    fleet.write()
    done = fleet()
    assert (done.returncode, done.stderr) == (0, "")
    for name in ("db1", "db2"):
        assert fleet.staged(name) == {b"cback.collect": b"", b"data": name.encode()}
        assert fleet.is_marked(name)
    day = (fleet.staging / "latest").resolve()
    lines = done.stdout.splitlines()
    assert lines[0] == f"2 peers -> {day}"
    assert lines[2].startswith("staged      db1  1 file, 3 bytes")
    assert lines[-2] == "2 peers: 2 staged"
    assert lines[-1].startswith("2 files, 6 bytes, ")
    assert lines[-1].endswith(" Exit code 0.")


def test_one_failed_peer_costs_the_others_nothing(fleet: MemoryFleet) -> None:
    fleet.add("db1")
    fleet.add("web1", error=REFUSED)
    fleet.add("db2", files={})
    fleet.write()
    done = fleet()
    assert done.returncode == ExitCode.UNREACHED
    assert fleet.is_marked("db1")
    lines = done.stdout.splitlines()
    assert lines[2].startswith("failed      web1  Connection refused")
    assert lines[2].endswith("[connection-refused]")
    assert lines[3].split() == ["next:", "peerstage", "doctor", "web1", "--plan", str(fleet.plan)]
    assert lines[4].startswith("not ready   db2   ")
    assert lines[-3] == "3 peers: 1 failed, 1 not ready, 1 staged"
    assert lines[-1] == "Run it again safely: only what is missing is fetched."
    assert done.stderr == "", "the table says it"


def test_another_run_does_only_what_is_missing(fleet: MemoryFleet) -> None:
    host = fleet.add("db1")
    fleet.add("db2", files={})
    fleet.write()
    assert fleet().returncode == ExitCode.NOT_READY
    fleet.hosts["db2"] = MemoryHost({"/collect": {"cback.collect": b"", "late": b"l"}})
    before = host.connection_count
    done = fleet()
    assert done.returncode == 0
    assert host.connection_count == before
    assert "1 file, 3 bytes, by an earlier run" in done.stdout
    assert fleet.staged("db2") == {b"cback.collect": b"", b"late": b"l"}
    assert fleet("--again").returncode == 0
    assert host.connection_count > before


def test_only_the_peers_and_groups_that_are_named_are_staged(fleet: MemoryFleet) -> None:
    fleet.add("db1")
    fleet.add("db2")
    fleet.add("laptop", 'group = "office"')
    fleet.write(tables="[groups.office]\n")
    assert fleet("db2", "office").returncode == 0
    assert not fleet.is_marked("db1")
    assert fleet.is_marked("db2")
    assert fleet.is_marked("laptop")


def test_an_unknown_name_is_wrong_usage(fleet: MemoryFleet) -> None:
    fleet.add("db1")
    fleet.write()
    done = fleet("db11")
    assert done.returncode == ExitCode.USAGE
    assert "no peer and no group 'db11'" in done.stderr
    assert os.listdir(fleet.staging) == []


def test_json_is_one_event_a_line(fleet: MemoryFleet) -> None:
    fleet.add("db1")
    fleet.add("web1", error=REFUSED)
    fleet.write()
    done = fleet("--json")
    events = events_of(done)
    names = [event["event"] for event in events]
    assert (names[0], names[-1]) == ("run-started", "run-finished")
    assert sorted(names[1:-1]) == ["peer-finished", "peer-finished", "peer-started", "peer-started"]
    assert {event["v"] for event in events} == {1}
    assert len({event["run"] for event in events}) == 1
    finished = {event["peer"]: event for event in events if event["event"] == "peer-finished"}
    assert finished["db1"]["verdict"] == "staged"
    assert finished["db1"]["report"]["files"] == 1
    web1 = finished["web1"]
    assert (web1["verdict"], web1["reason"], web1["exit"]) == ("failed", "connection-refused", 4)
    assert web1["next"] == f"peerstage doctor web1 --plan {fleet.plan}"
    assert events[-1]["counts"] == {"staged": 1, "failed": 1}
    assert events[-1]["exit"] == done.returncode == ExitCode.UNREACHED


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FrozenClock:
    """The clock of runs: one minute to three, and only waits move it."""
    clock = FrozenClock(datetime.datetime(2026, 11, 23, 2, 59).timestamp())
    start = functools.partial(FleetRun, clock=clock)
    monkeypatch.setattr(run, "FleetRun", lambda plan, executor, **options: start(plan, InlineThreads(), **options))
    return clock


def test_it_tells_for_whom_it_waits(fleet: MemoryFleet, clock: FrozenClock) -> None:
    for name in ("db1", "db2", "web1"):
        fleet.add(name, files=None if name == "db2" else {})
    fleet.write('until = "06:00"')
    done = fleet()
    assert (done.returncode, done.stderr) == (ExitCode.NOT_READY, "")
    assert done.stdout.splitlines()[1] == "Not ready, and asked again until 06:00: db1, web1"
    assert done.stdout.count("asked again") == 1


def test_quiet_does_not_tell_for_whom_it_waits(fleet: MemoryFleet, clock: FrozenClock) -> None:
    fleet.add("laptop", 'ignore_failures = "all"', files={})
    fleet.write('until = "06:00"')
    assert fleet("--quiet").stdout == ""


def test_quiet_prints_nothing_if_nobody_has_to_act(fleet: MemoryFleet) -> None:
    fleet.add("db1")
    fleet.add("laptop", 'ignore_failures = "all"', error=REFUSED)
    fleet.write()
    done = fleet("--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_quiet_does_not_print_warnings_of_what_went_well_in_the_end(fleet: MemoryFleet) -> None:
    fleet.add("db1", lose_after=0, faulty_connections=1)
    fleet.write()
    done = fleet("--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    fleet.add("db2", lose_after=0, faulty_connections=1)
    fleet.write()
    assert "db2" in fleet("db2").stderr


def test_quiet_prints_who_has_to_act(fleet: MemoryFleet) -> None:
    fleet.add("db1")
    fleet.add("web1", error=REFUSED)
    fleet.write()
    done = fleet("--quiet")
    assert done.returncode == ExitCode.UNREACHED
    assert done.stderr == ""
    assert done.stdout.splitlines()[0].startswith("2 peers: 1 failed, 1 staged -> ")
    assert "db1" not in done.stdout


def test_quiet_and_json_exclude_each_other(fleet: MemoryFleet) -> None:
    fleet.add("db1")
    fleet.write()
    assert fleet("--quiet", "--json").returncode == ExitCode.USAGE


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_strict_makes_a_suspect_peer_an_incomplete_one(fleet: MemoryFleet, options: list[str]) -> None:
    fleet.add("db1", 'min_bytes = "1K"')
    fleet.write()
    assert fleet(*options).returncode == 0
    done = fleet("--again", "--strict", *options)
    assert done.returncode == ExitCode.INCOMPLETE
    if options:
        assert [event["exit"] for event in events_of(done)[-2:]] == [5, 5]
    else:
        assert "suspect     db1  staged, but only 1 file (1 linked), 3 bytes [smaller]" in done.stdout
        assert "Exit code 5." in done.stdout


def test_another_run_on_the_pool_is_told_with_its_own_exit_code(fleet: MemoryFleet) -> None:
    fleet.add("db1")
    fleet.write()
    with RunsDirectory(str(fleet.staging)) as runs, RunLock(runs, "r1"):
        done = fleet()
        [failure] = events_of(fleet("--json"))
    assert (failure["reason"], failure["exit"]) == ("pool-locked", 75)
    assert done.returncode == 75
    assert f"r1 (process {os.getpid()} on " in done.stderr
    assert done.stdout == ""
    assert not fleet.is_marked("db1")


def test_a_wrong_plan_connects_to_nobody(fleet: MemoryFleet) -> None:
    host = fleet.add("db1", "prot = 22")
    fleet.write()
    done = fleet()
    assert done.returncode == ExitCode.USAGE
    assert "peers.db1.prot: unknown, did you mean port?" in done.stderr
    assert host.connection_count == 0


def test_the_plan_of_this_machine_is_the_default(fleet: MemoryFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet.add("db1")
    fleet.write()
    done = fleet.command("run", "--help")
    assert "/etc/peerstage/plan.toml" in done.stdout


def test_fewer_peers_at_a_time_can_be_asked_for(fleet: MemoryFleet) -> None:
    for name in ("db1", "db2", "db3"):
        fleet.add(name)
    fleet.write(top="parallel = 3")
    done = fleet("--json", "--parallel", "1")
    names = [event["event"] for event in events_of(done)]
    assert names == ["run-started", *["peer-started", "peer-finished"] * 3, "run-finished"]
    assert fleet("--parallel", "0").returncode == ExitCode.USAGE


def test_the_run_goes_on_if_nobody_reads_its_output(fleet: MemoryFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet.add("db1")
    fleet.write()

    def fail(*arguments: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(run.EventResult, "to_lines", fail)
    done = fleet()
    assert done.returncode == ExitCode.UNEXPECTED
    assert fleet.is_marked("db1")


def test_a_failing_before_stops_the_run(fleet: MemoryFleet, tmp_path: Path) -> None:
    host = fleet.add("db1")
    fleet.write(
        tables=f"""[hooks]
before = ["sh", "-c", "echo no pool; exit 3"]
after = ["touch", "{tmp_path}/after"]
"""
    )
    done = fleet()
    assert done.returncode == ExitCode.LOCAL
    assert host.connection_count == 0
    assert done.stderr == "peerstage: before: sh ended with status 3 and printed 'no pool'.\n"
    assert "1 peer: 1 not started" in done.stdout
    assert not (tmp_path / "after").exists()


def test_a_failing_after_is_told_and_does_not_change_verdicts(fleet: MemoryFleet) -> None:
    fleet.add("db1")
    fleet.write(tables='[hooks]\nafter = ["false"]\n')
    done = fleet("--quiet")
    assert done.returncode == ExitCode.LOCAL
    assert done.stderr == "peerstage: after: false ended with status 1.\n"
    assert "1 peer: 1 staged" in done.stdout


def record_of(pool: Path) -> dict[str, Any]:
    [path] = (pool / ".peerstage-runs").glob("*.json")
    record: dict[str, Any] = json.loads(path.read_text())
    return record


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("end", ["", "; exit 7"])
def test_hooks_may_mount_and_unmount_the_pool(fleet: MemoryFleet, tmp_path: Path, end: str) -> None:
    pool = tmp_path / "pool"
    pool.mkdir()
    fleet.add("db1")
    unmount = json.dumps(["sh", "-c", f"umount {fleet.staging}{end}"])
    fleet.write(tables=f'[hooks]\nbefore = ["mount", "--bind", "{pool}", "{fleet.staging}"]\nafter = {unmount}\n')
    done = fleet()
    assert not os.path.ismount(fleet.staging)
    assert done.returncode == (ExitCode.LOCAL if end else 0), done.stderr
    assert record_of(pool)["counts"] == {"staged": 1}
    assert list(fleet.staging.glob(".peerstage-runs/*.json")) == [], "the pool was elsewhere"


def test_verify_of_a_peer_checks_its_latest_night(fleet: MemoryFleet) -> None:
    fleet.add("db1")
    fleet.write()
    done = fleet("db1", verb="verify")
    assert done.returncode == ExitCode.LOCAL
    assert "No run has staged this peer" in done.stderr
    assert fleet().returncode == 0
    done = fleet("db1", verb="verify")
    assert done.returncode == 0, done.stderr
    assert "all intact" in done.stdout
    data = fleet.staging / "latest" / "db1" / "data"
    data.write_bytes(b"xxx")
    assert fleet("db1", verb="verify").returncode == ExitCode.NOT_VERIFIED


def test_dask_without_a_scheduler_is_one_error(fleet: MemoryFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet.add("db1")
    fleet.write()
    monkeypatch.setattr(run, "dask_executor", functools.partial(dask_executor, timeout=0.1))
    done = fleet("--dask", "tcp://127.0.0.1:1")
    assert done.returncode == ExitCode.UNREACHED
    assert "The Dask scheduler tcp://127.0.0.1:1 cannot be reached" in done.stderr
    assert done.stderr.count("\n") == 1
    assert os.listdir(fleet.staging) == []


def test_dask_at_the_port_of_another_server_is_one_error(fleet: MemoryFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the scheduler's dashboard, whose port is in Dask's own output."""
    fleet.add("db1")
    fleet.write()
    monkeypatch.setattr(run, "dask_executor", functools.partial(dask_executor, timeout=0.3))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        done = fleet("--dask", address)
    assert done.returncode == ExitCode.UNREACHED
    assert f"The Dask scheduler {address} cannot be reached" in done.stderr
    assert done.stderr.count("\n") == 1
    assert os.listdir(fleet.staging) == []


def test_dask_that_is_not_installed_is_not_available(fleet: MemoryFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet.add("db1")
    fleet.write()
    monkeypatch.setitem(sys.modules, "distributed", None)
    done = fleet("--dask", "tcp://127.0.0.1:1")
    assert done.returncode == ExitCode.NOT_AVAILABLE
    assert "Install peerstage[dask]" in done.stderr

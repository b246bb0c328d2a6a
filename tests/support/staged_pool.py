"""A staging pool with nights that were really staged, their manifests and their records."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from peerstage.fleet.plan import FleetPlan, PeerJob
from peerstage.fleet.pool.latest_link import update_latest
from peerstage.fleet.pool.run_id import new_run_id
from peerstage.fleet.pool.run_records import RunRecords
from peerstage.fleet.pool.runs_directory import RunsDirectory
from peerstage.fleet.results import Flag, FleetReport, PeerResult, StageSummary, Verdict
from peerstage.records import StageReport
from peerstage.stage_options import StageOptions
from peerstage.staging import stage
from peerstage.target import DirectoryTarget
from peerstage.testing.memory import MemoryFile, MemoryTransport

INDICATORS = ("cback.collect", "cback.stage")


class StagedPool:
    """A staging pool at *path* for the peers *names*.

    Attributes:
        path: The pool.
        names: The peers of its plan.
    """

    def __init__(self, path: Path, *names: str) -> None:
        path.mkdir(exist_ok=True)
        self.path = path
        self.names = names
        self._last: dict[str, Path] = {}

    def plan(self, keep_days: int | None) -> FleetPlan:
        peers = (PeerJob(name=name, user="backup", collect_dir="/var/collect") for name in self.names)
        return FleetPlan(staging=str(self.path), peers=tuple(peers), keep_days=keep_days)

    def run(
        self,
        day: str,
        peers: Mapping[str, Mapping[str, bytes] | None] | Iterable[str],
        *,
        verdict: Verdict = Verdict.STAGED,
        flags: tuple[Flag, ...] = (),
        links: bool = False,
        is_recorded: bool = True,
    ) -> Path:
        """Stage *peers* into the daily directory *day*, as a run does that starts at noon; return that directory.

        Args:
            day: The day, ``YYYY/MM/DD``.
            peers: The files of each peer; None if it was not reached. Names alone stand for one file each.
            verdict: The verdict of peers that have files.
            flags: Their flags.
            links: Whether files that are unchanged since the peer's last run become links.
            is_recorded: Whether the run leaves a record.
        """
        files = peers if isinstance(peers, Mapping) else {name: {"dump": f"{name} {day}".encode()} for name in peers}
        directory = self.path / day
        results = []
        for name, content in files.items():
            target = directory / name
            target.mkdir(parents=True, exist_ok=True)
            if content is None:
                results.append(PeerResult(peer=name, verdict=Verdict.FAILED))
                continue
            report = self._stage(target, content, self._last.get(name) if links else None)
            self._last[name] = target
            summary = StageSummary.of(report, str(target), INDICATORS)
            results.append(PeerResult(peer=name, verdict=verdict, flags=flags, report=summary, marked=True))
        (directory / "cback.stage").touch()
        with RunsDirectory(str(self.path)) as runs:
            if is_recorded:
                self.record(runs, day, results)
            update_latest(runs, day)
        return directory

    def record(self, runs: RunsDirectory, day: str, results: Iterable[PeerResult]) -> None:
        """Write the record of a run that started at noon of *day*."""
        started = noon(day)
        RunRecords(runs).write(
            FleetReport(
                run=new_run_id(started),
                plan=None,
                staging=str(self.path),
                target=str(self.path / day),
                day=day,
                started=started,
                results=tuple(results),
            )
        )

    def days(self) -> list[str]:
        """Return the daily directories."""
        return sorted(str(path.relative_to(self.path)) for path in self.path.glob("[0-9]*/[0-9]*/[0-9]*"))

    def tree(self) -> dict[str, bytes | str | None]:
        """Return every entry but records and locks: files with their content, links with their target."""
        found: dict[str, bytes | str | None] = {}
        for path in sorted(self.path.rglob("*")):
            name = str(path.relative_to(self.path))
            if name.startswith(".peerstage-runs/") and not name.startswith(".peerstage-runs/removed-"):
                continue
            if path.is_symlink():
                found[name] = os.readlink(path)
            else:
                found[name] = path.read_bytes() if path.is_file() else None
        return found

    def allocated(self) -> int:
        """Return the bytes that the files of all days take on the disk."""
        inodes = {}
        for directory, _, names in os.walk(self.path):
            for name in names:
                status = os.lstat(os.path.join(directory, name))
                if os.path.basename(directory) != ".peerstage-runs":
                    inodes[status.st_ino] = status.st_blocks * 512
        return sum(inodes.values())

    def _stage(self, target: Path, files: Mapping[str, bytes], earlier: Path | None) -> StageReport:
        entries = {os.fsencode(name): MemoryFile(data, mtime=1_000_000_000) for name, data in files.items()}
        entries[b"cback.collect"] = MemoryFile(mtime=1_000_000_000)
        options = StageOptions(manifest=True, durable=False, link_dest=None if earlier is None else str(earlier))
        directory_target = DirectoryTarget(str(target), peer=target.name, options=options)
        return stage(MemoryTransport({b"/c": entries}), b"/c", directory_target)


def noon(day: str) -> float:
    """Return the local time of noon on *day*, in seconds since the epoch."""
    return datetime.datetime.strptime(f"{day} 12", "%Y/%m/%d %H").timestamp()

"""Progress: totals are those of the files to fetch, if the transport knows them in advance."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from peerstage.errors import ConnectionLost
from peerstage.records import Progress
from peerstage.stage_options import StageOptions
from peerstage.target import DirectoryTarget, Target
from peerstage.testing.memory import MemoryFile, MemoryTransport
from peerstage.transport.base import Transport
from peerstage.transport.progress import ProgressTransport
from support import scp_server
from support.child_link import ChildLink
from support.incoming import DecliningTarget
from support.scp_server import ScriptedSession, SourceProgram

FILES = {name: MemoryFile(name * 100, mtime=1) for name in (b"a", b"b", b"c")}
NOT_DURABLE = StageOptions(durable=False)


def reports_of(transport: Transport, target: Target) -> list[Progress]:
    """Return the reports of a pull, one after each change."""
    reports: list[Progress] = []
    ProgressTransport(transport, reports.append, clock=itertools.count().__next__).pull(b"/c", target)
    return reports


@pytest.mark.parametrize("through_child", [False, True])
def test_totals_are_those_of_the_files_that_the_target_wants(target: Path, through_child: bool) -> None:
    with DecliningTarget(str(target), declined=b"b", options=NOT_DURABLE) as staging_target:
        link = ChildLink(staging_target)
        reports = reports_of(MemoryTransport({b"/c": FILES}), link.child_target if through_child else staging_target)
    assert {(report.files_total, report.bytes_total) for report in reports} == {(2, 200)}
    assert (reports[-1].files_done, reports[-1].bytes_done) == (2, 200)


def test_totals_follow_the_last_listing_and_count_each_file_once(target: Path) -> None:
    class Loses(MemoryTransport):
        """Loses its first connection, and reconnects to a peer whose ``c`` has grown."""

        def pull(self, directory: bytes, target: Target) -> None:
            try:
                super().pull(directory, target)
            except ConnectionLost:
                self.directories[b"/c"][b"c"] = MemoryFile(b"c" * 150, mtime=2)
                super().pull(directory, target)

    lost = [ConnectionLost("It is gone.")]

    def cut(written: int) -> None:
        if written >= 150 and lost:
            raise lost.pop()

    with DirectoryTarget(str(target), options=NOT_DURABLE) as staging_target:
        reports = reports_of(Loses({b"/c": dict(FILES)}, chunk_size=50, before_write=cut), staging_target)
    totals = [(report.files_total, report.bytes_total) for report in reports]
    assert [total for total, _ in itertools.groupby(totals)] == [(3, 300), (3, 350)]
    assert (reports[-1].files_done, reports[-1].bytes_done) == (3, 350)


def test_over_scp_totals_are_unknown(target: Path) -> None:
    program = SourceProgram({name: file.data for name, file in FILES.items()})
    transport = scp_server.transport_to(ScriptedSession(lambda command: program))
    with DirectoryTarget(str(target), options=NOT_DURABLE) as staging_target:
        reports = reports_of(transport, staging_target)
    assert {(report.files_total, report.bytes_total) for report in reports} == {(None, None)}
    assert (reports[-1].files_done, reports[-1].bytes_done) == (3, 300)

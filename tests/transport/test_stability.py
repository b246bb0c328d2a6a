"""Files that change while they are staged: another listing at the end finds them."""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerstage.cli.preview import preview
from peerstage.errors import IncompleteStage, ProtocolError, StageError
from peerstage.isolation.protocol.frames import Admit, Appeared, Finish, Vanished
from peerstage.reasons import Reason
from peerstage.records import Entry, FileResult, Limits, Progress, StageReport
from peerstage.stage_options import StageOptions, Verification
from peerstage.staging import stage
from peerstage.target import DirectoryTarget
from peerstage.target.base import IncomingFile, Target
from peerstage.testing.contract import files_in
from peerstage.transport.base import Transport, TransportWrapper
from peerstage.transport.capabilities import SFTP
from peerstage.transport.local import LocalTransport
from peerstage.transport.progress import ProgressTransport
from peerstage.transport.retry import Retry, RetryingTransport
from peerstage.transport.sftp import wire
from peerstage.watchdog import Watchdog
from support.child_link import ChildLink
from support.examples import examples
from support.sftp_server import MTIME, DropsConnectionAfter, FakeSFTPServer, Node, transport_to

OLD = MTIME - 1000
#: A file whose time makes no other file racy.
NEWEST = {b"cback.collect": Node(b"", mtime=MTIME)}


class ChangingServer(FakeSFTPServer):
    """Replaces its files before some listings.

    Attributes:
        states: The files from the second listing on, the third, and so on.
    """

    states: Sequence[dict[bytes, Node]] = ()

    def opendir(self, request_id: int, path: bytes, rest: bytes) -> list[bytes]:
        if 0 < self.listings <= len(self.states):
            self.files = dict(self.states[self.listings - 1])
        return super().opendir(request_id, path, rest)


class ThroughChild(TransportWrapper):
    """Passes every call of the target through the frames of an isolated child."""

    def pull(self, directory: bytes, target: Target) -> None:
        self._transport.pull(directory, ChildLink(target).child_target)


@pytest.fixture(params=["in process", "in a child"])
def wrap(request: pytest.FixtureRequest) -> Callable[[Transport], Transport]:
    return ThroughChild if request.param == "in a child" else lambda transport: transport


def options(verify: Verification = "stable") -> StageOptions:
    return StageOptions(durable=False, verify=verify)


def target_of(path: Path, verify: Verification = "stable") -> DirectoryTarget:
    return DirectoryTarget(str(path), peer="peer", options=options(verify))


def stage_states(
    target: Path,
    *states: dict[bytes, Node],
    wrap: Callable[[Transport], Transport] = lambda transport: transport,
    server_class: type[ChangingServer] = ChangingServer,
    verify: Verification = "stable",
) -> tuple[StageReport, ChangingServer]:
    """Stage from a peer whose files are those of the next state before each listing."""
    server = server_class({**NEWEST, **states[0]})
    server.states = [{**NEWEST, **state} for state in states[1:]]
    transport = wrap(transport_to(server))
    try:
        return stage(transport, b"/c", target_of(target, verify)), server
    except IncompleteStage as exc:
        assert exc.report is not None
        return exc.report, server


def result_of(report: StageReport, name: str) -> FileResult:
    (result,) = (file for file in report.files if file.name == name)
    return result


def contents(target: Path) -> dict[bytes, bytes]:
    return {name: data for name, data in files_in(target).items() if name not in NEWEST}


def test_an_unchanged_file_takes_three_requests_and_one_more_listing_serves_all(target: Path) -> None:
    files = {b"%03d" % number: Node(b"x" * 100, mtime=OLD) for number in range(100)}
    report, server = stage_states(target, files)
    assert report.count == 101
    assert server.listings == 2
    assert server.requests[wire.FXP_OPEN] == 101
    assert server.requests[wire.FXP_READ] == 100
    assert server.requests[wire.FXP_CLOSE] == 101 + server.listings
    assert server.requests[wire.FXP_FSTAT] == 1, "only of the newest file"


def test_verify_size_lists_once_and_compares_nothing_else(target: Path) -> None:
    files = {b"a": Node(b"a" * 20_000), b"b": Node(b"b")}
    report, server = stage_states(target, files, verify="size")
    assert server.listings == 1
    assert server.requests[wire.FXP_FSTAT] == 0
    assert report.count == 3
    assert not any(file.racy for file in report.files)


@pytest.mark.parametrize(
    "new",
    [Node(b"longer than before", mtime=OLD), Node(b"new", mtime=OLD + 1), Node(b"", mtime=OLD + 1)],
    ids=["size", "time", "empty"],
)
def test_a_file_that_changed_is_fetched_once_more(
    target: Path, new: Node, wrap: Callable[[Transport], Transport]
) -> None:
    first = {b"dump": Node(b"old", mtime=OLD), b"other": Node(b"other", mtime=OLD)}
    report, server = stage_states(target, first, {**first, b"dump": new}, wrap=wrap)
    assert contents(target) == {b"dump": new.data, b"other": b"other"}
    assert result_of(report, "dump").mtime == new.mtime
    assert (report.notes, report.appeared) == ((), ())
    assert server.listings == 3
    assert server.requests[wire.FXP_OPEN] == 4, "three files, and one of them again"


def test_a_file_that_changes_twice_fails_and_the_others_are_staged(
    target: Path, wrap: Callable[[Transport], Transport]
) -> None:
    states = [
        {b"dump": Node(b"x" * size, mtime=OLD), b"other": Node(b"other", mtime=OLD)} for size in (100, 200, 300, 400)
    ]
    report, server = stage_states(target, *states, wrap=wrap)
    assert contents(target) == {b"other": b"other"}
    assert [(file.name, file.reason) for file in report.failed] == [("dump", Reason.CHANGED_WHILE_STAGED)]
    assert "indicator last" in (report.failed[0].error or "")
    assert server.listings == 3, "a hostile peer cannot prolong the run"
    assert server.requests[wire.FXP_OPEN] == 4, "three files, and one of them again"


def test_a_file_that_shrinks_before_it_is_read_is_fetched_once_more(
    target: Path, wrap: Callable[[Transport], Transport]
) -> None:
    class Shrinks(ChangingServer):
        """Truncates a file once it has been listed."""

        def open(self, request_id: int, path: bytes, rest: bytes) -> list[bytes]:
            self.files[b"dump"] = Node(b"short", mtime=OLD + 1)
            return super().open(request_id, path, rest)

    for size in (100, 20_000):
        report, _ = stage_states(target, {b"dump": Node(b"x" * size, mtime=OLD)}, wrap=wrap, server_class=Shrinks)
        assert report.failed == ()
        assert contents(target) == {b"dump": b"short"}


def test_of_a_large_file_that_changed_before_it_is_opened_only_the_new_version_is_read(target: Path) -> None:
    class Rewrites(ChangingServer):
        """Rewrites a large file once it has been listed."""

        def open(self, request_id: int, path: bytes, rest: bytes) -> list[bytes]:
            self.files[b"dump"] = Node(b"y" * 400_000, mtime=OLD + 1)
            return super().open(request_id, path, rest)

    server = Rewrites({**NEWEST, b"dump": Node(b"x" * 800_000, mtime=OLD)})
    server.arrange = lambda replies: replies  # type: ignore[method-assign]
    stage(transport_to(server), b"/c", target_of(target))
    assert contents(target) == {b"dump": b"y" * 400_000}
    assert server.listings == 3


def test_a_racy_file_is_compared_after_its_last_read_and_marked(
    target: Path, wrap: Callable[[Transport], Transport]
) -> None:
    times = {b"old": MTIME - 3, b"racy": MTIME - 2, b"new": MTIME}
    files = {name: Node(name, mtime=mtime) for name, mtime in times.items()}
    report, server = stage_states(target, files, wrap=wrap)
    assert sorted(file.name for file in report.files if file.racy) == ["cback.collect", "new", "racy"]
    assert server.requests[wire.FXP_FSTAT] == 3
    assert StageReport.from_json(report.to_json()) == report


def test_a_change_of_the_same_size_in_the_same_second_is_invisible_but_the_file_is_marked(target: Path) -> None:
    report, _ = stage_states(target, {b"dump": Node(b"old", mtime=MTIME)}, {b"dump": Node(b"new", mtime=MTIME)})
    assert contents(target) == {b"dump": b"old"}
    assert result_of(report, "dump").racy


def test_a_file_that_vanished_after_it_was_read_is_staged_with_a_note(
    target: Path, wrap: Callable[[Transport], Transport], caplog: pytest.LogCaptureFixture
) -> None:
    stays = {b"stays": Node(b"s", mtime=OLD)}
    files = {b"%d" % number: Node(b"x", mtime=OLD) for number in range(8)}
    with caplog.at_level(logging.WARNING):
        report, _ = stage_states(target, {**files, **stays}, stays, wrap=wrap)
    assert report.failed == ()
    assert contents(target) == {**dict.fromkeys(files, b"x"), b"stays": b"s"}
    (note,) = report.notes
    assert "removed 8 files" in note
    assert "0, 1, 2, 3, 4 and 3 more" in note
    assert note in caplog.text


def test_a_file_that_vanished_before_it_was_read_fails(target: Path, wrap: Callable[[Transport], Transport]) -> None:
    class Removes(ChangingServer):
        """Removes a file once it has been listed."""

        def open(self, request_id: int, path: bytes, rest: bytes) -> list[bytes]:
            self.files.pop(b"dump", None)
            return super().open(request_id, path, rest)

    report, _ = stage_states(target, {b"dump": Node(b"x", mtime=OLD)}, wrap=wrap, server_class=Removes)
    assert [(file.name, file.reason) for file in report.failed] == [("dump", Reason.VANISHED)]
    assert report.notes == ()


def test_files_that_appear_are_reported_and_not_staged(
    target: Path, wrap: Callable[[Transport], Transport], caplog: pytest.LogCaptureFixture
) -> None:
    first = {b"a": Node(b"a", mtime=OLD)}
    new = {b"n%04d\n" % number: Node(b"n", mtime=OLD) for number in range(1500)}
    with caplog.at_level(logging.WARNING):
        report, _ = stage_states(target, first, {**first, **new}, wrap=wrap)
    assert contents(target) == {b"a": b"a"}
    assert len(report.appeared) == 1000
    assert set(report.appeared) <= {name.decode() for name in new}
    (note,) = report.notes
    assert "still collecting: 1500 files appeared" in note
    assert note.isprintable()
    assert note in caplog.text
    assert StageReport.from_json(report.to_json()) == report


def test_names_that_are_left_out_do_not_count_as_appeared(target: Path) -> None:
    server = ChangingServer({**NEWEST, b"a.gz": Node(b"a", mtime=OLD)})
    appeared = {b"b.gz": Node(b"b", mtime=OLD), b"b.tmp": Node(b"b", mtime=OLD), b"big.gz": Node(b"b" * 99, mtime=OLD)}
    server.states = [{**server.files, **appeared}]
    selecting = StageOptions(durable=False, exclude=("*.tmp",), max_size=50)
    report = stage(transport_to(server), b"/c", DirectoryTarget(str(target), options=selecting))
    assert report.appeared == ("b.gz",)
    assert contents(target) == {b"a.gz": b"a"}


def test_a_file_that_outgrows_the_maximum_size_is_left_out(target: Path) -> None:
    server = ChangingServer({**NEWEST, b"dump": Node(b"x" * 10, mtime=OLD)})
    server.states = [{**NEWEST, b"dump": Node(b"x" * 99, mtime=OLD)}]
    report = stage(transport_to(server), b"/c", DirectoryTarget(str(target), options=StageOptions(max_size=50)))
    assert [file.name for file in report.left_out] == ["dump"]
    assert contents(target) == {}


def test_with_digests_of_the_peer_a_file_that_changed_is_fetched_once_more_first(target: Path) -> None:
    new = Node(b"new", mtime=OLD + 1)
    digest = hashlib.sha256(new.data).hexdigest()
    server = ChangingServer({**NEWEST, b"dump": Node(b"old", mtime=OLD), b"SUMS": Node(f"{digest}  dump\n".encode())})
    server.states = [{**server.files, b"dump": new}]
    comparing = StageOptions(durable=False, verify="sha256", checksums="SUMS")
    report = stage(transport_to(server), b"/c", DirectoryTarget(str(target), options=comparing))
    assert result_of(report, "dump").sha256 == digest
    assert server.listings == 3


def test_a_dry_run_lists_once(target: Path) -> None:
    server = FakeSFTPServer({b"dump": Node(b"x"), b"other": Node(b"x" * 20_000)})
    assert len(preview(transport_to(server), b"/c", str(target)).files) == 2
    assert server.listings == 1
    assert server.requests[wire.FXP_FSTAT] == server.requests[wire.FXP_READ] == 0


def test_a_symlink_whose_target_changed_is_fetched_once_more(target: Path) -> None:
    def linked(data: bytes, mtime: int) -> dict[bytes, Node]:
        return {b"link": Node(mode=stat.S_IFLNK | 0o777, mtime=OLD, leads_to=Node(data, mtime=mtime))}

    report, server = stage_states(target, linked(b"old", OLD), linked(b"new", OLD + 5))
    assert contents(target) == {b"link": b"new"}
    assert report.failed == ()
    assert server.requests[wire.FXP_STAT] == 3


def test_a_name_that_becomes_a_directory_is_staged_as_it_was_read(target: Path) -> None:
    report, _ = stage_states(
        target, {b"dump": Node(b"x", mtime=OLD)}, {b"dump": Node(mode=stat.S_IFDIR | 0o755, mtime=OLD)}
    )
    assert contents(target) == {b"dump": b"x"}
    assert "dump" in report.notes[0]


@pytest.mark.parametrize("name", [b"../x", b"a/b", b"", b"a\0b", b"dump"])
def test_names_in_a_later_listing_are_checked_too(target: Path, name: bytes) -> None:
    class Lies(ChangingServer):
        """Adds a name of its choice to the second listing."""

        def listing(self) -> list[tuple[bytes, bytes]]:
            found = super().listing()
            return [*found, (name, found[-1][1])] if self.listings > 1 else found

    with pytest.raises(ProtocolError):
        stage_states(target, {b"dump": Node(b"x", mtime=OLD)}, server_class=Lies)
    assert files_in(target) == {}


def test_a_directory_that_cannot_be_listed_again_fails_the_run(target: Path) -> None:
    class Forbids(ChangingServer):
        """Refuses the second listing."""

        def opendir(self, request_id: int, path: bytes, rest: bytes) -> list[bytes]:
            if self.listings:
                return self.status(request_id, wire.FX_PERMISSION_DENIED)
            return super().opendir(request_id, path, rest)

        def stat(self, request_id: int, path: bytes, rest: bytes) -> list[bytes]:
            return self.status(request_id, wire.FX_PERMISSION_DENIED)

    with pytest.raises(StageError, match="permission"):
        stage_states(target, {b"dump": Node(b"x", mtime=OLD)}, server_class=Forbids)
    assert files_in(target) == {}


def test_a_file_that_is_linked_to_an_earlier_day_and_changes_is_fetched(target: Path, tmp_path: Path) -> None:

    earlier = tmp_path / "earlier"
    earlier.mkdir()
    (earlier / "dump").write_bytes(b"old")
    os.utime(earlier / "dump", (OLD, OLD))
    server = ChangingServer({**NEWEST, b"dump": Node(b"old", mtime=OLD)})
    server.states = [{**NEWEST, b"dump": Node(b"new", mtime=OLD + 1)}]
    linking = StageOptions(durable=False, preserve_times=True, link_dest=str(earlier))
    report = stage(transport_to(server), b"/c", DirectoryTarget(str(target), options=linking))
    assert contents(target) == {b"dump": b"new"}
    assert (earlier / "dump").read_bytes() == b"old"
    assert result_of(report, "dump").outcome == "staged"


def test_a_connection_that_is_lost_after_the_first_listing_is_compared_with_the_next(target: Path) -> None:
    old = {b"%02d" % number: Node(b"o" * 3000, mtime=OLD) for number in range(6)}
    new = {name: Node(b"n" * 3000, mtime=OLD + 1) for name in old}
    for bytes_left in range(1000, 30_000, 1777):
        last = ChangingServer({**NEWEST, **new})
        first = DropsConnectionAfter({**NEWEST, **old})
        first.bytes_left = bytes_left
        servers: list[FakeSFTPServer] = [first, last]
        watchdog = Watchdog(Limits())

        def connect(servers: list[FakeSFTPServer] = servers) -> Transport:
            transport = transport_to(servers.pop(0))
            transport.host_key = "SHA256:none"
            return transport

        report = stage(RetryingTransport(connect, SFTP, Retry(delay=0.0), watchdog), b"/c", target_of(target))
        watchdog.close()
        assert report.failed == ()
        versions = {node.data for node in (old if servers else new).values()}
        assert set(contents(target).values()) == versions


def test_progress_counts_a_file_that_is_fetched_again_twice(target: Path) -> None:
    reports: list[Progress] = []
    first = {b"dump": Node(b"x" * 9000, mtime=OLD), b"other": Node(b"other", mtime=OLD)}
    stage_states(
        target,
        first,
        {**first, b"dump": Node(b"y" * 5000, mtime=OLD)},
        wrap=lambda transport: ProgressTransport(transport, reports.append, clock=iter(range(10_000)).__next__),
    )
    assert [one.bytes_done for one in reports] == sorted(one.bytes_done for one in reports)
    assert reports[-1] == Progress(4, 4, 14_005, 14_005)


def test_a_local_file_that_changes_while_it_is_copied_is_copied_once_more(collect: Path, target: Path) -> None:
    class Rewrites(DirectoryTarget):
        """Rewrites a file of the peer once it has been listed."""

        def admit(self, entries: Sequence[Entry]) -> list[IncomingFile]:  # type: ignore[override]
            (collect / "dump").write_bytes(b"new and longer")
            (collect / "late").write_bytes(b"late")
            return [*super().admit(entries)]

    (collect / "dump").write_bytes(b"old")
    (collect / "same").write_bytes(b"same")
    watchdog = Watchdog(Limits())
    report = stage(LocalTransport(watchdog), bytes(collect), Rewrites(str(target), options=options()))
    watchdog.close()
    assert files_in(target) == {b"dump": b"new and longer", b"same": b"same"}
    assert report.appeared == ("late",)


# --- a child that is not trusted---------------------------------------------------------------------------------------

DUMP, OTHER = Entry(b"dump", 0, None, OLD), Entry(b"other", 0, None, OLD)


@pytest.mark.parametrize(
    "frames",
    [
        [Admit(0, (DUMP,)), Admit(1, (DUMP,), True, False, True)],
        [Admit(0, (DUMP,)), Finish(0), Admit(1, (OTHER,), True, False, True)],
        [Admit(0, (DUMP,)), Finish(0), Admit(1, (DUMP,), False, False, True)],
        [Admit(0, (DUMP,)), Finish(0), Admit(1, (DUMP, DUMP), True, False, True)],
        [Admit(0, (DUMP,)), Finish(0), Vanished((OTHER,))],
        [Admit(0, (DUMP,)), Finish(0), Appeared((DUMP,))],
        [Admit(0, (DUMP,)), Finish(0), Appeared((OTHER,)), Appeared((OTHER,))],
        [Admit(0, (DUMP,)), Finish(0), *(Admit(at, (DUMP,), True, True, True) for at in (1, 2, 3))],
    ],
    ids=["not ended", "not listed", "not begun", "twice", "vanished", "appeared", "appeared twice", "three listings"],
)
def test_a_child_cannot_claim_changes_of_other_files_or_list_endlessly(target: Path, frames: list[Any]) -> None:
    with target_of(target) as staging_target:
        link = ChildLink(staging_target)
        for frame in frames[:-1]:
            link.put(frame)
        with pytest.raises(ProtocolError, match="child process"):
            link.put(frames[-1])


@pytest.mark.parametrize("frame", [Admit(1, (DUMP,), True, False, True), Appeared((OTHER,)), Vanished((DUMP,))])
def test_a_child_does_not_list_again_unless_it_is_asked(target: Path, frame: Any) -> None:
    with target_of(target, "size") as staging_target:
        link = ChildLink(staging_target)
        link.put(Admit(0, (DUMP,)))
        link.put(Finish(0))
        with pytest.raises(ProtocolError, match="not requested"):
            link.put(frame)


# --- properties--------------------------------------------------------------------------------------------------------

NAMES = (b"a", b"b", b"c", b"d")
STATES = st.lists(
    st.dictionaries(st.sampled_from(NAMES), st.none() | st.integers(0, 2), max_size=4), min_size=4, max_size=4
)


def versions_of(states: list[dict[bytes, int | None]]) -> list[dict[bytes, Node]]:
    """Return the files of a peer whose state changes; a size of None keeps the file of the last state."""
    versions: list[dict[bytes, Node]] = []
    for number, state in enumerate(states):
        before = versions[-1] if versions else {}
        versions.append(
            {
                name: before[name]
                if size is None and name in before
                else Node((b"%d " % number + name) * (size or 0) * 700, mtime=OLD + number)
                for name, size in state.items()
            }
        )
    return versions


@examples(30)
@given(states=STATES, isolated=st.booleans(), opens=st.lists(st.integers(0, 3), max_size=12))
def test_every_name_has_a_version_of_the_peer_that_a_listing_after_it_shows_or_is_reported(
    states: list[dict[bytes, int | None]], isolated: bool, opens: list[int]
) -> None:
    versions = versions_of(states)
    shown: list[dict[bytes, tuple[int, int]]] = []

    class Moves(ChangingServer):
        """Also changes its files with some OPENs, and never goes back."""

        at = 0

        def move_to(self, at: int) -> None:
            self.at = max(self.at, at)
            self.files = {**NEWEST, **versions[self.at]}

        def opendir(self, request_id: int, path: bytes, rest: bytes) -> list[bytes]:
            self.move_to(self.listings)
            shown.append({name: (node.size, node.mtime) for name, node in self.files.items()})
            return FakeSFTPServer.opendir(self, request_id, path, rest)

        def open(self, request_id: int, path: bytes, rest: bytes) -> list[bytes]:
            self.move_to(opens.pop() if opens else 0)
            return super().open(request_id, path, rest)

    with tempfile.TemporaryDirectory() as directory:
        report, server = stage_states(
            Path(directory), versions[0], server_class=Moves, wrap=ThroughChild if isolated else lambda one: one
        )
        staged = contents(Path(directory))
    assert server.listings <= 3
    failed = {file.name.encode() for file in report.failed}
    assert failed.isdisjoint(staged)
    assert failed | staged.keys() == versions[0].keys()
    for name, data in staged.items():
        result = result_of(report, name.decode())
        is_shown = (len(data), result.mtime) in [listing.get(name) for listing in shown[1:]]
        is_noted = any("The peer removed" in note and name.decode() in note for note in report.notes)
        had = {state[name].data for state in versions if name in state}
        assert (data in had and is_shown) or (is_noted and any(version.startswith(data) for version in had))
    for name in report.appeared:
        assert name.encode() not in versions[0]
        assert any(name.encode() in listing for listing in shown[1:])

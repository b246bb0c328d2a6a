"""Which entries are staged: those that the options select, over every connection, whatever the others are."""

from __future__ import annotations

import fnmatch
import logging
import os
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerstage.errors import ConnectionLost, EntryError, IncompleteStage, NothingToStage
from peerstage.reasons import Reason
from peerstage.records import Entry, FileResult, Limits, StageReport
from peerstage.stage_options import StageOptions
from peerstage.staging import stage
from peerstage.target import DirectoryTarget, Selection
from peerstage.target.base import UNNAMED
from peerstage.target.select import Selector
from peerstage.testing.contract import files_in
from peerstage.testing.memory import MemoryFile, MemoryTransport
from support.child_link import ChildLink
from support.examples import examples
from support.scp_server import COLLECT, ScriptedCommand, ScriptedSession, SourceProgram, transport_to
from target.test_admission import Loses, SendsRecords, entries_of

DIRECTORY = MemoryFile(mode=stat.S_IFDIR | 0o755)
UNREADABLE = EntryError("It cannot be read.", reason=Reason.ENTRY_UNREADABLE)


def stage_with(
    target: Path, files: dict[bytes, MemoryFile], limits: Limits | None = None, **options: object
) -> StageReport:
    """Stage *files* as the options select."""
    stage_options = StageOptions(durable=False, **options)  # type: ignore[arg-type]
    staging_target = DirectoryTarget(str(target), options=stage_options, limits=limits, peer="peer")
    return stage(MemoryTransport({b"/c": files}), b"/c", staging_target)


def reasons_of(results: Sequence[FileResult]) -> dict[str, Reason | None]:
    return {result.name: result.reason for result in results}


# Which names


def is_wanted(options: StageOptions, name: bytes, size: int = 0) -> bool:
    """Return what the documentation says, word by word."""

    def matches(patterns: str | Sequence[str]) -> bool:
        return any(fnmatch.fnmatchcase(os.fsdecode(name), pattern) for pattern in patterns)

    is_too_large = options.max_size is not None and size > options.max_size
    return (matches(options.include) or not options.include) and not matches(options.exclude) and not is_too_large


PATTERNS = st.lists(st.text("abA.*?[]!-^\n\\&~|\udcff", min_size=1, max_size=8), max_size=3)
NAMES = st.binary(min_size=1, max_size=5) | st.text("abA.[]!-\n", min_size=1, max_size=5).map(os.fsencode)


@given(PATTERNS, PATTERNS, st.none() | st.integers(1, 10), NAMES, st.integers(0, 12))
@examples(60)
def test_a_file_is_wanted_if_any_include_and_no_exclude_matches_and_it_is_not_too_large(
    include: list[str], exclude: list[str], max_size: int | None, name: bytes, size: int
) -> None:
    options = StageOptions(include=include, exclude=exclude, max_size=max_size)
    left_out = Selector(options).check_file(name, size)
    assert (left_out is None) == is_wanted(options, name, size)
    if left_out is not None:
        assert left_out.text.isprintable()
        if left_out.reason is Reason.ABOVE_MAX_SIZE:
            assert is_wanted(options, name)


def test_what_is_left_out_is_in_the_report_with_its_reason(target: Path) -> None:
    files = {b"a.gz": b"a", b"b.gz": b"large", b"c.txt": b"c", b"d.gz": b"d"}
    report = stage_with(
        target,
        {name: MemoryFile(data, mtime=7) for name, data in files.items()},
        include="*.gz",
        exclude=("d.*", "x"),
        max_size=4,
    )
    assert files_in(target) == {b"a.gz": b"a"}
    assert [file.name for file in report.files] == ["a.gz"]
    assert report.left_out == (
        FileResult(
            "b.gz", 5, None, 7, "It is larger than the maximum size of 4 bytes.", "left-out", Reason.ABOVE_MAX_SIZE
        ),
        FileResult("c.txt", 1, None, 7, "Its name matches no include pattern.", "left-out", Reason.NOT_INCLUDED),
        FileResult("d.gz", 1, None, 7, "Its name matches the exclude pattern d.*.", "left-out", Reason.EXCLUDED),
    )
    assert (report.count, report.bytes, report.failed) == (1, 1, ())
    assert StageReport.from_json(report.to_json()) == report


def test_case_counts_and_a_pattern_matches_the_whole_name(target: Path) -> None:
    stage_with(target, {name: MemoryFile() for name in (b"A.gz", b"a.gz", b"a.gz.tmp")}, include="a.gz")
    assert sorted(files_in(target)) == [b"a.gz"]


def test_what_is_left_out_does_not_touch_what_was_staged_before(target: Path) -> None:
    (target / "a").write_bytes(b"old")
    stage_with(target, {b"a": MemoryFile(b"new"), b"b": MemoryFile(b"b")}, exclude="a")
    assert files_in(target) == {b"a": b"old", b"b": b"b"}


# Entries that cannot be staged


def test_an_entry_that_is_not_wanted_is_no_failure_whatever_it_is(target: Path) -> None:
    files = {
        b"lost+found": DIRECTORY,
        b"fifo": MemoryFile(mode=stat.S_IFIFO | 0o644),
        b"secret": MemoryFile(b"s", error=UNREADABLE),
        b"a": MemoryFile(b"a"),
    }
    report = stage_with(target, files, exclude=("lost+found", "fifo", "secret"))
    assert files_in(target) == {b"a": b"a"}
    assert reasons_of(report.left_out) == dict.fromkeys(("lost+found", "fifo", "secret"), Reason.EXCLUDED)
    with pytest.raises(IncompleteStage, match="lost"):
        stage_with(target, files, exclude=("fifo", "secret"))
    with pytest.raises(IncompleteStage, match="secret"):
        stage_with(target, files, include=("a", "s*"))


def test_a_directory_is_not_too_large_but_a_failure(target: Path) -> None:
    with pytest.raises(IncompleteStage, match="sub"):
        stage_with(target, {b"sub": DIRECTORY, b"a": MemoryFile(b"a")}, max_size=1)


def test_a_warning_of_scp_that_names_no_entry_is_a_failure_whatever_the_patterns_are(target: Path) -> None:
    command = ScriptedCommand([b"\x01scp: some file is missing\n", b"C0644 1 a\n", b"a\0"], status=1)
    transport = transport_to(ScriptedSession(lambda line: command))
    options = StageOptions(include=("a",), exclude=("*x",), durable=False)
    with pytest.raises(IncompleteStage, match=r"\*: The peer's scp warned without naming a file"):
        stage(transport, COLLECT, DirectoryTarget(str(target), options=options))
    assert files_in(target) == {b"a": b"a"}
    with DirectoryTarget(str(target), options=StageOptions(include="a")) as staging_target:
        staging_target.refuse(UNNAMED, UNREADABLE)
        assert [result.name for result in staging_target.pop_refused()] == ["*"]


def test_a_file_that_fails_a_limit_may_be_left_out(target: Path) -> None:
    files = {b"a": MemoryFile(b"a"), b"large": MemoryFile(b"x" * 100)}
    limits = Limits(file_bytes=50, total_bytes=60)
    with pytest.raises(IncompleteStage, match="file_bytes"):
        stage_with(target, files, limits)
    assert reasons_of(stage_with(target, files, limits, max_size=50).left_out) == {"large": Reason.ABOVE_MAX_SIZE}
    assert stage_with(target, files, Limits(total_bytes=1), exclude="l*").count == 1


# Nothing is left


def test_a_stage_that_leaves_out_every_file_succeeds_with_nothing_and_warns(
    target: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "peerstage")
    report = stage_with(target, {b"a": MemoryFile(b"a"), b"sub": DIRECTORY}, include="*.gz")
    assert (report.count, report.failed, len(report.left_out)) == (0, (), 2)
    assert os.listdir(target) == []
    (warning,) = (record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)
    assert warning == "peer: no file is staged: the options leave out everything that the peer has."
    assert "peer: left out a: Its name matches no include pattern." in caplog.messages


@pytest.mark.parametrize("files", [{}, {b"lost+found": DIRECTORY}], ids=["empty", "no file"])
def test_a_peer_without_files_is_an_error_whatever_is_left_out(target: Path, files: dict[bytes, MemoryFile]) -> None:
    with pytest.raises(NothingToStage):
        stage_with(target, files, exclude=("lost+found", "*.tmp"))


def test_the_names_of_a_thousand_entries_are_logged_at_most(target: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "peerstage.staging")
    stage_with(target, {b"%d" % number: MemoryFile() for number in range(1200)}, exclude="*")
    assert sum("left out" in message for message in caplog.messages) == 1001
    assert "peer: left out 200 more." in caplog.messages


# Transports


def test_a_target_that_leaves_out_nothing_answers_no_questions(target: Path) -> None:
    for options in (StageOptions(), StageOptions(preserve_times=True)):
        assert DirectoryTarget(str(target), options=options).selection is Selection.ALL
    for options in (StageOptions(include="a"), StageOptions(exclude="a"), StageOptions(max_size=1)):
        assert DirectoryTarget(str(target), options=options).selection is Selection.SOME


def test_an_scp_program_sends_no_content_of_what_is_left_out(target: Path) -> None:
    program = SourceProgram({b"a": b"a" * 1000, b"b.tmp": b"b" * 5000, b"c": b"c" * 9000, b"d": b"d" * 10})
    transport = transport_to(ScriptedSession(lambda command: program))
    options = StageOptions(exclude="*.tmp", max_size=5000, durable=False)
    report = stage(transport, COLLECT, DirectoryTarget(str(target), options=options))
    assert program.data_sent == 1010
    assert reasons_of(report.left_out) == {"b.tmp": Reason.EXCLUDED, "c": Reason.ABOVE_MAX_SIZE}
    assert files_in(target) == {b"a": b"a" * 1000, b"d": b"d" * 10}


#: Names, and patterns of which each matches some of them.
LISTED = (b"a.gz", b"B.gz", b"b.tmp", b"lost+found", b"\xff.gz", b"[x]")
SOME = st.lists(
    st.sampled_from(["*", "*.gz", "?.gz", "[ab]*", "[!a]*", "lost+found", "b*", "\udcff*", "[[]x]"]), max_size=2
)
LISTINGS = st.dictionaries(
    st.sampled_from(LISTED), st.tuples(st.none() | st.just(-1) | st.integers(0, 1500), st.integers(1, 2))
)


@given(
    st.builds(
        StageOptions, durable=st.just(False), include=SOME, exclude=SOME, max_size=st.none() | st.integers(1, 1500)
    ),
    st.lists(st.tuples(LISTINGS, st.integers(0, 3000)), max_size=2),
    LISTINGS,
    st.sampled_from([Loses, SendsRecords]),
    st.booleans(),
)
@examples(25)
def test_the_files_of_the_last_listing_that_are_wanted_are_staged_after_any_interruptions(
    options: StageOptions,
    lost: list[tuple[dict[bytes, tuple[int | None, int]], int]],
    last: dict[bytes, tuple[int | None, int]],
    kind: type[Loses],
    through_child: bool,
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        with DirectoryTarget(directory, options=options) as staging_target:
            link = ChildLink(staging_target, tries=len(lost) + 1)
            receiving = link.child_target if through_child else staging_target
            for listing, bytes_left in lost:
                try:
                    kind(entries_of(listing), bytes_left).pull(b"/c", receiving)
                except ConnectionLost:
                    continue
            expected = entries_of(last)
            kind(expected).pull(b"/c", receiving)
            staging_target.commit()
            run = staging_target._run
            assert (run.missing_bytes, run.uncreated_files, run._ranges) == (0, 0, 0)
            staged = reasons_of([*staging_target.pop_results(), *staging_target.pop_refused()])
            left_out = reasons_of(list(staging_target.selector.left_out.values()))
        published = files_in(Path(directory))
    for name, file in expected.items():
        text, is_file = os.fsdecode(name), stat.S_ISREG(file.mode)
        if not is_wanted(options, name, len(file.data)):
            assert left_out[text] in (Reason.EXCLUDED, Reason.NOT_INCLUDED, Reason.ABOVE_MAX_SIZE)
            assert name not in published
            assert text not in staged
        elif is_file:
            assert published[name] == file.data
            assert text not in left_out
        else:
            assert staged[text] is Reason.NOT_A_FILE
    assert all(is_wanted(options, name, len(data)) for name, data in published.items())


def test_a_file_that_is_no_longer_too_large_after_a_lost_connection_is_staged(target: Path) -> None:
    with DirectoryTarget(str(target), options=StageOptions(max_size=5)) as staging_target:
        assert staging_target.admit([Entry(b"a", 6, mtime=1)]) == []
        (file,) = staging_target.admit([Entry(b"a", 5, mtime=2)])
        file.write(0, [b"xxxxx"])
        file.finish()
        staging_target.commit()
        assert staging_target.selector.left_out == {}
    assert files_in(target) == {b"a": b"xxxxx"}


def test_a_file_that_was_too_large_and_became_a_directory_is_a_failure(target: Path) -> None:
    with DirectoryTarget(str(target), options=StageOptions(max_size=5)) as staging_target:
        assert staging_target.admit([Entry(b"a", 6, mtime=1)]) == []
        staging_target.refuse(b"a", EntryError("It is a directory.", reason=Reason.NOT_A_FILE))
        assert reasons_of(list(staging_target.pop_refused())) == {"a": Reason.NOT_A_FILE}
        assert staging_target.selector.left_out == {}


def test_a_file_that_has_grown_too_large_after_a_lost_connection_is_left_out(target: Path) -> None:
    with DirectoryTarget(str(target), options=StageOptions(max_size=5)) as staging_target:
        for file in staging_target.admit([Entry(b"a", 5, mtime=1), Entry(b"b", 3, mtime=1)]):
            file.write(0, [b"x" * file.entry.size])
            file.finish()
        assert staging_target.admit([Entry(b"a", 6, mtime=2), Entry(b"c", 1, mtime=1)])[0].entry.name == b"c"
        (again,) = staging_target.admit([Entry(b"c", 2, mtime=2)])
        again.write(0, [b"cc"])
        again.finish()
        staging_target.commit()
        assert reasons_of(list(staging_target.selector.left_out.values())) == {"a": Reason.ABOVE_MAX_SIZE}
    assert files_in(target) == {b"b": b"xxx", b"c": b"cc"}

"""Reading a manifest: untrusted files of any kind and content, with bounds."""

from __future__ import annotations

import io
import json
import os
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerstage import Reason, StageReport
from peerstage.errors import TargetError
from peerstage.records import FAILED, LEFT_OUT, LINKED, RESUMED, STAGED, FileResult
from peerstage.target import checksum_file, report_file
from peerstage.target.checksum_file import format_checksum
from peerstage.target.file_descriptors import open_directory
from peerstage.target.manifest import CHECKSUMS, REPORT, read_digests, read_results
from peerstage.target.report_file import MAX_LINE_BYTES, read_report, write_report
from support.examples import examples

A, B = "a" * 64, "b" * 64
HEAD = StageReport("peer", "sftp", "/srv/staging", started=1.5, seconds=2.5, retries=1, host_key="SHA256:x")


def written(
    *files: FileResult,
    refused: tuple[FileResult, ...] = (),
    kept: tuple[FileResult, ...] = (),
    staged_mtime_ns: int | None = None,
) -> bytes:
    """Return a report file, in which all staged files have the same own time."""
    buffer = io.BytesIO()
    write_report(buffer, HEAD, files, refused, kept, lambda result: staged_mtime_ns)
    return buffer.getvalue()


def read(data: bytes) -> list[FileResult]:
    return [record.to_result(name) for name, record in read_report(io.BytesIO(data))]


RESULTS = st.builds(
    FileResult,
    name=st.binary(min_size=1, max_size=8).map(lambda name: os.fsdecode(name.translate(None, b"/\0.") or b"x")),
    size=st.integers(0, 1 << 62),
    mode=st.none() | st.integers(0, 0o777),
    mtime=st.none() | st.integers(0, 1 << 32),
    outcome=st.sampled_from([STAGED, RESUMED, LINKED]),
    sha256=st.none() | st.just(A),
)


@given(st.lists(RESULTS, max_size=4), st.lists(RESULTS, max_size=4))
@examples(25)
def test_any_results_survive_writing_and_reading(files: list[FileResult], kept: list[FileResult]) -> None:
    data = written(*files, kept=tuple(kept), staged_mtime_ns=1 << 61)
    assert read(data) == files + kept
    assert {record.staged_mtime_ns for _, record in read_report(io.BytesIO(data))} <= {1 << 61}
    assert StageReport.from_json(data.decode()).files == tuple(files)


def test_the_file_has_the_form_of_a_report_for_every_reader_of_json() -> None:
    failed = FileResult("gone", 5, error="It is gone.", reason=Reason.VANISHED)
    staged = FileResult("one", 7, 0o640, 123, sha256=A)
    data = written(staged, failed, refused=(FileResult("dir", error="No.", reason=Reason.NOT_A_FILE),))
    report = StageReport.from_json(data.decode())
    assert json.loads(data) == {**json.loads(report.to_json()), "kept": []}
    assert (report.count, report.bytes, report.host_key) == (1, 7, "SHA256:x")
    assert report.failed == (failed, FileResult("dir", error="No.", reason=Reason.NOT_A_FILE))


def test_only_files_that_are_in_the_directory_are_read() -> None:
    files = [FileResult(outcome, outcome=outcome) for outcome in (STAGED, RESUMED, LINKED, LEFT_OUT, FAILED, "future")]
    data = written(*files, refused=(FileResult("refused"),), kept=(FileResult("kept"),))
    assert [result.name for result in read(data)] == [STAGED, RESUMED, LINKED, "kept"]


def test_keys_of_a_later_version_are_ignored() -> None:
    data = written(FileResult("one", 7))
    later = data.replace(b'"schema": 1', b'"schema": 2, "later": {"x": [1]}').replace(
        b'"size": 7', b'"size": 7, "z": 1'
    )
    assert read(later.replace(b'"refused": [\n', b'"later_list": [\n1,\n"x"\n],\n"refused": [\n')) == [
        FileResult("one", 7)
    ]


GOOD = written(FileResult("one", 7, 0o600, 5, sha256=A), kept=(FileResult("two"),), staged_mtime_ns=9)


def test_a_report_that_is_cut_off_anywhere_is_refused() -> None:
    for end in range(len(GOOD)):
        with pytest.raises(ValueError, match=r"cut off|not as peerstage writes it"):
            read(GOOD[:end])


@pytest.mark.parametrize(
    "change",
    [
        (b'"one"', b"1"),
        (b'"one"', b"null"),
        (b'"one"', b'""'),
        (b'"one"', b'".."'),
        (b'"one"', b'"a/b"'),
        (b'"one"', b'"/etc/passwd"'),
        (b'"one"', b'"a\\u0000b"'),
        (b'"one"', b'"\\ud800"'),
        (b'"one"', b'["one"]'),
        (b'"size": 7', b'"size": -1'),
        (b'"size": 7', b'"size": true'),
        (b'"size": 7', b'"size": 7.0'),
        (b'"size": 7', b'"size": 1e400'),
        (b'"size": 7', b'"size": NaN'),
        (b'"size": 7', b'"size": "7"'),
        (b'"size": 7', b'"size": 9223372036854775808'),
        (b'"size": 7', b'"size": 1%s' % (b"0" * 10_000)),
        (b'"mtime": 5', b'"mtime": "5"'),
        (b'"mtime": 5', b'"mtime": []'),
        (b'"staged_mtime_ns": 9', b'"staged_mtime_ns": "9"'),
        (b'"staged_mtime_ns": 9', b'"staged_mtime_ns": 9.0'),
        (b'"staged_mtime_ns": 9', b'"staged_mtime_ns": false'),
        (b'"staged_mtime_ns": 9', b'"staged_mtime_ns": 9223372036854775808'),
        (b'"mode": 384', b'"mode": {}'),
        (b'"outcome": "staged"', b'"outcome": ["staged"]'),
        (A.encode(), b"A" * 64),
        (A.encode(), b"a" * 63),
        (b'"%s"' % A.encode(), b"[]"),
        (b'{"name": "one"', b'[{"name": "one"'),
        (b'{"name": "one"', b"[" * 20_000 + b'{"name": "one"'),
        (b'{"name": "one"', b"\xff" + b'{"name": "one"'),
        (b'{"name": "one"', b'{"name": "%s"' % (b"x" * MAX_LINE_BYTES)),
        (b'"schema": 1', b'"schema": "1"'),
        (b'"schema": 1', b'"schema": true'),
        (b'"schema": 1', b'"scheme": 1'),
        (b'{"peer"', b'"peer"'),
        (b'"files": [\n', b'"files": {\n'),
        (b'"files": [\n', b'"files": [1,\n'),
        (b'"count": 1', b'"count": '),
        (b'"bytes": 7}\n', b'"bytes": 7}\n\n'),
    ],
    ids=lambda change: repr(change[1][:24]),
)
def test_a_report_of_another_form_is_refused(change: tuple[bytes, bytes]) -> None:
    changed = GOOD.replace(*change)
    assert changed != GOOD
    with pytest.raises(ValueError, match=r"^line \d+ is not as peerstage writes it"):
        read(changed)


@given(st.binary(max_size=100), st.integers(0, len(GOOD)), st.integers(0, 40))
@examples(40)
def test_any_change_is_read_or_refused(data: bytes, start: int, length: int) -> None:
    try:
        results = read(GOOD[:start] + data + GOOD[start + length :])
    except ValueError:
        return
    for result in results:
        assert isinstance(result.name, str)
        assert isinstance(result.size, int)


def test_more_lines_than_the_bound_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_file, "MAX_LINES", GOOD.count(b"\n") - 1)
    with pytest.raises(ValueError, match="a bound is exceeded"):
        read(GOOD)


def test_more_bytes_than_the_bound_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_file, "MAX_BYTES", len(GOOD))
    assert len(read(GOOD)) == 2
    monkeypatch.setattr(report_file, "MAX_BYTES", len(GOOD) - 1)
    with pytest.raises(ValueError, match="a bound is exceeded"):
        read(GOOD)


def test_a_long_error_is_cut_so_that_the_report_can_be_read() -> None:
    data = written(FileResult("bad", error="x" * 200_000), FileResult("good"))
    assert read(data) == [FileResult("good")]


def test_reading_takes_no_more_memory_than_a_line() -> None:
    files = (FileResult(f"file-{number:06}", number, 0o640, 123, sha256=A) for number in range(4_000))
    buffer = io.BytesIO()
    write_report(buffer, HEAD, files, (), ())
    buffer.seek(0)
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_report(buffer)) == 4_000
        assert tracemalloc.get_traced_memory()[1] < 1 << 18
    finally:
        tracemalloc.stop()


# The files in a directory


@pytest.fixture
def directory(target: Path) -> Iterator[tuple[Path, int]]:
    """A directory with a valid manifest, and its descriptor."""
    (target / CHECKSUMS).write_bytes(format_checksum(b"one", A) + format_checksum(b"new\nline", B))
    (target / REPORT).write_bytes(GOOD)
    fd = open_directory(str(target))
    yield target, fd
    os.close(fd)


READERS: dict[str, Callable[[int, str], Any]] = {CHECKSUMS: read_digests, REPORT: read_results}


@pytest.fixture(params=READERS)
def name(request: pytest.FixtureRequest) -> str:
    """The name of each file of the manifest."""
    return str(request.param)


def error_of(name: str, directory: tuple[Path, int]) -> TargetError:
    with pytest.raises(TargetError) as raised:
        READERS[name](directory[1], str(directory[0]))
    assert str(directory[0]) in str(raised.value)
    assert name in raised.value.message
    assert "\n" not in str(raised.value)
    return raised.value


def test_a_manifest_is_read_by_name(directory: tuple[Path, int]) -> None:
    path, fd = directory
    assert read_digests(fd, str(path)) == {b"one": bytes.fromhex(A), b"new\nline": bytes.fromhex(B)}
    assert {name: record.to_result(name) for name, record in read_results(fd, str(path)).items()} == {
        b"one": FileResult("one", 7, 0o600, 5, sha256=A),
        b"two": FileResult("two"),
    }


def test_a_directory_without_a_manifest_is_told_how_to_get_one(directory: tuple[Path, int], name: str) -> None:
    (directory[0] / name).unlink()
    error = error_of(name, directory)
    assert error.reason is Reason.NO_MANIFEST
    assert "Stage into it with StageOptions(manifest=True)." in error.message


@pytest.mark.parametrize("kind", ["link", "dangling link", "fifo", "directory"])
def test_only_a_regular_file_is_opened(directory: tuple[Path, int], name: str, kind: str) -> None:
    path = directory[0] / name
    path.rename(directory[0] / "elsewhere")
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to("elsewhere" if kind == "link" else "nowhere")
    error = error_of(name, directory)
    assert error.reason is Reason.INVALID_MANIFEST
    assert "it is not a regular file" in error.message


@pytest.mark.parametrize("kind", ["link", "fifo"])
def test_what_replaces_a_file_at_the_last_instant_is_not_followed_or_waited_for(
    directory: tuple[Path, int], name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = directory[0] / name
    status = path.stat()
    path.rename(directory[0] / "elsewhere")
    if kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to("elsewhere")
    original = os.stat
    monkeypatch.setattr(os, "stat", lambda path, **options: status if path == name else original(path, **options))
    assert error_of(name, directory).reason in (Reason.INVALID_MANIFEST, Reason.LOCAL_FAILURE)


@pytest.mark.parametrize("kind", ["empty", "binary", "huge", "hole"])
def test_a_file_of_any_content_and_size_is_refused(directory: tuple[Path, int], name: str, kind: str) -> None:
    path = directory[0] / name
    path.write_bytes({"binary": os.urandom(4096), "huge": b"x" * (1 << 20)}.get(kind, b""))
    if kind == "hole":
        os.truncate(path, 1 << 40)
    if kind == "empty" and name == CHECKSUMS:
        assert read_digests(directory[1], "") == {}
        return
    error = error_of(name, directory)
    assert error.reason is Reason.INVALID_MANIFEST
    assert "Move it away, then stage again with StageOptions(manifest=True)." in error.message


@pytest.mark.parametrize("wild", [b"..", b".", b"a/b", b"/etc/passwd", b"../x", b"peerstage.json", b"peerstage.sha256"])
def test_a_name_that_leads_elsewhere_is_refused(directory: tuple[Path, int], wild: bytes) -> None:
    (directory[0] / CHECKSUMS).write_bytes(format_checksum(wild, A))
    assert error_of(CHECKSUMS, directory).reason is Reason.INVALID_MANIFEST


def test_a_name_may_come_twice_only_with_the_same_digest(directory: tuple[Path, int]) -> None:
    path = directory[0] / CHECKSUMS
    path.write_bytes(2 * format_checksum(b"x", A))
    assert read_digests(directory[1], "") == {b"x": bytes.fromhex(A)}
    path.write_bytes(format_checksum(b"x", A) + format_checksum(b"x", B))
    assert "two digests of 'x'" in error_of(CHECKSUMS, directory).message


def test_a_disk_that_fails_is_not_a_damaged_manifest(
    directory: tuple[Path, int], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **options: Any) -> int:
        raise OSError(5, os.strerror(5))

    monkeypatch.setattr(os, "open", fail)
    assert error_of(name, directory).reason is Reason.LOCAL_IO_ERROR


def test_the_bound_on_lines_holds_for_the_files(directory: tuple[Path, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksum_file, "MAX_LINES", 1)
    assert error_of(CHECKSUMS, directory).reason is Reason.INVALID_MANIFEST

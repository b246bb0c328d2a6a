"""`verify` finds every difference between a directory and its manifest, whatever lies there, and changes nothing."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peerstage import Progress, Reason, StageError, VerifyReport, verify
from peerstage.errors import TargetError
from peerstage.target import checksum_file
from peerstage.target import verify as verify_module
from peerstage.target.checksum_file import format_checksum
from peerstage.target.manifest import CHECKSUMS, REPORT
from peerstage.target.verify import CHANGED, EXTRA, MISSING, UNREADABLE, FileDifference

pytestmark = pytest.mark.usefixtures("leaves_nothing")

FILES = {f"file-{number:02}": os.urandom(1000 * number) for number in range(20)} | {"new\nline\\\udcff": b"wild"}


def write_manifest(target: Path, files: dict[str, bytes]) -> None:
    lines = [format_checksum(os.fsencode(name), hashlib.sha256(data).hexdigest()) for name, data in files.items()]
    (target / CHECKSUMS).write_bytes(b"".join(lines))
    (target / REPORT).write_bytes(b"not read")


@pytest.fixture
def staged(target: Path) -> Path:
    """A directory with `FILES` and their manifest."""
    for name, data in FILES.items():
        (target / name).write_bytes(data)
    write_manifest(target, FILES)
    return target


def differences(report: VerifyReport) -> dict[str, str]:
    return {difference.name: difference.kind for difference in report.differences}


def test_an_intact_directory_has_no_differences(staged: Path) -> None:
    report = verify(staged)
    assert report.is_intact
    assert (report.directory, report.files) == (str(staged), len(FILES))
    assert report.bytes == sum(map(len, FILES.values()))
    assert not report.is_unfinished
    assert report.seconds >= 0


def test_every_kind_of_difference_is_found(staged: Path) -> None:
    (staged / "file-01").unlink()
    (staged / "file-02").write_bytes(FILES["file-02"][:-1] + b"?")
    (staged / "file-03").write_bytes(FILES["file-03"] + b"more")
    (staged / "file-04").write_bytes(b"")
    (staged / "file-00").write_bytes(b"no longer empty")
    (staged / "extra").touch()
    (staged / "directory").mkdir()
    report = verify(staged)
    assert differences(report) == {
        "directory": EXTRA,
        "extra": EXTRA,
        "file-00": CHANGED,
        "file-01": MISSING,
        "file-02": CHANGED,
        "file-03": CHANGED,
        "file-04": CHANGED,
    }
    assert [difference.name for difference in report.differences] == sorted(differences(report))
    assert not report.is_intact


def test_a_single_changed_bit_in_any_file_is_found(staged: Path) -> None:
    for name, data in FILES.items():
        if data:
            flipped = bytes([*data[:-1], data[-1] ^ 1])
            (staged / name).write_bytes(flipped)
            assert differences(verify(staged)) == {name: CHANGED}
            (staged / name).write_bytes(data)


@pytest.mark.parametrize("kind", ["link to the same content", "fifo", "directory", "socket"])
def test_only_regular_files_are_opened_and_links_are_not_followed(staged: Path, kind: str) -> None:
    """The file is empty, so that what gives no data looks like it."""
    path = staged / "file-00"
    path.rename(staged.parent / "elsewhere")
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "socket":
        os.mknod(path, 0o140600)
    else:
        path.symlink_to(staged.parent / "elsewhere")
    assert differences(verify(staged)) == {"file-00": CHANGED}


def test_a_link_that_replaces_a_file_at_the_last_instant_is_not_followed(
    staged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = os.stat(staged / "file-06")
    (staged / "file-05").unlink()
    (staged / "file-05").symlink_to("file-06")
    original = os.stat

    def stale(path: Any, **options: Any) -> os.stat_result:
        return status if path == b"file-05" else original(path, **options)

    monkeypatch.setattr(os, "stat", stale)
    report = verify(staged)
    assert differences(report) == {"file-05": UNREADABLE}


def test_a_file_that_cannot_be_read_is_named_with_the_reason(staged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = os.readv

    def failing(fd: int, buffers: Any) -> int:
        if os.fstat(fd).st_size == 7000:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return original(fd, buffers)

    monkeypatch.setattr(os, "readv", failing)
    assert verify(staged).differences == (FileDifference("file-07", UNREADABLE, "Input/output error"),)


def test_a_machine_without_descriptors_is_no_damaged_file(staged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = os.open

    def failing(path: Any, *arguments: Any, **options: Any) -> int:
        if path == b"file-07":
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return original(path, *arguments, **options)

    monkeypatch.setattr(os, "open", failing)
    with pytest.raises(StageError) as raised:
        verify(staged)
    assert raised.value.reason is Reason.OUT_OF_DESCRIPTORS


def test_a_machine_without_threads_is_an_error_that_says_so(staged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(StageError) as raised:
        verify(staged)
    assert raised.value.reason is Reason.OUT_OF_THREADS


def test_the_manifest_and_private_directories_are_not_extra(staged: Path) -> None:
    (staged / ".peerstage-01234567").mkdir()
    report = verify(staged)
    assert report.is_intact
    assert report.is_unfinished


@pytest.mark.parametrize(
    "name", [".peerstage-abc", ".peerstage-01234567", ".peerstage-0123456G", ".peerstage-0123456789"]
)
@pytest.mark.parametrize("is_staged", [True, False])
def test_only_a_private_directory_means_that_a_stage_did_not_finish(target: Path, name: str, is_staged: bool) -> None:
    """A local peer may have hidden files, and somebody else directories, with similar names."""
    (target / name).touch()
    write_manifest(target, {name: b""} if is_staged else {})
    report = verify(target)
    assert differences(report) == ({} if is_staged else {name: EXTRA})
    assert not report.is_unfinished
    (target / ".peerstage-mine").mkdir()
    report = verify(target)
    assert ".peerstage-mine" in differences(report)
    assert not report.is_unfinished


def test_nothing_is_changed(staged: Path) -> None:
    (staged / "file-01").unlink()
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in staged.iterdir()}
    directory = staged.stat().st_mtime_ns
    verify(staged)
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in staged.iterdir()} == before
    assert staged.stat().st_mtime_ns == directory


@pytest.mark.parametrize("threads", [1, 2, 50])
def test_any_number_of_threads_finds_the_same(staged: Path, threads: int) -> None:
    (staged / "file-03").unlink()
    (staged / "file-19").write_bytes(b"changed")
    assert differences(verify(staged, threads=threads)) == {"file-03": MISSING, "file-19": CHANGED}


def test_files_are_read_at_the_same_time(staged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    barrier, original = threading.Barrier(3), os.readv
    passed = threading.local()

    def together(fd: int, buffers: Any) -> int:
        if not getattr(passed, "once", False):
            passed.once = True
            barrier.wait(timeout=60)
        return original(fd, buffers)

    monkeypatch.setattr(os, "readv", together)
    assert verify(staged, threads=3).is_intact


def test_an_empty_manifest_makes_every_file_extra(staged: Path) -> None:
    write_manifest(staged, {})
    assert set(differences(verify(staged)).values()) == {EXTRA}
    for path in staged.iterdir():
        if path.name not in (CHECKSUMS, REPORT):
            path.unlink()
    assert verify(staged, on_progress=lambda progress: None).is_intact


def test_progress_ends_with_the_totals(staged: Path) -> None:
    seen: list[Progress] = []
    callers: set[threading.Thread] = set()

    def on_progress(progress: Progress) -> None:
        seen.append(progress)
        callers.add(threading.current_thread())

    verify(staged, on_progress=on_progress)
    size = sum(map(len, FILES.values()))
    assert seen[-1] == Progress(len(FILES), len(FILES), size, size)
    assert callers == {threading.current_thread()}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("mine"), FileNotFoundError("mine"), ValueError("mine")])
def test_reading_a_large_manifest_shows_progress_and_can_be_interrupted(
    target: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    write_manifest(target, {f"file-{number}": b"" for number in range(3000)})
    monkeypatch.setattr(verify_module, "_INTERVAL", 0)
    seen: list[Progress] = []

    def interrupt_second(progress: Progress) -> None:
        seen.append(progress)
        if len(seen) == 2:
            raise error

    with pytest.raises(type(error)) as raised:
        verify(target, on_progress=interrupt_second)
    assert raised.value is error
    assert seen == 2 * [Progress(0, None, 0, None)]


def test_a_manifest_of_many_bytes_is_not_read_to_its_end(staged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksum_file, "MAX_BYTES", (staged / CHECKSUMS).stat().st_size - 1)
    with pytest.raises(TargetError, match="has more than") as raised:
        verify(staged)
    assert raised.value.reason is Reason.INVALID_MANIFEST


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("mine"), RuntimeError("mine")])
def test_an_exception_of_the_callback_ends_the_run_and_its_threads(staged: Path, error: BaseException) -> None:
    def fail(progress: Progress) -> None:
        raise error

    with pytest.raises(type(error)) as raised:
        verify(staged, on_progress=fail)
    assert raised.value is error


def test_an_interrupted_run_does_not_read_to_the_end_of_a_large_file(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (target / "large").open("wb") as file:
        file.truncate(1 << 40)
    write_manifest(target, {"large": b""})
    monkeypatch.setattr(verify_module, "_INTERVAL", 0.01)

    def interrupt(progress: Progress) -> None:
        if progress.bytes_done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verify(target, on_progress=interrupt)


def test_the_report_has_a_json_form(staged: Path) -> None:
    (staged / "new\nline\\\udcff").unlink()
    report = verify(staged)
    raw = json.loads(report.to_json())
    assert raw["differences"] == [{"name": "new\nline\\\udcff", "kind": "missing", "error": None}]
    assert (raw["schema"], raw["is_intact"], raw["files"]) == (1, False, len(FILES))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, Reason.TARGET_MISSING),
        (lambda path: path.touch(), Reason.TARGET_NOT_A_DIRECTORY),
        (lambda path: path.mkdir(), Reason.NO_MANIFEST),
        (lambda path: (path.mkdir(), os.mkfifo(path / CHECKSUMS)), Reason.INVALID_MANIFEST),
    ],
    ids=["missing", "file", "no manifest", "fifo"],
)
def test_what_has_no_manifest_cannot_be_verified(
    tmp_path: Path, make: Callable[[Path], object], reason: Reason
) -> None:
    path = tmp_path / "other"
    make(path)
    with pytest.raises(TargetError) as raised:
        verify(path)
    assert raised.value.reason is reason
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("arguments", [{"threads": 0}, {"threads": True}, {"threads": 1.5}, {"directory": "a\0b"}])
def test_invalid_arguments_are_refused(staged: Path, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        verify(**{"directory": staged, **arguments})

"""Tests that every transport must pass, as a class to inherit from (pytest).

::

    class TestMyTransport(TransportContract):
        @pytest.fixture
        def source(self, tmp_path): ...      # a `Source`: an empty directory that the transport reads

        @pytest.fixture
        def transport(self, source): ...     # connected, closed by the fixture
"""

from __future__ import annotations

import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from peerstage.errors import IncompleteStage, NothingToStage, RemoteError, RemoteNotFound, StageError
from peerstage.paths import join_path
from peerstage.reasons import Reason
from peerstage.records import Entry, RemoteFile, StageReport
from peerstage.stage_options import StageOptions
from peerstage.staging import mark, probe, stage
from peerstage.target import DirectoryTarget, Selection
from peerstage.target.partial_file import PartialFile
from peerstage.transport.base import Transport

StageErrorT = TypeVar("StageErrorT", bound=StageError)

#: Unusual names that a POSIX file system allows: shell syntax, options, control characters, invalid UTF-8, the maximum
#: length.
ODD_NAMES = (
    b"with space",
    b" leading and trailing ",
    b"quote'\"`",
    b"glob*?[a-z]",
    b"-leading-dash",
    b"--",
    b"new\nline",
    b"tab\tand\x07bell",
    b"back\\slash",
    b"$HOME;$(id)&|<>",
    b"~",
    b"\xff\xfe not utf-8",
    "ünïcödé-☃".encode(),
    b"x" * 255,
)
#: A modification time in the past.
_MTIME = 1_600_000_000


class Source(ABC):
    """A directory on the peer, which the tests fill and inspect.

    Attributes:
        directory: Its path, as passed to the transport.
    """

    directory: bytes

    @abstractmethod
    def write(self, name: bytes, data: bytes, mode: int = 0o644, mtime: int | None = None) -> None:
        """Create a regular file; *mtime* is its modification time in seconds since the epoch, by default now."""

    @abstractmethod
    def make_directory(self, name: bytes) -> None:
        """Create a subdirectory with a file in it."""

    @abstractmethod
    def read(self, name: bytes) -> bytes | None:
        """Return the content of a file, None if it does not exist."""


class DirectorySource(Source):
    """A `Source` in a directory of this machine, which the peer calls *remote_path*."""

    def __init__(self, path: Path, remote_path: bytes | None = None) -> None:
        self.path = os.fsencode(path)
        self.directory = self.path if remote_path is None else remote_path

    def write(self, name: bytes, data: bytes, mode: int = 0o644, mtime: int | None = None) -> None:
        path = join_path(self.path, name)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(fd, "wb") as file:
            file.write(data)
        os.chmod(path, mode)
        if mtime is not None:
            os.utime(path, (mtime, mtime))

    def make_directory(self, name: bytes) -> None:
        os.mkdir(join_path(self.path, name))
        self.write(name + b"/inside", b"never staged")

    def read(self, name: bytes) -> bytes | None:
        try:
            with open(join_path(self.path, name), "rb") as file:
                return file.read()
        except FileNotFoundError:
            return None


def files_in(target: Path) -> dict[bytes, bytes]:
    """Return the content of each entry of *target* by name, with a placeholder for anything but regular files."""
    root = os.fsencode(target)
    found = {}
    for name in os.listdir(root):
        path = join_path(root, name)
        if stat.S_ISREG(os.lstat(path).st_mode):
            with open(path, "rb") as file:
                found[name] = file.read()
        else:
            found[name] = b"<not a regular file>"
    return found


def _error_of(expected: type[StageErrorT], operation: Callable[..., object], *args: Any, **options: Any) -> StageErrorT:
    """Return the error that *operation* must raise."""
    try:
        operation(*args, **options)
    except expected as exc:
        return exc
    raise AssertionError(f"{expected.__name__} was not raised.")


class _DecliningTarget(DirectoryTarget):
    """Declines files whose names begin with ``unwanted``."""

    selection = Selection.SOME

    def admit(self, entries: Sequence[Entry]) -> list[PartialFile]:
        return super().admit([entry for entry in entries if not entry.name.startswith(b"unwanted")])


class _ChangingTarget(DirectoryTarget):
    """Calls *change* between the first listing of the peer and the first request for a file."""

    selection = Selection.SOME  # a transport waits for the answer

    def __init__(self, path: str, change: Callable[[], object]) -> None:
        super().__init__(path, options=StageOptions(durable=False))
        self._change = change

    def admit(self, entries: Sequence[Entry]) -> list[PartialFile]:
        files = super().admit(entries)
        self._change()
        return files


class TransportContract:
    """Inherit, and provide the fixtures ``source`` and ``transport``; ``target`` is an empty directory.

    Attributes:
        small_files: Number of small files in one stage; by default more than are ever open at once.
    """

    small_files = 1200

    def stage(self, transport: Transport, source: Source, target: Path, **options: Any) -> StageReport:
        """Stage *source* into *target*, without syncing."""
        staging_target = DirectoryTarget(str(target), options=StageOptions(durable=False), peer="peer", **options)
        return stage(transport, source.directory, staging_target)

    def test_every_file_arrives_with_its_bytes(self, transport: Transport, source: Source, target: Path) -> None:
        sizes = (0, 1, 4096, 32767, 32768, 32769, 261119, 261120, 261121, 262144, 1_000_003)
        files = {b"file-%d" % size: os.urandom(size) for size in sizes}
        for name, data in files.items():
            source.write(name, data)
        report = self.stage(transport, source, target)
        assert files_in(target) == files
        assert report.count == len(sizes)
        assert report.bytes == sum(sizes)

    def test_many_small_files_arrive(self, transport: Transport, source: Source, target: Path) -> None:
        files = {b"%04d" % number: os.urandom(number % 97) for number in range(self.small_files)}
        for name, data in files.items():
            source.write(name, data)
        assert self.stage(transport, source, target).count == len(files)
        assert files_in(target) == files

    def test_unusual_names_arrive_unchanged(self, transport: Transport, source: Source, target: Path) -> None:
        names = [name for name in ODD_NAMES if transport.capabilities.supports_newline_names or b"\n" not in name]
        for name in names:
            source.write(name, b"content of " + name)
        self.stage(transport, source, target)
        assert files_in(target) == {name: b"content of " + name for name in names}

    def test_hidden_files_are_not_staged(self, transport: Transport, source: Source, target: Path) -> None:
        source.write(b".hidden", b"hidden")
        source.write(b"...", b"hidden too")
        source.write(b"seen", b"seen")
        assert self.stage(transport, source, target).count == 1
        assert files_in(target) == {b"seen": b"seen"}

    def test_a_directory_does_not_keep_the_files_from_being_staged(
        self, transport: Transport, source: Source, target: Path
    ) -> None:
        source.make_directory(b"sub")
        source.write(b"good", b"good")
        if not transport.capabilities.reports_entry_errors:
            _error_of(StageError, self.stage, transport, source, target)
            assert files_in(target) == {}
            return
        error = _error_of(IncompleteStage, self.stage, transport, source, target)
        assert error.report is not None
        assert error.report.count == 1
        assert [(refused.name, refused.reason) for refused in error.report.refused] == [("sub", Reason.NOT_A_FILE)]
        assert [file.outcome for file in error.report.files] == ["staged"]
        assert "sub" in str(error)
        assert files_in(target) == {b"good": b"good"}

    def test_an_empty_directory_is_an_error(self, transport: Transport, source: Source, target: Path) -> None:
        expected = NothingToStage if transport.capabilities.reports_entry_errors else StageError
        assert "peer" in str(_error_of(expected, self.stage, transport, source, target))
        assert files_in(target) == {}

    def test_a_missing_directory_is_an_error(self, transport: Transport, source: Source, target: Path) -> None:
        missing = source.directory + b"/missing"
        error = _error_of(RemoteError, stage, transport, missing, DirectoryTarget(str(target), peer="peer"))
        assert "missing" in str(error)
        refused = (Reason.NOT_FOUND, Reason.COMMAND_REFUSED)  # the second by a forced command for another directory
        assert error.reason in refused or not transport.capabilities.reports_entry_errors
        assert files_in(target) == {}

    def test_modes_are_those_of_the_peer_without_the_bits_of_the_umask(
        self, transport: Transport, source: Source, target: Path
    ) -> None:
        source.write(b"open", b"", 0o666)
        source.write(b"program", b"", 0o4755)
        before = os.umask(0o027)
        try:
            self.stage(transport, source, target)
        finally:
            os.umask(before)
        modes = {name: stat.S_IMODE((target / name).stat().st_mode) for name in ("open", "program")}
        assert modes == {"open": 0o640, "program": 0o750}

    def test_permissions_and_ownership_apply_to_every_file(
        self, transport: Transport, source: Source, target: Path
    ) -> None:
        source.write(b"a", b"")
        source.write(b"b", b"", 0o400)
        self.stage(transport, source, target, permissions=0o604, ownership=(os.getuid(), os.getgid()))
        for name in ("a", "b"):
            found = (target / name).stat()
            assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o604, os.getuid(), os.getgid())

    def test_staging_again_replaces_what_was_staged(self, transport: Transport, source: Source, target: Path) -> None:
        source.write(b"a", b"old")
        self.stage(transport, source, target)
        source.write(b"a", b"new and longer")
        assert self.stage(transport, source, target).count == 1
        assert files_in(target) == {b"a": b"new and longer"}

    def test_a_second_pull_fetches_no_complete_file(self, transport: Transport, source: Source, target: Path) -> None:
        source.write(b"a", b"a" * 100_000)
        with DirectoryTarget(str(target)) as staging_target:
            transport.pull(source.directory, staging_target)
            transport.pull(source.directory, staging_target)
            assert staging_target.resumed_bytes == 100_000 or not transport.capabilities.reports_entry_errors
            staging_target.commit()
        assert files_in(target) == {b"a": b"a" * 100_000}

    def test_files_that_a_target_declines_are_left_out(
        self, transport: Transport, source: Source, target: Path
    ) -> None:
        if not transport.capabilities.reports_entry_errors:
            return
        for name in (b"a", b"unwanted", b"unwanted too", b"z"):
            source.write(name, name * 1000)
        report = stage(transport, source.directory, _DecliningTarget(str(target)))
        assert sorted(file.name for file in report.files) == ["a", "z"]
        assert report.refused == ()
        assert files_in(target) == {name: name * 1000 for name in (b"a", b"z")}

    def test_a_file_that_changes_after_it_was_listed_is_fetched_once_more(
        self, transport: Transport, source: Source, target: Path
    ) -> None:
        if not transport.capabilities.can_list:
            return

        def change() -> None:
            source.write(b"dump", b"new" * 2000)
            source.write(b"late", b"")
            assert source.read(b"late") == b"", "a source may buffer what is written until it is read"

        source.write(b"dump", b"old")
        source.write(b"same", b"same")
        report = stage(transport, source.directory, _ChangingTarget(str(target), change))
        assert files_in(target) == {b"dump": b"new" * 2000, b"same": b"same"}
        assert report.appeared == ("late",)
        assert any("still collecting" in note for note in report.notes)

    def test_stat_tells_the_size_and_the_modification_time_of_a_file(
        self, transport: Transport, source: Source
    ) -> None:
        for size, mtime in ((0, _MTIME), (70_000, _MTIME + 3600)):
            source.write(b"cback.collect", b"x" * size, mtime=mtime)
            expected = RemoteFile(size, mtime if transport.capabilities.reports_mtime else None)
            assert probe(transport, join_path(source.directory, b"cback.collect")) == expected

    def test_stat_finds_only_regular_files(self, transport: Transport, source: Source) -> None:
        source.write(b"cback.collect", b"")
        source.make_directory(b"sub")
        assert probe(transport, join_path(source.directory, b"cback.collect"))
        assert not probe(transport, join_path(source.directory, b"sub"))
        assert not probe(transport, join_path(source.directory, b"missing"))
        assert not probe(transport, join_path(source.directory, b"cback.*"))

    def test_stat_finds_no_file_in_a_missing_directory(self, transport: Transport, source: Source) -> None:
        try:
            assert not probe(transport, source.directory + b"/missing/cback.collect", peer="peer")
        except RemoteNotFound as exc:  # if the transport can tell with one request
            assert exc.path == source.directory + b"/missing"
        except RemoteError as exc:  # by a forced command for another directory
            assert exc.reason is Reason.COMMAND_REFUSED

    def test_touch_creates_an_empty_file_or_truncates_one(self, transport: Transport, source: Source) -> None:
        mark(transport, join_path(source.directory, b"cback.stage"))
        assert source.read(b"cback.stage") == b""
        source.write(b"cback.stage", b"content")
        mark(transport, join_path(source.directory, b"cback.stage"))
        assert source.read(b"cback.stage") == b""
        source.write(b"with space", b"content")
        mark(transport, join_path(source.directory, b"with space"))
        assert source.read(b"with space") == b""

    def test_touch_makes_an_old_file_newer(self, transport: Transport, source: Source) -> None:
        source.write(b"cback.stage", b"", mtime=_MTIME)
        mark(transport, join_path(source.directory, b"cback.stage"))
        if transport.capabilities.reports_mtime:
            found = probe(transport, join_path(source.directory, b"cback.stage"))
            assert found is not None
            assert found.mtime is not None
            assert found.mtime > _MTIME

    def test_touch_in_a_missing_directory_is_an_error(self, transport: Transport, source: Source) -> None:
        error = _error_of(RemoteError, mark, transport, source.directory + b"/missing/cback.stage", peer="peer")
        assert "peer" in str(error)

    def test_close_may_be_repeated(self, transport: Transport, source: Source) -> None:
        transport.close()
        transport.close()

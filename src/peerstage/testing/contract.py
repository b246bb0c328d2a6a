"""What every transport must do, as one suite of tests to inherit from (pytest).

::

    class TestMyTransport(TransportContract):
        @pytest.fixture
        def source(self, tmp_path): ...      # a `Source`: an empty directory that the transport serves

        @pytest.fixture
        def transport(self, source): ...     # connected, closed by the fixture
"""

from __future__ import annotations

import os
import stat
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from peerstage.errors import IncompleteStage, NothingToStage, RemoteError, RemoteNotFound, StageError
from peerstage.landing import DirectoryLanding
from peerstage.reasons import Reason
from peerstage.records import StageReport
from peerstage.staging import mark, probe, stage
from peerstage.transport.base import Transport, join

#: Names that a POSIX file system can hold and that something on the way might trip over (PARITY 15).
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


class Source(ABC):
    """A directory on the far side, as the suite fills it and looks at it.

    Attributes:
        directory: Its path, as the transport is given it.
    """

    directory: bytes

    @abstractmethod
    def write(self, name: bytes, data: bytes, mode: int = 0o644) -> None:
        """Make a regular file."""

    @abstractmethod
    def make_directory(self, name: bytes) -> None:
        """Make a sub-directory with a file in it."""

    @abstractmethod
    def read(self, name: bytes) -> bytes | None:
        """Return a file's content, None if it is not there."""


class DirectorySource(Source):
    """A `Source` in a directory of this machine, served as *served_as*."""

    def __init__(self, path: Path, served_as: bytes | None = None) -> None:
        self.path = os.fsencode(path)
        self.directory = self.path if served_as is None else served_as

    def write(self, name: bytes, data: bytes, mode: int = 0o644) -> None:
        path = join(self.path, name)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(fd, "wb") as file:
            file.write(data)
        os.chmod(path, mode)

    def make_directory(self, name: bytes) -> None:
        os.mkdir(join(self.path, name))
        self.write(name + b"/inside", b"never staged")

    def read(self, name: bytes) -> bytes | None:
        try:
            with open(join(self.path, name), "rb") as file:
                return file.read()
        except FileNotFoundError:
            return None


def landed(target: Path) -> dict[bytes, bytes]:
    """Return what lies in *target*: name to content; a leftover of ours shows as what it is."""
    root = os.fsencode(target)
    found = {}
    for name in os.listdir(root):
        path = join(root, name)
        if stat.S_ISREG(os.lstat(path).st_mode):
            with open(path, "rb") as file:
                found[name] = file.read()
        else:
            found[name] = b"<not a regular file>"
    return found


class TransportContract:
    """Inherit, and provide the fixtures ``source`` and ``transport``; ``target`` is an empty directory.

    Attributes:
        small_files: How many small files are staged at a time: by default more than are ever open at once.
    """

    small_files = 1200

    def stage(self, transport: Transport, source: Source, target: Path, **options: Any) -> StageReport:
        """Stage *source* into *target*, without waiting for the disk."""
        return stage(transport, source.directory, str(target), peer="peer", durable=False, **options)

    def test_every_file_arrives_with_its_bytes(self, transport: Transport, source: Source, target: Path) -> None:
        sizes = (0, 1, 4096, 32767, 32768, 32769, 261119, 261120, 261121, 262144, 1_000_003)
        files = {b"file-%d" % size: os.urandom(size) for size in sizes}
        for name, data in files.items():
            source.write(name, data)
        report = self.stage(transport, source, target)
        assert landed(target) == files
        assert report.count == len(sizes)
        assert report.bytes == sum(sizes)

    def test_many_small_files_arrive(self, transport: Transport, source: Source, target: Path) -> None:
        files = {b"%04d" % number: os.urandom(number % 97) for number in range(self.small_files)}
        for name, data in files.items():
            source.write(name, data)
        assert self.stage(transport, source, target).count == len(files)
        assert landed(target) == files

    def test_odd_names_arrive_as_they_are(self, transport: Transport, source: Source, target: Path) -> None:
        names = [name for name in ODD_NAMES if transport.capabilities.newline_names or b"\n" not in name]
        for name in names:
            source.write(name, b"content of " + name)
        self.stage(transport, source, target)
        assert landed(target) == {name: b"content of " + name for name in names}

    def test_names_with_a_leading_dot_stay_behind(self, transport: Transport, source: Source, target: Path) -> None:
        source.write(b".hidden", b"hidden")
        source.write(b"...", b"hidden too")
        source.write(b"seen", b"seen")
        assert self.stage(transport, source, target).count == 1
        assert landed(target) == {b"seen": b"seen"}

    def test_a_directory_does_not_take_the_files_with_it(
        self, transport: Transport, source: Source, target: Path
    ) -> None:
        source.make_directory(b"sub")
        source.write(b"good", b"good")
        if not transport.capabilities.judges_entries:
            try:
                self.stage(transport, source, target)
            except StageError:
                assert landed(target) == {}
                return
            raise AssertionError("A directory among the files passed unnoticed.")
        try:
            self.stage(transport, source, target)
        except IncompleteStage as exc:
            assert exc.report is not None
            assert exc.report.count == 1
            assert [(refused.name, refused.reason) for refused in exc.report.refused] == [("sub", Reason.NOT_A_FILE)]
            assert [file.outcome for file in exc.report.files] == ["staged"]
            assert "sub" in str(exc)
        else:
            raise AssertionError("A directory among the files passed unnoticed.")
        assert landed(target) == {b"good": b"good"}

    def test_an_empty_directory_is_an_error(self, transport: Transport, source: Source, target: Path) -> None:
        expected = NothingToStage if transport.capabilities.judges_entries else StageError
        try:
            self.stage(transport, source, target)
        except expected as exc:
            assert "peer" in str(exc)
        else:
            raise AssertionError("Nothing was staged, and that was no error.")
        assert landed(target) == {}

    def test_a_missing_directory_is_an_error(self, transport: Transport, source: Source, target: Path) -> None:
        try:
            stage(transport, source.directory + b"/missing", str(target), peer="peer")
        except RemoteError as exc:
            assert "missing" in str(exc)
            refused = (Reason.NOT_FOUND, Reason.COMMAND_REFUSED)  # the second by a forced command for another directory
            assert exc.reason in refused or not transport.capabilities.judges_entries
        else:
            raise AssertionError("A missing directory was no error.")
        assert landed(target) == {}

    def test_the_mode_of_the_peer_is_taken_less_the_umask(
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
        assert landed(target) == {b"a": b"new and longer"}

    def test_pull_again_leaves_alone_what_is_complete(self, transport: Transport, source: Source, target: Path) -> None:
        source.write(b"a", b"a" * 100_000)
        with DirectoryLanding(str(target)) as landing:
            transport.pull(source.directory, landing)
            transport.pull(source.directory, landing)
            assert landing.resumed_bytes == 100_000 or not transport.capabilities.judges_entries
            landing.commit()
        assert landed(target) == {b"a": b"a" * 100_000}

    def test_only_a_regular_file_exists(self, transport: Transport, source: Source) -> None:
        source.write(b"cback.collect", b"")
        source.make_directory(b"sub")
        assert probe(transport, join(source.directory, b"cback.collect"))
        assert not probe(transport, join(source.directory, b"sub"))
        assert not probe(transport, join(source.directory, b"missing"))
        assert not probe(transport, join(source.directory, b"cback.*"))

    def test_in_a_missing_directory_no_file_exists(self, transport: Transport, source: Source) -> None:
        try:
            assert not probe(transport, source.directory + b"/missing/cback.collect", peer="peer")
        except RemoteNotFound as exc:  # where that can be told at the cost of a request
            assert exc.path == source.directory + b"/missing"
        except RemoteError as exc:  # by a forced command for another directory
            assert exc.reason is Reason.COMMAND_REFUSED

    def test_touch_makes_an_empty_file_and_truncates_one(self, transport: Transport, source: Source) -> None:
        mark(transport, join(source.directory, b"cback.stage"))
        assert source.read(b"cback.stage") == b""
        source.write(b"cback.stage", b"content")
        mark(transport, join(source.directory, b"cback.stage"))
        assert source.read(b"cback.stage") == b""
        source.write(b"with space", b"content")
        mark(transport, join(source.directory, b"with space"))
        assert source.read(b"with space") == b""

    def test_touch_in_a_missing_directory_is_an_error(self, transport: Transport, source: Source) -> None:
        try:
            mark(transport, source.directory + b"/missing/cback.stage", peer="peer")
        except RemoteError as exc:
            assert "peer" in str(exc)
        else:
            raise AssertionError("A missing directory was no error.")

    def test_close_may_be_repeated(self, transport: Transport, source: Source) -> None:
        transport.close()
        transport.close()

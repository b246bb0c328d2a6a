"""`verify`: compare a staging directory with its manifest."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from peerstage.documented import Documented
from peerstage.paths import validate_path
from peerstage.records import MIB, Progress, StrOrBytesPath
from peerstage.system_errors import is_machine_wide, resource_error, system_error, target_errors
from peerstage.target.file_descriptors import NO_FOLLOW, READ_WITHOUT_WAITING, closing, open_directory
from peerstage.target.manifest import NAMES, read_digests
from peerstage.target.private_directory import is_private_directory, require_posix

#: How a file may differ from the manifest.
MISSING, CHANGED, EXTRA, UNREADABLE = "missing", "changed", "extra", "unreadable"

_CHUNK = MIB
#: With more threads a disk only seeks more.
_MAX_THREADS = 8
#: Seconds between two calls of *on_progress*.
_INTERVAL = 0.1


@dataclass(frozen=True, slots=True)
class FileDifference(metaclass=Documented):
    """A file that is not as the manifest says.

    Attributes:
        name: Its name; bytes that are not UTF-8 become surrogate escapes.
        kind: "missing", "changed" (other content, or not a regular file), "extra" (not in the manifest) or
            "unreadable".
        error: Why it is unreadable; None for the other kinds.
    """

    name: str
    kind: str
    error: str | None = None


@dataclass(frozen=True, slots=True)
class VerifyReport(metaclass=Documented):
    """The report of one `verify`.

    Attributes:
        directory: The directory.
        files: The number of files in the manifest.
        bytes: The number of bytes that were read.
        started: Start time, in seconds since the epoch.
        seconds: Duration in seconds.
        differences: The files that are not as the manifest says, by name.
        is_unfinished: Whether a stage into the directory is running, or was killed. A stage that was killed while it
            renamed its files leaves new files and the old manifest; they are reported as changed until the next stage.
        schema: The version of the JSON form, an integer from 1.
    """

    directory: str
    files: int
    bytes: int
    started: float = 0.0
    seconds: float = 0.0
    differences: tuple[FileDifference, ...] = field(default=(), repr=False)
    is_unfinished: bool = False
    schema: int = 1

    @property
    def is_intact(self) -> bool:
        """Whether the directory holds the files in the manifest, unchanged, and no others."""
        return not self.differences

    def to_json(self) -> str:
        """Return the report as one JSON object; names that are not UTF-8 hold surrogate escapes."""
        return json.dumps({**dataclasses.asdict(self), "is_intact": self.is_intact})


def verify(
    directory: StrOrBytesPath, *, threads: int | None = None, on_progress: Callable[[Progress], object] | None = None
) -> VerifyReport:
    """Compare the files in *directory* with its manifest, ``peerstage.sha256``. Nothing is changed.

    Every file is read. Symlinks are not followed, and only regular files are opened. If a stage replaces files at the
    same time, they may be reported as changed.

    Args:
        directory: A directory that was staged into with ``manifest=True``.
        threads: How many files to read at a time; default one for each processor, at most 8.
        on_progress: Called with a `Progress` at most ten times a second, in the thread that called `verify`, first
            without totals while the manifest is read. An exception that it raises ends the run and is passed on
            unchanged.

    Raises:
        ValueError: If an argument is invalid.
        TargetError: If the directory cannot be read, or its manifest is missing, invalid or unreadable.
        StageError: If this machine is short of descriptors, memory or threads.
        NotAvailable: If this is not a POSIX system.
    """
    path = validate_path(directory, "Directory")
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise ValueError(f"threads must be an integer above 0: {threads!r}")
    require_posix()
    started, started_at = time.time(), time.monotonic()
    with target_errors("It cannot be verified", path):
        dir_fd = open_directory(path, follow=True)
    with closing(dir_fd):
        digests = read_digests(dir_fd, path, check=None if on_progress is None else _report_reading(on_progress))
        with target_errors("It cannot be verified", path):
            unknown = [name for name in _names_in(dir_fd) if os.fsencode(name) not in digests]
            private = {name for name in unknown if is_private_directory(name, dir_fd)}
        comparison = _Comparison(dir_fd, digests)
        comparison.run(threads or min(_MAX_THREADS, os.cpu_count() or 1), on_progress)
    extra = (FileDifference(name, EXTRA) for name in unknown if name not in private)
    return VerifyReport(
        directory=path,
        files=len(digests),
        bytes=comparison.bytes,
        started=started,
        seconds=time.monotonic() - started_at,
        differences=tuple(sorted((*comparison.differences, *extra), key=lambda difference: difference.name)),
        is_unfinished=bool(private),
    )


def _report_reading(on_progress: Callable[[Progress], object]) -> Callable[[], None]:
    """Return a function that calls *on_progress*, without totals, unless it did so less than `_INTERVAL` ago."""
    last = -_INTERVAL

    def report() -> None:
        nonlocal last
        if time.monotonic() - last >= _INTERVAL:
            on_progress(Progress(0, None, 0, None))
            last = time.monotonic()

    return report


def _names_in(dir_fd: int) -> Iterator[str]:
    """Yield the names in the directory, except those of the manifest."""
    with os.scandir(dir_fd) as entries:
        for entry in entries:
            if os.fsencode(entry.name) not in NAMES:
                yield entry.name


class _Comparison:
    """Compares files with their digests, in threads.

    Args:
        dir_fd: Descriptor of the directory.
        digests: The expected digests, by name.

    Attributes:
        differences: The files that differ, in no order.
        files: The number of files that were compared.
        bytes: The number of bytes that were read.
    """

    def __init__(self, dir_fd: int, digests: dict[bytes, bytes]) -> None:
        self.differences: list[FileDifference] = []
        self.files = 0
        self.bytes = 0
        self._dir_fd = dir_fd
        self._digests = digests
        self._remaining = iter(sorted(digests))
        self._lock = threading.Lock()
        self._is_stopped = False

    def run(self, threads: int, on_progress: Callable[[Progress], object] | None) -> None:
        """Compare all files; return or raise when the threads have ended."""
        total = None if on_progress is None else sum(self._sizes())
        executor = ThreadPoolExecutor(threads, thread_name_prefix="peerstage-verify")
        try:
            running = {_submit(executor, self._compare_files) for _ in range(min(threads, len(self._digests)))}
            while running:
                done, running = wait(running, _INTERVAL, FIRST_EXCEPTION)
                for future in done:
                    _raise_error(future.exception())
                if on_progress is not None:
                    on_progress(Progress(self.files, len(self._digests), self.bytes, total))
        finally:
            self._is_stopped = True
            executor.shutdown(cancel_futures=True)

    def _sizes(self) -> Iterable[int]:
        """Yield the sizes of the files that exist."""
        for name in self._digests:
            with contextlib.suppress(OSError):
                yield os.stat(name, dir_fd=self._dir_fd, follow_symlinks=False).st_size

    def _compare_files(self) -> None:
        """Compare files until there are no more."""
        with memoryview(bytearray(_CHUNK)) as buffer:
            while not self._is_stopped:
                with self._lock:
                    name = next(self._remaining, None)
                if name is None:
                    return
                difference = self._compare(name, buffer)
                with self._lock:
                    self.files += 1
                    if difference is not None:
                        self.differences.append(difference)

    def _compare(self, name: bytes, buffer: memoryview) -> FileDifference | None:
        text = os.fsdecode(name)
        try:
            digest = self._hash(name, buffer)
        except FileNotFoundError:
            return FileDifference(text, MISSING)
        except OSError as exc:
            if is_machine_wide(exc) and exc.errno != errno.EIO:
                raise
            return FileDifference(text, UNREADABLE, exc.strerror)
        return None if digest == self._digests[name] or self._is_stopped else FileDifference(text, CHANGED)

    def _hash(self, name: bytes, buffer: memoryview) -> bytes | None:
        """Return the digest of the file *name*; None for what is not a regular file, which is not opened."""
        if not stat.S_ISREG(os.stat(name, dir_fd=self._dir_fd, follow_symlinks=False).st_mode):
            return None
        digest = hashlib.sha256()
        with closing(os.open(name, READ_WITHOUT_WAITING | NO_FOLLOW, dir_fd=self._dir_fd)) as fd:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return None
            while not self._is_stopped and (count := os.readv(fd, [buffer])):
                digest.update(buffer[:count])
                with self._lock:
                    self.bytes += count
        return digest.digest()


def _submit(executor: ThreadPoolExecutor, function: Callable[[], None]) -> Future[None]:
    try:
        return executor.submit(function)
    except RuntimeError as exc:
        raise resource_error(exc) or exc from exc


def _raise_error(error: BaseException | None) -> None:
    """Raise the error of a thread, mapped to a `StageError` if this machine is short of something."""
    if error is None:
        return
    if isinstance(error, OSError):
        raise system_error("A file cannot be opened", error) from error
    raise resource_error(error) or error from error

"""Write the manifest of a run in the private directory, and publish it after the files that it names."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import BinaryIO, TypeVar

from peerstage.errors import TargetError
from peerstage.peer_log import PeerLog
from peerstage.reasons import Reason
from peerstage.records import STAGED, FileResult, StageReport
from peerstage.target.checksum_file import MAX_BYTES, MAX_LINES, format_checksum
from peerstage.target.file_descriptors import NO_FOLLOW
from peerstage.target.manifest import CHECKSUMS, REPORT, read_digests, read_results
from peerstage.target.partial_file import PartialFile
from peerstage.target.report_file import MAX_BYTES as MAX_REPORT_BYTES
from peerstage.target.report_file import RecordedFile, write_report

T = TypeVar("T")


class ManifestWriter:
    """Writes the manifest of one run: the files that it staged, and those of the old manifest that it did not touch.

    An entry of the old manifest is kept as long as its file exists, even if the file has changed, so that `verify`
    finds that.

    Args:
        target_fd: Descriptor of the target.
        private_fd: Descriptor of the private directory.
        path: Path of the target, for messages.
        log: The log.
    """

    def __init__(self, target_fd: int, private_fd: int, path: str, log: PeerLog) -> None:
        self._target_fd = target_fd
        self._private_fd = private_fd
        self._path = path
        self._log = log

    def write(
        self,
        report: StageReport,
        files: Iterable[FileResult],
        refused: Iterable[FileResult],
        staged: Mapping[bytes, PartialFile],
        finish: Callable[[int], object],
    ) -> None:
        """Write the manifest into the private directory; if it was written before, replace it.

        Args:
            report: The report; its `files` and `refused` are not read.
            files: The results of the run's files; read once.
            refused: The results of entries that were not read; read once.
            staged: The files that the run stages, by name: they are in the private directory, or have their names.
            finish: Called with the descriptor of each complete file, to set owner and mode and to sync it.

        Raises:
            TargetError: If the old manifest cannot be read (one that is damaged is replaced, with a warning), or if
                there are more files than a manifest can name, or longer names than it can have.
            OSError: If the disk failed.
        """
        kept = self._read_kept(staged)
        if len(staged) + len(kept) > MAX_LINES:
            raise self._too_large(f"A manifest can name {MAX_LINES} files, and there are more")

        def staged_mtime_ns(result: FileResult) -> int | None:
            name = os.fsencode(result.name)
            return kept[name].staged_mtime_ns if name in kept else self._mtime_ns_of(staged[name])

        with self._create(REPORT) as file:
            results = (record.to_result(name) for name, record in kept.items())
            write_report(file, report, files, refused, results, staged_mtime_ns)
            if file.tell() > MAX_REPORT_BYTES:
                raise self._too_large(f"The report can have {MAX_REPORT_BYTES} bytes, and the names need more")
            file.flush()
            finish(file.fileno())
        size = 0
        with self._create(CHECKSUMS) as file:
            for name in sorted((*staged, *kept)):
                digest = kept[name].sha256 if name in kept else staged[name].sha256
                size += file.write(format_checksum(name, (digest or b"").hex()))
                if size > MAX_BYTES:
                    raise self._too_large(f"A manifest can have {MAX_BYTES} bytes, and the names need more")
            file.flush()
            finish(file.fileno())

    def _too_large(self, problem: str) -> TargetError:
        message = f"{problem}. Stage without StageOptions(manifest=True)."
        return TargetError(message, path=self._path, reason=Reason.LIMIT_EXCEEDED)

    def publish(self) -> None:
        """Give both files their final names.

        Raises:
            OSError: If the disk failed.
        """
        for name in (CHECKSUMS, REPORT):
            os.rename(name, name, src_dir_fd=self._private_fd, dst_dir_fd=self._target_fd)

    def _mtime_ns_of(self, file: PartialFile) -> int:
        found = _stat(file.private_name, self._private_fd) or os.stat(
            file.entry.name, dir_fd=self._target_fd, follow_symlinks=False
        )
        return found.st_mtime_ns

    def _read_kept(self, staged: Collection[bytes]) -> dict[bytes, RecordedFile]:
        """Return what the old manifest says of files that exist and are not *staged*."""
        digests = self._read(read_digests, staged)
        results = self._read(read_results, staged) if digests else {}
        kept = {}
        for name, digest in digests.items():
            found = _stat(name, self._target_fd)
            if found is None or not stat.S_ISREG(found.st_mode):
                continue
            result = results.get(name)
            if result is None or result.sha256 != digest:  # the run that staged it was killed before the last rename
                result = RecordedFile(found.st_size, None, None, STAGED, digest, None)
            kept[name] = result
        if len(kept) < len(digests):
            self._log.info("%d files no longer exist, and leave the manifest.", len(digests) - len(kept))
        return kept

    def _read(
        self, read: Callable[[int, str, Collection[bytes]], dict[bytes, T]], staged: Collection[bytes]
    ) -> dict[bytes, T]:
        try:
            return read(self._target_fd, self._path, staged)
        except TargetError as exc:
            if exc.reason is Reason.INVALID_MANIFEST:
                self._log.warning("%s What it says of files that this run does not stage is lost.", exc)
            elif exc.reason is not Reason.NO_MANIFEST:
                raise
            return {}

    def _create(self, name: str) -> BinaryIO:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | NO_FOLLOW
        return open(name, "wb", opener=lambda name, _: os.open(name, flags, 0o600, dir_fd=self._private_fd))


def require_manifest_names(target_fd: int, path: str) -> None:
    """Check that no directory has a name of the manifest, which could not be published.

    Args:
        target_fd: Descriptor of the target.
        path: Path of the target, for messages.

    Raises:
        TargetError: If a directory has such a name.
        OSError: If the target cannot be read.
    """
    for name in (CHECKSUMS, REPORT):
        found = _stat(name, target_fd)
        if found is not None and stat.S_ISDIR(found.st_mode):
            message = f"A directory has the name of the manifest, {name}. Move it away, then stage again."
            raise TargetError(message, path=path, reason=Reason.NAME_TAKEN)


def _stat(name: str | bytes, dir_fd: int) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return None

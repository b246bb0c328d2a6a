"""`DirectoryTarget`: receives files in a private directory and gives them their final names at the end.

At every instant, even after SIGKILL or a power failure, a final name is the old file or the complete new one.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType

from peerstage.errors import EntryError, NotAvailable, StageError
from peerstage.peer_log import PeerLog
from peerstage.reasons import Reason
from peerstage.records import Entry, FileResult, Limits, Ownership, StageReport
from peerstage.stage_options import StageOptions
from peerstage.target import durability
from peerstage.target.admission import Admission
from peerstage.target.attributes import StagedAttributes
from peerstage.target.base import CommandTarget, ListingChanges, Selection
from peerstage.target.disk_errors import NAME_ERRORS, disk_error, disk_errors, name_error
from peerstage.target.file_results import result_of, result_of_refused
from peerstage.target.kept_files import KeptFiles
from peerstage.target.link_dest import LinkSource
from peerstage.target.manifest import reserved_names
from peerstage.target.manifest_writer import ManifestWriter
from peerstage.target.name_collisions import find_collisions
from peerstage.target.partial_file import PartialFile
from peerstage.target.peer_checksums import find_differences
from peerstage.target.prepare import prepare_all
from peerstage.target.private_directory import require_posix
from peerstage.target.run_directories import RunDirectories
from peerstage.target.run_state import Failure, RunState
from peerstage.target.select import Selector
from peerstage.target.stability_check import StabilityCheck
from peerstage.target.workspace import NAME as WORKSPACE
from peerstage.target.workspace import Workspace

#: Reasons for which a file that is not from one connection is fetched once more.
_START_OVER = frozenset({Reason.DIGEST_MISMATCH, Reason.CHANGED_WHILE_STAGED})
_VANISHED = "The peer no longer lists it: it was removed. Let the peer finish collecting, then stage again."


class DirectoryTarget(CommandTarget):
    """Stages files into an existing directory.

    Use as a context manager: leaving the block without `commit` publishes nothing, and leaves nothing behind but the
    large files that are kept in `StageOptions.partial_dir`.

    Args:
        path: The directory. It is opened once, and everything is done relative to that descriptor, so a directory that
            is renamed or replaced during the run is neither followed nor created again.
        options: What is wanted of the stage; None means `StageOptions()`.
        limits: Limits on sizes and on free space; None means `Limits()`.
        ownership: Owner and group of every file; None leaves them to the process.
        permissions: Permission bits of every file (0o777 at most); None for the peer's mode & 0777 & ~umask, or 0600
            where they are unknown.
        threads: Whether a thread may start writing data to the disk while more arrives, if the stage is durable.
        peer: The peer's name, for the log, the report, and to find kept files.
        directory: The peer's directory, to find kept files.

    Attributes:
        on_local_work: Called from time to time while the manifest or files of `StageOptions.link_dest` are read, with
            the number of bytes copied since the last call; an exception that it raises ends the run.
        published: Number of files that have their final names.
        selector: Decides which entries are wanted, and has the results of the others.
        stability: What later listings showed about the files.
        wants_digests: Whether the report has the SHA-256 of every staged file.

    Raises:
        ValueError: If *permissions* is not an integer from 0 to 0o777.
        TargetError: If the target cannot be written to, or `StageOptions.partial_dir` cannot be used. Raised on
            entering.
        NotAvailable: If this is not a POSIX system. Raised on entering.
    """

    def __init__(
        self,
        path: str,
        *,
        options: StageOptions | None = None,
        limits: Limits | None = None,
        ownership: Ownership | None = None,
        permissions: int | None = None,
        threads: bool = True,
        peer: str = "",
        directory: bytes = b"",
    ) -> None:
        self.path = path
        self.options = options or StageOptions()
        self.limits = limits or Limits()
        self.selector = Selector(self.options)
        self.ownership = ownership
        self._attributes = StagedAttributes(
            path, ownership=ownership, permissions=permissions, preserve_times=self.options.preserve_times
        )
        self.threads = threads
        self.wants_digests = self.options.manifest or self.options.verify == "sha256"
        self.on_local_work: Callable[[int], object] = lambda size: None
        self.published = 0
        if self.selector.selects or self.limits.file_bytes is not None or self.options.link_dest is not None:
            self.selection = Selection.SOME
        self.verifies_stability = self.options.verify != "size"
        self.peer = peer
        self.directory = directory
        self._log = PeerLog("peerstage.target", peer)
        self._files: dict[bytes, PartialFile] = {}
        self._refused: dict[bytes, Failure] = {}
        self.stability = StabilityCheck(self._files, self.selector)
        self._workspace: Workspace | None = None
        self._manifest: ManifestWriter | None = None
        self._reserved_names = reserved_names(self.options.checksums)
        self._kept: KeptFiles | None = None
        self._link_source: LinkSource | None = None

    def __enter__(self) -> DirectoryTarget:
        require_posix()
        with contextlib.ExitStack() as on_failure, disk_errors(self.path):
            directories = self._directories = RunDirectories(
                self.path, self.options, peer=self.peer, directory=self.directory, log=self._log
            )
            on_failure.callback(directories.close)
            self._target_fd, self._private, self._kept = directories.target_fd, directories.private, directories.kept
            self._start_run(self._target_fd, self._private.fd)
            on_failure.pop_all()
        if self._kept is not None and self._kept.has_candidates:
            self.selection = Selection.SOME
        return self

    def _start_run(self, target_fd: int, private_fd: int) -> None:
        self._run = RunState(
            self.path, private_fd, writeback=self.options.durable and self.threads, wants_digests=self.wants_digests
        )
        if self.options.manifest:
            self._manifest = ManifestWriter(target_fd, private_fd, self.path, self._log)
        if self.options.link_dest is not None:
            self._link_source = LinkSource(
                self.options,
                self.limits,
                target_fd,
                private_fd,
                self._attributes,
                peer=self.peer,
                on_work=self.on_local_work,
            )
        self._admission = Admission(
            self._run,
            target_fd,
            self._files,
            self.selector,
            self.limits,
            self._reserved_names,
            self._link_source,
            self._kept,
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._run.descriptors.close_all()
            if self._link_source is not None:
                self._link_source.close()
            if self._workspace is not None:
                self._workspace.close()
            if self._kept is not None and self._private.belongs_to_this_process() and not self.published:
                self._kept.keep(self._files.values(), error)
        finally:
            self._directories.close()
            self._run.writeback.close()

    @property
    def received_bytes(self) -> int:
        """Bytes that have arrived and are kept."""
        return sum(file.received_bytes for file in self._files.values())

    @property
    def resumed_bytes(self) -> int:
        """Bytes that were kept after a lost connection and not sent again; each counts once."""
        return sum(file.resumed_bytes for file in self._files.values())

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know although nothing failed, as sentences."""
        return tuple(note for part in (self._link_source, self._kept, self.stability) if part for note in part.notes)

    def pop_results(self, *, can_resume: bool = True) -> Iterator[FileResult]:
        """Yield the result of each admitted file, and drop its `PartialFile`: keeping both would take much memory.

        Args:
            can_resume: Whether the transport fetches only the rest of a file after a lost connection.
        """
        files = list(reversed(self._files.values()))
        self._files.clear()
        while files:
            yield self._result_of(files.pop(), can_resume=can_resume)

    def _result_of(self, file: PartialFile, *, can_resume: bool) -> FileResult:
        return result_of(file, self._attributes.mode_of, self.stability.is_racy, can_resume=can_resume)

    def pop_refused(self) -> Iterator[FileResult]:
        """Yield the result of each refused entry, and free it."""
        refused, self._refused = self._refused, {}
        for name in list(refused):
            yield result_of_refused(name, refused.pop(name))

    def admit(self, entries: Sequence[Entry]) -> list[PartialFile]:
        if self._refused:  # over an earlier connection, which may have listed them otherwise
            for entry in entries:
                self._refused.pop(entry.name, None)
        self.stability.note_listing(entries)
        return self._admission.admit(entries)

    def recheck(self, changes: ListingChanges) -> list[PartialFile]:
        return self._admission.admit(self.stability.find_changed(changes))

    def refuse(self, name: bytes, error: StageError) -> None:
        begun = self._files.get(name)
        if begun is not None and not begun.is_finished:  # not failed: a later listing may have the file again
            self._admission.discard(begun)
        if not self.selector.leaves_out_refused(name, error):
            self._refused[name] = self._run.failures.intern(error)

    def create_workspace(self) -> str:
        self._prepare_workspace()
        return os.path.join(self.path, self._private.name, WORKSPACE)

    def create_workspace_for(self, owner: Ownership) -> int:
        workspace = self._prepare_workspace()
        with disk_errors(self.path):
            workspace.give_to(owner)
        return workspace.fd

    def import_file(self, name: bytes, check: Callable[[], object] = lambda: None) -> int:
        if self._workspace is None:
            raise NotAvailable("No workspace was created to import files from.")
        final_owner = None if self.ownership is None else self.ownership[0]
        try:
            with disk_errors(self.path):
                return self._workspace.import_file(name, self._admission, final_owner, check)
        except EntryError as exc:
            self.refuse(name, exc)
            return 0

    def _prepare_workspace(self) -> Workspace:
        with disk_errors(self.path):
            if self._workspace is None:
                self._workspace = Workspace(self._private.fd)
            else:
                self._workspace.clear()
        return self._workspace

    def start_over_differing_files(self, check: Callable[[], object] = lambda: None) -> int:
        """Copy what cannot be linked; start over what cannot be copied, or is not from one connection and differs.

        The peer may have replaced a resumed or linked file in the meantime, without a change of size and time; only its
        digest, in `StageOptions.checksums`, tells. Another pull then fetches these files, and no others.

        Args:
            check: As for `commit`. It is also called while files are copied.

        Returns:
            The number of files that start over.

        Raises:
            StageError: If the peer's checksum file is missing or invalid.
            TargetError: If the disk failed.
        """
        if all(file.is_from_one_connection for file in self._files.values()):
            return 0
        with disk_errors(self.path):
            differing = [
                file
                for file, error in self._find_differences(check)
                if error.reason in _START_OVER and not file.is_from_one_connection
            ]
        for file in differing:
            self._admission.start_over(file)
        if differing:
            self.selection = Selection.SOME
        return len(differing)

    def commit(
        self,
        check: Callable[[], object] = lambda: None,
        summarize: Callable[[], StageReport] | None = None,
        on_commit: Callable[[], object] = lambda: None,
    ) -> None:
        """Publish every complete file: first owner, mode and data of all, then only renames, then sync the directory.

        A file that is not finished was in an earlier listing, and not in the last one: it fails as vanished.
        A file whose final name is taken by a directory fails; anything else with that name is replaced, not followed.
        On a file system that treats different names as equal (in another case or Unicode normalization), the second of
        two such files fails, and so does a file that would replace one with another spelling. With
        `StageOptions.checksums`, so does a file whose digest the peer's checksum file does not confirm.

        The manifest is renamed last. A run that is killed before leaves the old one, which does not name what is new.

        Args:
            check: Called before each file is prepared, before each read of a file for its digest, and once before the
                first rename; an exception that it raises ends the run, and nothing is published. It is not called after
                the first rename.
            summarize: Returns the report for the manifest, without results.
            on_commit: Called once, just before the last *check*, when all data is on the disk.

        Raises:
            StageError: If the peer's checksum file is missing or invalid. Nothing is published.
            TargetError: If ownership is refused or the disk fails. Before the first rename nothing is published; after
                it, each name is old or complete, `published` counts the new ones, and `pop_results` tells which.
        """
        for file in self._files.values():
            if not file.is_finished:
                file.fail(EntryError(_VANISHED, reason=Reason.VANISHED))
        self.stability.write_notes(self._log)
        ready = deque(file for file in self._files.values() if file.is_ready)
        try:
            for file, difference in self._find_differences(check):
                file.fail(difference)
            ready = deque(file for file in ready if file.is_ready)
            shared_sync = self._directories.choose_shared_sync(len(ready))
            fsync = self.options.durable and shared_sync is None
            prepare_all(ready, self._attributes, self._private.fd, fsync=fsync, check=check)
            for file, error in find_collisions(ready, self._target_fd, self._private.fd, self._reserved_names):
                file.fail(error)
            ready = deque(file for file in ready if file.is_ready)
            expected = len(ready)
            if self._manifest is not None and ready:
                self._write_manifest(self._manifest, summarize, fsync=fsync)
            if shared_sync is not None:
                shared_sync.sync(check)
            on_commit()
            check()
            while ready:
                self.published += self._publish(ready[0])
                ready.popleft()
            self._sync_names()
            if self._manifest is not None and self.published:
                if self.published < expected:
                    self._write_manifest(self._manifest, summarize, fsync=self.options.durable)
                self._manifest.publish()
                self._sync_names()
            if self._kept is not None:
                self._kept.remove_unlisted()
        except StageError:
            raise
        except OSError as exc:
            for file in ready if self.published else ():
                file.fail(EntryError("The run ended before the file was renamed.", reason=Reason.NOT_PUBLISHED))
            raise disk_error(exc, self.path, published=self.published) from exc

    def _find_differences(self, check: Callable[[], object]) -> Iterator[tuple[PartialFile, EntryError]]:
        """Create copies and digests; yield what cannot be copied, or what the peer's digest does not confirm."""
        yield from self._admission.copy_due_files(lambda size: (self.on_local_work(size), check()))
        if self.wants_digests:
            for file in self._files.values():
                file.complete_digest(check)
        checksums = self.options.checksums
        if checksums is not None and any(file.is_ready for file in self._files.values()):
            yield from find_differences(checksums, self._files, self._refused)

    def _publish(self, file: PartialFile) -> bool:
        try:
            os.rename(file.private_name, file.entry.name, src_dir_fd=self._private.fd, dst_dir_fd=self._target_fd)
        except OSError as exc:
            if exc.errno not in NAME_ERRORS:
                raise
            file.fail(name_error(exc))
            return False
        return True

    def _sync_names(self) -> None:
        """Make the renames so far durable, before those that must not be seen without them."""
        if self.options.durable and self.published:
            durability.sync_directory(self._target_fd)

    def _write_manifest(
        self, manifest: ManifestWriter, summarize: Callable[[], StageReport] | None, *, fsync: bool
    ) -> None:
        """Write the manifest of the files that are ready into the private directory, like a file of unknown mode."""
        report = StageReport(self.peer, "", self.path) if summarize is None else summarize()

        def finish(fd: int) -> None:
            self._attributes.set(fd, Entry(b"", 0))
            if fsync:
                os.fsync(fd)

        manifest.write(
            report,
            (self._result_of(file, can_resume=bool(report.resumed_bytes)) for file in self._files.values()),
            (result_of_refused(name, failure) for name, failure in self._refused.items()),
            {name: file for name, file in self._files.items() if file.is_ready},
            finish,
        )

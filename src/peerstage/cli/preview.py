"""Preview a stage: list the files and open some of them on the peer; read none, and write nothing here."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from typing import NamedTuple

from peerstage.errors import EntryError, IncompleteStage, NothingToStage, StageError
from peerstage.printable import escape
from peerstage.reasons import Reason
from peerstage.records import Entry, FileResult, Limits, StageReport
from peerstage.stage_options import StageOptions
from peerstage.target.base import MAX_TRIAL_OPENS, Buffer, IncomingFile, Selection, Target
from peerstage.target.manifest import reserved_name_error, reserved_names
from peerstage.target.peer_checksums import missing_error
from peerstage.target.select import Selector
from peerstage.target.size_limits import SizeLimits
from peerstage.transport.base import Transport

#: Entries that an error names.
_MAX_NAMED = 5


class Preview(NamedTuple):
    """What a stage would bring.

    Attributes:
        files: Files that would be staged.
        refused: Entries that would not: they are not regular files, or cannot be opened.
        opened: How many of the files were opened on the peer; whether it can read the others is unknown.
        left_out: Entries that the options leave out.
        has_left_out_files: Whether a file is among these.
        checksums: The checksum file that a stage needs, if any.
    """

    files: tuple[FileResult, ...]
    refused: tuple[FileResult, ...]
    opened: int
    left_out: tuple[FileResult, ...] = ()
    has_left_out_files: bool = False
    checksums: str | None = None

    @property
    def size(self) -> int:
        """Bytes that would be staged."""
        return sum(file.size for file in self.files)

    @property
    def opened_files(self) -> str:
        """How many files were opened, as a clause."""
        not_tried = len(self.files) - self.opened
        rest = f", {not_tried} others were not tried" if not_tried else ""
        return f"{self.opened} of {len(self.files)} files were opened on the peer{rest}"

    def failure(self, directory: bytes) -> StageError | None:
        """Return the error that a stage of *directory* would end with; None if it would succeed."""
        if self.files and self.checksums is not None and self.checksums not in (file.name for file in self.files):
            errors = [file.error for file in self.refused if file.name == self.checksums]
            return missing_error(self.checksums, errors[0] if errors else None)
        if self.refused:
            named = "; ".join(f"{escape(file.name)}: {file.error}" for file in self.refused[:_MAX_NAMED])
            more = f" And {len(self.refused) - _MAX_NAMED} more." if len(self.refused) > _MAX_NAMED else ""
            report = StageReport("", "", "", files=self.files, refused=self.refused)
            total = len(self.files) + len(self.refused)
            message = f"{len(self.refused)} of {total} entries would not be staged: {named}{more}"
            return IncompleteStage(message, path=directory, report=report)
        if not self.files and not self.has_left_out_files:
            return NothingToStage("It holds no files to stage.", path=directory)
        return None


class PreviewTarget(Target):
    """A target that records every entry and asks for no content.

    Args:
        target: The directory that a stage would write to; an entry with the name of a directory there is refused.
        options: What is wanted of the stage; None means `StageOptions()`.
        limits: Limits on sizes; None means `Limits()`.
    """

    selection = Selection.NONE

    def __init__(self, target: str, options: StageOptions | None = None, limits: Limits | None = None) -> None:
        options = options or StageOptions()
        self._target = target
        self._checksums = options.checksums
        self._reserved = reserved_names(options.checksums)
        self._selector = Selector(options)
        self._sizes = SizeLimits(limits or Limits())
        self._files: dict[bytes, _PreviewedFile] = {}
        self._refused: dict[bytes, FileResult] = {}

    def admit(self, entries: Sequence[Entry]) -> list[_PreviewedFile]:
        """Record the files, and return the first `MAX_TRIAL_OPENS` to open. No space is needed.

        Raises:
            LimitExceeded: If the files exceed `Limits.total_bytes`.
        """
        wanted = [entry for entry in entries if not self._leaves_out(entry)]
        return [file for file in map(self._admit_entry, wanted) if not file.is_finished]

    def _leaves_out(self, entry: Entry) -> bool:
        if not self._selector.leaves_out(entry):
            return False
        listed_before = self._files.pop(entry.name, None)
        if listed_before is not None:
            self._sizes.remove(listed_before.entry)
        return True

    def _admit_entry(self, entry: Entry) -> _PreviewedFile:
        file = self._files.get(entry.name)
        if file is None or file.entry != entry:
            if file is not None:
                self._sizes.remove(file.entry)
            self._sizes.add(entry)
            file = self._files[entry.name] = _PreviewedFile(entry, is_tried=len(self._files) < MAX_TRIAL_OPENS)
            too_large = self._sizes.find_error(entry)
            if too_large is not None:
                file.fail(too_large)
            elif _is_directory(os.path.join(self._target, os.fsdecode(entry.name))):
                message = "A directory has this name in the target. Move it away, then stage again."
                file.fail(EntryError(message, reason=Reason.NAME_TAKEN))
            elif entry.name in self._reserved:
                file.fail(reserved_name_error())
        return file

    def refuse(self, name: bytes, error: StageError) -> None:
        """See `Target.refuse`."""
        if not self._selector.leaves_out_refused(name, error):
            self._refused[name] = FileResult(os.fsdecode(name), error=escape(error.message), reason=error.reason)

    @property
    def preview(self) -> Preview:
        """What has been recorded, by name."""
        good = sorted(name for name, file in self._files.items() if file.error is None)
        bad = {name: file.result for name, file in self._files.items() if file.error is not None} | self._refused
        return Preview(
            tuple(self._files[name].result for name in good),
            tuple(bad[name] for name in sorted(bad)),
            sum(self._files[name].was_opened for name in good),
            tuple(result for _, result in sorted(self._selector.left_out.items())),
            self._selector.has_left_out_files,
            self._checksums,
        )


class _PreviewedFile(IncomingFile):
    """A file that is opened on the peer and not read; if it is not tried, it is finished from the start.

    Attributes:
        error: Why it would not be staged; None if it would.
        was_opened: Whether the peer opened it.
    """

    __slots__ = ("_is_finished", "entry", "error", "was_opened")

    def __init__(self, entry: Entry, *, is_tried: bool) -> None:
        self.entry = entry
        self.error: StageError | None = None
        self.was_opened = False
        self._is_finished = not is_tried

    @property
    def result(self) -> FileResult:
        """The entry as a stage would report it."""
        entry, name = self.entry, os.fsdecode(self.entry.name)
        if self.error is not None:
            return FileResult(name, error=escape(self.error.message), reason=self.error.reason)
        return FileResult(name, entry.size, entry.mode, entry.mtime)

    @property
    def is_finished(self) -> bool:
        return self._is_finished

    def missing(self) -> Sequence[tuple[int, int]]:
        return ()

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        """Drop content that was not asked for."""

    def finish(self) -> None:
        if not self._is_finished:
            self._is_finished = self.was_opened = True

    def fail(self, error: StageError) -> None:
        self._is_finished = True
        self.error = error


def preview(
    transport: Transport,
    directory: bytes,
    target: str,
    options: StageOptions | None = None,
    limits: Limits | None = None,
) -> Preview:
    """Return what a stage of the peer's *directory* into *target*, with *options*, would bring.

    Raises:
        StageError: If the listing fails, or exceeds a limit.
    """
    recorder = PreviewTarget(target, options, limits)
    transport.pull(directory, recorder)
    return recorder.preview


def _is_directory(path: str) -> bool:
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return False

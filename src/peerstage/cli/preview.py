"""What a stage would bring: files are listed and some of them opened, none is read, and nothing is written here."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from typing import NamedTuple

from peerstage.errors import EntryError, IncompleteStage, NothingToStage, StageError, escape
from peerstage.landing.base import MAX_TRIALS, Buffer, Landing, Slot
from peerstage.reasons import Reason
from peerstage.records import Entry, FileResult, StageReport
from peerstage.transport.base import Transport

#: Entries that an error names.
_MAX_NAMED = 5


class Preview(NamedTuple):
    """What would come, and what would not.

    Attributes:
        files: Files that would come.
        refused: Entries that would not: no regular files, and files that cannot be opened.
        opened: How many of the files were opened on the peer; whether it can read the others is not known.
    """

    files: tuple[FileResult, ...]
    refused: tuple[FileResult, ...]
    opened: int

    @property
    def size(self) -> int:
        """Bytes that would come."""
        return sum(file.size for file in self.files)

    @property
    def trials(self) -> str:
        """How many files were opened, as a clause."""
        untried = len(self.files) - self.opened
        rest = f", {untried} others were not tried" if untried else ""
        return f"{self.opened} of {len(self.files)} files were opened on the peer{rest}"

    def failure(self, directory: bytes) -> StageError | None:
        """Return the error that a stage of *directory* would end with; None if it would succeed."""
        if self.refused:
            named = "; ".join(f"{escape(one.name)}: {one.error}" for one in self.refused[:_MAX_NAMED])
            more = f" And {len(self.refused) - _MAX_NAMED} more." if len(self.refused) > _MAX_NAMED else ""
            report = StageReport("", "", "", files=self.files, refused=self.refused)
            message = f"{len(self.refused)} entries would not be staged: {named}{more}"
            return IncompleteStage(message, path=directory, report=report)
        if not self.files:
            return NothingToStage("There is no file to stage in it.", path=directory)
        return None


class PreviewLanding(Landing):
    """Records every entry, and wants no byte of it.

    Args:
        target: The directory that the files would come to; an entry whose name is a directory there is refused.
    """

    wants_content = False

    def __init__(self, target: str) -> None:
        self._target = target
        self._slots: dict[bytes, _Trial] = {}
        self._refused: dict[bytes, FileResult] = {}

    def expect(self, files: int, size: int) -> None:
        """Nothing is made ready for them."""

    def open(self, entry: Entry) -> Slot:
        """Return a slot that has nothing missing; see `Landing.wants_content`."""
        slot = self._slots.get(entry.name)
        if slot is None or slot.entry != entry:
            slot = self._slots[entry.name] = _Trial(entry, is_tried=len(self._slots) < MAX_TRIALS)
            if _is_directory(os.path.join(self._target, os.fsdecode(entry.name))):
                why = "A directory has this name in the target. Move it away, then stage again."
                slot.fail(EntryError(why, reason=Reason.NAME_TAKEN))
        return slot

    def refuse(self, name: bytes, error: StageError) -> None:
        """See `Landing.refuse`."""
        self._refused[name] = FileResult(os.fsdecode(name), error=escape(error.message), reason=error.reason)

    @property
    def preview(self) -> Preview:
        """What has been recorded, by name."""
        good = [slot for slot in self._slots.values() if slot.error is None]
        bad = {name: slot.result for name, slot in self._slots.items() if slot.error is not None} | self._refused
        return Preview(
            tuple(slot.result for slot in sorted(good, key=lambda slot: slot.entry.name)),
            tuple(bad[name] for name in sorted(bad)),
            sum(slot.was_opened for slot in good),
        )


class _Trial(Slot):
    """A file that is opened and not read; one that is not tried is finished from the start.

    Attributes:
        error: Why it would not come, None if nothing is known to keep it.
        was_opened: Whether the peer could open it.
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
        """What comes unasked is dropped."""

    def finish(self) -> None:
        if not self._is_finished:
            self._is_finished = self.was_opened = True

    def fail(self, error: StageError) -> None:
        self._is_finished = True
        self.error = error


def preview(transport: Transport, directory: bytes, target: str) -> Preview:
    """Return what a stage of the peer's *directory* into *target* would bring.

    Raises:
        StageError: If the peer could not be asked.
    """
    landing = PreviewLanding(target)
    transport.pull(directory, landing)
    return landing.preview


def _is_directory(path: str) -> bool:
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return False

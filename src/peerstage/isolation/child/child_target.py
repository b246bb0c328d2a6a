"""The target in a child: each call becomes a frame.

The parent's target decides. The child waits for its answer only if some of the files may be declined or are there
already: if the selection says so, and after a lost connection.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from peerstage.errors import NotAvailable, ProtocolError, StageError
from peerstage.isolation.child.frame_writer import FrameWriter
from peerstage.isolation.protocol.entry_codec import split_entries
from peerstage.isolation.protocol.frames import (
    MAX_UNANSWERED,
    Admit,
    Appeared,
    AskMissing,
    Fail,
    Finish,
    ImportFile,
    Refuse,
    Vanished,
)
from peerstage.records import Entry
from peerstage.target.base import MAX_TRIAL_OPENS, Buffer, CommandTarget, IncomingFile, ListingChanges, Selection
from peerstage.target.ranges import Ranges


class ChildTarget(CommandTarget):
    """Forwards every call to the parent's target.

    Args:
        writer: The pipe to the parent.
        receive_answer: Waits for the parent's next answer, and returns it.
        selection: As for `Target`.
        verifies_stability: As for `Target`.
        workspace: Descriptor of the directory that a command may fill, or -1.
        while_sending: Entered while data is sent: with a bandwidth limit, the parent lets the child wait for it.
    """

    def __init__(
        self,
        writer: FrameWriter,
        receive_answer: Callable[[], dict[str, Any]],
        *,
        selection: Selection = Selection.ALL,
        verifies_stability: bool = False,
        workspace: int = -1,
        while_sending: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext,
    ) -> None:
        self.selection = selection
        self.verifies_stability = verifies_stability
        self._writer = writer
        self._receive_answer = receive_answer
        self._workspace = workspace
        self._while_sending = while_sending
        self._asks = selection is Selection.SOME
        self._listed: set[bytes] = set()
        self._fetched_again: set[bytes] = set()
        self._next_number = 0
        self._trial_opens_left = MAX_TRIAL_OPENS

    def admit(self, entries: Sequence[Entry]) -> list[ChildFile]:
        """See `Target.admit`. A name that was listed before is listed over another connection."""
        is_new_listing = not self._listed.isdisjoint(entry.name for entry in entries)
        if is_new_listing:
            self._asks = True
            self._listed.clear()
        self._listed.update(entry.name for entry in entries)
        admitted = self._send_entries(entries, is_new_listing=is_new_listing)
        if self.selection is Selection.NONE and not self._asks:
            del admitted[self._trial_opens_left :]
            self._trial_opens_left -= len(admitted)
        return admitted

    def recheck(self, changes: ListingChanges) -> list[ChildFile]:
        """See `Target.recheck`. The parent, too, knows which files changed before, and fails them."""
        for part in split_entries(changes.vanished):
            self._writer.put(Vanished(part))
        for part in split_entries(changes.appeared) if changes.appeared else ((),):
            self._writer.put(Appeared(part))
        files = self._send_entries(changes.changed, is_new_listing=True, have_changed=True)
        again = [file for file in files if file.entry.name not in self._fetched_again]
        self._fetched_again.update(file.entry.name for file in again)
        return again

    def _send_entries(
        self, entries: Sequence[Entry], *, is_new_listing: bool, have_changed: bool = False
    ) -> list[ChildFile]:
        """Send files under new numbers, and return those that are not declined."""
        admitted: list[ChildFile] = []
        unanswered: deque[list[ChildFile]] = deque()
        for part in split_entries(entries):
            self._writer.put(Admit(self._next_number, part, is_new_listing, self._asks, have_changed))
            is_new_listing = False
            files = [ChildFile(self, self._next_number + index, entry) for index, entry in enumerate(part)]
            self._next_number += len(part)
            if not self._asks:
                admitted += files
                continue
            self._writer.flush()
            unanswered.append(files)
            if len(unanswered) == MAX_UNANSWERED:
                admitted += self._receive_admitted(unanswered.popleft())
        for files in unanswered:
            admitted += self._receive_admitted(files)
        return admitted

    def refuse(self, name: bytes, error: StageError) -> None:
        self._writer.put(Refuse(name, error))

    def create_workspace(self) -> str:
        """Change to the workspace, which this user cannot reach by its path. See `CommandTarget.create_workspace`."""
        if self._workspace < 0:
            raise NotAvailable("This run has no workspace for a command.")
        os.fchdir(self._workspace)
        return "."

    def import_file(self, name: bytes, check: Callable[[], object] = lambda: None) -> int:
        """See `CommandTarget.import_file`. The parent checks the file."""
        self._writer.put(ImportFile(name))
        return 0

    def put(self, frame: Finish | Fail) -> None:
        """Send the last frame of a file."""
        with self._while_sending():
            self._writer.put(frame)

    def put_data(self, file_number: int, offset: int, buffers: Sequence[Buffer], length: int) -> None:
        """Send *length* bytes of a file."""
        with self._while_sending():
            self._writer.put_data(file_number, offset, buffers, length)

    def ask_missing(self, file_number: int) -> Sequence[tuple[int, int]]:
        """Ask the parent which ranges of a file are missing, after it has written what was sent so far."""
        self._writer.put(AskMissing(file_number))
        self._writer.flush()
        return _decode_ranges(self._receive_answer()["missing"])

    def _receive_admitted(self, files: list[ChildFile]) -> list[ChildFile]:
        """Return those of *files* that the parent does not decline, with the ranges that it wants."""
        answer = self._receive_answer()
        for index, ranges in answer["ranges"]:
            files[index].wanted = _decode_ranges(ranges)
        declined = set(answer["declined"])
        return [file for index, file in enumerate(files) if index not in declined]


class ChildFile(IncomingFile):
    """A file that is sent to the parent.

    Args:
        target: The target that it belongs to.
        number: The file number in the current connection.
        entry: The file.

    Attributes:
        wanted: The ranges that the parent wants, if it has some of the file already; None for a new file.
    """

    __slots__ = ("_has_written", "_number", "_sent", "_target", "entry", "is_finished", "wanted")

    is_finished: bool

    def __init__(self, target: ChildTarget, number: int, entry: Entry) -> None:
        self.entry = entry
        self.is_finished = False
        self.wanted: Sequence[tuple[int, int]] | None = None
        self._number = number
        self._target = target
        self._sent: Ranges | None = None
        self._has_written = False

    def missing(self) -> Sequence[tuple[int, int]]:
        """See `IncomingFile.missing`. Only the parent can compare what arrives with what it has."""
        size = self.entry.size
        if self.is_finished or not size or self._target.selection is Selection.NONE:
            return ()
        if self.wanted is None:
            return ((0, size),) if self._sent is None else tuple(self._sent.missing(size))
        if self._has_written:
            self.wanted = self._target.ask_missing(self._number)
            self._has_written = False
        return self.wanted

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        length = sum(len(buffer) for buffer in buffers)
        if offset < 0 or offset + length > self.entry.size:
            raise ProtocolError("The peer sent more bytes than the file's announced size.", path=self.entry.name)
        if not length:
            return
        self._has_written = True
        if self.wanted is None:
            if self._sent is None:
                self._sent = Ranges()
            self._sent.add(offset, offset + length)
        self._target.put_data(self._number, offset, buffers, length)

    def finish(self) -> None:
        """See `IncomingFile.finish`. The parent fails the file if ranges are missing."""
        if not self.is_finished:
            self._end(Finish(self._number))

    def fail(self, error: StageError) -> None:
        if not self.is_finished:
            self._end(Fail(self._number, error))

    def _end(self, frame: Finish | Fail) -> None:
        self.is_finished = True
        self._sent = None
        self._target.put(frame)


def _decode_ranges(ranges: list[list[int]]) -> Sequence[tuple[int, int]]:
    return tuple((start, end) for start, end in ranges)

"""Check every frame of a child before it reaches the target.

A compromised child can make the run fail, or deliver wrong bytes for the files of that run. It cannot write outside the
target, list or send more than `Limits` and the disk allow, or make the parent use unbounded memory.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from peerstage.isolation.protocol import frames
from peerstage.isolation.protocol.values import child_violation
from peerstage.printable import escape
from peerstage.records import KIB, REPLY_BYTES, Entry, Limits
from peerstage.target.base import IncomingFile, ListingChanges, Selection, Target
from peerstage.transport.counting import CountingTarget
from peerstage.transport.names import ListedNames, check_name_length

#: Files begun and not finished, for each of which samples are kept: those that the transport has open, and those that
#: a lost connection left.
_MAX_BEGUN_FILES = 4 * KIB
#: Log lines of one job.
_MAX_LOG_LINES = 1000
#: Listings of one connection: the first, and those that are compared with it.
_MAX_LISTINGS = 3
#: Replies of a peer for one file, in addition to its data.
_REPLIES_PER_FILE = 8

_LOGGERS = frozenset(
    f"peerstage.{name}"
    for name in ("ssh", "ssh.paramiko", "transport", "transport.rcp", "target", "staging", "isolation")
)


@dataclass(slots=True)
class _AdmittedFile:
    """A file that the child may send.

    Attributes:
        entry: The file.
        file: Where its data goes; None if the data is dropped.
        remaining: The number of bytes that may still be sent for it.
    """

    entry: Entry
    file: IncomingFile | None
    remaining: int


class FrameReceiver:
    """Handles the frames of one job.

    Args:
        target: Where files go; None for a job without files.
        limits: Bounds on the number of files and on their names.
        tries: How many connections in a row the child may make without progress.
        answer: Sends an answer to the child, without waiting for it.
        directory: The collect directory, for error messages.
        import_file: Imports a file from the workspace of an rcp command; None without such a command.
        on_output: Called with output of a command on the peer; None if no command is run.

    Attributes:
        reply: The fields of the reply; None until the job has ended.
    """

    def __init__(
        self,
        target: Target | None,
        limits: Limits,
        *,
        tries: int = 1,
        answer: Callable[[dict[str, Any]], object] = lambda answer: None,
        directory: bytes = b"",
        import_file: Callable[[bytes], object] | None = None,
        on_output: Callable[[bytes], object] | None = None,
    ) -> None:
        self.reply: dict[str, Any] | None = None
        self._target = None if target is None else CountingTarget(target)
        self._limits = limits
        self._tries = tries
        self._answer = answer
        self._import_file = import_file
        self._on_output = on_output
        self._names = ListedNames(directory, limits)
        self._first_number = 0
        self._files: list[_AdmittedFile | None] = []  # of the current listing, from the first number on
        self._listed: set[bytes] = set()
        self._connections = 1
        self._rechecks = 0
        self._rechecked: set[bytes] = set()
        self._begun: set[bytes] = set()
        self._ended_files = 0
        self._last_progress = 0
        self._log_lines = 0

    @property
    def receives_files(self) -> bool:
        """Whether the job delivers files."""
        return self._target is not None

    @property
    def received(self) -> int:
        """Bytes received, for the deadline: file data, and what the child may receive besides: a listing and replies.

        The parent does not see the listing and the replies, and counts their maximum.
        """
        stored = 0 if self._target is None else self._target.high_water
        files = min(self._ended_files + len(self._begun), self._limits.entries)
        listings = _MAX_LISTINGS if self._target is not None and self._target.verifies_stability else 1
        return stored + listings * self._limits.listing_bytes + _REPLIES_PER_FILE * REPLY_BYTES * files

    def handle(self, frame: frames.Frame) -> None:
        """Act on *frame*.

        Raises:
            ProtocolError: If the frame is not allowed at this point.
            LimitExceeded: If it exceeds `Limits`.
            TargetError: If the local side failed.
        """
        if self.reply is not None:
            raise child_violation("The child process sent a frame after its reply.")
        match frame:
            case frames.Data():
                self._write(frame)
            case frames.Reply(fields):
                self.reply = fields
            case frames.Log():
                self._log(frame)
            case frames.Output(data):
                if self._on_output is None:
                    raise child_violation("The child process sent command output, and no command was run.")
                self._on_output(data)
            case frames.Alive():
                pass
            case _:
                if self._target is None:
                    raise child_violation("The child process sent files, and none were requested.")
                self._handle_file_frame(frame, self._target)

    def _handle_file_frame(self, frame: frames.Frame, target: CountingTarget) -> None:
        match frame:
            case frames.Finish(number):
                if (file := self._end_file(number)) is not None:
                    file.finish()
            case frames.Fail(number, error):
                if (file := self._end_file(number)) is not None:
                    file.fail(error)
            case frames.Admit():
                self._admit(frame, target)
            case frames.Appeared(entries):
                self._recheck(ListingChanges(appeared=self._check_appeared(entries)), target)
            case frames.Vanished(entries):
                self._recheck(ListingChanges(vanished=self._check_vanished(entries)), target)
            case frames.AskMissing(number):
                file = self._admitted_file(number).file
                self._answer({"missing": [] if file is None else list(file.missing())})
            case frames.Refuse(name, error):
                self._check_name(name)
                target.refuse(name, error)
            case frames.ImportFile(name):
                self._import(name)
            case _:
                raise child_violation("The child process sent an unexpected frame.")

    def _admit(self, frame: frames.Admit, target: CountingTarget) -> None:
        if frame.has_changed:
            self._check_changed(frame, target)
        elif frame.is_new_listing:
            self._begin_listing(target)
        if frame.first_number != self._first_number + len(self._files):
            raise child_violation("The child process skipped or repeated a file number.")
        if frame.has_changed:
            admitted = self._recheck(ListingChanges(changed=frame.entries), target)
        else:
            self._add_listed(frame.entries)
            admitted = target.admit(frame.entries)
        files = {file.entry.name: file for file in admitted}
        drops_declined = target.selection is not Selection.SOME and not frame.wants_answer
        for entry in frame.entries:
            file = files.get(entry.name)
            is_accepted = file is not None or drops_declined
            self._files.append(_AdmittedFile(entry, file, entry.size) if is_accepted else None)
        if frame.wants_answer:
            self._answer(_describe_admitted(frame.entries, files))

    def _begin_listing(self, target: CountingTarget) -> None:
        """Forget the numbers of a lost connection. After progress, allow as many further connections as at first."""
        if target.high_water > self._last_progress:
            self._last_progress = target.high_water
            self._connections = 0
        self._connections += 1
        if self._connections > self._tries:
            raise child_violation("The child process listed files more often than it may connect.")
        self._forget_numbers()
        self._listed.clear()
        self._rechecks = 0

    def _forget_numbers(self) -> None:
        self._first_number += len(self._files)
        self._files.clear()

    def _add_listed(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            if entry.name in self._listed:
                raise child_violation("The child process sent a file name twice.", path=entry.name)
            self._listed.add(entry.name)
            self._check_name(entry.name)

    def _check_changed(self, frame: frames.Admit, target: CountingTarget) -> None:
        """Require that files which changed were listed and have ended, and that the peer was not listed too often."""
        if frame.is_new_listing:
            self._rechecks += 1
            if self._rechecks >= _MAX_LISTINGS or any(file is not None for file in self._files):
                raise child_violation("The child process listed files again too often, or before it had ended them.")
            self._forget_numbers()
            self._rechecked.clear()
        for entry in frame.entries:
            if not self._rechecks or entry.name not in self._listed or entry.name in self._rechecked:
                raise child_violation("The child process sent a change of a file that was not listed.", path=entry.name)
            self._rechecked.add(entry.name)

    def _check_appeared(self, entries: Sequence[Entry]) -> Sequence[Entry]:
        self._add_listed(entries)
        return entries

    def _check_vanished(self, entries: Sequence[Entry]) -> Sequence[Entry]:
        for entry in entries:
            if entry.name not in self._listed:
                raise child_violation("The child process sent a file as vanished that was not listed.", path=entry.name)
        return entries

    def _recheck(self, changes: ListingChanges, target: CountingTarget) -> Sequence[IncomingFile]:
        if not target.verifies_stability:
            raise child_violation("The child process listed files again, although this was not requested.")
        return target.recheck(changes)

    def _write(self, frame: frames.Data) -> None:
        admitted = self._admitted_file(frame.file_number)
        name = admitted.entry.name
        admitted.remaining -= len(frame.data)
        if admitted.remaining < 0:
            raise child_violation("The child process sent more bytes than the file has.", path=name)
        if admitted.file is None or admitted.file.is_finished:
            return
        self._begun.add(name)
        if len(self._begun) > _MAX_BEGUN_FILES:
            raise child_violation("The child process began too many files at once.", path=name)
        admitted.file.write(frame.offset, (frame.data,))

    def _admitted_file(self, number: int) -> _AdmittedFile:
        index = number - self._first_number
        admitted = self._files[index] if 0 <= index < len(self._files) else None
        if admitted is None:
            raise child_violation("The child process referred to a file that is not admitted.")
        return admitted

    def _end_file(self, number: int) -> IncomingFile | None:
        """Return the file, and allow the child to send no more of it."""
        admitted = self._admitted_file(number)
        self._files[number - self._first_number] = None
        self._begun.discard(admitted.entry.name)
        self._ended_files += 1
        return admitted.file

    def _check_name(self, name: bytes) -> None:
        check_name_length(name, self._limits)
        if name not in self._names:
            self._names.add(name)

    def _import(self, name: bytes) -> None:
        if self._import_file is None:
            raise child_violation("The child process sent a file of an rcp command, and none was run.", path=name)
        if name in self._names:
            raise child_violation("The child process sent a file name twice.", path=name)
        self._check_name(name)
        self._import_file(name)

    def _log(self, frame: frames.Log) -> None:
        self._log_lines += 1
        if self._log_lines <= _MAX_LOG_LINES and frame.logger in _LOGGERS:
            logging.getLogger(frame.logger).log(frame.level, "%s", escape(frame.message))


def _describe_admitted(entries: Sequence[Entry], files: dict[bytes, IncomingFile]) -> dict[str, Any]:
    """Return the answer to an ADMIT frame: only exceptions from files that are wanted as a whole, by their index."""
    declined: list[int] = []
    ranges: list[tuple[int, Sequence[tuple[int, int]]]] = []
    for index, entry in enumerate(entries):
        file = files.get(entry.name)
        if file is None:
            declined.append(index)
        elif entry.size and (missing := tuple(file.missing())) != ((0, entry.size),):
            ranges.append((index, missing))
    return {"declined": declined, "ranges": ranges}

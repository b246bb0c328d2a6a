"""Check every frame of a child before it reaches the target.

A compromised child can make the run fail, or deliver wrong bytes for the files of that run. It cannot write outside the
target, announce or send more than `Limits` and the disk allow, or make the parent use unbounded memory.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from peerstage.errors import LimitExceeded
from peerstage.isolation.protocol import frames
from peerstage.isolation.protocol.values import child_violation
from peerstage.printable import escape
from peerstage.reasons import Reason
from peerstage.records import KIB, REPLY_BYTES, Limits
from peerstage.target.base import IncomingFile, Target
from peerstage.transport.counting import CountingTarget
from peerstage.transport.names import ListedNames, check_name_length

#: Files in progress at a time: those that the transport has open, and those that a lost connection left.
_MAX_OPEN_FILES = 4 * KIB
#: Log lines of one job.
_MAX_LOG_LINES = 1000
#: Replies of a peer for one file, in addition to its data.
_REPLIES_PER_FILE = 8

_LOGGERS = frozenset(
    f"peerstage.{name}"
    for name in ("ssh", "ssh.paramiko", "transport", "transport.rcp", "target", "staging", "isolation")
)


@dataclass(slots=True)
class _OpenFile:
    """A file in progress, and the number of bytes that may still be sent for it."""

    name: bytes
    file: IncomingFile
    remaining: int


class FrameReceiver:
    """Handles the frames of one job.

    Args:
        target: Where files go; None for a job without files.
        limits: Bounds on the number of files and on their names.
        tries: How many connections in a row the child may make without progress.
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
        directory: bytes = b"",
        import_file: Callable[[bytes], object] | None = None,
        on_output: Callable[[bytes], object] | None = None,
    ) -> None:
        self.reply: dict[str, Any] | None = None
        self._target = None if target is None else CountingTarget(target)
        self._limits = limits
        self._tries = tries
        self._import_file = import_file
        self._on_output = on_output
        self._names = ListedNames(directory, limits)
        self._files: dict[int, _OpenFile] = {}
        self._numbers: dict[bytes, int] = {}
        self._next_number = 0
        self._unopened: tuple[int, int] | None = None  # announced files and bytes that are not opened yet
        self._last_progress = 0
        self._announcements = 0
        self._opened = 0
        self._log_lines = 0

    @property
    def received(self) -> int:
        """Bytes received, for the deadline: file data, and what the child may receive besides: a listing and replies.

        The parent does not see the listing and the replies, and counts their maximum.
        """
        stored = 0 if self._target is None else self._target.high_water
        files = min(self._next_number, self._limits.entries)
        return stored + self._limits.listing_bytes + _REPLIES_PER_FILE * REPLY_BYTES * files

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
            case frames.Open():
                self._open(frame, target)
            case frames.Finish(number):
                self._close(number).finish()
            case frames.Fail(number, error):
                self._close(number).fail(error)
            case frames.Expect():
                self._expect(frame, target)
            case frames.Refuse(name, error):
                self._check_name(name)
                target.refuse(name, error)
            case frames.ImportFile(name):
                self._import(name)
            case _:
                raise child_violation("The child process sent an unexpected frame.")

    def _expect(self, frame: frames.Expect, target: CountingTarget) -> None:
        self._reset_after_progress(target)
        self._announcements += 1
        if self._announcements > self._tries:
            raise child_violation("The child process announced files more often than it may connect.")
        if frame.files > self._limits.entries:
            raise LimitExceeded(
                f"The peer announced {frame.files} files, more than {self._limits.entries} (Limits.entries).",
                reason=Reason.LIMIT_EXCEEDED,
                limit="entries",
            )
        target.expect(frame.files, frame.size)
        self._unopened = (frame.files, frame.size)

    def _reset_after_progress(self, target: CountingTarget) -> None:
        """After progress, allow as many further connections as at first."""
        if target.high_water > self._last_progress:
            self._last_progress = target.high_water
            self._announcements = self._opened = 0

    def _open(self, frame: frames.Open, target: CountingTarget) -> None:
        entry = frame.entry
        if frame.file_number != self._next_number:
            raise child_violation("The child process skipped or repeated a file number.", path=entry.name)
        self._next_number += 1
        max_opened = self._tries * self._limits.entries
        if self._opened >= max_opened:
            self._reset_after_progress(target)
        self._opened += 1
        if self._opened > max_opened:
            raise child_violation("The child process opened files more often than it may connect.")
        self._check_name(entry.name)
        if self._unopened is not None:
            files, size = self._unopened
            self._unopened = (files - 1, size - entry.size)
            if min(self._unopened) < 0:
                raise child_violation("The child process opened more files than it announced.", path=entry.name)
        if (previous := self._numbers.pop(entry.name, None)) is not None:
            self._files.pop(previous, None)
        if len(self._files) >= _MAX_OPEN_FILES:
            raise child_violation("The child process opened too many files at once.", path=entry.name)
        self._files[frame.file_number] = _OpenFile(entry.name, target.open(entry), entry.size)
        self._numbers[entry.name] = frame.file_number

    def _write(self, frame: frames.Data) -> None:
        open_file = self._open_file(frame.file_number)
        open_file.remaining -= len(frame.data)
        if open_file.remaining < 0:
            raise child_violation("The child process sent more bytes than the file has.", path=open_file.name)
        if not open_file.file.is_finished:  # it may have failed on this side, which the child does not know
            open_file.file.write(frame.offset, (frame.data,))

    def _open_file(self, number: int) -> _OpenFile:
        open_file = self._files.get(number)
        if open_file is None:
            raise child_violation("The child process referred to a file that is not open.")
        return open_file

    def _close(self, number: int) -> IncomingFile:
        open_file = self._open_file(number)
        del self._files[number]
        self._numbers.pop(open_file.name, None)
        return open_file.file

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

"""The target in a child: each call becomes a frame, without a reply.

The child also records which ranges of a file it has sent, so that it fetches only the rest after a lost connection.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from peerstage.errors import IncompleteFile, NotAvailable, ProtocolError, StageError
from peerstage.isolation.child.frame_writer import FrameWriter
from peerstage.isolation.protocol.frames import Expect, Fail, Finish, ImportFile, Open, Refuse
from peerstage.records import Entry
from peerstage.target.base import MAX_TRIAL_OPENS, Buffer, CommandTarget, IncomingFile
from peerstage.target.received_data import ReceivedData


class ChildTarget(CommandTarget):
    """Forwards every call to the parent's target.

    Args:
        writer: The pipe to the parent.
        wants_content: As for `Target`.
        workspace: Descriptor of the directory that a command may fill, or -1.
    """

    def __init__(self, writer: FrameWriter, *, wants_content: bool = True, workspace: int = -1) -> None:
        self.wants_content = wants_content
        self._writer = writer
        self._workspace = workspace
        self._files: dict[bytes, ChildFile] = {}
        self._next_number = 0

    def expect(self, files: int, size: int) -> None:
        self._writer.put(Expect(files, size))

    def open(self, entry: Entry) -> IncomingFile:
        """See `Target.open`. A file that was begun is resumed under a new number, here and in the parent."""
        file = self._files.get(entry.name)
        if file is None or file.entry != entry or not (file.is_finished or entry.mtime is not None):
            size = entry.size if self.wants_content else 0
            is_finished = not self.wants_content and len(self._files) >= MAX_TRIAL_OPENS
            file = self._files[entry.name] = ChildFile(self._writer, entry, size, is_finished=is_finished)
        else:
            file.resume()
        file.number = self._next_number
        self._next_number += 1
        self._writer.put(Open(file.number, entry))
        if file.is_finished:  # else the parent would keep it open
            self._writer.put(Finish(file.number))
        return file

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


class ChildFile(IncomingFile):
    """A file that is sent to the parent.

    Args:
        writer: The pipe to the parent.
        entry: The file.
        size: Bytes of it that are wanted.
        is_finished: Whether it is finished from the start.

    Attributes:
        number: The file number in the current connection.
    """

    __slots__ = ("_received", "_size", "_writer", "entry", "is_finished", "number")

    is_finished: bool

    def __init__(self, writer: FrameWriter, entry: Entry, size: int, *, is_finished: bool) -> None:
        self.entry = entry
        self.number = 0
        self._size = size
        self._writer = writer
        self._received: ReceivedData | None = None
        self.is_finished = is_finished

    def missing(self) -> Sequence[tuple[int, int]]:
        if self.is_finished or not self._size:
            return ()
        return ((0, self._size),) if self._received is None else tuple(self._received.missing())

    def resume(self) -> None:
        """Resume the file over another connection: samples are fetched again and compared.

        The parent's file compares the same samples, with the same result.
        """
        if self._received is not None:
            self._received.resume()

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        length = sum(len(buffer) for buffer in buffers)
        if offset < 0 or offset + length > self._size:
            raise ProtocolError("The peer sent more bytes than the listing promised.", path=self.entry.name)
        if not length:
            return
        if self._received is None:
            self._received = ReceivedData(self._size)
        self._received.add(offset, buffers, length)
        self._writer.put_data(self.number, offset, buffers, length)

    def finish(self) -> None:
        if self.is_finished:
            return
        size = self._size
        if size and (self._received is None or not self._received.is_complete):
            received = 0 if self._received is None else self._received.received_bytes
            self.fail(IncompleteFile(f"{received} of {size} bytes arrived. Stage again."))
            return
        self._settle()
        self._writer.put(Finish(self.number))

    def fail(self, error: StageError) -> None:
        if not self.is_finished:
            self._settle()
            self._writer.put(Fail(self.number, error))

    def _settle(self) -> None:
        self.is_finished = True
        self._received = None

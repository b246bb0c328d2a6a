"""A peer in memory: for tests of what stands above the transports, ours and our users'."""

from __future__ import annotations

import stat
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from peerstage.documented import Documented
from peerstage.errors import IncompleteFile, NotRegular, RemoteError, RemoteNotFound, StageError
from peerstage.landing.base import Landing, ranges_to_fetch
from peerstage.reasons import Reason
from peerstage.records import Capabilities, Entry
from peerstage.transport.base import Transport
from peerstage.transport.refusals import NO_DIRECTORY


@dataclass(frozen=True)
class MemoryFile(metaclass=Documented):
    """One entry of a directory in memory.

    Attributes:
        data: Its content.
        mode: Type and permission bits, as st_mode; a regular file of 0644 by default.
        mtime: Seconds since the epoch.
        promised: The size that the listing tells, if not that of *data*.
        error: What reading it fails with.
    """

    data: bytes = b""
    mode: int = stat.S_IFREG | 0o644
    mtime: int = field(default_factory=lambda: int(time.time()))
    promised: int | None = None
    error: StageError | None = None


class MemoryTransport(Transport):
    """Serves directories that are dicts.

    Args:
        directories: For each directory, its entries by name.
        piece: Bytes in one write to a slot.
        before_piece: Called before each write with the number of bytes written so far; what it raises cuts the run off.
    """

    capabilities = Capabilities("memory", resumes=True)

    def __init__(
        self,
        directories: dict[bytes, dict[bytes, MemoryFile]],
        *,
        piece: int = 64 * 1024,
        before_piece: Callable[[int], object] | None = None,
    ) -> None:
        self.directories = directories
        self.closed = False
        self._piece = piece
        self._before_piece = before_piece
        self._written = 0

    def pull(self, directory: bytes, landing: Landing) -> None:
        if directory not in self.directories:
            raise RemoteNotFound(NO_DIRECTORY, path=directory)
        files = {name: file for name, file in self.directories[directory].items() if not name.startswith(b".")}
        entries = []
        for name, file in files.items():
            if stat.S_ISREG(file.mode):
                size = len(file.data) if file.promised is None else file.promised
                entries.append(Entry(name, size, stat.S_IMODE(file.mode), file.mtime))
            else:
                landing.refuse(name, NotRegular("Only regular files are staged, and it is none.", path=name))
        landing.expect(len(entries), sum(entry.size for entry in entries))
        for entry in entries:
            self._copy(entry, files[entry.name], landing)

    def exists(self, path: bytes) -> bool:
        directory, _, name = path.rpartition(b"/")
        if directory not in self.directories:
            raise RemoteNotFound(NO_DIRECTORY, path=directory)
        file = self.directories[directory].get(name)
        return file is not None and stat.S_ISREG(file.mode)

    def touch(self, path: bytes) -> None:
        directory, _, name = path.rpartition(b"/")
        if directory not in self.directories:
            raise RemoteNotFound(NO_DIRECTORY, path=directory)
        there = self.directories[directory].get(name)
        if there is not None and not stat.S_ISREG(there.mode):
            raise RemoteError("It is no regular file.", path=path, reason=Reason.NOT_A_FILE)
        self.directories[directory][name] = MemoryFile() if there is None else replace(there, data=b"")

    def close(self) -> None:
        self.closed = True

    def _copy(self, entry: Entry, file: MemoryFile, landing: Landing) -> None:
        slot = landing.open(entry)
        if slot.is_finished:
            return
        if file.error is not None:
            slot.fail(file.error)
            return
        for start, end in ranges_to_fetch(slot):
            while start < end:
                if self._before_piece is not None:
                    self._before_piece(self._written)
                piece = file.data[start : min(start + self._piece, end)]
                if not piece:
                    slot.fail(IncompleteFile(f"It ends at byte {start}, and {entry.size} were promised."))
                    return
                slot.write(start, [piece])
                self._written += len(piece)
                start += len(piece)
        slot.finish()

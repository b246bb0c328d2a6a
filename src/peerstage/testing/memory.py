"""A transport that serves directories in memory, for tests of the layers above the transports."""

from __future__ import annotations

import stat
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from peerstage.documented import Documented
from peerstage.errors import EntryError, IncompleteFile, RemoteError, RemoteNotFound, StageError
from peerstage.reasons import Reason
from peerstage.records import Capabilities, Entry, RemoteFile
from peerstage.target.base import IncomingFile, Target, ranges_to_fetch
from peerstage.transport.base import Transport
from peerstage.transport.names import is_hidden
from peerstage.transport.refusals import NO_DIRECTORY, not_regular
from peerstage.transport.stability import fetch_stable


@dataclass(frozen=True)
class MemoryFile(metaclass=Documented):
    """One entry of a directory in memory.

    Attributes:
        data: Its content.
        mode: Type and permission bits, as st_mode; a regular file of 0644 by default.
        mtime: Seconds since the epoch.
        listed_size: The size in the listing, if it differs from that of *data*.
        error: The error that reading it raises.
    """

    data: bytes = b""
    mode: int = stat.S_IFREG | 0o644
    mtime: int = field(default_factory=lambda: int(time.time()))
    listed_size: int | None = None
    error: StageError | None = None


class MemoryTransport(Transport):
    """Serves directories that are dicts.

    Args:
        directories: For each directory, its entries by name.
        chunk_size: Bytes in one write to a file.
        before_write: Called before each write with the number of bytes written so far; an exception ends the run.

    Attributes:
        on_received: Called after each write with its number of bytes; an exception ends the run.
    """

    capabilities = Capabilities("memory", can_resume=True)

    def __init__(
        self,
        directories: dict[bytes, dict[bytes, MemoryFile]],
        *,
        chunk_size: int = 64 * 1024,
        before_write: Callable[[int], object] | None = None,
    ) -> None:
        self.directories = directories
        self.closed = False
        self._chunk_size = chunk_size
        self._before_write = before_write
        self.on_received: Callable[[int], object] = lambda size: None
        self._written = 0

    def pull(self, directory: bytes, target: Target) -> None:
        for name, file in self._entries(directory).items():
            if not is_hidden(name) and not stat.S_ISREG(file.mode):
                target.refuse(name, not_regular(name))

        def fetch(files: Iterable[IncomingFile]) -> None:
            for incoming in files:
                self._copy(directory, incoming)

        fetch_stable(target, self._list_files(directory), fetch=fetch, relist=lambda: self._list_files(directory))

    def stat(self, path: bytes) -> RemoteFile | None:
        directory, _, name = path.rpartition(b"/")
        file = self._entries(directory).get(name)
        return RemoteFile(len(file.data), file.mtime) if file is not None and stat.S_ISREG(file.mode) else None

    def touch(self, path: bytes) -> None:
        directory, _, name = path.rpartition(b"/")
        entries = self._entries(directory)
        file = entries.get(name)
        if file is not None and not stat.S_ISREG(file.mode):
            raise RemoteError("It is not a regular file.", path=path, reason=Reason.NOT_A_FILE)
        entries[name] = MemoryFile() if file is None else replace(file, data=b"", mtime=int(time.time()))

    def close(self) -> None:
        self.closed = True

    def _entries(self, directory: bytes) -> dict[bytes, MemoryFile]:
        if directory not in self.directories:
            raise RemoteNotFound(NO_DIRECTORY, path=directory)
        return self.directories[directory]

    def _list_files(self, directory: bytes) -> list[Entry]:
        """Return the files in *directory*, as they are now."""
        return [
            Entry(
                name,
                len(file.data) if file.listed_size is None else file.listed_size,
                stat.S_IMODE(file.mode),
                file.mtime,
            )
            for name, file in self._entries(directory).items()
            if not is_hidden(name) and stat.S_ISREG(file.mode)
        ]

    def _copy(self, directory: bytes, incoming: IncomingFile) -> None:
        file = self._entries(directory).get(incoming.entry.name)
        if file is None:
            incoming.fail(EntryError("It was removed while it was staged.", reason=Reason.VANISHED))
            return
        if file.error is not None:
            incoming.fail(file.error)
            return
        for start, end in ranges_to_fetch(incoming):
            while start < end:
                if self._before_write is not None:
                    self._before_write(self._written)
                chunk = file.data[start : min(start + self._chunk_size, end)]
                if not chunk:
                    size = incoming.entry.size
                    incoming.fail(IncompleteFile(f"It ends at byte {start}, but {size} bytes were listed."))
                    return
                incoming.write(start, [chunk])
                self._written += len(chunk)
                self.on_received(len(chunk))
                start += len(chunk)
        incoming.finish()

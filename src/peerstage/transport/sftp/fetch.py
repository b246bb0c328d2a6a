"""The engine: OPEN, FSTAT, READ and CLOSE of many files in flight at once on one channel.

For each file the requests go out in this order, and a server must act on them in this order (draft, 6.1), whatever the
order of its replies::

    OPEN ── handle ──> FSTAT*, READ, READ, ..., FSTAT ── all there, unchanged ──> CLOSE
                         * of files that take more than one READ

Reads are spread over files so that the line never waits for a round trip, and are bounded by a `Window`.
"""

from __future__ import annotations

import stat
from collections import deque
from collections.abc import Iterator, Sequence
from enum import Enum, auto

from peerstage.errors import ChangedFile, EntryError, IncompleteFile, NotRegular, ProtocolError, RemoteError
from peerstage.landing.base import Landing, Slot
from peerstage.records import MIB, Entry, Limits
from peerstage.transport.base import join
from peerstage.transport.names import check_path
from peerstage.transport.sftp import wire
from peerstage.transport.sftp.client import (
    Reply,
    SFTPClient,
    attributes_of,
    entry_reason,
    handle_of,
    refusal,
    status_of,
)
from peerstage.transport.sftp.window import Mark, Window

#: Files are opened ahead until so many bytes of opened files wait to be asked for.
_BACKLOG = 32 * MIB
#: Bytes of a reply before its body: length, type, number (3).
_HEADER = 9
#: What to do about a file that changes.
_FINISH = "Let the peer finish collecting first: it must write its indicator last."


class _Op(Enum):
    OPEN = auto()
    FSTAT = auto()
    READ = auto()
    CLOSE = auto()


class _File:
    """One file on its way."""

    __slots__ = (
        "attributes_due",
        "entry",
        "handle",
        "is_last_round",
        "outstanding",
        "path",
        "refusals",
        "slot",
        "todo",
    )

    def __init__(self, entry: Entry, path: bytes, slot: Slot) -> None:
        self.entry = entry
        self.path = path
        self.slot = slot
        self.handle = b""
        self.todo: deque[tuple[int, int]] = deque(slot.missing())
        self.outstanding = 0
        self.attributes_due = True  # an FSTAT has yet to be sent behind the last READ
        self.refusals = 0
        self.is_last_round = False

    @property
    def left(self) -> int:
        return sum(end - start for start, end in self.todo)


class Fetch:
    """Fetches *entries* of *directory* into *landing*.

    Args:
        client: A conversation with nothing outstanding.
        directory: The collect directory.
        limits: Bounds for what is sent.
        window: How much to have in flight.
    """

    def __init__(
        self, client: SFTPClient, directory: bytes, landing: Landing, limits: Limits, window: Window | None = None
    ) -> None:
        self._client = client
        self._directory = directory
        self._landing = landing
        self._limits = limits
        self._window = window or Window(limits)
        self._waiting: deque[_File] = deque()
        self._alone: deque[_File] = deque()
        self._reading: deque[_File] = deque()
        self._open = 0
        self._most_open = client.handles
        self._in_flight = 0
        self._backlog = 0

    def run(self, entries: Sequence[Entry]) -> None:
        """Fetch every entry that the landing does not have yet; a file that can not be fetched fails on its slot.

        Raises:
            ProtocolError, ConnectionLost, LimitExceeded, Cancelled, LandingError: The run was cut off.
        """
        upcoming = iter(entries)
        client = self._client
        while True:
            self._start_files(upcoming)
            self._ask()
            if not client.outstanding:
                if not self._alone:
                    return
                self._begin(self._alone.popleft())
                continue
            self._take(client.reply())
            while client.has_more and client.outstanding:
                self._take(client.reply())

    # Out.

    def _start_files(self, upcoming: Iterator[Entry]) -> None:
        """Open files ahead, as far as handles and backlog allow."""
        while self._open < self._most_open and (self._backlog < _BACKLOG or not self._open):
            file = self._waiting.popleft() if self._waiting else self._next_file(upcoming)
            if file is None:
                return
            self._begin(file)

    def _next_file(self, upcoming: Iterator[Entry]) -> _File | None:
        for entry in upcoming:
            slot = self._landing.open(entry)
            if not slot.is_finished:
                path = join(self._directory, entry.name)
                check_path(path, self._limits)
                return _File(entry, path, slot)
        return None

    def _begin(self, file: _File) -> None:
        self._open += 1
        self._backlog += file.left
        context = (_Op.OPEN, file, 0, 0, self._window.mark())
        self._client.request(wire.OPEN, wire.open_file(file.path, wire.FXF_READ), context)

    def _ask(self) -> None:
        """Ask for data of opened files, in turn, as far as the window allows."""
        client, window = self._client, self._window
        most = min(client.read_bytes, window.read_bytes)
        while self._reading and self._in_flight < window.size:
            file = self._reading[0]
            mark = window.mark()
            while file.todo and self._in_flight < window.size:
                start, end = file.todo.popleft()
                if end - start > most:
                    file.todo.appendleft((start + most, end))
                    end = start + most
                length = end - start
                self._backlog -= length
                self._in_flight += length
                file.outstanding += 1
                client.request(wire.READ, wire.read(file.handle, start, length), (_Op.READ, file, start, length, mark))
            if not file.todo:
                self._reading.popleft()
                if file.attributes_due:
                    self._ask_attributes(file)
                    file.attributes_due = False

    def _ask_attributes(self, file: _File) -> None:
        file.outstanding += 1
        self._client.request(wire.FSTAT, wire.string(file.handle), (_Op.FSTAT, file, 0, 0, None))

    # In.

    def _take(self, reply: Reply) -> None:
        op, file, start, length, asked = reply.context
        if op is _Op.OPEN:
            self._window.arrived(_HEADER + len(reply.body), asked)
            self._opened(file, reply)
            return
        if op is _Op.CLOSE:
            status_of(reply)
            return
        file.outstanding -= 1
        if op is _Op.READ:
            self._in_flight -= length
            self._read(file, reply, start, length, asked)
        else:
            self._compare(file, reply)
        if not file.outstanding and not file.todo and not self._fetch_again(file):
            self._finish(file)  # the last FSTAT's reply is among those that came

    def _opened(self, file: _File, reply: Reply) -> None:
        try:
            file.handle = handle_of(reply, file.path)
        except RemoteError as exc:
            self._open -= 1
            self._backlog -= file.left
            self._not_opened(file, exc, transient=reply.kind == wire.STATUS and _is_failure(reply))
            return
        self._reading.append(file)
        if file.left > self._client.read_bytes:
            self._ask_attributes(file)
        elif not file.todo:
            self._reading.pop()
            self._ask_attributes(file)
            file.attributes_due = False

    def _not_opened(self, file: _File, error: RemoteError, *, transient: bool) -> None:
        """A general failure may only mean that too many handles are open: then try with fewer, in the end alone."""
        if transient and file.refusals < 2 and (self._open or file.refusals):
            file.refusals += 1
            self._most_open = max(1, self._open * 3 // 4)
            (self._waiting if file.refusals == 1 else self._alone).append(file)
            return
        file.slot.fail(
            EntryError(f"It could not be opened: {error.message}", path=file.entry.name, reason=entry_reason(error))
        )

    def _read(self, file: _File, reply: Reply, start: int, length: int, asked: Mark) -> None:
        if reply.kind != wire.DATA:
            status = status_of(reply)
            if status.code == wire.FX_EOF:
                self._give_up(file, IncompleteFile(f"It ends at byte {start}, and {file.entry.size} were promised."))
            elif status.code == wire.FX_OK:
                raise ProtocolError("The peer answers a read with OK and no data.", path=file.path)
            else:
                error = refusal(status, file.path)
                self._give_up(file, EntryError(f"It could not be read: {error.message}", reason=entry_reason(error)))
            return
        pieces = reply.body
        came = sum(len(piece) for piece in pieces) if isinstance(pieces, list) else len(pieces)
        if came > length:
            raise ProtocolError(f"The peer sent {came} bytes where {length} were asked for.", path=file.path)
        if not came:
            self._give_up(file, IncompleteFile(f"It ends at byte {start}, and {file.entry.size} were promised."))
            return
        if file.slot.is_finished:  # it has failed meanwhile
            return
        file.slot.write(start, pieces if isinstance(pieces, list) else [pieces])
        self._window.arrived(came, asked)
        if came < length:  # a short read: ask for the rest, and for the attributes again after it
            if not file.todo:
                self._reading.appendleft(file)
            file.todo.appendleft((start + came, start + length))
            self._backlog += length - came
            file.attributes_due = True

    def _compare(self, file: _File, reply: Reply) -> None:
        """Hold the open file's attributes against what the listing promised."""
        try:
            now = attributes_of(reply, file.path)
        except RemoteError as exc:
            self._give_up(
                file, EntryError(f"Its attributes could not be read: {exc.message}", reason=entry_reason(exc))
            )
            return
        entry = file.entry
        if now.mode is not None and stat.S_IFMT(now.mode) and not stat.S_ISREG(now.mode):
            self._give_up(file, NotRegular("What was opened is no regular file; the listing said it was."))
        elif now.size is not None and now.size != entry.size:
            changed = f"Its size changed from {entry.size} to {now.size} bytes while it was staged."
            self._give_up(file, ChangedFile(f"{changed} {_FINISH}"))
        elif None not in (now.mtime, entry.mtime) and now.mtime != entry.mtime:
            self._give_up(file, ChangedFile(f"It was modified while it was staged. {_FINISH}"))

    def _give_up(self, file: _File, error: EntryError) -> None:
        if not error.path:
            error.path = file.entry.name
        file.slot.fail(error)
        self._backlog -= file.left
        if file.todo:
            file.todo.clear()
            self._reading.remove(file)
        file.attributes_due = False

    def _fetch_again(self, file: _File) -> bool:
        """Fetch what was kept of an earlier connection and turned out to be of another version of the file; once."""
        if file.slot.is_finished or file.is_last_round or not (missing := file.slot.missing()):
            return False
        file.is_last_round = True
        file.todo.extend(missing)
        self._backlog += file.left
        file.attributes_due = True
        self._reading.append(file)
        return True

    def _finish(self, file: _File) -> None:
        self._client.request(wire.CLOSE, wire.string(file.handle), (_Op.CLOSE, file, 0, 0, None))
        self._open -= 1  # the server acts on CLOSE before the OPEN that follows it
        file.slot.finish()


def _is_failure(reply: Reply) -> bool:
    return status_of(reply).code == wire.FX_FAILURE

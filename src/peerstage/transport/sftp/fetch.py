"""Pipelined SFTP download: requests for many files in flight on one channel.

The requests for each file go out in this order. A server must process the requests for one file in the order in which
it receives them (draft-ietf-secsh-filexfer-02, section 6.1), whatever the order of its replies::

    OPEN ── handle ──> FSTAT¹, READ, READ, ..., FSTAT² ── complete, unchanged ──> CLOSE
                         ¹ only for files that take more than one READ, so that no other version of them is read
                         ² only for racy files; for the others, another listing shows later whether they changed

READs of one file follow those of another without a pause, so that the line never idles for a round trip. A `Window`
bounds the bytes in flight.
"""

from __future__ import annotations

import stat
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

from peerstage.errors import ChangedFile, EntryError, IncompleteFile, NotRegular, ProtocolError, RemoteError
from peerstage.paths import join_path
from peerstage.records import MIB, Entry
from peerstage.ssh.data_types import pack_string
from peerstage.target.base import CHANGED_ADVICE, IncomingFile
from peerstage.transport.names import check_path_length
from peerstage.transport.refusals import entry_reason
from peerstage.transport.sftp import wire
from peerstage.transport.sftp.client import Reply, SFTPClient, status_error
from peerstage.transport.sftp.window import SendMark, Window

#: Open further files while fewer than this many bytes of the open ones remain to be requested.
_MAX_BACKLOG = 32 * MIB
#: The bytes of a reply before its body: length, type, request id (section 3).
_REPLY_HEADER_BYTES = 9


@dataclass(slots=True, eq=False)
class _Transfer:
    """The state of one file that is being fetched.

    Attributes:
        path: The file's path on the peer.
        ranges: What is missing and not requested yet, as (start, end).
        outstanding: The number of its READs and FSTATs without a reply.
        is_racy: Whether its attributes are compared again after its last READ.
        needs_fstat: Whether an FSTAT must follow the last READ.
        failed_opens: How many OPENs failed, possibly at the handle limit.
        is_refetch: Whether its data had to be requested a second time.
    """

    path: bytes
    file: IncomingFile
    ranges: deque[tuple[int, int]]
    handle: bytes = b""
    outstanding: int = 0
    is_racy: bool = False
    needs_fstat: bool = False
    failed_opens: int = 0
    is_refetch: bool = False

    @property
    def entry(self) -> Entry:
        return self.file.entry

    @property
    def backlog(self) -> int:
        return sum(end - start for start, end in self.ranges)


class Fetcher:
    """Fetches files of *directory*.

    Args:
        client: A client without outstanding requests.
        directory: The collect directory.
        window: Sets the number of bytes to keep in flight.
        racy_from: The modification time from which files are racy; None to compare no file's attributes.
    """

    def __init__(
        self, client: SFTPClient, directory: bytes, window: Window | None = None, *, racy_from: float | None = None
    ) -> None:
        self._client = client
        self._directory = directory
        self._racy_from = racy_from
        self._window = window or Window(client.limits, bandwidth=client.bandwidth)
        self._to_reopen: deque[_Transfer] = deque()
        self._to_reopen_serially: deque[_Transfer] = deque()
        self._readable: deque[_Transfer] = deque()  # open, with ranges to request
        self._open_count = 0
        self._max_open = client.max_open_handles
        self._in_flight = 0
        self._backlog = 0

    def run(self, files: Iterable[IncomingFile]) -> None:
        """Fetch what is missing of *files*. A file that cannot be fetched fails alone.

        Raises:
            ProtocolError, ConnectionLost, LimitExceeded, Cancelled, TargetError: If the run was cut off.
        """
        remaining = iter(files)
        client = self._client
        while True:
            self._open_files(remaining)
            self._send_reads()
            if not client.outstanding:
                if not self._to_reopen_serially:
                    return
                self._send_open(self._to_reopen_serially.popleft())
                continue
            self._handle_next_reply()
            while client.reader.has_more and client.outstanding:
                self._handle_next_reply()

    def _handle_next_reply(self) -> None:
        """Call the context of the next reply, which is the function that handles it."""
        reply = self._client.read_reply()
        reply.context(reply)

    # Requests.

    def _open_files(self, remaining: Iterator[IncomingFile]) -> None:
        """Open files ahead, as far as the handles and the backlog allow."""
        while self._open_count < self._max_open and (self._backlog < _MAX_BACKLOG or not self._open_count):
            transfer = self._to_reopen.popleft() if self._to_reopen else self._next_transfer(remaining)
            if transfer is None:
                return
            self._send_open(transfer)

    def _next_transfer(self, remaining: Iterator[IncomingFile]) -> _Transfer | None:
        file = next(remaining, None)
        if file is None:
            return None
        path = join_path(self._directory, file.entry.name)
        check_path_length(path, self._client.limits)
        mtime, racy_from = file.entry.mtime, self._racy_from
        is_racy = mtime is not None and racy_from is not None and mtime >= racy_from
        return _Transfer(path, file, deque(file.missing()), is_racy=is_racy, needs_fstat=is_racy)

    def _send_open(self, transfer: _Transfer) -> None:
        self._open_count += 1
        self._backlog += transfer.backlog
        handle_reply = partial(self._handle_open, transfer, self._window.mark_send())
        self._client.queue_request(wire.FXP_OPEN, wire.pack_open(transfer.path, wire.FXF_READ), handle_reply)

    def _send_reads(self) -> None:
        """Request data of the open files, one file after the other, as far as the window allows."""
        client, window = self._client, self._window
        max_length = min(client.max_read_length, window.max_read_length)
        while self._readable and self._in_flight < window.size:
            transfer = self._readable[0]
            sent = window.mark_send()
            while transfer.ranges and self._in_flight < window.size:
                start, end = transfer.ranges.popleft()
                if end - start > max_length:
                    transfer.ranges.appendleft((start + max_length, end))
                    end = start + max_length
                length = end - start
                self._backlog -= length
                self._in_flight += length
                transfer.outstanding += 1
                body = wire.pack_read(transfer.handle, start, length)
                client.queue_request(wire.FXP_READ, body, partial(self._handle_read, transfer, start, length, sent))
            if not transfer.ranges:
                self._readable.popleft()
                if transfer.needs_fstat:
                    self._send_fstat(transfer)
                    transfer.needs_fstat = False

    def _send_fstat(self, transfer: _Transfer) -> None:
        transfer.outstanding += 1
        self._client.queue_request(wire.FXP_FSTAT, pack_string(transfer.handle), partial(self._handle_fstat, transfer))

    # Replies.

    def _handle_open(self, transfer: _Transfer, sent: SendMark, reply: Reply) -> None:
        self._window.record_reply(_REPLY_HEADER_BYTES + len(reply.body), sent)
        try:
            transfer.handle = reply.expect_handle(transfer.path)
        except RemoteError as exc:
            self._open_count -= 1
            self._backlog -= transfer.backlog
            self._handle_open_error(transfer, exc, reply.expect_status())
            return
        if self._racy_from is not None and transfer.backlog > self._client.max_read_length:
            self._send_fstat(transfer)
        if transfer.ranges:
            self._readable.append(transfer)
        elif transfer.needs_fstat:
            self._send_fstat(transfer)
            transfer.needs_fstat = False
        else:
            self._close_if_done(transfer)

    def _handle_open_error(self, transfer: _Transfer, error: RemoteError, status: wire.Status) -> None:
        """Fail the file, unless SSH_FX_FAILURE may mean the handle limit.

        Then retry with fewer files open, and a second time serially: with no other file open.
        """
        if status.code == wire.FX_FAILURE and transfer.failed_opens < 2 and (self._open_count or transfer.failed_opens):
            transfer.failed_opens += 1
            self._max_open = max(1, self._open_count * 3 // 4)
            (self._to_reopen if transfer.failed_opens == 1 else self._to_reopen_serially).append(transfer)
            return
        transfer.file.fail(_entry_error(transfer, "It could not be opened", error))

    def _handle_read(self, transfer: _Transfer, start: int, length: int, sent: SendMark, reply: Reply) -> None:
        self._in_flight -= length
        self._accept_data(transfer, start, length, sent, reply)
        self._end_request(transfer)

    def _accept_data(self, transfer: _Transfer, start: int, length: int, sent: SendMark, reply: Reply) -> None:
        """Write the data to the file; fail it if the READ failed."""
        if reply.type != wire.FXP_DATA:
            status = reply.expect_status()
            if status.code == wire.FX_EOF:
                self._fail_truncated(transfer, start)
            elif status.code == wire.FX_OK:
                raise ProtocolError("The peer answered a READ with SSH_FX_OK and no data.", path=transfer.path)
            else:
                error = status_error(status, transfer.path)
                self._fail(transfer, _entry_error(transfer, "It could not be read", error))
            return
        pieces = reply.body if isinstance(reply.body, list) else [reply.body]
        received = sum(map(len, pieces))
        if received > length:
            raise ProtocolError(f"The peer sent {received} bytes for a READ of {length}.", path=transfer.path)
        if not received:
            self._fail_truncated(transfer, start)
            return
        if transfer.file.is_finished:  # it failed on an earlier reply
            return
        transfer.file.write(start, pieces)
        self._window.record_reply(received, sent)
        if received < length:  # a short read: request the rest, then the attributes again
            if not transfer.ranges:
                self._readable.appendleft(transfer)
            transfer.ranges.appendleft((start + received, start + length))
            self._backlog += length - received
            transfer.needs_fstat = transfer.is_racy

    def _handle_fstat(self, transfer: _Transfer, reply: Reply) -> None:
        self._check_attributes(transfer, reply)
        self._end_request(transfer)

    def _check_attributes(self, transfer: _Transfer, reply: Reply) -> None:
        """Compare the open file's attributes with the listing."""
        try:
            found = reply.expect_attributes(transfer.path)
        except RemoteError as exc:
            self._fail(transfer, _entry_error(transfer, "Its attributes could not be read", exc))
            return
        listed = transfer.entry
        if found.mode is not None and stat.S_IFMT(found.mode) and not stat.S_ISREG(found.mode):
            self._fail(transfer, NotRegular("The opened file is not a regular file, although it was listed as one."))
        elif found.size is not None and found.size != listed.size:
            changed = f"Its size changed from {listed.size} to {found.size} bytes while it was staged."
            self._fail(transfer, ChangedFile(f"{changed} {CHANGED_ADVICE}"))
        elif None not in (found.mtime, listed.mtime) and found.mtime != listed.mtime:
            self._fail(transfer, ChangedFile(f"It was modified while it was staged. {CHANGED_ADVICE}"))

    def _fail_truncated(self, transfer: _Transfer, end: int) -> None:
        message = f"It ends at byte {end}, but was listed with {transfer.entry.size} bytes."
        self._fail(transfer, IncompleteFile(message))

    def _fail(self, transfer: _Transfer, error: EntryError) -> None:
        """Fail the file, and request no more of its data. It is closed after the last outstanding reply."""
        error.path = error.path or transfer.entry.name
        transfer.file.fail(error)
        self._backlog -= transfer.backlog
        if transfer.ranges:
            transfer.ranges.clear()
            self._readable.remove(transfer)
        transfer.needs_fstat = False

    def _refetch(self, transfer: _Transfer) -> bool:
        """Request again, at most once, ranges fetched earlier from another version; return whether there are any."""
        if transfer.file.is_finished or transfer.is_refetch or not (missing := transfer.file.missing()):
            return False
        transfer.is_refetch = True
        transfer.ranges.extend(missing)
        self._backlog += transfer.backlog
        transfer.needs_fstat = transfer.is_racy
        self._readable.append(transfer)
        return True

    def _end_request(self, transfer: _Transfer) -> None:
        """Count the reply to a READ or FSTAT."""
        transfer.outstanding -= 1
        self._close_if_done(transfer)

    def _close_if_done(self, transfer: _Transfer) -> None:
        """Close the file after its last reply, unless data must be fetched again."""
        if transfer.outstanding or transfer.ranges or self._refetch(transfer):
            return
        self._client.queue_request(wire.FXP_CLOSE, pack_string(transfer.handle), Reply.expect_status)
        self._open_count -= 1  # the server processes this CLOSE before any later OPEN
        transfer.file.finish()


def _entry_error(transfer: _Transfer, failed: str, error: RemoteError) -> EntryError:
    return EntryError(f"{failed}: {error.message}", path=transfer.entry.name, reason=entry_reason(error.reason))

"""Takes what one ``scp -f`` sends: a stream of files, each with its record before it and its status behind it."""

from __future__ import annotations

from peerstage.errors import ConnectionLost, EntryError, NotRegular, ProtocolError, RemoteError
from peerstage.landing.base import Landing, Slot
from peerstage.reasons import Reason
from peerstage.records import ANSWER_BYTES, Entry, Limits
from peerstage.session.stream import Stream
from peerstage.session.watchdog import Watchdog
from peerstage.transport.names import Names
from peerstage.transport.refusals import with_step
from peerstage.transport.scp.reader import RecordReader
from peerstage.transport.scp.records import (
    Fatal,
    File,
    Record,
    Times,
    Warn,
    blamed,
    entry_reason_of,
    longest_line,
    parse_record,
    reason_of,
)

#: Acknowledgements sent before the records that they are for; the next ones follow when a quarter of them is used up.
_AHEAD = 1024
_BATCH = 256

#: OpenSSH sends a newline in a name so, and what really has such a name too.
_NEWLINE = b"\\^J"

#: Answers to the record of a file: "send it", and a warning, behind which a sender goes on with the next file.
_ACCEPT, _SKIP = b"\0", b"\1\n"

#: Stands for the entry where the peer names none: it is what was asked for.
ANY = b"*"


class Receiver:
    """Receives the files of *directory* into *landing*.

    Args:
        stream: A command that sends them, from its first byte on.
        directory: The collect directory.
        limits: Bounds for what is sent.
        watchdog: Told of everything that comes.
        times: Whether times were asked for.
        ahead: Whether records are acknowledged before they come, so that no file waits for a round trip. Only a program
            that reads a stream of bytes can be treated so: a server that takes one message on the channel as one
            acknowledgement would wait for ever.

    Attributes:
        files: How many files came, or were skipped.
        skips: Whether files are not sent: no content is wanted, and the peer runs a program that knows how to go on.
        warnings: How many entries the peer said it can not send.
        ends_with_warning: Whether a warning was the last thing that the peer sent.
        unmatched: Why nothing came, if all that the peer said was about ``*`` itself, which no name matched.
    """

    def __init__(
        self,
        stream: Stream,
        directory: bytes,
        landing: Landing,
        limits: Limits,
        watchdog: Watchdog,
        *,
        times: bool,
        ahead: bool,
    ) -> None:
        self._stream = stream
        self._directory = directory
        self._landing = landing
        self._limits = limits
        self._watchdog = watchdog
        self._times = times
        self._ahead, self._batch = (_AHEAD, _BATCH) if ahead else (0, 1)
        self.skips = ahead and not times and not landing.wants_content
        self._answer = _SKIP if self.skips else _ACCEPT
        self._reader = RecordReader(stream.receive, longest=longest_line(limits))
        self._names = Names(directory, limits)
        self._due = 0
        self._unnamed: str | None = None
        self._about_any = ""
        self.files = 0
        self.warnings = 0
        self.ends_with_warning = False
        self.unmatched: str | None = None

    def run(self) -> None:
        """Take everything, to the end of the stream; what can not be staged is refused or fails on the landing.

        Raises:
            RemoteError: The peer gave up, or all that it sent is a warning that names no entry.
            ProtocolError, LimitExceeded, ConnectionLost, Cancelled, LandingError: The run was cut off.
        """
        self._stream.send(_ACCEPT + self._answer * self._ahead)
        mtime: int | None = None
        while (record := self._record()) is not None:
            self.ends_with_warning = isinstance(record, Warn)
            if isinstance(record, File):
                self._take(record, mtime)
                mtime = None
            elif isinstance(record, Times):
                if not self._times or mtime is not None:
                    raise ProtocolError("The peer sends a time that was not asked for.")
                mtime = record.mtime
                self._acknowledge()
            elif isinstance(record, Warn):
                self._warned(record.text)
            else:
                raise RemoteError(
                    f"The peer gives up: {record.text}.", path=self._directory, reason=reason_of(record.text)
                )
        if mtime is not None:
            raise ProtocolError("The peer sends a time and no file.")
        if self.unmatched is not None and len(self._names) > 1:
            self._refuse(ANY, self.unmatched)  # it is the name of a file, then
            self.unmatched = None
        if self._unnamed is not None:
            if not self._names:
                raise RemoteError(
                    f"The peer warns: {self._unnamed}.", path=self._directory, reason=reason_of(self._unnamed)
                )
            self.refuse_any(f"The peer warns, and names no file: {self._unnamed}.")

    def refuse_any(self, message: str) -> None:
        """Record on the landing that something that the peer does not name may be missing."""
        self._about_any = f"{self._about_any} {message}".lstrip()
        self._landing.refuse(ANY, EntryError(self._about_any, path=ANY, reason=Reason.ENTRY_UNREADABLE))

    def _record(self) -> Record | None:
        line = self._reader.line()
        if line is None:
            return None
        self._watchdog.received(ANSWER_BYTES)
        return parse_record(line, self._limits)

    def _acknowledge(self) -> None:
        self._due += 1
        if self._due >= self._batch:
            self._stream.send(self._answer * self._due)
            self._due = 0

    def _take(self, file: File, mtime: int | None) -> None:
        self._names.add(file.name)
        self.files += 1
        slot = self._slot(Entry(file.name, file.size, file.mode, mtime))
        self._acknowledge()
        if self.skips:  # its record follows the open(2)
            if slot is not None:
                slot.finish()
            return
        self._copy(file, slot)
        status = self._reader.status()
        if status is None:
            raise ConnectionLost("The peer's scp ended without saying whether the file is whole.", path=file.name)
        if status != b"\0":
            record = parse_record(status, self._limits)
            if isinstance(record, Fatal):
                raise RemoteError(f"The peer gives up: {record.text}.", path=file.name, reason=reason_of(record.text))
            if not isinstance(record, Warn):
                raise ProtocolError("The peer sends another record where a file ends.", path=file.name)
            self.warnings += 1
            if slot is not None:
                reason = entry_reason_of(record.text)
                why = with_step(f"The peer could not read it: {_why(record.text)}.", reason)
                slot.fail(EntryError(why, path=file.name, reason=reason))
        elif slot is not None:
            slot.finish()
        self._acknowledge()

    def _slot(self, entry: Entry) -> Slot | None:
        if _NEWLINE in entry.name:
            self._landing.refuse(
                entry.name,
                EntryError(
                    "SCP has no way to send a name that holds a newline, nor to tell it from this one. Use SFTP.",
                    path=entry.name,
                    reason=Reason.INVALID_NAME,
                ),
            )
            return None
        return self._landing.open(entry)

    def _copy(self, file: File, slot: Slot | None) -> None:
        """Write the file's data to its slot, or drop it where that needs it no more."""
        offset = 0
        wanted = self._landing.wants_content and slot is not None and not slot.is_finished
        for piece in self._reader.data(file.size):
            self._watchdog.received(len(piece), content=self._landing.wants_content)
            if wanted and slot is not None:
                slot.write(offset, (piece,))
                offset += len(piece)

    def _warned(self, text: str) -> None:
        self.warnings += 1
        name = blamed(text)
        if name is None:
            self._unnamed = self._unnamed or text or "no reason is given"
            return
        self._names.add(name)
        if name == ANY:
            self.unmatched = text
        else:
            self._refuse(name, text)

    def _refuse(self, name: bytes, text: str) -> None:
        reason = entry_reason_of(text)
        error = NotRegular if reason is Reason.NOT_A_FILE else EntryError
        why = with_step(f"The peer does not send it: {_why(text)}.", reason)
        self._landing.refuse(name, error(why, path=name, reason=reason))


def _why(text: str) -> str:
    return text.rpartition(": ")[2].rstrip(".")

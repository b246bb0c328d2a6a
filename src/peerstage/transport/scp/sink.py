"""Receive what one ``scp -f`` sends: for each file a message, its data and its status."""

from __future__ import annotations

from peerstage.errors import ConnectionLost, EntryError, NotRegular, ProtocolError
from peerstage.reasons import Reason
from peerstage.records import REPLY_BYTES, Entry
from peerstage.ssh.stream import Stream
from peerstage.target.base import UNNAMED, IncomingFile, Selection, Target
from peerstage.transport.names import ListedNames
from peerstage.transport.refusals import entry_reason, with_advice
from peerstage.transport.scp.message_reader import MessageReader
from peerstage.transport.scp.messages import (
    FatalMessage,
    FileMessage,
    Message,
    TimesMessage,
    WarningMessage,
    entry_in_warning,
    max_message_bytes,
    parse_message,
    reason_in_text,
)
from peerstage.transport.scp.outcome import Received, refusal_error
from peerstage.watchdog import Watchdog

#: Replies to send before their messages arrive; the next batch follows when a quarter of them is used up.
_REPLIES_AHEAD = 1024
_REPLY_BATCH = 256

#: How OpenSSH sends a newline in a name. A name that contains these three characters is sent as it is.
_ENCODED_NEWLINE = b"\\^J"

#: The replies to a file message: an acknowledgement, and an error, upon which scp continues with the next file.
_ACKNOWLEDGE, _DECLINE = b"\0", b"\1\n"

#: The pattern that is requested.
GLOB = b"*"


class SCPSink:
    """Receives the files of *directory* into *target*, as scp's ``sink``.

    An scp program reads replies as a stream of bytes. So they are sent ahead if the target wants all files or none, and
    no file costs a round trip; otherwise each file is acknowledged or declined in turn. A server with SCP built in may
    count a whole SSH packet as one reply, and gets one for each message. It may also end at an error, so that nothing
    is declined, and the content of files that are not wanted is dropped.

    Args:
        stream: The output of an ``scp -f DIRECTORY/*``, from its first byte on.
        directory: The collect directory.
        target: Where the files go.
        watchdog: Counts the bytes received, and has the limits on what the peer may send.
        expect_times: Whether modification times were requested.
        is_program: Whether the peer runs an scp program, and has not SCP built in.

    Attributes:
        received: What the command has sent so far.
    """

    def __init__(
        self,
        stream: Stream,
        directory: bytes,
        target: Target,
        watchdog: Watchdog,
        *,
        expect_times: bool,
        is_program: bool,
    ) -> None:
        self._stream = stream
        self._directory = directory
        self._target = target
        self._limits = limits = watchdog.limits
        self._watchdog = watchdog
        self._expect_times = expect_times
        self._wants_content = target.selection is not Selection.NONE
        self._can_decline = is_program and target.selection is not Selection.ALL
        self._replies_ahead, self._reply_batch = b"", 1
        if is_program and target.selection is Selection.ALL:
            self._replies_ahead, self._reply_batch = _ACKNOWLEDGE * _REPLIES_AHEAD, _REPLY_BATCH
        elif is_program and not self._wants_content and not expect_times:
            self._replies_ahead, self._reply_batch = _DECLINE * _REPLIES_AHEAD, _REPLY_BATCH
        self._replies: list[bytes] = []
        self.received = Received()
        self._reader = MessageReader(stream.receive, max_bytes=max_message_bytes(limits))
        self._names = ListedNames(directory, limits)
        self._unnamed_warning: str | None = None
        self._unnamed_error = ""

    def run(self) -> None:
        """Receive to the end of the stream; refuse or fail, on the target, each entry that cannot be staged.

        Raises:
            RemoteError: If the peer sent a fatal error, or nothing but warnings that name no entry.
            ProtocolError, LimitExceeded, ConnectionLost, Cancelled, TargetError: If the run was cut off.
        """
        self._stream.send(_ACKNOWLEDGE + self._replies_ahead)
        mtime: int | None = None
        while (message := self._read_message()) is not None:
            self.received.ends_with_warning = isinstance(message, WarningMessage)
            if isinstance(message, FileMessage):
                self._receive_file(message, mtime)
                mtime = None
            elif isinstance(message, TimesMessage):
                if not self._expect_times or mtime is not None:
                    raise ProtocolError("The peer sent a modification time that was not requested.")
                mtime = message.mtime
                self._reply(_ACKNOWLEDGE)
            elif isinstance(message, WarningMessage):
                self._handle_warning(message.text)
            else:
                raise refusal_error(message.text, self._directory, failed="The peer's scp aborted")
        if mtime is not None:
            raise ProtocolError("The peer sent a modification time with no file after it.")
        if self.received.glob_warning is not None and len(self._names) > 1:  # others match the glob: a file is named *
            self._refuse(GLOB, self.received.glob_warning)
            self.received.glob_warning = None
        if self._unnamed_warning is not None:
            if not self._names:
                raise refusal_error(self._unnamed_warning, self._directory, failed="The peer's scp warned")
            self.refuse_unnamed(f"The peer's scp warned without naming a file: {self._unnamed_warning}.")

    def refuse_unnamed(self, message: str) -> None:
        """Record on the target that an entry that the peer did not name may be missing."""
        self._unnamed_error = f"{self._unnamed_error} {message}".lstrip()
        self._target.refuse(UNNAMED, EntryError(self._unnamed_error, path=UNNAMED, reason=Reason.ENTRY_UNREADABLE))

    def _read_message(self) -> Message | None:
        line = self._reader.read_message()
        if line is None:
            return None
        self._watchdog.count_received(REPLY_BYTES)
        return parse_message(line, self._limits)

    def _reply(self, reply: bytes) -> None:
        self._replies.append(reply)
        if len(self._replies) >= self._reply_batch:
            self._stream.send(b"".join(self._replies))
            self._replies.clear()

    def _receive_file(self, message: FileMessage, mtime: int | None) -> None:
        name = message.name
        self._names.add(name)
        self.received.files += 1
        file = self._admit(Entry(name, message.size, message.mode, mtime))
        if self._can_decline and (file is None or not self._wants_content):
            self.received.declined += 1
            self._reply(_DECLINE)
            if file is not None:
                file.finish()  # scp sends its message after a successful open(2): the file is readable
            return
        self._reply(_ACKNOWLEDGE)
        self._receive_data(message.size, file)
        status = self._reader.read_status()
        if status is None:
            raise ConnectionLost("The peer's scp ended without a status for this file.", path=name)
        if status == b"\0":
            if file is not None:
                file.finish()
        else:
            self._handle_failed_file(name, parse_message(status, self._limits), file)
        self._reply(_ACKNOWLEDGE)

    def _admit(self, entry: Entry) -> IncomingFile | None:
        """Return the file for *entry*; None if the target declines it."""
        if _ENCODED_NEWLINE not in entry.name:
            return next(iter(self._target.admit((entry,))), None)
        message = "SCP sends a newline in a name as \\^J, so that this name is ambiguous. Use SFTP."
        self._target.refuse(entry.name, EntryError(message, path=entry.name, reason=Reason.INVALID_NAME))
        return None

    def _receive_data(self, size: int, file: IncomingFile | None) -> None:
        """Write the next *size* bytes to *file*, or drop them if they are not wanted."""
        offset = 0
        for piece in self._reader.read_data(size):
            self._watchdog.count_received(len(piece), is_content=self._wants_content)
            if file is not None and self._wants_content:
                file.write(offset, (piece,))
                offset += len(piece)

    def _handle_failed_file(self, name: bytes, message: Message, file: IncomingFile | None) -> None:
        if isinstance(message, FatalMessage):
            raise refusal_error(message.text, name, failed="The peer's scp aborted")
        if not isinstance(message, WarningMessage):
            raise ProtocolError("The peer sent another message instead of the file's status.", path=name)
        self.received.warnings += 1
        if file is not None:
            file.fail(_entry_error(name, "The peer could not read it", message.text))

    def _handle_warning(self, text: str) -> None:
        self.received.warnings += 1
        name = entry_in_warning(text)
        if name is None:
            self._unnamed_warning = self._unnamed_warning or text or "no reason given"
            return
        self._names.add(name)
        if name == GLOB:
            self.received.glob_warning = text
        else:
            self._refuse(name, text)

    def _refuse(self, name: bytes, text: str) -> None:
        self._target.refuse(name, _entry_error(name, "The peer did not send it", text))


def _entry_error(name: bytes, failed: str, text: str) -> EntryError:
    """Return the error for a warning *text* about one entry."""
    reason = entry_reason(reason_in_text(text))
    message = with_advice(f"{failed}: {text.rpartition(': ')[2].rstrip('.')}.", reason)
    return (NotRegular if reason is Reason.NOT_A_FILE else EntryError)(message, path=name, reason=reason)

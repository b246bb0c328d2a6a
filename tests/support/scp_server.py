"""An ``scp`` on a peer that follows a script: the other end of an `SCPTransport` without a connection."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any, cast

from peerstage.errors import LimitExceeded
from peerstage.reasons import Reason
from peerstage.records import Limits, StageReport
from peerstage.ssh.stream import Chunk, Stream
from peerstage.stage_options import StageOptions
from peerstage.staging import stage
from peerstage.target import DirectoryTarget
from peerstage.transport.scp.scp_transport import SCPTransport
from peerstage.watchdog import Watchdog

COLLECT = b"/c"


class ScriptedCommand(Stream):
    """A command that sends *chunks* one after the other, whatever it receives, and exits with *status*.

    Attributes:
        received: What it received.
        at_eof: Whether it received EOF.
    """

    def __init__(self, chunks: Iterable[bytes] = (), *, status: int | None = 0, stderr: bytes = b"") -> None:
        self._chunks = iter(chunks)
        self._status = status
        self._stderr = stderr
        self.received = b""
        self.at_eof = False
        self.closed = False

    def send(self, data: bytes) -> None:
        self.received += data

    def receive(self) -> Chunk:
        return next((chunk for chunk in self._chunks if chunk), b"")

    def send_eof(self) -> None:
        self.at_eof = True

    def wait(self) -> int | None:
        return self._status

    @property
    def stderr(self) -> bytes:
        return self._stderr

    @property
    def is_closed(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True


class AcknowledgesPerPacket(ScriptedCommand):
    """SCP built into an SSH server: each packet on the channel is one acknowledgement, whatever its length.

    Args:
        files: What it sends, as `pack_file` returns it.
    """

    def __init__(self, *files: bytes) -> None:
        super().__init__()
        self._steps = [step for file in files for step in file.partition(b"\n")[::2]]
        self._steps[::2] = [message + b"\n" for message in self._steps[::2]]
        self._replies: list[bytes] = []

    def send(self, data: bytes) -> None:
        super().send(data)
        self._replies.append(self._steps.pop(0) if self._steps else b"")

    def receive(self) -> Chunk:
        if not self._replies:
            raise LimitExceeded("Server and client wait for each other.", reason=Reason.STALLED)
        return self._replies.pop(0)


class SourceProgram(ScriptedCommand):
    """An scp program that sends *files*: it reads replies as a stream of bytes, and counts a declined file as an error.

    Attributes:
        data_sent: Bytes of content that it has sent.
    """

    def __init__(self, files: dict[bytes, bytes], *, with_times: bool = False) -> None:
        super().__init__()
        self.data_sent = 0
        self._input = b""
        self._with_times = with_times
        self._steps = self._send_files(files)
        next(self._steps)

    def send(self, data: bytes) -> None:
        super().send(data)
        self._input += data

    def receive(self) -> Chunk:
        """Return what it sends upon the next reply; nothing once it has sent everything."""
        while True:
            if not self._input:
                raise LimitExceeded("Server and client wait for each other.", reason=Reason.STALLED)
            is_error = self._input[0] == 1
            self._input = self._input.partition(b"\n")[2] if is_error else self._input[1:]
            try:
                return self._steps.send(is_error)
            except StopIteration:
                return b""

    def _send_files(self, files: dict[bytes, bytes]) -> Generator[bytes, bool, None]:
        yield b""  # wait for the first reply
        for name, data in files.items():
            if self._with_times:
                yield b"T1 0 1 0\n"
            if (yield b"C0644 %d %s\n" % (len(data), name)):
                self._status = 1
                continue
            self.data_sent += len(data)
            yield data + b"\0"


class ScriptedSession:
    """A session whose commands are served by *answer*, and recorded.

    Args:
        answer: Returns the stream of a command.
        server: The server's identification string.

    Attributes:
        commands: The command lines that were run.
    """

    fingerprint = "SHA256:none"

    def __init__(self, answer: Callable[[bytes], Stream], server: str = "SSH-2.0-OpenSSH_9.2p1") -> None:
        self.server = server
        self.answer = answer
        self.closed = False
        self.commands: list[bytes] = []

    def open_command(self, command: bytes) -> Stream:
        self.commands.append(command)
        return self.answer(command)

    def require_same_process(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


def transport_to(session: ScriptedSession, limits: Limits | None = None, **options: Any) -> SCPTransport:
    return SCPTransport(cast(Any, session), Watchdog(limits or Limits()), **options)


def stage_from(
    chunks: Iterable[bytes],
    target: Path,
    *,
    limits: Limits | None = None,
    status: int | None = 0,
    stderr: bytes = b"",
    request_times: bool = False,
) -> StageReport:
    """Stage what an ``scp -f`` sends in *chunks*. A command about the directory alone says that it is a directory."""

    def answer(command: bytes) -> Stream:
        if command.endswith(b"*"):
            return ScriptedCommand(chunks, status=status, stderr=stderr)
        return ScriptedCommand([b"\x01scp: /c: not a regular file\n"], status=1)

    transport = transport_to(ScriptedSession(answer), limits, preserve_times=request_times)
    options = StageOptions(durable=False, preserve_times=request_times)
    return stage(transport, COLLECT, DirectoryTarget(str(target), peer="peer", options=options))


def pack_file(name: bytes, data: bytes, mode: int = 0o644, status: bytes = b"\0") -> bytes:
    """Return a file as ``scp -f`` sends it: message, data, status."""
    return b"C%04o %d %s\n" % (mode, len(data), name) + data + status

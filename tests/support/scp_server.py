"""What an ``scp`` on a peer sends, from a script: the other end of an `SCPTransport` without a connection."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

from peerstage.errors import LimitExceeded
from peerstage.reasons import Reason
from peerstage.records import Limits, StageReport
from peerstage.session.stream import Chunk, Stream
from peerstage.session.watchdog import Watchdog
from peerstage.staging import stage
from peerstage.transport.scp.transport import SCPTransport

COLLECT = b"/c"


class Says(Stream):
    """A command that says *chunks* one after the other, whatever it is told, and ends with *status*.

    Attributes:
        sent: What it was told.
    """

    def __init__(self, chunks: Iterable[bytes] = (), *, status: int | None = 0, stderr: bytes = b"") -> None:
        self._chunks = iter(chunks)
        self._status = status
        self._stderr = stderr
        self.sent = b""
        self.closed = False
        self.ended = False

    def send(self, data: bytes) -> None:
        self.sent += data

    def receive(self) -> Chunk:
        return next((chunk for chunk in self._chunks if chunk), b"")

    def end(self) -> None:
        self.ended = True

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


class TakesMessages(Says):
    """An SCP server inside an SSH server: each message on the channel is one acknowledgement, whatever its length.

    Args:
        files: What it sends, as `file` returns it.
    """

    def __init__(self, *files: bytes) -> None:
        super().__init__()
        self._steps = [step for one in files for step in (one[: one.index(b"\n") + 1], one[one.index(b"\n") + 1 :])]
        self._sent: list[bytes] = []

    def send(self, data: bytes) -> None:
        super().send(data)
        self._sent.append(self._steps.pop(0) if self._steps else b"")

    def receive(self) -> Chunk:
        if not self._sent:
            raise LimitExceeded("It waits for an acknowledgement, and so would the client.", reason=Reason.STALLED)
        return self._sent.pop(0)


class Shell:
    """A session whose commands are answered by *answer*, and written down.

    Args:
        answer: Returns the stream to a command.
        server: How the server identifies itself.

    Attributes:
        commands: What was run.
        streams: What it was run on.
    """

    fingerprint = "SHA256:none"

    def __init__(self, answer: Callable[[bytes], Stream], server: str = "SSH-2.0-OpenSSH_9.2p1") -> None:
        self.server = server
        self.closed = False
        self._answer = answer
        self.commands: list[bytes] = []
        self.streams: list[Stream] = []

    def open_command(self, command: bytes) -> Stream:
        self.commands.append(command)
        self.streams.append(self._answer(command))
        return self.streams[-1]

    def require_same_process(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


def transport_to(shell: Shell, limits: Limits | None = None, **options: Any) -> SCPTransport:
    limits = limits or Limits()
    return SCPTransport(cast(Any, shell), limits, Watchdog(limits), **options)


def stage_from(
    *chunks: bytes, target: Path, limits: Limits | None = None, status: int | None = 0, **options: Any
) -> StageReport:
    """Stage what ``scp -f`` says in *chunks*; a second command is told that the directory is none."""

    def answer(command: bytes) -> Stream:
        if command.endswith(b"*"):
            return Says(said_chunks, status=status, stderr=said)
        return Says([b"\x01scp: /c: not a regular file\n"], status=1)

    said = options.pop("stderr", b"")
    said_chunks = options.pop("chunks", chunks)
    shell = Shell(answer)
    times = options.pop("times", False)
    return stage(transport_to(shell, limits, times=times), COLLECT, str(target), peer="peer", durable=False, **options)


def file(name: bytes, data: bytes, mode: int = 0o644, status: bytes = b"\0") -> bytes:
    """Return how a file is sent."""
    return b"C%04o %d %s\n" % (mode, len(data), name) + data + status

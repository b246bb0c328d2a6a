"""Judge how an ``scp`` on a peer ended."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from peerstage.errors import RemoteError
from peerstage.printable import describe_exit
from peerstage.reasons import Reason
from peerstage.transport.refusals import with_advice
from peerstage.transport.scp.messages import NO_SUCH_FILE, reason_in_text

_MAX_QUOTED = 300
#: What csh, zsh and fish print when no name matches; they run no command then.
_SHELL_NO_MATCH = b"no match"


class Verdict(Enum):
    """What the end of an ``scp -f DIRECTORY/*`` means."""

    #: The peer sent every file, or warned about it.
    COMPLETE = auto()
    #: The peer ended at a warning and reported success: files after that entry may be missing.
    MAYBE_INCOMPLETE = auto()
    #: The peer failed after it had sent files or warnings.
    FAILED = auto()
    #: The peer failed, and sent neither files nor warnings: it probably did not run the command.
    REFUSED = auto()
    #: No name matches ``*``.
    NO_MATCH = auto()
    #: The peer cannot read the directory.
    UNREADABLE = auto()
    #: The command ended without an exit status.
    CONNECTION_LOST = auto()


@dataclass(slots=True)
class Received:
    """What an ``scp -f DIRECTORY/*`` sent.

    Attributes:
        files: The number of files, including those that were declined.
        warnings: The number of warnings.
        declined: The number of files that the sink declined with an error, which scp counts.
        ends_with_warning: Whether the last message was a warning.
        glob_warning: The warning about ``*`` itself, if there was nothing else.
    """

    files: int = 0
    warnings: int = 0
    declined: int = 0
    ends_with_warning: bool = False
    glob_warning: str | None = None


def judge(received: Received, exit_status: int | None, stderr: bytes) -> Verdict:
    """Judge the end of a command that sent *received* and printed *stderr*; *exit_status* is None if it is unknown."""
    if exit_status is None:
        return Verdict.CONNECTION_LOST
    if received.glob_warning is not None:
        return Verdict.NO_MATCH if received.glob_warning.endswith(NO_SUCH_FILE) else Verdict.UNREADABLE
    if received.files or received.warnings:
        if exit_status == 1 and (received.warnings or received.declined):
            return Verdict.COMPLETE
        if exit_status != 0:
            return Verdict.FAILED
        # scp itself exits with status 1 after a warning; a server with SCP built in may stop at it
        return Verdict.MAYBE_INCOMPLETE if received.ends_with_warning else Verdict.COMPLETE
    if exit_status == 0:
        return Verdict.COMPLETE
    return Verdict.NO_MATCH if _SHELL_NO_MATCH in stderr.lower() else Verdict.REFUSED


def refusal_error(text: str, path: bytes, *, failed: str = "The peer refused", is_write: bool = False) -> RemoteError:
    """Return the error for a warning or fatal error *text* about *path*, with advice."""
    reason = reason_in_text(text, is_write=is_write)
    message = f"{failed}: {text.rstrip('.')}."
    return RemoteError(with_advice(message, reason, path if is_write else b""), path=path, reason=reason)


def exit_error(
    stderr: bytes, exit_status: int | None, path: bytes, *, reason: Reason = Reason.COMMAND_REFUSED
) -> RemoteError:
    """Return the error for an ``scp`` on the peer that failed without an SCP message.

    Args:
        stderr: Its output on stderr.
        exit_status: None if it ended without one.
        path: The file or directory to send or to write.
        reason: Why it failed, unless the status tells. A command that sent no message was probably not run.
    """
    quoted = quotable(stderr)
    if exit_status == 127:
        return RemoteError(
            "The peer has no scp program. Install OpenSSH's, or use SFTP.",
            path=path,
            reason=Reason.NO_SCP,
        )
    if exit_status == 126 and "list too long" in quoted:
        return RemoteError(
            "The names of all files do not fit on one command line, as SCP requires. Install an SFTP server on "
            "the peer, or let it collect into fewer files.",
            path=path,
            reason=Reason.COMMAND_TOO_LONG,
        )
    message = f"The peer's scp {describe_exit(exit_status, quoted)}."
    return RemoteError(with_advice(message, reason), path=path, reason=reason)


def quotable(output: bytes) -> str:
    """Return the beginning of a command's *output*, for an error message."""
    return output.decode("utf-8", "backslashreplace").strip().rstrip(".")[:_MAX_QUOTED]

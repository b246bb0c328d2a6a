"""Exit codes: which there are, what they mean, and the one table from reasons to codes."""

from __future__ import annotations

from enum import IntEnum

from peerstage.errors import StageError
from peerstage.reasons import Reason


class Exit(IntEnum):
    """What the command's exit status says. With several peers the highest counts."""

    DONE = 0
    UNEXPECTED = 1
    USAGE = 2
    NOT_READY = 3
    UNREACHED = 4
    INCOMPLETE = 5
    LOCAL = 6
    NOT_AVAILABLE = 7


MEANINGS = {
    Exit.DONE: "done",
    Exit.UNEXPECTED: "unexpected error",
    Exit.USAGE: "wrong usage or configuration",
    Exit.NOT_READY: "not ready: the peer was asked, and the indicator is not there",
    Exit.UNREACHED: "unreachable, refused, or lost on the way",
    Exit.INCOMPLETE: "incomplete: some entries could not be staged, or there was none",
    Exit.LOCAL: "this machine: the target directory, its disk, or memory, threads or open files",
    Exit.NOT_AVAILABLE: "not available on this installation",
}

#: By which reasons each code is given.
REASONS: dict[Exit, tuple[Reason, ...]] = {
    Exit.USAGE: (
        Reason.INVALID_ARGUMENT,
        Reason.INVALID_CONFIGURATION,
        Reason.UNKNOWN_KEYWORD,
        Reason.UNSUPPORTED_KEYWORD,
        Reason.CONFIGURATION_UNREADABLE,
        Reason.INSECURE_CONFIGURATION,
        Reason.UNKNOWN_LOCAL_USER,
    ),
    Exit.NOT_READY: (Reason.NOT_READY,),
    Exit.UNREACHED: (
        Reason.NAME_NOT_RESOLVED,
        Reason.RESOLVER_TIMEOUT,
        Reason.CONNECTION_REFUSED,
        Reason.CONNECT_TIMEOUT,
        Reason.HOST_UNREACHABLE,
        Reason.BIND_FAILED,
        Reason.CONNECT_FAILED,
        Reason.FORWARDING_REFUSED,
        Reason.HOP_CANNOT_CONNECT,
        Reason.PROXY_COMMAND_FAILED,
        Reason.RCP_COMMAND_FAILED,
        Reason.NOT_SSH,
        Reason.BANNER_TIMEOUT,
        Reason.CLOSED_BEFORE_BANNER,
        Reason.CLOSED_BEFORE_LOGIN,
        Reason.NO_COMMON_ALGORITHM,
        Reason.KEY_EXCHANGE_FAILED,
        Reason.KEY_EXCHANGE_TIMEOUT,
        Reason.STRICT_KEX_MISSING,
        Reason.HOST_KEY_UNKNOWN,
        Reason.HOST_KEY_CHANGED,
        Reason.HOST_KEY_REVOKED,
        Reason.HOST_KEY_MISMATCHED,
        Reason.HOST_KEY_NOT_PINNED,
        Reason.HOST_KEY_NOT_LISTED,
        Reason.HOST_KEY_TOO_SMALL,
        Reason.HOST_CERTIFICATE_INVALID,
        Reason.HOST_CERTIFICATE_UNKNOWN,
        Reason.LOGIN_REFUSED,
        Reason.MORE_AUTHENTICATION_WANTED,
        Reason.METHOD_NOT_OFFERED,
        Reason.PASSWORD_EXPIRED,
        Reason.TOO_MANY_LOGIN_ATTEMPTS,
        Reason.LOGIN_TIMEOUT,
        Reason.NO_CREDENTIALS,
        Reason.AGENT_UNAVAILABLE,
        Reason.AGENT_SILENT,
        Reason.AGENT_EMPTY,
        Reason.AGENT_REFUSED,
        Reason.KEY_FILE_MISSING,
        Reason.KEY_FILE_UNREADABLE,
        Reason.KEY_FILE_PERMISSIONS,
        Reason.KEY_INVALID,
        Reason.KEY_UNSUPPORTED,
        Reason.KEY_TYPE_REFUSED,
        Reason.KEY_TOO_SMALL,
        Reason.KEY_ON_TOKEN,
        Reason.PUBLIC_KEY_ONLY,
        Reason.CERTIFICATE_INVALID,
        Reason.PASSPHRASE_MISSING,
        Reason.PASSPHRASE_WRONG,
        Reason.ELEVATION_FAILED,
        Reason.CONNECTION_LOST,
        Reason.STALLED,
        Reason.TOO_SLOW,
        Reason.DEADLINE_PASSED,
        Reason.REPLY_TIMEOUT,
        Reason.CANCELLED,
        Reason.PROTOCOL_VIOLATION,
        Reason.TEXT_BEFORE_PROTOCOL,
        Reason.LIMIT_EXCEEDED,
        Reason.NOT_FOUND,
        Reason.NOT_A_DIRECTORY,
        Reason.PERMISSION_DENIED,
        Reason.WRITE_DENIED,
        Reason.REMOTE_NO_SPACE,
        Reason.REMOTE_FAILURE,
        Reason.NO_SFTP,
        Reason.NO_SCP,
        Reason.SESSION_REFUSED,
        Reason.COMMAND_REFUSED,
        Reason.COMMAND_FAILED,
        Reason.COMMAND_TOO_LONG,
        Reason.FILE_LEFT_BEHIND,
        Reason.CHILD_SILENT,
        Reason.CHILD_VIOLATION,
    ),
    Exit.INCOMPLETE: (
        Reason.NOTHING_TO_STAGE,
        Reason.INCOMPLETE_STAGE,
        Reason.NOT_A_FILE,
        Reason.INVALID_NAME,
        Reason.VANISHED,
        Reason.ENTRY_UNREADABLE,
        Reason.INCOMPLETE_FILE,
        Reason.CHANGED_WHILE_STAGED,
        Reason.NAME_NOT_REPRESENTABLE,
        Reason.NAME_COLLISION,
        Reason.NAME_TAKEN,
        Reason.NOT_PUBLISHED,
    ),
    Exit.LOCAL: (
        Reason.NO_SPACE,
        Reason.NO_INODES,
        Reason.QUOTA_EXCEEDED,
        Reason.READ_ONLY_TARGET,
        Reason.TARGET_MISSING,
        Reason.TARGET_NOT_A_DIRECTORY,
        Reason.TARGET_NOT_WRITABLE,
        Reason.TARGET_INTERFERED,
        Reason.WORKING_DIRECTORY_UNUSABLE,
        Reason.OWNERSHIP_REFUSED,
        Reason.HOST_KEY_NOT_SAVED,
        Reason.LOCAL_IO_ERROR,
        Reason.LOCAL_FAILURE,
        Reason.OUT_OF_MEMORY,
        Reason.OUT_OF_THREADS,
        Reason.OUT_OF_DESCRIPTORS,
    ),
    Exit.NOT_AVAILABLE: (Reason.NOT_AVAILABLE, Reason.PROGRAM_MISSING, Reason.NOT_ROOT),
    Exit.UNEXPECTED: (
        Reason.ROOT_NOT_GIVEN_UP,
        Reason.CHILD_ENDED,
        Reason.STATUS_LOST,
        Reason.FORKED,
        Reason.IN_USE,
        Reason.TEST_SERVER_FAILED,
    ),
}
#: The one table from reasons to codes.
TABLE = {reason: code for code, reasons in REASONS.items() for reason in reasons}


def reason_of(error: BaseException) -> Reason | None:
    """Return the reason of *error*; None for a defect."""
    if isinstance(error, StageError):
        return error.reason
    is_argument = isinstance(error, ValueError) and not isinstance(error, UnicodeError)
    return Reason.INVALID_ARGUMENT if is_argument else None


def code_of(error: BaseException) -> Exit:
    """Return the exit code that *error* stands for."""
    reason = reason_of(error)
    return Exit.UNEXPECTED if reason is None else TABLE[reason]


def explained() -> str:
    """Return the codes and their meanings, a line each, for ``--help``."""
    return "\n".join(f"  {code.value}  {meaning}" for code, meaning in MEANINGS.items())

"""Exit codes, their meanings, and the reasons for each."""

from __future__ import annotations

from enum import IntEnum

from peerstage.errors import StageError
from peerstage.reasons import Reason


class ExitCode(IntEnum):
    """The exit status of the command: with several peers the highest of theirs. 75 is EX_TEMPFAIL of sysexits.h."""

    DONE = 0
    UNEXPECTED = 1
    USAGE = 2
    NOT_READY = 3
    UNREACHED = 4
    INCOMPLETE = 5
    LOCAL = 6
    NOT_AVAILABLE = 7
    NOT_VERIFIED = 8
    LOCKED = 75


MEANINGS = {
    ExitCode.DONE: "done",
    ExitCode.UNEXPECTED: "unexpected error",
    ExitCode.USAGE: "wrong usage or configuration",
    ExitCode.NOT_READY: "not ready: the indicator file is not on the peer, or is stale",
    ExitCode.UNREACHED: "unreachable, refused or not trusted, or the connection was lost",
    ExitCode.INCOMPLETE: "incomplete: some entries could not be staged, or there is no file",
    ExitCode.LOCAL: "this machine: target directory, disk, memory, threads, open files or a hook",
    ExitCode.NOT_AVAILABLE: "not available on this installation",
    ExitCode.NOT_VERIFIED: "not verified: files differ from the manifest, or the manifest is damaged",
    ExitCode.LOCKED: "another run holds the lock of the staging pool; try again later",
}

# fmt: off
#: The reasons for each code but `ExitCode.UNREACHED`, which all other reasons have.
REASONS: dict[ExitCode, tuple[Reason, ...]] = {
    ExitCode.DONE: (Reason.EXCLUDED, Reason.NOT_INCLUDED, Reason.ABOVE_MAX_SIZE),
    ExitCode.USAGE: (
        Reason.INVALID_ARGUMENT, Reason.INVALID_CONFIGURATION, Reason.UNKNOWN_KEYWORD,
        Reason.UNSUPPORTED_KEYWORD, Reason.CONFIGURATION_UNREADABLE, Reason.INSECURE_CONFIGURATION,
        Reason.UNKNOWN_LOCAL_USER,
    ),
    ExitCode.NOT_READY: (Reason.NOT_READY, Reason.STALE),
    ExitCode.INCOMPLETE: (
        Reason.NOTHING_TO_STAGE, Reason.INCOMPLETE_STAGE, Reason.NOT_A_FILE, Reason.INVALID_NAME,
        Reason.VANISHED, Reason.ENTRY_UNREADABLE, Reason.INCOMPLETE_FILE, Reason.CHANGED_WHILE_STAGED,
        Reason.NAME_NOT_REPRESENTABLE, Reason.NAME_COLLISION, Reason.NAME_TAKEN, Reason.NAME_RESERVED,
        Reason.NOT_PUBLISHED, Reason.FILE_TOO_LARGE, Reason.DIGEST_MISMATCH, Reason.NO_DIGEST,
        Reason.CHECKSUM_FILE_MISSING, Reason.CHECKSUM_FILE_INVALID,
    ),
    ExitCode.LOCAL: (
        Reason.NO_SPACE, Reason.NO_INODES, Reason.QUOTA_EXCEEDED, Reason.READ_ONLY_TARGET,
        Reason.TARGET_MISSING, Reason.TARGET_NOT_A_DIRECTORY, Reason.TARGET_NOT_WRITABLE,
        Reason.TARGET_INTERFERED, Reason.WORKING_DIRECTORY_UNUSABLE, Reason.PARTIAL_DIR_UNUSABLE,
        Reason.OWNERSHIP_REFUSED,
        Reason.HOST_KEY_NOT_SAVED, Reason.LOCAL_IO_ERROR, Reason.LOCAL_FAILURE, Reason.OUT_OF_MEMORY,
        Reason.OUT_OF_THREADS, Reason.OUT_OF_DESCRIPTORS, Reason.NO_MANIFEST, Reason.POOL_NOT_VISIBLE,
        Reason.WORKER_LOST,
        Reason.PEER_LOCKED, Reason.RUN_KILLED, Reason.DAY_IN_FUTURE,
        Reason.HOOK_FAILED,
    ),
    ExitCode.NOT_AVAILABLE: (
        Reason.NOT_AVAILABLE, Reason.PARAMIKO_INCOMPATIBLE, Reason.PROGRAM_MISSING, Reason.NOT_ROOT,
    ),
    ExitCode.NOT_VERIFIED: (Reason.VERIFICATION_FAILED, Reason.INVALID_MANIFEST),
    ExitCode.LOCKED: (Reason.POOL_LOCKED,),
    ExitCode.UNEXPECTED: (
        Reason.PRIVILEGES_NOT_DROPPED, Reason.CHILD_ENDED, Reason.STATUS_LOST, Reason.FORKED, Reason.IN_USE,
        Reason.TEST_SERVER_FAILED,
    ),
}
# fmt: on
#: The code for each reason.
CODES = dict.fromkeys(Reason, ExitCode.UNREACHED) | {reason: code for code, some in REASONS.items() for reason in some}


def reason_of(error: BaseException) -> Reason | None:
    """Return the reason of *error*; None for a bug."""
    if isinstance(error, StageError):
        return error.reason
    is_argument = isinstance(error, ValueError) and not isinstance(error, UnicodeError)
    return Reason.INVALID_ARGUMENT if is_argument else None


def code_of(error: BaseException) -> ExitCode:
    """Return the exit code for *error*."""
    reason = reason_of(error)
    return ExitCode.UNEXPECTED if reason is None else CODES[reason]


def format_exit_codes() -> str:
    """Return the codes and their meanings, one per line, for ``--help``."""
    return "\n".join(f"  {code.value}  {meaning}" for code, meaning in MEANINGS.items())

"""Exit codes: which there are, what they mean, and the one table from errors to codes."""

from __future__ import annotations

from enum import IntEnum

from peerstage import errors


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
    Exit.USAGE: "wrong usage",
    Exit.NOT_READY: "not ready: the peer was asked, and the indicator is not there",
    Exit.UNREACHED: "unreachable, refused, or lost on the way",
    Exit.INCOMPLETE: "incomplete: some entries could not be staged, or there was none",
    Exit.LOCAL: "the local disk or directory",
    Exit.NOT_AVAILABLE: "not available on this installation",
}

#: The first row that fits decides. What no row fits is unexpected.
TABLE: tuple[tuple[type[BaseException], Exit], ...] = (
    (errors.NotAvailable, Exit.NOT_AVAILABLE),
    (errors.LandingError, Exit.LOCAL),
    (errors.IncompleteStage, Exit.INCOMPLETE),
    (errors.NothingToStage, Exit.INCOMPLETE),
    (errors.EntryError, Exit.INCOMPLETE),
    (errors.ConfigurationError, Exit.UNREACHED),
    (errors.ConnectError, Exit.UNREACHED),
    (errors.HostKeyError, Exit.UNREACHED),
    (errors.LoginError, Exit.UNREACHED),
    (errors.ConnectionLost, Exit.UNREACHED),
    (errors.LimitExceeded, Exit.UNREACHED),
    (errors.Cancelled, Exit.UNREACHED),
    (errors.ProtocolError, Exit.UNREACHED),
    (errors.RemoteError, Exit.UNREACHED),
    (errors.StageError, Exit.UNEXPECTED),
    (UnicodeError, Exit.UNEXPECTED),
    (ValueError, Exit.USAGE),
)


def code_of(error: BaseException) -> Exit:
    """Return the exit code that *error* stands for."""
    return next((code for kind, code in TABLE if isinstance(error, kind)), Exit.UNEXPECTED)


def explained() -> str:
    """Return the codes and their meanings, a line each, for ``--help``."""
    return "\n".join(f"  {code.value}  {meaning}" for code, meaning in MEANINGS.items())

"""Every error that leaves peerstage, and how they hang together; `Reason` tells more precisely what happened.

::

    OSError
    └── StageError                 anything but a wrong argument (those are ValueError)
        ├── ConfigurationError     what ssh's or our configuration asks for cannot be honoured; nothing was sent
        ├── ConnectError           no connection: unknown name, closed port, no SSH behind it, no common algorithm
        ├── HostKeyError           the host key was refused; nothing was sent after the key exchange
        │   ├── UnknownHostKey     host-key-unknown
        │   ├── ChangedHostKey     host-key-changed
        │   ├── RevokedHostKey     host-key-revoked
        │   └── MismatchedHostKey  a key of another type than is known, or not the one (or the certificate) demanded
        ├── LoginError             no login; carries what was tried, and the reason of each
        ├── ConnectionLost         connection-lost (transient)
        ├── LimitExceeded          a bound was passed, in bytes or in seconds; names the field of `Limits`
        ├── Cancelled              cancelled
        ├── ProtocolError          protocol-violation, or text-before-protocol
        ├── RemoteError            the peer answered a request with a refusal
        │   ├── RemoteNotFound     not-found
        │   └── NoSFTP             no-sftp; SCP may do
        ├── EntryError             one entry could not be staged; the others are not concerned
        │   ├── NotRegular         not-a-file: a directory, FIFO, device ...; vanished: a dangling link
        │   ├── IncompleteFile     incomplete-file
        │   └── ChangedFile        changed-while-staged
        ├── NothingToStage         nothing-to-stage
        ├── IncompleteStage        incomplete-stage; carries the `StageReport`, in which every entry has its own reason
        ├── LandingError           the local disk or directory: full, unwritable, gone
        │   └── MissingTarget      target-missing, target-not-a-directory; a ValueError, too
        └── NotAvailable           not-available, program-missing, not-root: a backend, program or platform is not there

A class that stands for one reason has that by default; the others are given one where they are raised.
``transient`` says whether the same call may succeed a moment later; only the retry wrapper reads it.
"""

from __future__ import annotations

import errno
import os
import sys
import unicodedata
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypedDict

from peerstage.reasons import Reason

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from peerstage.records import StageReport

#: What `threading` says when the system refuses a thread; it has no exception of its own for that.
_NO_THREAD = "can't start new thread"
#: The kinds of algorithms that a key exchange agrees on, as `ConnectError.algorithm` names them.
ALGORITHMS = ("", "kex", "host key", "cipher", "mac")
_ESCAPED_CATEGORIES = frozenset({"Cc", "Cf", "Zl", "Zp", "Cs"})


def escape(text: str | bytes | os.PathLike[Any]) -> str:
    """Return *text* as one printable line: control, format (bidi) and separator characters become escapes.

    Bytes are read as the file system encodes names; what can not be decoded shows as ``\\xNN``. Whatever a peer says
    passes through here before it is shown or logged (TRUST, invariant f).
    """
    if not isinstance(text, str):
        text = os.fsdecode(text)
    if text.isprintable():
        return text
    return "".join(_escape_char(char) for char in text)


def _escape_char(char: str) -> str:
    if unicodedata.category(char) not in _ESCAPED_CATEGORIES:
        return char
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(char) or (
        f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
    )


def exhausted(exc: BaseException) -> StageError | None:
    """Return the error that a lack of memory or of threads leaves as; None if *exc* is something else.

    It names the limit of this process, where there is one.
    """
    if isinstance(exc, RuntimeError) and _NO_THREAD in str(exc):
        return StageError(
            "No thread can be started. Raise the limit of this user's processes, or that of memory.",
            errno=errno.EAGAIN,
            reason=Reason.OUT_OF_THREADS,
        )
    if not isinstance(exc, MemoryError):
        return None
    for name in ("RLIMIT_AS", "RLIMIT_DATA"):
        limit = _limit(name)
        if limit is not None:
            return StageError(
                f"Memory ran out: this process may have {limit} bytes ({name}, ulimit in a shell). "
                "Raise the limit, or stage fewer peers at a time.",
                errno=errno.ENOMEM,
                reason=Reason.OUT_OF_MEMORY,
            )
    return StageError(
        "Memory ran out on this machine. Stage fewer peers at a time.",
        errno=errno.ENOMEM,
        reason=Reason.OUT_OF_MEMORY,
    )


def _limit(name: str) -> int | None:
    if sys.platform == "win32":
        return None
    import resource

    limit: int = resource.getrlimit(getattr(resource, name))[0]
    return None if limit == resource.RLIM_INFINITY else limit


class Location(NamedTuple):
    """Where a setting or a known host key stands.

    Attributes:
        path: A file, or the option that takes its place, such as ``SSHOptions(jump=...)``.
        line: The number of the line, from 1; 0 for a file as a whole, and for an option.
    """

    path: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.path}:{self.line}" if self.line else self.path


class LoginAttempt(NamedTuple):
    """One thing that might have logged us in, and what came of it.

    Attributes:
        label: The key, agent or password as messages call it.
        reason: Why it did not suffice.
        outcome: The same in words.
        path: The key file or the agent's socket; "" for a key that the agent or the caller holds, and for a password.
        key_type: The type of a key or certificate that was offered, as ``ssh-ed25519-cert-v01@openssh.com``; else "".
    """

    label: str
    reason: Reason
    outcome: str
    path: str = ""
    key_type: str = ""


class _Context(TypedDict, total=False):
    """The keyword arguments that every `StageError` takes."""

    peer: str
    path: str | bytes | None
    transient: bool | None
    report: StageReport | None
    errno: int | None
    reason: Reason | None
    hop: str
    location: Location | None


class StageError(OSError):
    """Base of every error that is not a wrong argument.

    Attributes:
        message: What happened and what to do about it, without peer and path.
        reason: What happened, for programs. Mandatory for classes that do not stand for one reason.
        peer: Name of the peer, or "" where none is concerned.
        path: The remote or local path that is concerned, or None.
        transient: Whether the same call may succeed a moment later.
        report: The `StageReport` of the run that failed, where there is one.
        errno: The system's error number, where there is one.
        hop: The jump host that is concerned, as ``[user@]host[:port]``; "" for the peer itself.
        location: The line of a configuration or known_hosts file that decided, where there is one.

    ``str()`` is one line that names peer and path; what a peer had a say in is escaped. Errors pickle.
    """

    reason: Reason
    transient = False

    #: The keyword arguments that rebuild an error, each of them also an attribute.
    context: ClassVar[tuple[str, ...]] = tuple(_Context.__annotations__)

    def __init__(
        self,
        message: str,
        *,
        peer: str = "",
        path: str | bytes | None = None,
        transient: bool | None = None,
        report: StageReport | None = None,
        errno: int | None = None,
        reason: Reason | None = None,
        hop: str = "",
        location: Location | None = None,
    ) -> None:
        super().__init__(message)
        if reason is not None:
            self.reason = reason
        elif not hasattr(self, "reason"):
            raise TypeError(f"{type(self).__name__} needs a reason.")
        self.message = message
        self.peer = peer
        self.path = path
        if transient is not None:
            self.transient = transient
        self.report = report
        self.errno = errno
        self.hop = hop
        self.location = location

    def __str__(self) -> str:
        subject = " ".join(escape(part) for part in (self.peer, self.path) if part)
        return f"{subject}: {escape(self.message)}" if subject else escape(self.message)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, {name: getattr(self, name) for name in self.context})


def _rebuild(kind: type[StageError], message: str, context: dict[str, Any]) -> StageError:
    return kind(message, **context)


def log_line(error: BaseException) -> str:
    """Return *error* as one printable line for the log, which ends with the reason in brackets where there is one."""
    text = escape(str(error))
    return f"{text} [{error.reason}]" if isinstance(error, StageError) else text


class ConfigurationError(StageError):
    """What the configuration asks for cannot be honoured. Raised before anything is sent."""

    reason = Reason.INVALID_CONFIGURATION


class ConnectError(StageError):
    """No SSH connection could be made.

    Attributes:
        algorithm: With the reason no-common-algorithm, the kind: "kex", "host key", "cipher" or "mac"; else "".
    """

    context = (*StageError.context, "algorithm")

    def __init__(self, message: str, *, algorithm: str = "", **context: Unpack[_Context]) -> None:
        super().__init__(message, **context)
        self.algorithm = algorithm


class HostKeyError(StageError):
    """The host key was refused. No byte of authentication has been sent."""


class UnknownHostKey(HostKeyError):
    """No known_hosts line says which key this host has."""

    reason = Reason.HOST_KEY_UNKNOWN


class ChangedHostKey(HostKeyError):
    """The host shows another key than the one that is known."""

    reason = Reason.HOST_KEY_CHANGED


class RevokedHostKey(HostKeyError):
    """The host shows a key that is marked ``@revoked``."""

    reason = Reason.HOST_KEY_REVOKED


class MismatchedHostKey(HostKeyError):
    """The host shows a key of a type that is not known of it, another than is pinned, or a certificate not for it."""

    reason = Reason.HOST_KEY_MISMATCHED


class LoginError(StageError):
    """Every way to log in was refused.

    Attributes:
        attempts: What was offered and what could not be used, in this order. The error's own reason sums them up:
            login-refused if anything was offered, else the reason of what could not be used.
    """

    context = (*StageError.context, "attempts")

    def __init__(self, message: str, *, attempts: tuple[LoginAttempt, ...] = (), **context: Unpack[_Context]) -> None:
        super().__init__(message, **context)
        self.attempts = attempts


class ConnectionLost(StageError):
    """The connection ended before the work was done."""

    reason = Reason.CONNECTION_LOST
    transient = True


class LimitExceeded(StageError):
    """A bound was passed: too many bytes, or too many seconds.

    Attributes:
        limit: The field of `Limits` that it is; "" for another time limit, such as ConnectTimeout.
    """

    context = (*StageError.context, "limit")

    def __init__(self, message: str, *, limit: str = "", **context: Unpack[_Context]) -> None:
        super().__init__(message, **context)
        self.limit = limit


class Cancelled(StageError):
    """``cancel()`` was called from another thread."""

    reason = Reason.CANCELLED


class ProtocolError(StageError):
    """The peer said something that the protocol does not allow; it is not listened to any more."""

    reason = Reason.PROTOCOL_VIOLATION


class RemoteError(StageError):
    """The peer answered a request with a refusal."""


class RemoteNotFound(RemoteError):
    """The peer says that there is no such file or directory."""

    reason = Reason.NOT_FOUND


class NoSFTP(RemoteError):
    """The peer refused the SFTP subsystem, or ended it without a word: it has no SFTP server for this login."""

    reason = Reason.NO_SFTP


class EntryError(StageError):
    """One entry could not be staged."""


class NotRegular(EntryError):
    """The entry is not a regular file."""

    reason = Reason.NOT_A_FILE


class IncompleteFile(EntryError):
    """Fewer bytes arrived than the peer promised."""

    reason = Reason.INCOMPLETE_FILE


class ChangedFile(EntryError):
    """The file's size or time changed while it was being staged."""

    reason = Reason.CHANGED_WHILE_STAGED


class NothingToStage(StageError):
    """The collect directory holds no file that could be staged."""

    reason = Reason.NOTHING_TO_STAGE


class IncompleteStage(StageError):
    """Some entries could not be staged; the others are, and stay. ``report`` tells which."""

    reason = Reason.INCOMPLETE_STAGE


class LandingError(StageError):
    """The local side failed: disk full, target unwritable or gone, ownership refused."""


class MissingTarget(LandingError, ValueError):
    """The target directory is missing, or is no directory. A wrong argument too, as for the original."""


class NotAvailable(StageError):
    """A backend, an extra or a platform that would be needed is not there."""

    reason = Reason.NOT_AVAILABLE

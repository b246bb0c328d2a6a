"""Every error that leaves peerstage, and how they hang together.

::

    OSError
    └── StageError                 anything but a wrong argument (those are ValueError)
        ├── ConfigurationError     what ssh's or our configuration asks for can not be honoured; nothing was sent
        ├── ConnectError           no connection: unknown name, closed port, no SSH behind it, no common algorithm
        ├── HostKeyError           the peer is not who it was; nothing was sent after the key exchange
        │   ├── UnknownHostKey
        │   ├── ChangedHostKey
        │   ├── RevokedHostKey
        │   └── MismatchedHostKey  a key of another type than is known, or not the one (or the certificate) demanded
        ├── LoginError             the peer refused every way to log in
        ├── ConnectionLost         the connection ended in the middle (transient)
        ├── LimitExceeded          a bound of `Limits` was passed, in bytes or in seconds
        ├── Cancelled              `cancel()` was called
        ├── ProtocolError          the peer said something that the protocol does not allow
        ├── RemoteError            the peer answered a request with a refusal
        │   ├── RemoteNotFound
        │   └── NoSFTP             the peer logs us in and has no SFTP server; SCP may do
        ├── EntryError             one entry could not be staged; the others are not concerned
        │   ├── NotRegular         a directory, FIFO, device, dangling link ...
        │   ├── IncompleteFile     fewer bytes arrived than were promised
        │   └── ChangedFile        the file changed while it was read
        ├── NothingToStage         the collect directory holds no file
        ├── IncompleteStage        some entries failed; the rest is staged; carries the `StageReport`
        ├── LandingError           the local disk or directory: full, unwritable, gone
        └── NotAvailable           a backend or a platform that is not there

``transient`` says whether the same call may succeed a moment later; only the retry wrapper reads it.
"""

from __future__ import annotations

import errno
import os
import sys
import unicodedata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peerstage.records import StageReport

#: What `threading` says when the system refuses a thread; it has no exception of its own for that.
_NO_THREAD = "can't start new thread"
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
            "No thread can be started. Raise the limit of this user's processes, or that of memory.", errno=errno.EAGAIN
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
            )
    return StageError("Memory ran out on this machine. Stage fewer peers at a time.", errno=errno.ENOMEM)


def _limit(name: str) -> int | None:
    if sys.platform == "win32":
        return None
    import resource

    limit: int = resource.getrlimit(getattr(resource, name))[0]
    return None if limit == resource.RLIM_INFINITY else limit


class StageError(OSError):
    """Base of every error that is not a wrong argument.

    Attributes:
        message: What happened and what to do about it, without peer and path.
        peer: Name of the peer, or "" where none is concerned.
        path: The remote or local path that is concerned, or None.
        transient: Whether the same call may succeed a moment later.
        report: The `StageReport` of the run that failed, where there is one.
        errno: The system's error number, where there is one.

    ``str()`` is one line that names peer and path; what a peer had a say in is escaped. Errors pickle.
    """

    transient = False

    def __init__(
        self,
        message: str,
        *,
        peer: str = "",
        path: str | bytes | None = None,
        transient: bool | None = None,
        report: StageReport | None = None,
        errno: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.peer = peer
        self.path = path
        if transient is not None:
            self.transient = transient
        self.report = report
        self.errno = errno

    def __str__(self) -> str:
        subject = " ".join(escape(part) for part in (self.peer, self.path) if part)
        return f"{subject}: {escape(self.message)}" if subject else escape(self.message)

    def __reduce__(self) -> tuple[Any, ...]:
        context = {
            "peer": self.peer,
            "path": self.path,
            "transient": self.transient,
            "report": self.report,
            "errno": self.errno,
        }
        return _rebuild, (type(self), self.message, context)


def _rebuild(kind: type[StageError], message: str, context: dict[str, Any]) -> StageError:
    return kind(message, **context)


class ConfigurationError(StageError):
    """What the configuration asks for can not be honoured. Raised before anything is sent."""


class ConnectError(StageError):
    """No SSH connection could be made."""


class HostKeyError(StageError):
    """The host key was refused. No byte of authentication has been sent."""


class UnknownHostKey(HostKeyError):
    """No known_hosts line says which key this host has."""


class ChangedHostKey(HostKeyError):
    """The host shows another key than the one that is known."""


class RevokedHostKey(HostKeyError):
    """The host shows a key that is marked ``@revoked``."""


class MismatchedHostKey(HostKeyError):
    """The host shows a key of a type that is not known of it, another than is pinned, or a certificate not for it."""


class LoginError(StageError):
    """Every way to log in was refused."""


class ConnectionLost(StageError):
    """The connection ended before the work was done."""

    transient = True


class LimitExceeded(StageError):
    """A bound of `Limits` was passed: too many bytes, or too many seconds."""


class Cancelled(StageError):
    """``cancel()`` was called from another thread."""


class ProtocolError(StageError):
    """The peer said something that the protocol does not allow; it is not listened to any more."""


class RemoteError(StageError):
    """The peer answered a request with a refusal."""


class RemoteNotFound(RemoteError):
    """The peer says that there is no such file or directory."""


class NoSFTP(RemoteError):
    """The peer refused the SFTP subsystem, or ended it without a word: it has no SFTP server for this login."""


class EntryError(StageError):
    """One entry could not be staged."""


class NotRegular(EntryError):
    """The entry is not a regular file."""


class IncompleteFile(EntryError):
    """Fewer bytes arrived than the peer promised."""


class ChangedFile(EntryError):
    """The file's size or time changed while it was being staged."""


class NothingToStage(StageError):
    """The collect directory holds no file that could be staged."""


class IncompleteStage(StageError):
    """Some entries could not be staged; the others are, and stay. ``report`` tells which."""


class LandingError(StageError):
    """The local side failed: disk full, target unwritable or gone, ownership refused."""


class NotAvailable(StageError):
    """A backend, an extra or a platform that would be needed is not there."""

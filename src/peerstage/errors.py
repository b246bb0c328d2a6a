"""The errors that peerstage raises. `Reason` tells more precisely what happened.

::

    OSError
    └── StageError                 every error but a wrong argument (ValueError)
        ├── ConfigurationError     a setting of ssh or peerstage is invalid or unsupported; nothing was sent
        │   └── PlanError          the plan of a fleet is invalid; has all its problems
        ├── ConnectError           no SSH connection: unknown name, closed port, not an SSH server, no common algorithm
        ├── HostKeyError           the host key failed verification; nothing was sent after the key exchange
        │   ├── UnknownHostKey     host-key-unknown, host-certificate-unknown, host-key-not-saved
        │   ├── ChangedHostKey     host-key-changed
        │   ├── RevokedHostKey     host-key-revoked
        │   └── MismatchedHostKey  of an unexpected type, too small, not the pinned key, or an invalid certificate
        ├── LoginError             authentication failed; has the attempts and their reasons
        ├── ConnectionLost         connection-lost (transient)
        ├── LimitExceeded          a limit in bytes or seconds was exceeded; names the field of `Limits`
        ├── Cancelled              cancelled
        ├── ProtocolError          protocol-violation, text-before-protocol, or child-violation
        ├── RemoteError            the peer refused a request
        │   ├── RemoteNotFound     not-found
        │   └── NoSFTP             no-sftp; SCP may work
        ├── EntryError             one entry could not be staged; the others are not affected
        │   ├── NotRegular         not-a-file: a directory, FIFO, device ...; vanished: a dangling symlink
        │   ├── IncompleteFile     incomplete-file
        │   └── ChangedFile        changed-while-staged
        ├── NothingToStage         nothing-to-stage
        ├── IncompleteStage        incomplete-stage; has the `StageReport`, with a reason for each entry
        ├── TargetError            the local disk or target directory failed: full, not writable, removed
        │   ├── MissingTarget      target-missing or target-not-a-directory; also a ValueError
        │   └── RunLocked          pool-locked
        └── NotAvailable           not-available, paramiko-incompatible, program-missing, not-root

Most classes have a default reason; a more precise one is given where the error is raised. ``transient`` tells whether
the same call may succeed a moment later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypedDict

from peerstage.printable import escape
from peerstage.reasons import Reason

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from peerstage.records import StageReport

#: The kinds of algorithms that a key exchange negotiates, for `ConnectError.algorithm_kind`.
ALGORITHM_KINDS = ("", "kex", "host key", "cipher", "mac")


class Location(NamedTuple):
    """Where a setting or a known host key was found.

    Attributes:
        path: A file, or an option such as ``SSHOptions(jump=...)``.
        line: The line number from 1, or 0 for a whole file and for an option.
    """

    path: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.path}:{self.line}" if self.line else self.path


class LoginAttempt(NamedTuple):
    """One credential, and why it was not sufficient.

    Attributes:
        label: The key, agent or password, as messages name it.
        reason: Why it was not sufficient.
        outcome: The reason in words.
        path: The key file, or the agent's socket if the agent itself was unusable; "" for a password, and for a key
            that the agent holds or the caller passed.
        key_type: The type of the offered key or certificate, such as ``ssh-ed25519-cert-v01@openssh.com``, or "".
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
    """Base class of every error that is not a wrong argument.

    ``str()`` is one printable line that begins with peer and path. Errors can be pickled.

    Attributes:
        message: What happened and what to do about it, without peer and path.
        reason: What happened, for programs. Required for classes without a default.
        peer: The peer's name, or "".
        path: The remote or local path, or None.
        transient: Whether the same call may succeed a moment later.
        report: The `StageReport` of the failed run, or None.
        errno: The system's error number, or None.
        hop: The jump host that failed, as ``[user@]host[:port]``; "" for the peer itself.
        location: The configuration or known_hosts line that caused the error, or None.
    """

    reason: Reason
    transient = False

    #: The keyword arguments of the constructor, which are also attributes.
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

    def __copy__(self) -> StageError:
        # Libraries such as tblib, which Dask loads, teach `copy` to keep traceback and cause of every exception.
        rebuild, arguments = self.__reduce__()
        copied: StageError = rebuild(*arguments)
        return copied


def _rebuild(kind: type[StageError], message: str, context: dict[str, Any]) -> StageError:
    return kind(message, **context)


def format_log_line(error: BaseException) -> str:
    """Return *error* as one printable line for the log, with its reason in brackets at the end."""
    text = escape(str(error))
    return f"{text} [{error.reason}]" if isinstance(error, StageError) else text


class ConfigurationError(StageError):
    """A setting is invalid or unsupported. Raised before anything is sent."""

    reason = Reason.INVALID_CONFIGURATION


class PlanError(ConfigurationError):
    """The plan of a fleet is invalid. Nothing was connected.

    Attributes:
        problems: Every problem of the plan as one printable line, which begins with the key, such as
            ``peers.db1.prot: unknown, did you mean port?``.
    """

    context = (*StageError.context, "problems")

    def __init__(self, message: str, *, problems: tuple[str, ...] = (), **context: Unpack[_Context]) -> None:
        super().__init__(message, **context)
        self.problems = problems


class ConnectError(StageError):
    """No SSH connection could be established.

    Attributes:
        algorithm_kind: For the reason no-common-algorithm "kex", "host key", "cipher" or "mac", or "" if the server
            requires compression; for any other "".
    """

    context = (*StageError.context, "algorithm_kind")

    def __init__(self, message: str, *, algorithm_kind: str = "", **context: Unpack[_Context]) -> None:
        super().__init__(message, **context)
        self.algorithm_kind = algorithm_kind


class HostKeyError(StageError):
    """The host key failed verification. No authentication data has been sent."""


class UnknownHostKey(HostKeyError):
    """No key or certificate authority in known_hosts matches the presented key, or the new key could not be saved."""

    reason = Reason.HOST_KEY_UNKNOWN


class ChangedHostKey(HostKeyError):
    """The host presented a different key from the one in known_hosts."""

    reason = Reason.HOST_KEY_CHANGED


class RevokedHostKey(HostKeyError):
    """The host presented a key that is marked ``@revoked``."""

    reason = Reason.HOST_KEY_REVOKED


class MismatchedHostKey(HostKeyError):
    """The host presented a key that does not qualify.

    It is of a type that known_hosts does not have for the host, an RSA key that is too small, a key other than the
    pinned or listed one, or an invalid certificate.
    """

    reason = Reason.HOST_KEY_MISMATCHED


class LoginError(StageError):
    """Authentication failed.

    Attributes:
        attempts: The credentials that were offered, then those that could not be used. The error's own reason
            summarizes them: login-refused if anything was offered, else why the credentials could not be used.
    """

    context = (*StageError.context, "attempts")

    def __init__(self, message: str, *, attempts: tuple[LoginAttempt, ...] = (), **context: Unpack[_Context]) -> None:
        super().__init__(message, **context)
        self.attempts = attempts


class ConnectionLost(StageError):
    """The connection ended before the operation was complete."""

    reason = Reason.CONNECTION_LOST
    transient = True


class LimitExceeded(StageError):
    """A limit was exceeded: too many bytes, or too many seconds.

    Attributes:
        limit: The field of `Limits`; "" for another time limit, such as ConnectTimeout.
    """

    context = (*StageError.context, "limit")

    def __init__(self, message: str, *, limit: str = "", **context: Unpack[_Context]) -> None:
        super().__init__(message, **context)
        self.limit = limit


class Cancelled(StageError):
    """``cancel()`` was called from another thread."""

    reason = Reason.CANCELLED


class ProtocolError(StageError):
    """The peer, or the child process, violated the protocol; its connection is closed."""

    reason = Reason.PROTOCOL_VIOLATION


class RemoteError(StageError):
    """The peer refused a request."""


class RemoteNotFound(RemoteError):
    """The peer has no such file or directory."""

    reason = Reason.NOT_FOUND


class NoSFTP(RemoteError):
    """The peer refused the SFTP subsystem, or closed it without sending a byte: this login has no SFTP server."""

    reason = Reason.NO_SFTP


class EntryError(StageError):
    """One entry could not be staged."""


class NotRegular(EntryError):
    """The entry is not a regular file."""

    reason = Reason.NOT_A_FILE


class IncompleteFile(EntryError):
    """Fewer bytes arrived than the file's announced size."""

    reason = Reason.INCOMPLETE_FILE


class ChangedFile(EntryError):
    """The file's size or modification time changed while it was being staged."""

    reason = Reason.CHANGED_WHILE_STAGED


class NothingToStage(StageError):
    """The collect directory holds no file that could be staged."""

    reason = Reason.NOTHING_TO_STAGE


class IncompleteStage(StageError):
    """Some entries could not be staged; the others are. ``report`` lists both."""

    reason = Reason.INCOMPLETE_STAGE


class TargetError(StageError):
    """The local side failed: disk full, target not writable or removed, ownership refused."""


class MissingTarget(TargetError, ValueError):
    """The target directory does not exist, or is not a directory. Also a `ValueError`, which CedarBackup2 raises."""


class RunLocked(TargetError):
    """Another run, or another command, holds the lock of the staging pool; the message says who."""

    reason = Reason.POOL_LOCKED
    transient = True


class NotAvailable(StageError):
    """Something that the call needs is not available: an extra, a program, root, or a supported paramiko."""

    reason = Reason.NOT_AVAILABLE

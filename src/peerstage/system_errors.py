"""Map operating system errors to `StageError` and `Reason`, and start threads."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import threading
from collections.abc import Iterator

from peerstage.errors import StageError, TargetError
from peerstage.reasons import Reason

#: Errors of this process or machine, independent of the address or file.
_MACHINE_WIDE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN, errno.EIO})
#: The text of the RuntimeError that `threading` raises when the system refuses a thread.
_NO_THREAD_TEXT = "can't start new thread"
_THREAD_ADVICE = "Raise the limit of processes and threads (ulimit -u), or stage fewer peers at a time."
_MEMORY_ADVICE = "Free memory on this machine, or stage fewer peers at a time."
_REASONS = {
    errno.EMFILE: Reason.OUT_OF_DESCRIPTORS,
    errno.ENFILE: Reason.OUT_OF_DESCRIPTORS,
    errno.ENOMEM: Reason.OUT_OF_MEMORY,
    errno.ENOBUFS: Reason.OUT_OF_MEMORY,
    errno.EAGAIN: Reason.OUT_OF_THREADS,
    errno.EIO: Reason.LOCAL_IO_ERROR,
    errno.ENOSPC: Reason.NO_SPACE,
    errno.EDQUOT: Reason.QUOTA_EXCEEDED,
    errno.EROFS: Reason.READ_ONLY_TARGET,
}
#: Errors with another meaning for a target directory, and for a file that is read.
_TARGET_REASONS = {
    errno.EACCES: Reason.TARGET_NOT_WRITABLE,
    errno.EPERM: Reason.TARGET_NOT_WRITABLE,
    errno.ENOENT: Reason.TARGET_MISSING,
    errno.ESTALE: Reason.TARGET_MISSING,
    errno.ENOTDIR: Reason.TARGET_NOT_A_DIRECTORY,
}
_ENTRY_REASONS = {
    errno.EACCES: Reason.PERMISSION_DENIED,
    errno.EPERM: Reason.PERMISSION_DENIED,
    errno.ENOENT: Reason.VANISHED,
    errno.ELOOP: Reason.VANISHED,
}
_ADVICE = {
    errno.EMFILE: "Raise this process's limit of open files (ulimit -n), or stage fewer peers at a time.",
    errno.ENFILE: "Raise this machine's limit of open files (sysctl fs.file-max), or stage fewer peers at a time.",
    errno.ENOMEM: _MEMORY_ADVICE,
    errno.ENOBUFS: _MEMORY_ADVICE,
    errno.EAGAIN: _THREAD_ADVICE,
    errno.EIO: "A disk or device of this machine failed: check the kernel log.",
}


def is_machine_wide(exc: OSError) -> bool:
    """Return whether *exc* concerns this process or machine, so that another address or file would fail too."""
    return exc.errno in _MACHINE_WIDE


def reason_of(exc: OSError, otherwise: Reason = Reason.LOCAL_FAILURE) -> Reason:
    """Return the reason for the error number of *exc*, or *otherwise*."""
    return _REASONS.get(exc.errno or 0, otherwise)


def target_reason_of(exc: OSError) -> Reason:
    """Return the reason for *exc*, an error of the target directory."""
    return _TARGET_REASONS.get(exc.errno or 0) or reason_of(exc)


def entry_reason_of(exc: OSError) -> Reason:
    """Return the reason for *exc*, an error in reading a single file."""
    return _ENTRY_REASONS.get(exc.errno or 0, Reason.ENTRY_UNREADABLE)


def system_error(failed: str, exc: OSError, *, path: str | bytes | None = None) -> StageError:
    """Convert *exc* to a `StageError` with advice; the caller chains it.

    Args:
        failed: What failed, as the beginning of a sentence.
        exc: The system's error.
        path: The local path concerned.
    """
    message = f"{failed}: {(exc.strerror or str(exc)).rstrip('.')}. {_ADVICE.get(exc.errno or 0, '')}"
    return StageError(message.rstrip(), path=path, errno=exc.errno, reason=reason_of(exc))


def target_error(failed: str, exc: OSError, path: str, advice: str = "") -> TargetError:
    """Convert *exc*, an error of a local directory, to a `TargetError`; the caller chains it.

    Args:
        failed: What failed, as the beginning of a sentence.
        exc: The system's error.
        path: The directory.
        advice: What helps, as sentences; by default what helps against errors of this machine.
    """
    message = f"{failed}: {exc.strerror or exc}. {advice or _ADVICE.get(exc.errno or 0, '')}"
    return TargetError(message.rstrip(), path=path, errno=exc.errno, reason=target_reason_of(exc))


@contextlib.contextmanager
def target_errors(failed: str, path: str) -> Iterator[None]:
    """Raise every `OSError` of the block as `target_error` returns it; a `StageError` is passed on."""
    try:
        yield
    except StageError:
        raise
    except OSError as exc:
        raise target_error(failed, exc, path) from exc


def resource_error(exc: BaseException) -> StageError | None:
    """Convert *exc* to a `StageError` if memory or threads are exhausted, naming the process's own limit; else None."""
    if isinstance(exc, RuntimeError) and _NO_THREAD_TEXT in str(exc):
        return _thread_error()
    if not isinstance(exc, MemoryError):
        return None
    message = "Memory ran out on this machine. Stage fewer peers at a time."
    for name in ("RLIMIT_AS", "RLIMIT_DATA"):
        limit = _limit(name)
        if limit is not None:
            message = (
                f"Memory ran out: this process is limited to {limit} bytes ({name}, see ulimit). Raise the limit, or "
                "stage fewer peers at a time."
            )
            break
    return StageError(message, errno=errno.ENOMEM, reason=Reason.OUT_OF_MEMORY)


def _thread_error() -> StageError:
    return StageError(
        f"The system refuses another thread. {_THREAD_ADVICE}", errno=errno.EAGAIN, reason=Reason.OUT_OF_THREADS
    )


def _limit(name: str) -> int | None:
    if sys.platform == "win32":
        return None
    import resource

    limit: int = resource.getrlimit(getattr(resource, name))[0]
    return None if limit == resource.RLIM_INFINITY else limit


def max_open_files() -> int | None:
    """Return how many files this process may have open; None if nothing limits that."""
    return _limit("RLIMIT_NOFILE")


def require_free_descriptor(failed: str) -> None:
    """Raise if this process cannot open another file.

    Call it after a lookup that reports "not found" in that case too: getpwnam(3), getaddrinfo(3).

    Args:
        failed: What failed, as the beginning of a sentence.

    Raises:
        StageError: If no file can be opened.
    """
    try:
        os.close(os.open(os.devnull, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)))
    except OSError as exc:
        raise system_error(failed, exc) from exc


def start_thread(thread: threading.Thread) -> None:
    """Start *thread*.

    Raises:
        StageError: If the system refuses another thread.
    """
    try:
        thread.start()
    except RuntimeError as exc:
        raise _thread_error() from exc

"""What the operating system refuses outside the target directory, in our words: one table."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import threading
from collections.abc import Sequence
from typing import Any

from peerstage.errors import StageError
from peerstage.reasons import Reason

#: What is the matter with this process or machine, whatever was asked for.
_OF_THIS_MACHINE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN, errno.EIO})
_PROCESSES = "Raise the limit of processes and threads (ulimit -u), or stage fewer peers at a time."
#: Seconds to wait, after an interrupt, for a process that is just being started.
_STARTS_WITHIN = 5.0
_MEMORY = "Free memory on this machine, or stage fewer peers at a time."
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
#: Those that have another meaning for a target directory, and for a file that is to be read.
_OF_TARGET = {
    errno.EACCES: Reason.TARGET_NOT_WRITABLE,
    errno.EPERM: Reason.TARGET_NOT_WRITABLE,
    errno.ENOENT: Reason.TARGET_MISSING,
    errno.ESTALE: Reason.TARGET_MISSING,
    errno.ENOTDIR: Reason.TARGET_NOT_A_DIRECTORY,
}
_OF_ENTRY = {
    errno.EACCES: Reason.PERMISSION_DENIED,
    errno.EPERM: Reason.PERMISSION_DENIED,
    errno.ENOENT: Reason.VANISHED,
    errno.ELOOP: Reason.VANISHED,
}
_ADVICE = {
    errno.EMFILE: "Raise this process's limit of open files (ulimit -n), or stage fewer peers at a time.",
    errno.ENFILE: "Raise this machine's limit of open files (sysctl fs.file-max), or stage fewer peers at a time.",
    errno.ENOMEM: _MEMORY,
    errno.ENOBUFS: _MEMORY,
    errno.EAGAIN: _PROCESSES,
    errno.EIO: "A disk or a device of this machine fails: see the kernel's log.",
}


def is_of_this_machine(exc: OSError) -> bool:
    """Return whether *exc* is about this process or machine, so that another address or file would fare no better."""
    return exc.errno in _OF_THIS_MACHINE


def reason_of(exc: OSError, otherwise: Reason = Reason.LOCAL_FAILURE) -> Reason:
    """Return the reason that the system's error number stands for, whatever was asked for, or else *otherwise*."""
    return _REASONS.get(exc.errno or 0, otherwise)


def target_reason_of(exc: OSError) -> Reason:
    """Return the reason of what the system says about a directory that is written to."""
    return _OF_TARGET.get(exc.errno or 0) or reason_of(exc)


def entry_reason_of(exc: OSError) -> Reason:
    """Return the reason of what the system says about a single file that is read."""
    return _OF_ENTRY.get(exc.errno or 0, Reason.ENTRY_UNREADABLE)


def system_error(failed: str, exc: OSError, *, path: str | bytes | None = None) -> StageError:
    """Return the error as which *exc* leaves, with advice; the caller chains it.

    Args:
        failed: What failed, as the beginning of a sentence.
        exc: What the system said.
        path: The local path that is concerned.
    """
    words = f"{failed}: {(exc.strerror or str(exc)).rstrip('.')}. {_ADVICE.get(exc.errno or 0, '')}"
    return StageError(words.rstrip(), path=path, errno=exc.errno, reason=reason_of(exc))


def require_descriptors(failed: str) -> None:
    """Raise the reason if this process cannot open a file now.

    For look-ups whose functions say "not found" then, too: getpwnam(3), getaddrinfo(3).

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
        StageError: If the system starts no more threads.
    """
    try:
        thread.start()
    except RuntimeError as exc:
        raise StageError(
            f"No thread can be started: {exc}. {_PROCESSES}", errno=errno.EAGAIN, reason=Reason.OUT_OF_THREADS
        ) from exc


def start_process(argv: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a process; an interrupt leaves none behind.

    `subprocess.Popen` is called in a thread: signal handlers run in the main thread alone, where KeyboardInterrupt
    could be raised when the process has begun and nobody can end it yet.

    Args:
        argv: The program and its arguments.
        options: As for `subprocess.Popen`; the process gets a session and so a process group of its own.

    Raises:
        OSError: If it cannot be started.
        StageError: If the system starts no more threads.
    """
    started: list[subprocess.Popen[bytes]] = []
    failed: list[BaseException] = []
    done = threading.Event()

    def start() -> None:
        try:
            started.append(subprocess.Popen(argv, start_new_session=True, **options))
        except BaseException as exc:
            failed.append(exc)
        finally:
            done.set()

    thread = threading.Thread(target=start, name="peerstage-start")
    try:
        start_thread(thread)
        thread.join()
    except StageError:  # it has not been started
        raise
    except BaseException:
        done.wait(_STARTS_WITHIN)  # not without a limit: the interrupt may have come before the thread
        for process in started:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        raise
    if failed:
        raise failed[0]
    return started[0]


def has_exited(process: subprocess.Popen[bytes]) -> bool:
    """Return whether *process* has exited, leaving it unreaped so that its process group id is not reused.

    Raises:
        ChildProcessError: If its status is lost: this program ignores SIGCHLD, or reaps children that are not its own.
    """
    if process.returncode is not None or not hasattr(os, "waitid"):
        return process.poll() is not None
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

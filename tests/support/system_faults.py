"""Inject a failure into one system call of the library at a time."""

from __future__ import annotations

import builtins
import contextlib
import errno
import os
import select
import selectors
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import peerstage

if sys.platform != "win32":
    import fcntl

_PACKAGE = str(Path(peerstage.__file__).parent) + os.sep
#: Code for tests and users, and helpers that call on behalf of other modules.
_EXCLUDED = tuple(_PACKAGE + name for name in ("testing", "cli", "system_errors.py"))

_SHARED_STARTER = _PACKAGE + "system_errors.py"

_FILES = (errno.EIO, errno.ENOMEM)
_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_SOCKETS = (errno.ENOBUFS, errno.ENOMEM, errno.ECONNRESET)

#: The calls that fail, and their errnos; without ``--every-fault`` only the first one is tried.
CALLS: tuple[tuple[Any, tuple[str, ...], tuple[int, ...]], ...] = (
    (os, ("open", "scandir", "pipe"), _DESCRIPTORS),
    (builtins, ("open",), _DESCRIPTORS),
    (os, ("read", "readv", "pread", "preadv", "fstat", "lstat", "stat", "listdir"), _FILES),
    (os, ("waitid",), (errno.ECHILD,)),
    (os, ("write", "writev", "pwrite", "pwritev", "ftruncate", "fsync"), (errno.ENOSPC, errno.EIO)),
    (os, ("mkdir", "rename", "replace", "link"), (errno.ENOSPC, errno.EIO)),
    (os, ("unlink", "rmdir", "close"), _FILES),
    (os, ("fchmod", "fchown", "utime", "fstatvfs", "set_blocking", "getcwd"), _FILES),
    (socket.socket, ("__init__",), (errno.EMFILE, errno.EAFNOSUPPORT, errno.ENOBUFS)),
    (socket, ("socketpair",), _DESCRIPTORS),
    (socket.socket, ("bind", "connect", "connect_ex", "getsockopt", "setsockopt", "getpeername"), _SOCKETS),
    (socket.socket, ("settimeout", "setblocking", "shutdown", "close"), (errno.ENOMEM, errno.EIO)),
    (socket.socket, ("recv", "recv_into", "send", "sendall"), (errno.ECONNRESET, errno.ENOMEM)),
    (select, ("poll",), (errno.ENOMEM,)),
    (selectors, ("DefaultSelector",), _DESCRIPTORS),
    (subprocess.Popen, ("_execute_child",), (errno.EAGAIN, errno.ENOMEM)),
    (threading.Thread, ("start",), (errno.EAGAIN,)),
    *(((fcntl, ("flock",), (errno.ENOLCK,)),) if sys.platform != "win32" else ()),
)
#: Calls that take effect before they fail.
_FAIL_AFTERWARDS = ("close",)


class Call(NamedTuple):
    """A system call: its name, the line of the library that made it, and how it may fail."""

    name: str
    location: str
    errnos: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name} at {self.location}"


class Faults:
    """Intercepts the system calls that the library makes, in every thread.

    Attributes:
        seen: The calls so far, in order.
        hit: Whether a call has failed.
    """

    def __init__(self) -> None:
        self.seen: list[Call] = []
        self.hit = False
        self._is_due: Callable[[Call], bool] = lambda call: False
        self._errno = 0

    @contextlib.contextmanager
    def failing(self, is_due: Callable[[Call], bool], number: int) -> Iterator[None]:
        """Let the first call for which *is_due* returns true fail with errno *number*."""
        self.seen, self.hit, self._is_due, self._errno = [], False, is_due, number
        with contextlib.ExitStack() as stack:
            for owner, names, errnos in CALLS:
                for name in names:
                    stack.enter_context(self._watched(owner, name, errnos))
            yield

    @contextlib.contextmanager
    def _watched(self, owner: Any, name: str, errnos: tuple[int, ...]) -> Iterator[None]:
        original = getattr(owner, name)
        is_own = not isinstance(owner, type) or name in owner.__dict__

        def call(*args: Any, **kwargs: Any) -> Any:
            location = _find_library_line(sys._getframe(1))
            if location is None or _cannot_fail(name, args, kwargs) or not self._fails(Call(name, location, errnos)):
                return original(*args, **kwargs)
            if name in _FAIL_AFTERWARDS:
                original(*args, **kwargs)
            if owner is threading.Thread:
                raise RuntimeError("can't start new thread")
            raise OSError(self._errno, os.strerror(self._errno))

        setattr(owner, name, call)
        try:
            yield
        finally:
            if is_own:
                setattr(owner, name, original)
            else:
                delattr(owner, name)

    def _fails(self, call: Call) -> bool:
        self.seen.append(call)
        if self.hit or not self._is_due(call):
            return False
        self.hit = True
        return True


def _cannot_fail(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether it is not a system call (a socket from a descriptor), or one on a pipe or Unix socket."""
    if name == "__init__":
        return "fileno" in kwargs or len(args) > 4
    if name not in ("close", "read"):
        return False
    frame = sys._getframe(2)
    while frame.f_back is not None and not frame.f_code.co_filename.startswith(_PACKAGE):
        if frame.f_code.co_filename == subprocess.__file__:
            return True
        frame = frame.f_back
    return isinstance(args[0], socket.socket) and args[0].family == socket.AF_UNIX


def _find_library_line(frame: Any) -> str | None:
    """Return the line of the library that led to *frame*; None if none did."""
    shared = None
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(_PACKAGE) and not file.startswith(_EXCLUDED):
            return f"{file.removeprefix(_PACKAGE)}:{frame.f_lineno}"
        if file == _SHARED_STARTER:
            shared = f"{file.removeprefix(_PACKAGE)}:{frame.f_lineno}"
        frame = frame.f_back
    return shared  # a thread that starts a process for another thread

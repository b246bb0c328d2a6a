"""What the landing's tests share: peers in memory, and processes of their own for what changes or ends a process."""

from __future__ import annotations

import ctypes
import functools
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peerstage.landing import durability
from peerstage.records import StageReport
from peerstage.staging import stage
from peerstage.testing.memory import MemoryFile, MemoryTransport

MIB = 1 << 20
NOBODY = 65534

_CLONE_NEWNS = 0x00020000
_CLONE_NEWUSER = 0x10000000


def serving(**files: bytes) -> MemoryTransport:
    """A peer that has *files* in ``/c``, all of the same time."""
    return serving_names({os.fsencode(name): data for name, data in files.items()})


def serving_names(files: dict[bytes, bytes], **options: Any) -> MemoryTransport:
    """The same for names that are bytes."""
    return MemoryTransport({b"/c": {name: MemoryFile(data, mtime=1) for name, data in files.items()}}, **options)


def stage_into(target: Path, transport: MemoryTransport, **options: Any) -> StageReport:
    """Stage ``/c`` of *transport*."""
    return stage(transport, b"/c", str(target), peer="peer", **options)


def private_of(target: Path) -> Path:
    """The one private directory in *target*."""
    (found,) = [path for path in target.iterdir() if path.name.startswith(".peerstage-")]
    return found


def ids_of(path: Path) -> tuple[int, int]:
    """Owner and group."""
    found = path.lstat()
    return found.st_uid, found.st_gid


class Child:
    """A forked process that calls *function*, as *user* if given and this is root, and ends."""

    def __init__(self, function: Callable[[], object], *, user: int | None = None) -> None:
        reading, writing = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            told = b""
            try:
                os.close(reading)
                if user is not None and os.geteuid() == 0:
                    os.setgroups([])
                    os.setgid(user)
                    os.setuid(user)
                function()
            except BaseException:
                told = traceback.format_exc().encode()
            finally:
                os.write(writing, told)
                os._exit(0)
        os.close(writing)
        self._reading = reading

    def wait(self) -> None:
        """Wait for its end; what it raised fails the test here."""
        with os.fdopen(self._reading, "rb") as pipe:
            told = pipe.read()
        _, status = os.waitpid(self.pid, 0)
        if told or status:
            raise AssertionError(f"in the child, which ended with status {status}:\n{told.decode()}")


def in_a_child(function: Callable[[], object], *, user: int | None = None) -> None:
    """Call *function* in a `Child`, and wait for it."""
    Child(function, user=user).wait()


def syncs_all(target: Path) -> bool:
    """Whether many files in *target* are put on the disk by one syncfs."""
    fd = os.open(target, os.O_RDONLY)
    try:
        return durability.can_sync_all(fd)
    finally:
        os.close(fd)


def may_mount(test: Callable[..., None]) -> Callable[..., None]:
    """Run *test* where mounting is allowed: as root here, as another user in a child's own user and mount namespace.

    Where the system allows neither, the test fails: nothing is skipped.
    """

    @functools.wraps(test)
    def run(*arguments: Any, **keywords: Any) -> None:
        if os.geteuid() == 0:
            test(*arguments, **keywords)
            return

        def isolated() -> None:
            user, group = os.getuid(), os.getgid()
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNS) != 0:
                raise RuntimeError(f"Run the tests as root: unshare says {os.strerror(ctypes.get_errno())}.")
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"0 {user} 1")
            Path("/proc/self/gid_map").write_text(f"0 {group} 1")
            test(*arguments, **keywords)

        in_a_child(isolated)

    return run


class FailsAt:
    """A function of ``os`` that fails at its *number*-th call, and did what it does before.

    With *does_it* the failing call does its work as well: as close(2), which gives the descriptor back in any case.
    """

    def __init__(self, original: Callable[..., Any], code: int, *, number: int = 1, does_it: bool = False) -> None:
        self.original = original
        self.code = code
        self.number = number
        self.does_it = does_it
        self.calls = 0

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.calls += 1
        if self.calls != self.number:
            return self.original(*arguments, **options)
        if self.does_it:
            self.original(*arguments, **options)
        raise OSError(self.code, os.strerror(self.code))

"""Helpers of the target's tests: peers in memory, child processes, and failing system calls."""

from __future__ import annotations

import ctypes
import functools
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peerstage.records import StageReport
from peerstage.staging import stage
from peerstage.target import DirectoryTarget, durability
from peerstage.testing.memory import MemoryFile, MemoryTransport
from peerstage.watchdog import Watchdog

MIB = 1 << 20
NOBODY = 65534

_CLONE_NEWNS = 0x00020000
_CLONE_NEWUSER = 0x10000000


def memory_peer(**files: bytes) -> MemoryTransport:
    """Return a peer that has *files* in ``/c``, all with the same time."""
    return memory_peer_of({os.fsencode(name): data for name, data in files.items()})


def memory_peer_of(files: dict[bytes, bytes], **options: Any) -> MemoryTransport:
    """Return a peer that has *files* in ``/c``, by names in bytes."""
    return MemoryTransport({b"/c": {name: MemoryFile(data, mtime=1) for name, data in files.items()}}, **options)


def stage_into(
    target: Path, transport: MemoryTransport, *, watchdog: Watchdog | None = None, **options: Any
) -> StageReport:
    """Stage ``/c`` of *transport*."""
    return stage(transport, b"/c", DirectoryTarget(str(target), peer="peer", **options), watchdog=watchdog)


def private_directory_of(target: Path) -> Path:
    """Return the only private directory in *target*."""
    (found,) = [path for path in target.iterdir() if path.name.startswith(".peerstage-")]
    return found


def owner_of(path: Path) -> tuple[int, int]:
    """Return owner and group."""
    found = path.lstat()
    return found.st_uid, found.st_gid


class Child:
    """A forked process that calls *function*, as *user* if this process is root, and exits."""

    def __init__(self, function: Callable[[], object], *, user: int | None = None) -> None:
        reading, writing = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            output = b""
            try:
                os.close(reading)
                if user is not None and os.geteuid() == 0:
                    os.setgroups([])
                    os.setgid(user)
                    os.setuid(user)
                function()
            except BaseException:
                output = traceback.format_exc().encode()
            finally:
                os.write(writing, output)
                os._exit(0)
        os.close(writing)
        self._reading = reading

    def wait(self) -> None:
        """Wait until it exits; its exception fails the test here."""
        with os.fdopen(self._reading, "rb") as pipe:
            output = pipe.read()
        _, status = os.waitpid(self.pid, 0)
        if output or status:
            raise AssertionError(f"in the child, which ended with status {status}:\n{output.decode()}")


def run_in_child(function: Callable[[], object], *, user: int | None = None) -> None:
    """Call *function* in a `Child`, and wait for it."""
    Child(function, user=user).wait()


def has_reliable_syncfs(target: Path) -> bool:
    """Return whether many files in *target* are made durable by one syncfs."""
    fd = os.open(target, os.O_RDONLY)
    try:
        return durability.is_syncfs_reliable(fd)
    finally:
        os.close(fd)


def requires_mount(test: Callable[..., None]) -> Callable[..., None]:
    """Run *test* with the right to mount: as root directly, as another user in new user and mount namespaces.

    If the system allows neither, the test fails instead of being skipped.
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

        run_in_child(isolated)

    return run


class FailsAt:
    """A function of ``os`` that fails at its *number*-th call, and works before and after it.

    With *takes_effect* the failing call takes effect too, as close(2) releases the descriptor even if it fails.
    """

    def __init__(self, original: Callable[..., Any], code: int, *, number: int = 1, takes_effect: bool = False) -> None:
        self.original = original
        self.code = code
        self.number = number
        self.takes_effect = takes_effect
        self.calls = 0

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.calls += 1
        if self.calls != self.number:
            return self.original(*arguments, **options)
        if self.takes_effect:
            self.original(*arguments, **options)
        raise OSError(self.code, os.strerror(self.code))

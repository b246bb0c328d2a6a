"""A child that the system does not let us start is one error of ours, and leaves nothing open."""

from __future__ import annotations

import errno
import mmap
import os
import resource
import socket
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from peerstage.errors import NotAvailable
from peerstage.isolation import ring as ring_module
from peerstage.isolation.process import Child
from peerstage.isolation.ring import SIZE, Ring, RingWriter

pytestmark = pytest.mark.usefixtures("leaves_nothing")

COMMAND = ["/bin/sleep", "1000"]


class Refuses:
    """A system call that fails at its *number*-th call."""

    def __init__(self, original: Callable[..., Any], code: int, number: int = 1) -> None:
        self._original = original
        self._code = code
        self._left = number

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self._left -= 1
        if self._left == 0:
            raise OSError(self._code, os.strerror(self._code))
        return self._original(*arguments, **options)


@pytest.mark.parametrize(
    ("module", "name", "number", "code"),
    [
        (socket, "socketpair", 1, errno.EMFILE),
        (os, "pipe", 1, errno.EMFILE),
        (os, "pipe", 2, errno.ENFILE),
        (subprocess.Popen, "_execute_child", 1, errno.EAGAIN),
        (subprocess.Popen, "_execute_child", 1, errno.ENOMEM),
    ],
)
def test_what_a_child_needs_and_the_system_refuses_is_said(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str, number: int, code: int
) -> None:
    monkeypatch.setattr(module, name, Refuses(getattr(module, name), code, number))
    with pytest.raises(NotAvailable, match=f"can not be started: .*{os.strerror(code)}"):
        Child({}, COMMAND)


@pytest.mark.parametrize("few", range(16))
def test_a_process_that_may_open_few_files_starts_a_child_or_says_why_not(few: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(fd) for fd in os.listdir("/proc/self/fd"))
    filler = [os.open("/dev/null", os.O_RDONLY) for _ in range(highest)]  # so that no free number is left below
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(filler) + 1 + few, hard))
    try:
        Child({}, COMMAND).end(politely=False, found=False)
    except NotAvailable as exc:
        assert "Too many open files" in str(exc)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in filler:
            os.close(fd)


@pytest.mark.parametrize("environment", [{"A": "b\0c"}, {"A=B": "c"}])
def test_an_environment_that_no_process_can_have_is_said(environment: dict[str, str]) -> None:
    with pytest.raises(NotAvailable, match="can not be started"):
        Child(environment, COMMAND)


@pytest.mark.parametrize(
    ("module", "name"), [(os, "memfd_create"), (os, "ftruncate"), (ring_module.fcntl, "fcntl"), (mmap, "mmap")]
)
@pytest.mark.parametrize("error", [OSError(errno.ENOMEM, "Cannot allocate memory"), KeyboardInterrupt()])
def test_shared_memory_that_can_not_be_had_leaves_nothing_open(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str, error: BaseException
) -> None:
    def refuse(*arguments: Any) -> Any:
        raise error

    monkeypatch.setattr(module, name, refuse)
    if isinstance(error, OSError):
        assert Ring.make() is None
    else:
        with pytest.raises(KeyboardInterrupt):
            Ring.make()


def test_a_child_that_can_not_map_the_memory_closes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    fd = os.memfd_create("peerstage")
    os.ftruncate(fd, SIZE)  # and no room for the mark
    with pytest.raises(ValueError, match="mmap"):
        RingWriter(fd)

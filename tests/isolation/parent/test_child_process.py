"""A child process that cannot be started is reported as `NotAvailable`, and leaves nothing open."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import socket
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from peerstage.errors import NotAvailable
from peerstage.isolation.parent.child_channel import ChildChannel
from peerstage.isolation.parent.child_process import ChildProcess

pytestmark = pytest.mark.usefixtures("leaves_nothing")

COMMAND = ["/bin/sleep", "1000"]
F_GETPIPE_SZ = 1032  # fcntl has it from Python 3.10 on, typeshed has not


class FailingCall:
    """Replaces a function, and raises an error at its *number*-th call."""

    def __init__(self, original: Callable[..., Any], code: int, number: int = 1) -> None:
        self._original = original
        self._code = code
        self._calls_to_failure = number

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self._calls_to_failure -= 1
        if self._calls_to_failure == 0:
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
def test_a_refused_system_call_is_reported(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str, number: int, code: int
) -> None:
    monkeypatch.setattr(module, name, FailingCall(getattr(module, name), code, number))
    with pytest.raises(NotAvailable, match=f"Cannot start a Python child process: .*{os.strerror(code)}"):
        ChildProcess({}, COMMAND)


@pytest.mark.parametrize("free", range(16))
def test_a_process_with_few_descriptors_starts_a_child_or_reports_why_not(free: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(fd) for fd in os.listdir("/proc/self/fd"))
    filler = [os.open("/dev/null", os.O_RDONLY) for _ in range(highest)]  # so that no lower descriptor is free
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(filler) + 1 + free, hard))
    try:
        ChildProcess({}, COMMAND).end(is_idle=False, may_have_orphans=False)
    except NotAvailable as exc:
        assert "Too many open files" in str(exc)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in filler:
            os.close(fd)


@pytest.mark.parametrize("environment", [{"A": "b\0c"}, {"A=B": "c"}])
def test_an_invalid_environment_is_reported(environment: dict[str, str]) -> None:
    with pytest.raises(NotAvailable, match="Cannot start a Python child process"):
        ChildProcess(environment, COMMAND)


@pytest.mark.parametrize(("error", "size"), [(None, 1 << 20), (errno.EPERM, 1 << 16)])
def test_the_pipe_for_frames_holds_one_mebibyte_where_the_system_allows_it(
    monkeypatch: pytest.MonkeyPatch, error: int | None, size: int
) -> None:
    if error is not None:
        monkeypatch.setattr(fcntl, "fcntl", FailingCall(fcntl.fcntl, error))
    with contextlib.ExitStack() as child_ends:
        channel = ChildChannel(child_ends)
        _jobs, frames, _stderr = channel.child_stdio
        assert fcntl.fcntl(frames, F_GETPIPE_SZ) == size
        os.write(frames, bytes(size))
        assert len(channel.receive(lambda: 10)) == size
        channel.close()

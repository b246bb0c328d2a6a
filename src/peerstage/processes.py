"""Start processes in process groups of their own, and end the whole group."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Sequence
from typing import Any

from peerstage.errors import StageError
from peerstage.system_errors import start_thread

#: Seconds to wait, after an interrupt, for a process that is being started.
_START_TIMEOUT = 5.0


def start_process(argv: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a process, without leaking it if an interrupt arrives.

    `subprocess.Popen` runs in a thread, because signal handlers run in the main thread: there, KeyboardInterrupt could
    be raised after the process has started and before `Popen` returns it.

    Args:
        argv: The program and its arguments.
        options: As for `subprocess.Popen`; the process gets its own session and so its own process group.

    Raises:
        OSError: If the process cannot be started.
        StageError: If the system refuses another thread.
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
    except StageError:  # the thread has not started
        raise
    except BaseException:
        done.wait(_START_TIMEOUT)  # bounded: the interrupt may have come before the thread started
        for process in started:
            signal_group(process, signal.SIGKILL)
            process.communicate()
        raise
    if failed:
        raise failed[0]
    return started[0]


def has_exited(process: subprocess.Popen[bytes]) -> bool:
    """Return whether *process* has exited. Where waitid(2) exists it stays unreaped: its group id is not reused.

    Raises:
        ChildProcessError: If its status is lost: this program ignores SIGCHLD, or reaps children it did not start.
    """
    if process.returncode is not None or not hasattr(os, "waitid"):
        return process.poll() is not None
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def exit_status(process: subprocess.Popen[bytes]) -> int:
    """Return the status of a *process* that has exited, unreaped where waitid(2) exists; 0 if it is lost.

    It is negative if a signal killed the process, as `subprocess.Popen.returncode` is.
    """
    if process.returncode is not None or not hasattr(os, "waitid"):
        return process.poll() or 0
    try:
        found = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return 0
    if found is None:
        return 0
    return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status


def signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    """Send signal *number* to the process group that *process* leads.

    Nothing is sent once the process is reaped: its process group id may belong to another group by then.
    """
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)

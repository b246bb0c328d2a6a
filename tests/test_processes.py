"""Processes that are started in groups of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from typing import Any

import pytest

from peerstage.processes import exit_status, has_exited, signal_group, start_process
from support.children import is_reaped


def test_an_interrupt_while_a_process_starts_leaves_none(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []

    class Interrupted(subprocess.Popen[bytes]):
        """Ctrl-C comes when the process runs, and its starter does not know it yet."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            started.append(self.pid)
            os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(0.2)

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        start_process(["sleep", "1000"])
    assert is_reaped(started[0])


@pytest.mark.parametrize(("command", "status"), [("exit 3", 3), ("kill -TERM $$", -signal.SIGTERM), ("true", 0)])
def test_the_status_of_a_process_is_known_before_it_is_reaped(command: str, status: int) -> None:
    process = start_process(["sh", "-c", command])
    while not has_exited(process):
        time.sleep(0.01)
    assert exit_status(process) == status
    assert process.returncode is None
    assert process.wait() == status
    assert exit_status(process) == status


def test_a_group_is_signalled_only_until_its_leader_is_reaped(monkeypatch: pytest.MonkeyPatch) -> None:
    process = start_process(["sleep", "1000"])
    signal_group(process, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    signalled: list[int] = []
    monkeypatch.setattr(os, "killpg", lambda group, number: signalled.append(group))
    signal_group(process, signal.SIGKILL)
    assert signalled == [], "the id may belong to another group by now"

"""The accounts that tests run with: each worker gets a pair, and every run deletes its accounts, however it ends."""

from __future__ import annotations

import json
import os
import pwd
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.waiting import wait_until

pytestmark = pytest.mark.usefixtures("fresh_interpreter", "root")

TESTS = Path(__file__).parent

#: Two tests that record their accounts, start a process of the first one, and do not end.
WAITING = """
import json, os, subprocess, time
from pathlib import Path
import pytest

@pytest.mark.parametrize("number", [0, 1])
def test_that_waits(accounts, number):
    become = ["setpriv", f"--reuid={accounts[0].uid}", "--clear-groups"]
    subprocess.Popen([*become, "sleep", "1000"], start_new_session=True)
    record = json.dumps([[account.name, account.uid, str(account.home)] for account in accounts])
    Path(f"incomplete-{number}").write_text(record)
    os.rename(f"incomplete-{number}", f"record-{number}")
    time.sleep(1000)
"""
#: Shortens the time after which pytest-xdist kills workers that do not exit.
IMPATIENT = "from xdist.workermanage import NodeManager\nNodeManager.EXIT_TIMEOUT = 1\n"


@contextmanager
def pytest_running(directory: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run pytest with two workers in *directory*, in a session of its own; kill it at the end of the block."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "support.accounts", "-p", "no:cacheprovider", *arguments]
    process = subprocess.Popen(
        command,
        cwd=directory,
        env={**environment, "PYTHONPATH": str(TESTS)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def exists(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def processes_of(uid: int) -> list[str]:
    found = []
    for path in Path("/proc").iterdir():
        try:
            if path.name.isdigit() and path.stat().st_uid == uid and (path / "exe").readlink():
                found.append(path.name)
        except OSError:
            continue
    return found


@pytest.mark.parametrize("end", ["Ctrl-C", "Ctrl-C again and again", "SIGKILL"])
def test_an_interrupted_run_leaves_no_account_and_no_process(tmp_path: Path, end: str) -> None:
    (tmp_path / "test_waiting.py").write_text(WAITING)
    (tmp_path / "conftest.py").write_text(IMPATIENT)
    records = [tmp_path / f"record-{number}" for number in (0, 1)]
    with pytest_running(tmp_path, "-n", "2") as process:
        wait_until(lambda: all(path.exists() for path in records))
        accounts = [tuple(account) for path in records for account in json.loads(path.read_text())]
        assert len({name for name, _, _ in accounts}) == 4, "each worker has a pair of its own"
        assert all(exists(name) for name, _, _ in accounts)
        wait_until(lambda: processes_of(accounts[0][1]))
        os.killpg(process.pid, signal.SIGKILL if end == "SIGKILL" else signal.SIGINT)
        while end == "Ctrl-C again and again" and process.poll() is None:
            time.sleep(0.1)
            os.killpg(process.pid, signal.SIGINT)
        process.wait(60)
    wait_until(lambda: not any(exists(name) for name, _, _ in accounts))
    wait_until(lambda: not any(Path(home).exists() for _, _, home in accounts))
    assert not any(processes_of(uid) for _, uid, _ in accounts)


def test_a_run_of_quick_tests_creates_no_account(tmp_path: Path) -> None:
    (tmp_path / "test_quick.py").write_text(
        "def test_quick(request):\n    assert 'accounts' not in request.config.workerinput\n"
    )
    with pytest_running(tmp_path, "-n", "2", "-m", "not slow") as process:
        assert process.wait(60) == 0

"""A Dask cluster of processes on this machine, started as the guide starts one on several."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from support.sshd import free_port
from support.waiting import wait_until


class DaskCluster:
    """A scheduler and workers. Leaving the ``with`` block ends them.

    Args:
        directory: Where workers keep their files.

    Attributes:
        address: The address of the scheduler, once it is started.
    """

    def __init__(self, directory: Path) -> None:
        self.address = ""
        self._directory = directory
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> DaskCluster:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for process in self._processes:
            os.killpg(process.pid, signal.SIGKILL)  # an orderly end takes seconds, and workers have processes
            process.wait()

    def start_scheduler(self, words: list[str]) -> None:
        """Run the command of a scheduler, at a free port of this machine; return when it listens."""
        port = free_port()
        if "--port" in words:
            del words[words.index("--port") : words.index("--port") + 2]
        self._start([*words, "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"])
        self.address = f"tcp://127.0.0.1:{port}"
        wait_until(lambda: _listens(port))

    def start_worker(self, words: list[str]) -> None:
        """Run the command of workers, whose scheduler is this one."""
        address = next(number for number, word in enumerate(words) if word.startswith("tcp://"))
        words[address] = self.address
        self._start([*words, "--host", "127.0.0.1", "--no-dashboard", "--local-directory", str(self._directory)])

    def _start(self, words: list[str]) -> None:
        assert words[0] == "dask"
        argv = [sys.executable, "-m", "dask", *words[1:]]
        self._processes.append(
            subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        )


def _listens(port: int) -> bool:
    with socket.socket() as found:
        return found.connect_ex(("127.0.0.1", port)) == 0

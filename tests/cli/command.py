"""The command line, called in this process or started in one of its own."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import peerstage
from peerstage.__main__ import main
from support.leaks import children
from support.sshd import Sshd
from support.waiting import wait_until

SOURCE = Path(peerstage.__file__).parents[1]


@dataclass
class Command:
    """Runs ``peerstage`` against a server.

    Calling it calls `peerstage.__main__.main` in this process, which saves the start of an interpreter. What needs a
    process of its own uses `start` or `in_a_process`: signals, terminals, packages that are missing, how it exits.
    """

    sshd: Sshd
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def reaching(self) -> list[str]:
        """The options that reach the server without this machine's configuration."""
        sshd = self.sshd
        return ["--port", str(sshd.port), "--identity", str(sshd.identity), "--known-hosts", str(sshd.known_hosts),
                "--no-config"]  # fmt: skip

    def spec(self, directory: Path | str) -> str:
        return f"{self.sshd.user}@{self.sshd.host}:{directory}"

    def argv(self, *arguments: object) -> list[str]:
        return [sys.executable, "-m", "peerstage", *map(str, arguments)]

    def start(self, *arguments: object, **changes: object) -> subprocess.Popen[str]:
        """Start the command in a process of its own."""
        options: dict[str, object] = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
            "env": self.environ(),
        }
        return subprocess.Popen(self.argv(*arguments), **{**options, **changes})  # type: ignore[call-overload, no-any-return]

    def environ(self) -> dict[str, str]:
        paths = [self.environment.get("PYTHONPATH", ""), str(SOURCE)]
        return {**os.environ, **self.environment, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}

    def in_a_process(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Run the command in a process of its own."""
        with self.start(*arguments) as process:
            out, err = process.communicate(timeout=120)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def __call__(self, *arguments: object, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
        argv = ["peerstage", *map(str, arguments)]
        with _standard_streams(stdin) as (out, err), _nothing_stays_changed(), _started_with(argv, self.environment):
            status = main()
        return subprocess.CompletedProcess(argv, status, out.getvalue().decode(), err.getvalue().decode())

    def reach(self, verb: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Run a verb with the options that lead to the server."""
        return self(verb, *self.reaching, *arguments)


@contextlib.contextmanager
def _standard_streams(stdin: bytes) -> Iterator[tuple[io.BytesIO, io.BytesIO]]:
    """Replace the standard streams; standard input holds *stdin*."""
    out, err = io.BytesIO(), io.BytesIO()
    with pytest.MonkeyPatch.context() as patch, io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8") as given:
        streams = [io.TextIOWrapper(raw, encoding="utf-8") for raw in (out, err)]
        for name, stream in zip(("stdin", "stdout", "stderr"), (given, *streams), strict=True):
            patch.setattr(sys, name, stream)
        try:
            yield out, err
        finally:
            for stream in streams:
                stream.detach()  # flushes it; closing it would close what is to be read


@contextlib.contextmanager
def _started_with(argv: Sequence[str], environment: dict[str, str]) -> Iterator[None]:
    """Replace the arguments and the environment of this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", argv)
        patch.setattr(tempfile, "tempdir", None)
        patch.setenv("COLUMNS", "80")  # as wide as a pipe, wherever pytest itself writes to
        for name, value in environment.items():
            patch.setenv(name, value)
        expected = dict(os.environ)
        yield
        assert dict(os.environ) == expected


@contextlib.contextmanager
def _nothing_stays_changed() -> Iterator[None]:
    """Fail if the command changes state that the end of a process would have reset; remove its log handler."""
    ours, running = logging.getLogger("peerstage"), set(threading.enumerate())
    log = ours.handlers[:], ours.propagate, ours.level
    before, processes = _state(), children()
    try:
        yield
    finally:
        ours.handlers[:], ours.propagate, level = log
        ours.setLevel(level)
    for thread in set(threading.enumerate()) - running:
        if not thread.daemon:  # the end of a process waits for these
            thread.join(60)
            assert not thread.is_alive(), f"{thread.name} would keep the process from ending."
    assert _state() == before
    wait_until(lambda: children() <= processes)  # a server of the test may have some, and is still about to end them


def _state() -> tuple[object, ...]:
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    return handlers, os.getcwd()

"""A working set-up that the doctor's tests break, and checks of its reports."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest

from cli.command import Command
from peerstage.errors import StageError
from peerstage.ssh.auth.agent import UnusableKey
from support.sshd import Sshd

T = TypeVar("T")
STEPS = ["configuration", "name", "TCP", "banner", "key exchange", "host key", "login", "SFTP", "directory",
         "files", "indicator", "write"]  # fmt: skip


@dataclass
class DoctorSetup:
    """A server, a user's own ``~/.ssh`` with all that is needed to reach it, and the doctor's command line.

    Attributes:
        options: Options before the peer.
        user: Who logs in.
        directory: The collect directory.
    """

    home: Path
    collect: Path
    start_sshd: Callable[..., Sshd]
    command: Command
    sshd: Sshd = field(init=False)
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    options: list[str] = field(default_factory=list)
    user: str = ""
    directory: str = ""

    def start(self, **changes: Any) -> DoctorSetup:
        self.sshd = self.start_sshd(**changes)
        self.user, self.directory = self.sshd.user, str(self.collect)
        ssh = self.home / ".ssh"
        ssh.mkdir(mode=0o700)
        (ssh / "id_ed25519").touch(0o600)
        (ssh / "id_ed25519").write_bytes(self.sshd.identity.read_bytes())
        (ssh / "known_hosts").write_bytes(self.sshd.known_hosts.read_bytes())
        self.configure(f"Port {self.sshd.port}")
        (self.collect / "cback.collect").touch()
        (self.collect / "data").write_bytes(b"x" * 1000)
        return self

    @property
    def config(self) -> Path:
        return self.home / ".ssh" / "config"

    @property
    def known_hosts(self) -> Path:
        return self.home / ".ssh" / "known_hosts"

    @property
    def key(self) -> Path:
        return self.home / ".ssh" / "id_ed25519"

    def until_the_end(self, context: contextlib.AbstractContextManager[T]) -> T:
        """Enter *context* until the test ends."""
        return self.stack.enter_context(context)

    def configure(self, *lines: str) -> None:
        self.config.write_text("Host db1\n HostName 127.0.0.1\n" + "".join(f" {line}\n" for line in lines))

    def force(self, script: str) -> None:
        """Make a shell *script* the forced command of the key."""
        path, keys = self.home / "forced", self.sshd.home / "authorized_keys"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        keys.write_text(f'command="{path}" {keys.read_text()}')

    @property
    def asked(self) -> list[str]:
        """The commands that a `guard` received."""
        return (self.home / "asked").read_text().splitlines()

    def guard(self, refuse: str = "echo 'guard: refused' >&2") -> None:
        """Force a command that runs exactly the three commands of the original."""
        directory = self.collect
        commands = [
            f"'scp -f {directory}/cback.collect'",
            f"'scp -f {directory}/*'",
            f"'scp -t {directory}/cback.stage'",
        ]
        self.force(
            f'echo "$SSH_ORIGINAL_COMMAND" >> {self.home}/asked\n'
            f'case "$SSH_ORIGINAL_COMMAND" in {" | ".join(commands)}) exec sh -c "$SSH_ORIGINAL_COMMAND";; esac\n'
            f"{refuse}\nexit 1"
        )

    def stage(self, target: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
        return self.command("stage", *self.options, *arguments, f"{self.user}@db1:{self.directory}", target)

    def doctor(self, *arguments: object, once: bool = False) -> dict[str, Any]:
        """Return the doctor's report; unless *once*, check that it does not depend on the text of messages."""
        command = [*self.options, *arguments, f"{self.user}@db1:{self.directory}".rstrip(":")]
        report = self._doctor(*command)
        if not once and report["failed"]:
            with reworded():
                again = self._doctor(*command)
            assert "reworded" in failure_of(again)["seen"]
            assert _essence(again) == _essence(report)
        return report

    def _doctor(self, *arguments: object) -> dict[str, Any]:
        done = self.command("doctor", "--json", *arguments)
        assert done.stderr == ""
        report: dict[str, Any] = json.loads(done.stdout)
        assert done.returncode == report["exit"]
        return report


def _essence(report: dict[str, Any]) -> list[dict[str, str]]:
    """Return what must not depend on the text of a message."""
    return [{key: one[key] for key in ("step", "state", "reason", "cause", "remedy")} for one in report["steps"]]


@contextlib.contextmanager
def reworded() -> Iterator[None]:
    """Replace the message of every error, and of every unusable key, with one word."""
    with pytest.MonkeyPatch.context() as patch:
        one_word = property(lambda error: "reworded", lambda error, text: None)
        patch.setattr(StageError, "message", one_word, raising=False)
        original = UnusableKey.__init__

        def init(self: Any, message: str, *rest: Any, **context: Any) -> None:
            original(self, "reworded", *rest, **context)

        patch.setattr(UnusableKey, "__init__", init)
        yield


def failed(report: dict[str, Any], step: str, reason: str) -> dict[str, str]:
    """Return *step*; check that it failed for *reason*, after steps that passed and before skipped ones."""
    assert (report["failed"], report["reason"]) == (step, reason), report
    states = [one["state"] for one in report["steps"]]
    at = states.index("failed")
    assert set(states[:at]) <= {"ok", "tried"}
    assert set(states[at + 1 :]) <= {"skipped"}
    found: dict[str, str] = report["steps"][at]
    assert found["reason"] == reason
    assert found["cause"]
    assert found["remedy"]
    assert all(text.isprintable() for text in found.values())
    return found


def failure_of(report: dict[str, Any]) -> dict[str, str]:
    """Return the first step that failed."""
    return next(one for one in report["steps"] if one["state"] == "failed")


def state_of(report: dict[str, Any], step: str) -> dict[str, str]:
    return next(one for one in report["steps"] if one["step"] == step)


def through(setup: DoctorSetup, hop: Sshd, *, known: bool = True) -> None:
    """Reach the server through *hop*."""
    (hop.home / "authorized_keys").write_bytes((setup.sshd.home / "id.pub").read_bytes())
    setup.config.write_text(
        f"Host db1\n HostName 127.0.0.1\n Port {setup.sshd.port}\n ProxyJump gate\n"
        f"Host gate\n HostName 127.0.0.1\n Port {hop.port}\n User {hop.user}\n"
    )
    if known:
        setup.known_hosts.write_bytes(setup.known_hosts.read_bytes() + hop.known_hosts.read_bytes())


def beside(setup: DoctorSetup, port: int) -> None:
    """Add the server's key to known_hosts for another port."""
    key = " ".join((setup.sshd.home / "host.pub").read_text().split()[:2])
    setup.known_hosts.write_text(f"[127.0.0.1]:{port} {key}\n")

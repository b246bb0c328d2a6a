"""A working set-up that the tests of messages break, and then repair as the message says."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cli.command import Command
from support.sshd import Sshd

#: Parameters of Python, which cannot be typed on the command line.
_PYTHON_PARAMETER = re.compile(r"SSHOptions|Limits[.(]|Retry\(|\w+=\(|=\.\.\.|The option")


@dataclass
class PeerSetup:
    """A peer on this machine, reached by a user's own ``~/.ssh``.

    Attributes:
        options: Options of the command line.
        user: Who logs in.
        directory: The collect directory.
    """

    home: Path
    collect: Path
    target: Path
    sshd: Sshd
    command: Command
    options: list[str] = field(default_factory=list)
    user: str = ""
    directory: Path = field(init=False)

    def __post_init__(self) -> None:
        self.directory, self.user = self.collect, self.user or self.sshd.user
        self.ssh.mkdir(mode=0o700)
        self.key.touch(0o600)
        self.key.write_bytes(self.sshd.identity.read_bytes())
        self.known_hosts.write_bytes(self.sshd.known_hosts.read_bytes())
        self.configure(f"Port {self.sshd.port}")
        self.finish_collecting()

    @property
    def ssh(self) -> Path:
        return self.home / ".ssh"

    @property
    def key(self) -> Path:
        return self.ssh / "id_ed25519"

    @property
    def config(self) -> Path:
        return self.ssh / "config"

    @property
    def known_hosts(self) -> Path:
        return self.ssh / "known_hosts"

    def configure(self, *lines: str) -> None:
        self.config.write_text("Host db1\n HostName 127.0.0.1\n" + "".join(f" {line}\n" for line in lines))

    def hide_key(self) -> Path:
        """Move the key to a path that is not configured; return the path."""
        return self.key.rename(self.home / "hidden_key")

    def authorize(self, line: str) -> None:
        """Append a line to authorized_keys on the peer."""
        with (self.sshd.home / "authorized_keys").open("a") as file:
            file.write(line)

    def finish_collecting(self) -> None:
        """Write the collected files and the collect indicator."""
        (self.collect / "data").write_bytes(b"x" * 1000)
        (self.collect / "cback.collect").touch()

    def run(self, verb: str) -> tuple[int, dict[str, Any], str]:
        """Run *verb*; return the status, the JSON object and standard error."""
        place = [self.target] if verb == "stage" else []
        done = self.command(verb, "--json", *self.options, f"{self.user}@db1:{self.directory}", *place)
        return done.returncode, json.loads(done.stdout), done.stderr

    def fails(self, reason: str, verb: str = "check", status: int = 4) -> str:
        """Run *verb*; check that it fails for *reason*, and return its message."""
        returncode, report, err = self.run(verb)
        assert (report["reason"], returncode, report["exit"]) == (reason, status, status), report
        message: str = report["error"]
        assert message in err
        assert not _PYTHON_PARAMETER.search(message), message
        return message

    def works(self) -> None:
        """Check that the peer can be checked, staged and marked."""
        for verb in ("check", "stage", "mark"):
            returncode, report, _ = self.run(verb)
            assert returncode == 0, report
        assert (self.target / "data").read_bytes() == b"x" * 1000
        assert (self.collect / "cback.stage").exists()

    def follow(self, message: str, **values: object) -> str:
        """Run the commands in backquotes of the first alternative, in one shell; return their output.

        Args:
            message: A message.
            values: What only a person knows, for the words in capital letters.
        """
        line = " && ".join(commands_in(re.sub(r"; or .*?(?=\.(?: |$))", "", message)))
        for name, value in values.items():
            line = re.sub(rf"\b{name}\b", str(value), line)
        done = subprocess.run(
            line, shell=True, check=True, stdout=subprocess.PIPE, text=True, env=self.command.environ(), timeout=60
        )
        return done.stdout

    def answer_passphrases(self, passphrase: str) -> None:
        """Answer prompts for a passphrase."""
        answer = self.home / "askpass"
        answer.write_text(f"#!/bin/sh\necho {passphrase}\n")
        answer.chmod(0o700)
        self.command.environment.update(SSH_ASKPASS=str(answer), SSH_ASKPASS_REQUIRE="force", DISPLAY=":0")


def commands_in(message: str) -> list[str]:
    """Return the commands in backquotes."""
    return re.findall(r"`(.*?)`", message)


def replaced(options: list[str], old: str, new: object) -> list[str]:
    """Return *options* with *new* for *old*."""
    assert options.count(old) == 1
    return [str(new) if option == old else option for option in options]


def correct_line(message: str, line: str | None) -> None:
    """Replace the line that *message* names by file and number with *line*, or remove it."""
    found = re.search(r"(/[^\s:]+):(\d+)", message)
    assert found is not None, message
    path, number = Path(found[1]), int(found[2])
    lines = path.read_text().splitlines()
    lines[number - 1 : number] = [] if line is None else [line]
    path.write_text("\n".join(lines) + "\n")

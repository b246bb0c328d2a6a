"""A set-up that works, to be broken: what the tests of messages share. Their next steps are carried out literally."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cli.command import Command
from support.sshd import Sshd

#: What nobody at the command line can type, and what nobody in Python can.
_FOREIGN = re.compile(r"SSHOptions|Limits\(|Retry\(|\w+=\(|=\.\.\.| --(?!known-hosts|port|yes)[a-z]")


@dataclass
class Setup:
    """A peer on this machine, reached by a user's own ``~/.ssh``.

    Attributes:
        options: What stands on the command line.
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
        """Move the key to where nothing looks for it; return where it is."""
        return self.key.rename(self.home / "hidden_key")

    def authorize(self, line: str) -> None:
        """Append a line to authorized_keys on the peer."""
        with (self.sshd.home / "authorized_keys").open("a") as file:
            file.write(line)

    def finish_collecting(self) -> None:
        """Do what the peer does each night."""
        (self.collect / "data").write_bytes(b"x" * 1000)
        (self.collect / "cback.collect").touch()

    def run(self, verb: str) -> tuple[int, dict[str, Any], str]:
        """Run *verb*; return the status, the object on standard output and the standard error."""
        place = [self.target] if verb == "stage" else []
        done = self.command(verb, "--json", *self.options, f"{self.user}@db1:{self.directory}", *place)
        return done.returncode, json.loads(done.stdout), done.stderr

    def fails(self, reason: str, verb: str = "check", status: int = 4) -> str:
        """Run *verb*, which must fail for this *reason*, in words for whoever typed it; return what it says."""
        returncode, told, err = self.run(verb)
        assert (told["reason"], returncode, told["exit"]) == (reason, status, status), told
        said: str = told["error"]
        assert said in err
        assert not _FOREIGN.search(said), said
        return said

    def works(self) -> None:
        """See that the peer is checked, staged and marked."""
        for verb in ("check", "stage", "mark"):
            returncode, told, _ = self.run(verb)
            assert returncode == 0, told
        assert (self.target / "data").read_bytes() == b"x" * 1000
        assert (self.collect / "cback.stage").exists()

    def follow(self, said: str, **values: object) -> str:
        """Run the commands in backquotes, in one shell; return what they print.

        Args:
            said: A message.
            values: What only a person knows, for the words in capital letters.
        """
        line = " && ".join(commands_in(said))
        for name, value in values.items():
            line = re.sub(rf"\b{name}\b", str(value), line)
        done = subprocess.run(
            line, shell=True, check=True, stdout=subprocess.PIPE, text=True, env=self.command.environ(), timeout=60
        )
        return done.stdout

    def answer_passphrases(self, passphrase: str) -> None:
        """Have whoever asks for a passphrase be answered, as by a person."""
        answer = self.home / "askpass"
        answer.write_text(f"#!/bin/sh\necho {passphrase}\n")
        answer.chmod(0o700)
        self.command.environment.update(SSH_ASKPASS=str(answer), SSH_ASKPASS_REQUIRE="force", DISPLAY=":0")


def commands_in(said: str) -> list[str]:
    """Return the commands that *said* holds in backquotes."""
    return re.findall(r"`(.*?)`", said)


def replaced(options: list[str], old: str, new: object) -> list[str]:
    """Return *options* with the one value *old* corrected."""
    assert options.count(old) == 1
    return [str(new) if option == old else option for option in options]


def correct_line(said: str, line: str | None) -> None:
    """Put *line* in the place of the one that *said* names by file and number, or remove it."""
    found = re.search(r"(/[^\s:]+):(\d+)", said)
    assert found is not None, said
    path, number = Path(found[1]), int(found[2])
    lines = path.read_text().splitlines()
    lines[number - 1 : number] = [] if line is None else [line]
    path.write_text("\n".join(lines) + "\n")

"""Managed peers: what they execute, and by which command lines (PARITY 22, 23)."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import AbstractContextManager
from typing import Any

from peerstage.errors import RemoteError
from peerstage.peer.attributes import Checked, optional_text
from peerstage.peer.base import BackupPeer
from peerstage.records import Limits
from peerstage.staging import execute
from peerstage.transport.base import Transport

#: What the original runs on a managed peer where nothing else is configured.
DEFAULT_CBACK = "/usr/bin/cback3"


class ManagedPeer(BackupPeer):
    """A peer that can be sent commands."""

    rshCommand = Checked(optional_text("RSH command"))
    cbackCommand = Checked(optional_text("cback command"))

    limits: Limits

    @abstractmethod
    def _shell(self) -> AbstractContextManager[Transport]:
        """Yield what runs commands on the peer."""

    def executeRemoteCommand(self, command: str) -> None:
        """Let the peer's shell run a command, over the same login as `stagePeer`, or by `rshCommand` if that is given.

        What it says is logged line by line as it comes (logger ``peerstage.transport``, INFO), 1 KiB of a line and
        `Limits.stderr_bytes` in all; what is over is counted and dropped. It may be silent for as long as it likes, and
        is given up after `Limits.deadline`, or 12 hours without one; it may then go on on the peer. It is never run
        twice. It needs no collect directory, and has the login's own rights, even with ``elevate``.

        Args:
            command: A command line, sent as it is.

        Raises:
            ValueError: There is no command.
            StageError: Its status was not 0 (the last words are quoted), it could not be run, or was cut off.
        """
        line = command_line(command)
        with self._shell() as shell:
            execute(shell, line, peer=self.name, most=int(self.limits.stderr_bytes))

    def executeManagedAction(self, action: str, fullBackup: bool) -> None:
        """Let `cbackCommand` (default ``/usr/bin/cback3``) execute an action there, as `executeRemoteCommand` does.

        Args:
            action: Such as ``collect``.
            fullBackup: Whether ``--full`` is said.

        Raises:
            ValueError: There is no action.
            StageError: As `executeRemoteCommand`.
        """
        line = action_line(self.cbackCommand, action, full=bool(fullBackup))
        try:
            self.executeRemoteCommand(line)
        except RemoteError as exc:
            exc.message = f"The action {action!r} failed. {exc.message}"
            raise


def command_line(command: Any) -> str:
    """Return *command*, if it is one.

    Raises:
        ValueError: It is no string, holds white space alone, or NUL.
    """
    if not isinstance(command, str) or not command.strip() or "\0" in command:
        raise ValueError(f"There is no command to run: {command!r}")
    return command


def action_line(cback: str | None, action: Any, *, full: bool) -> str:
    """Return the command line that lets *cback* execute *action*.

    Raises:
        ValueError: There is no action.
    """
    if not isinstance(action, str) or not action.strip() or "\0" in action:
        raise ValueError(f"There is no action to execute: {action!r}")
    return f"{cback or DEFAULT_CBACK} {'--full ' if full else ''}{action}"

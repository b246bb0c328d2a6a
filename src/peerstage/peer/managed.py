"""Run commands and cback3 actions on a managed peer."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import AbstractContextManager

from peerstage.errors import RemoteError
from peerstage.peer.attributes import Checked, require_text, text_validator
from peerstage.peer.base import BackupPeer
from peerstage.staging import execute
from peerstage.transport.base import Transport


class ManagedPeer(BackupPeer):
    """A peer that runs commands for the master."""

    rshCommand = Checked(text_validator("RSH command"))
    cbackCommand = Checked(text_validator("cback command"))

    @abstractmethod
    def _open_transport(self, *, for_commands: bool = False) -> AbstractContextManager[Transport]:
        """Return a context manager for the transport that stages files, or the one that runs commands."""

    def executeRemoteCommand(self, command: str) -> None:
        """Run a command on the peer, in the remote user's login shell or by `rshCommand`.

        The command uses the login of `stagePeer`, never ``elevate``, and needs no collect directory. Its output is
        logged line by line as it arrives (logger ``peerstage.transport``, at INFO), up to 1 KiB of each line and
        `Limits.stderr_bytes` in all. It may be silent for any time, but must end within `Limits.deadline`, by default
        12 hours; a command that is given up may still be running on the peer. It is never run twice.

        Args:
            command: A command line, sent unchanged.

        Raises:
            ValueError: If the command is blank.
            StageError: If its exit status is not 0 (the message quotes the end of its output), or if it could not be
                run, or was cut off.
        """
        line = require_text(command, "Command to run")
        with self._open_transport(for_commands=True) as transport:
            execute(transport, line, peer=self.name, max_output=int(self.limits.stderr_bytes))

    def executeManagedAction(self, action: str, fullBackup: bool) -> None:
        """Run `cbackCommand` (default ``/usr/bin/cback3``) with an action, as `executeRemoteCommand` does.

        Args:
            action: The action, such as ``collect``.
            fullBackup: Whether to add ``--full``.

        Raises:
            ValueError: If the action is blank.
            StageError: As `executeRemoteCommand`.
        """
        full = "--full " if fullBackup else ""
        line = f"{self.cbackCommand or '/usr/bin/cback3'} {full}{require_text(action, 'Action')}"
        try:
            self.executeRemoteCommand(line)
        except RemoteError as exc:
            exc.message = f"The action {action!r} failed. {exc.message}"
            raise

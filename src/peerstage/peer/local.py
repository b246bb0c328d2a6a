"""`LocalPeer`: a directory of this machine, staged like any other peer (PARITY 25)."""

from __future__ import annotations

import os
from typing import Any

from peerstage.errors import IncompleteStage, StageError, escape
from peerstage.peer.attributes import Checked, absolute_path, indicator_name
from peerstage.peer.base import COLLECT_INDICATOR, STAGE_INDICATOR, BackupPeer, log, noting_error, ownership_of
from peerstage.records import Limits, StrOrBytesPath, permissions_of
from peerstage.session.watchdog import Watchdog
from peerstage.staging import naming, probe, stage, target_directory
from peerstage.transport.base import join
from peerstage.transport.local import LocalTransport


class IncompleteLocalStage(IncompleteStage, ValueError):
    """A directory or a link lies among the files; the others are staged. The successor raises ValueError here."""


class LocalPeer(BackupPeer):
    """A backup peer on this machine.

    Unlike a `RemotePeer` it stages files whose names begin with a dot, and follows no links.

    Args:
        name: What the peer is called, in messages.
        collectDir: Absolute path of its collect directory; it need not exist yet.
        ignoreFailureMode: None, "none", "all", "daily" or "weekly"; kept for the caller.

    Raises:
        ValueError: An argument that can not be meant; also at every later assignment.
    """

    collectDir = Checked[str](absolute_path("Collect directory", required=True))

    def __init__(self, name: str, collectDir: StrOrBytesPath, ignoreFailureMode: str | None = None) -> None:
        self.name = name
        self.collectDir = collectDir
        self.ignoreFailureMode = ignoreFailureMode
        self._limits = Limits()
        self._watchdog: Watchdog | None = None

    def __repr__(self) -> str:
        return f"LocalPeer({self.name!r}, {self.collectDir!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_watchdog": None}

    @noting_error
    def stagePeer(
        self, targetDir: StrOrBytesPath, ownership: tuple[int, int] | None = None, permissions: int | None = None
    ) -> int:
        """Copy every file of the collect directory into *targetDir*, all or nothing up to the single entry.

        Args:
            targetDir: Absolute path of an existing directory.
            ownership: (uid, gid) of every file; None leaves them to this process.
            permissions: Mode of every file (octal); None takes the file's own, & 0777 & ~umask.

        Returns:
            How many files were copied.

        Raises:
            ValueError: The target is not absolute, the collect directory is none, or the target is none, in this order.
            IncompleteLocalStage: A `StageError` and `ValueError`: an entry is no regular file; the others are staged.
            LimitExceeded: The directory holds too much, or 10 minutes and what the copied bytes take at 16 KiB/s have
                passed; nothing was published. A system call that hangs, as on a dead NFS server, cannot be interrupted.
            StageError: Nothing to stage, or the disk failed; nothing was published, unless ``report`` tells which files
                were: the disk failed between two renames.
        """
        self.last_report = None
        absolute_path("Target directory", required=True)(targetDir)
        self._require_collect_dir()
        with naming(self.name):
            target = target_directory(targetDir)
        owner, mode = ownership_of(ownership), permissions_of(permissions)
        self._watchdog = watchdog = Watchdog(self._limits, peer=self.name)
        transport = LocalTransport(watchdog, self._limits, dotfiles=True, links=False)
        try:
            with naming(self.name), watchdog.operation():
                report = stage(
                    transport,
                    os.fsencode(self.collectDir),
                    target,
                    peer=self.name,
                    ownership=owner,
                    permissions=mode,
                    watchdog=watchdog,
                )
        except StageError as exc:
            self.last_report = exc.report
            if not isinstance(exc, IncompleteStage):
                raise
            raise IncompleteLocalStage(exc.message, peer=exc.peer, path=exc.path, report=exc.report) from exc
        finally:
            self._watchdog = None
            watchdog.close()
        self.last_report = report
        return report.count

    @noting_error
    def checkCollectIndicator(self, collectIndicator: StrOrBytesPath | None = None) -> bool:
        """Whether the indicator (default ``cback.collect``) lies in the collect directory as a regular file.

        If anything failed on the way, it is False, too: `last_error` and the log say why.

        Raises:
            ValueError: The indicator is not a plain file name.
        """
        path = self._path_of(collectIndicator, COLLECT_INDICATOR)
        try:
            there = probe(LocalTransport(Watchdog(self._limits), self._limits), path, peer=self.name)
        except StageError as exc:
            return self._not_checked(exc)
        if not there:
            log.info("%s: %s is not there (yet).", escape(self.name), escape(path))
        return there

    @noting_error
    def writeStageIndicator(
        self,
        stageIndicator: StrOrBytesPath | None = None,
        ownership: tuple[int, int] | None = None,
        permissions: int | None = None,
    ) -> None:
        """Make the indicator (default ``cback.stage``) an empty file in the collect directory.

        Args:
            stageIndicator: A plain file name.
            ownership: (uid, gid) of the indicator.
            permissions: Its mode (octal).

        Raises:
            ValueError: The collect directory is none, or an argument can not be meant.
            StageError: It could not be written.
        """
        path = self._path_of(stageIndicator, STAGE_INDICATOR)
        owner, mode = ownership_of(ownership), permissions_of(permissions)
        self._require_collect_dir()
        transport = LocalTransport(Watchdog(self._limits), self._limits)
        with naming(self.name):
            transport.touch(path, ownership=owner, permissions=mode)

    def cancel(self) -> None:
        """End a `stagePeer` that another thread has under way; it raises `Cancelled` and publishes nothing."""
        watchdog = self._watchdog
        if watchdog is not None:
            watchdog.cancel()

    def _path_of(self, indicator: StrOrBytesPath | None, default: str) -> bytes:
        return join(os.fsencode(self.collectDir), indicator_name(indicator, default))

    def _require_collect_dir(self) -> None:
        if not os.path.isdir(self.collectDir):
            raise ValueError(f"Collect directory must exist and be a directory: {escape(self.collectDir)}")

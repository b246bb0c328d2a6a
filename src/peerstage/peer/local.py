"""`LocalPeer`: a directory of this machine, staged like a remote peer."""

from __future__ import annotations

import contextlib
import os
from typing import Any

from peerstage.errors import IncompleteStage, StageError
from peerstage.paths import COLLECT_INDICATOR, STAGE_INDICATOR, join_path, validate_target_directory
from peerstage.peer.attributes import Checked, options_validator, path_validator, validate_indicator_name
from peerstage.peer.base import (
    BackupPeer,
    records_last_error,
    validate_ownership,
)
from peerstage.printable import escape
from peerstage.records import Indicators, Limits, StrOrBytesPath, validate_permissions
from peerstage.stage_options import StageOptions
from peerstage.staging import probe, read_indicators, stage, with_peer_name
from peerstage.target.directory import DirectoryTarget
from peerstage.transport.local import LocalTransport
from peerstage.watchdog import Watchdog


class IncompleteLocalStage(IncompleteStage, ValueError):
    """Some entries could not be staged; the others are. Also a `ValueError`, which cback3 raises in this case."""


def _validate_stage(value: Any) -> StageOptions:
    options = options_validator("stage", StageOptions)(value)
    if options.bwlimit is not None:
        raise ValueError("StageOptions(bwlimit=...) limits a connection, and a local peer has none. Omit it.")
    return options


class LocalPeer(BackupPeer):
    """A backup peer on this machine: its files are copied from a local directory.

    Unlike a `RemotePeer`, it also stages files whose names begin with a dot, and reports symlinks as errors instead of
    following them.

    Args:
        name: The peer's name, for messages.
        collectDir: Absolute path of the collect directory; it need not exist yet.
        ignoreFailureMode: None, "none", "all", "daily" or "weekly". Stored for the caller, and not used here.
        stage: What is wanted of a stage, without a bandwidth limit.
        limits: Upper bounds on what the directory may hold, and on how long a stage may take.

    Raises:
        ValueError: If an argument is invalid; also at every later assignment.
    """

    collectDir = Checked[str](path_validator("Collect directory", required=True))
    stage = Checked(_validate_stage)

    def __init__(
        self,
        name: str,
        collectDir: StrOrBytesPath,
        ignoreFailureMode: str | None = None,
        *,
        stage: StageOptions | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.name = name
        self.collectDir = collectDir
        self.ignoreFailureMode = ignoreFailureMode
        self.stage = stage
        self.limits = limits
        self._watchdog: Watchdog | None = None

    def __repr__(self) -> str:
        return f"LocalPeer({self.name!r}, {self.collectDir!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_watchdog": None}

    @records_last_error
    def stagePeer(
        self, targetDir: StrOrBytesPath, ownership: tuple[int, int] | None = None, permissions: int | None = None
    ) -> int:
        """Copy every file of the collect directory into *targetDir*, and publish them all at the end.

        Args:
            targetDir: Absolute path of an existing directory.
            ownership: (uid, gid) of every file; None leaves it to this process.
            permissions: Mode of every file (octal); None takes the file's own, & 0777 & ~umask.

        Returns:
            The number of files copied.

        Raises:
            ValueError: If *targetDir* is not absolute, the collect directory is not a directory,
                `StageOptions.link_dest` is the collect directory, or *targetDir* is not a directory, checked in this
                order; or if another argument is invalid.
            IncompleteLocalStage: If an entry is not a regular file, or could not be read. The others are staged. It is
                both a `StageError` and a `ValueError`.
            LimitExceeded: If the directory exceeds `limits`, or the copy its deadline, by default 10 minutes plus its
                size at 16 KiB/s. Nothing was published. A system call that blocks, as on a dead NFS server, is not
                interrupted.
            StageError: If there is nothing to stage, or the disk failed. Nothing was published, unless ``report`` is
                set: then the disk failed between two renames, and the report lists the published files.
        """
        self.last_report = None
        path_validator("Target directory", required=True)(targetDir)
        self._require_collect_dir()
        self._require_other_link_dest()
        with with_peer_name(self.name):
            target = validate_target_directory(targetDir)
        owner, mode = validate_ownership(ownership), validate_permissions(permissions)
        directory = os.fsencode(self.collectDir)
        self._watchdog = watchdog = Watchdog(self.limits, peer=self.name)
        transport = LocalTransport(watchdog, include_hidden=True, follow_symlinks=False)
        try:
            with with_peer_name(self.name), watchdog.operation():
                staging_target = DirectoryTarget(
                    target,
                    options=self.stage,
                    limits=self.limits,
                    ownership=owner,
                    permissions=mode,
                    peer=self.name,
                    directory=directory,
                )
                report = stage(transport, directory, staging_target, watchdog=watchdog, on_commit=self.on_commit)
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

    @records_last_error
    def checkCollectIndicator(self, collectIndicator: StrOrBytesPath | None = None) -> bool:
        """Return whether the indicator (default ``cback.collect``) is a regular file in the collect directory.

        If the check fails, the result is False too, and `last_error` and the log give the reason.

        Raises:
            ValueError: If the indicator is not a plain file name.
        """
        path = self._indicator_path(collectIndicator, COLLECT_INDICATOR)
        try:
            found = probe(LocalTransport(Watchdog(self.limits)), path, peer=self.name)
        except StageError as exc:
            return self._report_failed_check(exc)
        return self._report_check(found is not None, path)

    @records_last_error
    def readIndicators(
        self, collectIndicator: StrOrBytesPath | None = None, stageIndicator: StrOrBytesPath | None = None
    ) -> Indicators:
        """Return the indicators that are regular files; like `stagePeer`, this does not follow symlinks.

        They tell whether the peer has collected, and whether it has been staged since (`Indicators.stage_is_newer`).

        Args:
            collectIndicator: A plain file name; default ``cback.collect``.
            stageIndicator: A plain file name; default ``cback.stage``.

        Raises:
            ValueError: If an indicator is not a plain file name.
            StageError: If the collect directory is missing or cannot be read.
        """
        collect = self._indicator_path(collectIndicator, COLLECT_INDICATOR)
        staged = self._indicator_path(stageIndicator, STAGE_INDICATOR)
        transport = LocalTransport(Watchdog(self.limits), follow_symlinks=False)
        return read_indicators(transport, collect, staged, peer=self.name)

    @records_last_error
    def writeStageIndicator(
        self,
        stageIndicator: StrOrBytesPath | None = None,
        ownership: tuple[int, int] | None = None,
        permissions: int | None = None,
    ) -> None:
        """Create the indicator (default ``cback.stage``) as an empty file in the collect directory; replace an old one.

        Args:
            stageIndicator: A plain file name.
            ownership: (uid, gid) of the indicator; None leaves it to this process.
            permissions: Mode of the indicator (octal); None is 0666 & ~umask.

        Raises:
            ValueError: If the collect directory is not a directory, or an argument is invalid.
            StageError: If the indicator could not be written.
        """
        path = self._indicator_path(stageIndicator, STAGE_INDICATOR)
        owner, mode = validate_ownership(ownership), validate_permissions(permissions)
        self._require_collect_dir()
        transport = LocalTransport(Watchdog(self.limits))
        with with_peer_name(self.name):
            transport.touch(path, ownership=owner, permissions=mode)

    def cancel(self) -> None:
        """Cancel a `stagePeer` that is running in another thread: it raises `Cancelled` and publishes nothing."""
        watchdog = self._watchdog
        if watchdog is not None:
            watchdog.cancel()

    def _indicator_path(self, indicator: StrOrBytesPath | None, default: str) -> bytes:
        return join_path(os.fsencode(self.collectDir), validate_indicator_name(indicator, default))

    def _require_other_link_dest(self) -> None:
        """Refuse links to the collect directory: what is changed there later would change in the backup, too."""
        with contextlib.suppress(OSError):
            if self.stage.link_dest is not None and os.path.samefile(self.stage.link_dest, self.collectDir):
                raise ValueError(
                    "StageOptions(link_dest=...) is the collect directory itself. Name an earlier staging directory: "
                    f"{escape(self.collectDir)}"
                )

    def _require_collect_dir(self) -> None:
        if not os.path.isdir(self.collectDir):
            raise ValueError(f"Collect directory must exist and be a directory: {escape(self.collectDir)}")

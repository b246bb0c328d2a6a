"""`RemotePeer`: a machine that is reached over SSH, with the interface of CedarBackup2's class of this name."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from peerstage.errors import ConnectError, RemoteError, StageError
from peerstage.forks import OwnerProcess
from peerstage.isolation.parent.isolated_transport import build_isolated_transport
from peerstage.isolation.users import LocalUser, find_local_user
from peerstage.paths import COLLECT_INDICATOR, STAGE_INDICATOR, join_path, validate_target_directory
from peerstage.peer.attributes import (
    Checked,
    options_validator,
    path_validator,
    strip_brackets,
    text_validator,
    validate_indicator_name,
    validate_user_name,
)
from peerstage.peer.base import records_last_error, validate_ownership
from peerstage.peer.managed import ManagedPeer
from peerstage.peer_log import PeerLog
from peerstage.rates import BandwidthLimit
from peerstage.reasons import Reason
from peerstage.records import Indicators, Limits, Progress, StrOrBytesPath, validate_permissions
from peerstage.ssh.options import SSHOptions
from peerstage.stage_options import StageOptions
from peerstage.staging import mark, probe, read_indicators, stage, with_peer_name
from peerstage.target.directory import DirectoryTarget
from peerstage.transport.base import Transport
from peerstage.transport.factory import TRANSPORTS, TransportName, TransportOptions
from peerstage.transport.retry import Retry
from peerstage.transport.scp.commands import require_unquoted
from peerstage.watchdog import Watchdog

if TYPE_CHECKING:
    from typing_extensions import Self


def _validate_bandwidth(value: Any) -> BandwidthLimit | None:
    if value is not None and not isinstance(value, BandwidthLimit):
        raise ValueError(f"bandwidth must be of type BandwidthLimit: {value!r}")
    return value


class RemotePeer(ManagedPeer):
    """A backup peer on another machine, reached over SSH. By default, no external ``ssh`` or ``scp`` is run.

    ssh's own configuration applies, except for options that ``ssh=`` overrides. Each call logs in; in a ``with`` block,
    one login serves all calls::

        with RemotePeer("db1.example.com", "/var/backup/collect", "/tmp", "backup") as peer:
            if not peer.checkCollectIndicator():
                sys.exit(str(peer.last_error or "The peer has not collected yet."))
            peer.stagePeer("/srv/staging/2026/11/22/db1")
            peer.writeStageIndicator()

    Use a peer in one thread at a time; only `cancel` may be called from another. A peer can be pickled; the copy has no
    connection.

    Args:
        name: Host name, address, or ssh_config alias.
        collectDir: Absolute path of the collect directory on the peer. None for a peer that only runs commands.
        workingDir: Absolute path of a local directory for temporary files. Only rcp needs one.
        remoteUser: The user to log in as. It takes precedence over User in ssh_config.
        rcpCommand: An rcp-like command that copies the files if `transport` is "auto" or "rcp". It is run without a
            shell, split at spaces; only double quotes group words. Default for "rcp": ``/usr/bin/scp -B -q -C``.
        localUser: The local user to copy as; only root may name another user. A child process drops root's privileges,
            then reads this user's keys and configuration, connects, and receives the files.
        rshCommand: An rsh-like command that runs commands on a managed peer in place of SSH; split as `rcpCommand`.
        cbackCommand: The program that runs actions on a managed peer, with options. Default: ``/usr/bin/cback3``.
        ignoreFailureMode: None, "none", "all", "daily" or "weekly". Stored for the caller, and not used here.
        ssh: Options that override ssh's configuration.
        transport: "auto" (SFTP, or SCP if the peer has no SFTP), "sftp", "scp" or "rcp".
        guarded: Whether the key has a forced command that permits only the requests of CedarBackup2. Then exactly these
            are sent.
        stage: What is wanted of a stage.
        retry: How often to retry. By default, a first connection that fails is not retried; if the connection is lost
            later, an operation on files is attempted three times in all.
        limits: Upper bounds on what the peer may send, and on how long it may take.
        on_progress: Called with a `Progress` when the listing is known, at the end, and at most ten times a second in
            between, in the thread that called `stagePeer`. If it raises, the run ends and nothing is published; an
            OSError (BrokenPipeError of print) is then the cause of a `StageError`, any other error is raised as it is.
        isolated: Whether to work in a child process even for the same user. Then this process starts no thread, and
            enforces the deadline even on a child that hangs.

    Attributes:
        bandwidth: The bandwidth limit in place of `StageOptions.bwlimit`; None, the default, for that one. Peers that
            are given the same limit share it, in any threads. To be set before the ``with`` block; not pickled. An rcp
            command cannot be limited.

    Raises:
        ValueError: If an argument is invalid; also at every later assignment. The first nine are checked in the order
            of CedarBackup2.
    """

    collectDir = Checked[str | None](path_validator("Collect directory"))
    workingDir = Checked[str | None](path_validator("Working directory"))
    remoteUser = Checked(validate_user_name)
    localUser = Checked(text_validator("Local user"))
    rcpCommand = Checked(text_validator("RCP command"))
    ssh = Checked(options_validator("ssh", SSHOptions))
    retry = Checked(options_validator("retry", Retry))
    bandwidth = Checked[BandwidthLimit | None](_validate_bandwidth)

    def __init__(
        self,
        name: str,
        collectDir: StrOrBytesPath | None = None,
        workingDir: StrOrBytesPath | None = None,
        remoteUser: str | None = None,
        rcpCommand: str | None = None,
        localUser: str | None = None,
        rshCommand: str | None = None,
        cbackCommand: str | None = None,
        ignoreFailureMode: str | None = None,
        *,
        ssh: SSHOptions | None = None,
        transport: TransportName = "auto",
        guarded: bool = False,
        stage: StageOptions | None = None,
        retry: Retry | None = None,
        limits: Limits | None = None,
        on_progress: Callable[[Progress], object] | None = None,
        isolated: bool = False,
    ) -> None:
        self.name = name
        self.collectDir = collectDir
        self.workingDir = workingDir
        self.remoteUser = remoteUser
        self.localUser = localUser
        self.rcpCommand = rcpCommand
        self.rshCommand = rshCommand
        self.cbackCommand = cbackCommand
        self.ignoreFailureMode = ignoreFailureMode
        if transport not in TRANSPORTS:
            raise ValueError(f"transport must be one of {TRANSPORTS}: {transport!r}")
        self.ssh = ssh
        self.transport = transport
        self.guarded = guarded
        self.stage = stage
        self.retry = retry
        self.limits = limits
        self.on_progress = on_progress
        self.isolated = isolated
        self.bandwidth = None
        self._has_no_sftp = False
        self._watchdog: Watchdog | None = None
        self._transports: dict[bool, Transport] = {}
        self._owner_process = OwnerProcess()

    def __repr__(self) -> str:
        arguments = f"{self.name!r}, {self.collectDir!r}, {self.workingDir!r}, {self.remoteUser!r}, ssh={self.ssh!r}"
        return f"RemotePeer({arguments})"

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_bandwidth": None, "_watchdog": None, "_transports": {}}

    def __enter__(self) -> Self:
        if self._watchdog is not None:
            raise StageError("This peer is already used in a with block.", peer=self.name, reason=Reason.IN_USE)
        self._watchdog = self._create_watchdog()
        self._owner_process = OwnerProcess()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._restart_after_fork()
        transports, self._transports = self._transports, {}
        watchdog, self._watchdog = self._watchdog, None
        for transport in transports.values():
            transport.close()
        if watchdog is not None:
            watchdog.close()

    @records_last_error
    def stagePeer(
        self, targetDir: StrOrBytesPath, ownership: tuple[int, int] | None = None, permissions: int | None = None
    ) -> int:
        """Stage every file that the shell pattern ``collectDir/*`` matches into *targetDir*.

        Symlinks to files are followed. Subdirectories, FIFOs, devices and dangling symlinks cannot be staged. The files
        appear under their names only at the end, and replace files of the same names. `last_report` has the details.

        Args:
            targetDir: Absolute path of an existing local directory.
            ownership: (uid, gid) of every file; None leaves it to this process, or to `localUser`.
            permissions: Mode of every file (octal); None for the peer's mode & 0777 & ~umask.

        Returns:
            The number of files copied.

        Raises:
            ValueError: If the target is not absolute or not a directory, or another argument is invalid. Nothing was
                sent.
            IncompleteStage: If some entries could not be staged. The others are staged.
            NothingToStage: If the collect directory holds no files. Nothing was published.
            StageError: If the run failed. Nothing was published, unless ``report`` is set: then the disk failed between
                two renames, and the report lists the published files.
        """
        self.last_report = None
        with with_peer_name(self.name):
            target = validate_target_directory(targetDir)
        owner, mode = validate_ownership(ownership), validate_permissions(permissions)
        directory = self._collect_dir()
        try:
            with self._open_transport() as transport:
                user = self._find_local_user()
                staging_target = DirectoryTarget(
                    target,
                    options=self.stage,
                    limits=self.limits,
                    ownership=owner if user is None else user.complete_ownership(owner),
                    permissions=mode,
                    threads=not self.isolated and user is None,
                    peer=self.name,
                    directory=directory,
                )
                self.last_report = stage(
                    transport, directory, staging_target, watchdog=self._watchdog, on_commit=self.on_commit
                )
        except StageError as exc:
            self.last_report = exc.report
            raise
        return self.last_report.count

    @records_last_error
    def checkCollectIndicator(self, collectIndicator: StrOrBytesPath | None = None) -> bool:
        """Return whether the peer has finished collecting: the indicator is a regular file, or a symlink to one.

        Args:
            collectIndicator: A plain file name; default ``cback.collect``.

        Returns:
            False if there is no indicator (logged at INFO), and also if the check failed. Then `last_error` and the log
            give the reason: at WARNING if the peer could not be reached, refused, or has no collect directory; at ERROR
            if something on this machine must be fixed, such as host keys, logins or configuration.

        Raises:
            ValueError: If the indicator is not a plain file name, or the peer has no collect directory.
        """
        path = self._indicator_path(collectIndicator, COLLECT_INDICATOR)
        try:
            with with_peer_name(self.name), self._open_transport() as transport:
                found = probe(transport, path, peer=self.name)
        except StageError as exc:
            # rcp's exit status does not distinguish a refused login from other failures
            may_be_login = self._options().uses_rcp_command and isinstance(exc, (ConnectError, RemoteError))
            return self._report_failed_check(exc, may_be_login=may_be_login)
        return self._report_check(found is not None, path)

    @records_last_error
    def readIndicators(
        self, collectIndicator: StrOrBytesPath | None = None, stageIndicator: StrOrBytesPath | None = None
    ) -> Indicators:
        """Return the indicators that are regular files, or symlinks to one. Nothing is logged.

        They tell whether the peer has collected, and whether it has been staged since (`Indicators.stage_is_newer`).
        The stage indicator costs one more request, which is only made over SFTP: SCP and rcp commands tell no times.

        Args:
            collectIndicator: A plain file name; default ``cback.collect``.
            stageIndicator: A plain file name; default ``cback.stage``.

        Raises:
            ValueError: If an indicator is not a plain file name, or the peer has no collect directory.
            StageError: If the peer could not be reached, refused, or has no such collect directory (not every transport
                can tell).
        """
        collect = self._indicator_path(collectIndicator, COLLECT_INDICATOR)
        staged = self._indicator_path(stageIndicator, STAGE_INDICATOR)
        with self._open_transport() as transport:
            return read_indicators(transport, collect, staged, peer=self.name)

    @records_last_error
    def writeStageIndicator(
        self,
        stageIndicator: StrOrBytesPath | None = None,
        ownership: tuple[int, int] | None = None,
        permissions: int | None = None,
    ) -> None:
        """Tell the peer that its files were staged: create an empty indicator in the collect directory, or truncate it.

        Args:
            stageIndicator: A plain file name; default ``cback.stage``.
            ownership: Checked, and otherwise ignored: the indicator belongs to the remote user.
            permissions: Checked, and otherwise ignored: the indicator has mode 0666 & ~umask of the peer.

        Raises:
            ValueError: If an argument is invalid, or the peer has no collect directory.
            StageError: If the indicator could not be written.
        """
        path = self._indicator_path(stageIndicator, STAGE_INDICATOR)
        validate_ownership(ownership)
        validate_permissions(permissions)
        with self._open_transport() as transport:
            mark(transport, path, peer=self.name)

    def validate(self) -> None:
        """Check, without connecting, that the options do not contradict each other. Every operation does so too.

        Raises:
            ValueError: If they do, as `guarded` and `rcpCommand` do.
        """
        self._options().validate()

    def cancel(self) -> None:
        """Cancel an operation that is running in another thread: it raises `Cancelled`; a check returns False.

        Nothing is published. In a ``with`` block, later calls in the block are cancelled too.
        """
        self._restart_after_fork()
        if (watchdog := self._watchdog) is not None:
            watchdog.cancel()

    def _restart_after_fork(self) -> None:
        """In a forked process, start the ``with`` block again: connection, threads and locks belong to the parent."""
        if self._watchdog is not None and not self._owner_process.is_current():
            self._watchdog = self._create_watchdog()
            self._transports = {}
            self._owner_process = OwnerProcess()

    def _create_watchdog(self) -> Watchdog:
        bandwidth, bwlimit = self.bandwidth, self.stage.bwlimit
        if bandwidth is None and bwlimit is not None:
            bandwidth = BandwidthLimit(bwlimit)
        return Watchdog(self.limits, peer=self.name, bandwidth=bandwidth)

    def _collect_dir(self) -> bytes:
        if self.collectDir is None:
            raise ValueError("This peer has no collect directory.")
        return self._check_sendable(os.fsencode(self.collectDir))

    def _indicator_path(self, indicator: StrOrBytesPath | None, default: str) -> bytes:
        return self._check_sendable(join_path(self._collect_dir(), validate_indicator_name(indicator, default)))

    def _check_sendable(self, path: bytes) -> bytes:
        """Return *path* if it can be sent to this peer."""
        if self.guarded:
            require_unquoted(path)
        return path

    @contextlib.contextmanager
    def _open_transport(self, *, for_commands: bool = False) -> Iterator[Transport]:
        """Yield the transport of the ``with`` block, or one for this call. Commands may need a separate one."""
        self._restart_after_fork()
        if self._watchdog is None:
            with self, self._open_transport(for_commands=for_commands) as transport:
                yield transport
            return
        file_options = self._options()
        options = file_options.for_execute() if for_commands else file_options
        is_separate = options is not file_options
        with with_peer_name(self.name):
            user = self._find_local_user()
            if is_separate not in self._transports:
                self._transports[is_separate] = self._build_transport(user, options, self._watchdog)
        yield self._transports[is_separate]

    def _build_transport(self, user: LocalUser | None, options: TransportOptions, watchdog: Watchdog) -> Transport:
        """Return the transport for *options*. `peerstage.testing` replaces this method."""
        return build_isolated_transport(
            user,
            options,
            isolated=self.isolated,
            retry=self.retry,
            watchdog=watchdog,
            on_progress=self.on_progress,
            on_fallback=self._remember_missing_sftp,
        )

    def _find_local_user(self) -> LocalUser | None:
        return find_local_user(self.localUser)

    def _options(self) -> TransportOptions:
        return TransportOptions(
            name=strip_brackets(self.name),
            user=self.remoteUser,
            ssh=self.ssh,
            transport="scp" if self.transport == "auto" and self._has_no_sftp else self.transport,
            rcp_command=self.rcpCommand,
            rsh_command=self.rshCommand,
            guarded=self.guarded,
            preserve_times=self.stage.preserve_times,
            bwlimit=self.stage.bwlimit if self.bandwidth is None else self.bandwidth.rate,
            link_dest=self.stage.link_dest is not None,
            manifest=self.stage.manifest,
            needs_ranges=self.stage.partial_dir is not None and not self._has_no_sftp,
            working_directory=self.workingDir,
        )

    def _remember_missing_sftp(self) -> None:
        self._has_no_sftp = True
        if self.stage.partial_dir is not None:
            PeerLog("peerstage.peer", self.name).warning(
                "SCP cannot fetch parts of files, so that no file is continued from the partial_dir."
            )

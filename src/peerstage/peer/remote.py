"""`RemotePeer`: a machine that is reached over SSH, with the original's names and promises."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any

from peerstage.errors import ConnectError, NotAvailable, RemoteError, StageError, escape
from peerstage.isolation.transport import assemble_as
from peerstage.isolation.users import LocalUser, copying_user
from peerstage.peer.attributes import (
    Checked,
    absolute_path,
    host_of,
    indicator_name,
    optional_text,
    user_name,
)
from peerstage.peer.base import COLLECT_INDICATOR, STAGE_INDICATOR, log, noting_error, ownership_of
from peerstage.peer.managed import ManagedPeer
from peerstage.reasons import Reason
from peerstage.records import Limits, Ownership, Progress, StrOrBytesPath, permissions_of
from peerstage.session.options import SSHOptions
from peerstage.session.watchdog import Watchdog
from peerstage.staging import mark, naming, probe, stage, target_directory
from peerstage.transport.base import Transport, join
from peerstage.transport.choose import TRANSPORTS, Route, TransportName
from peerstage.transport.retry import Retry
from peerstage.transport.scp.commands import require_plain

if TYPE_CHECKING:
    from typing_extensions import Self


class RemotePeer(ManagedPeer):
    """A backup peer on another machine, reached over SSH in this process; no ``ssh`` or ``scp`` program is needed.

    Without ``ssh=`` it is reached as ssh's own configuration says. In a ``with`` block one login serves all calls;
    without one each call stands alone::

        with RemotePeer("db1.example.com", "/var/backup/collect", "/tmp", "backup") as peer:
            if not peer.checkCollectIndicator():
                sys.exit(str(peer.last_error or "The peer has not collected yet."))
            peer.stagePeer("/srv/staging/2026/11/22/db1")
            peer.writeStageIndicator()

    A peer belongs to one thread at a time, except for `cancel`. It pickles, without its connection.

    Args:
        name: Host name, address, or alias of ssh_config.
        collectDir: Absolute path of the peer's collect directory.
        workingDir: Absolute path of a local directory for temporary files; SFTP and SCP need none.
        remoteUser: Who logs in on the peer; ssh_config's User does not override it.
        rcpCommand: An rcp-like command to copy with instead, under "auto" and "rcp": split at spaces, double quotes
            group, no shell. Without one "rcp" runs ``/usr/bin/scp -B -q -C``.
        localUser: The local user to copy as, for root: a child process that has given up root reads that user's keys
            and configuration, connects and receives. The caller's own name changes nothing.
        rshCommand: An rsh-like command to run commands on a managed peer with, split likewise; without one they share
            the login of everything else.
        cbackCommand: What is run there for a managed action, options included; ``/usr/bin/cback3`` without one.
        ignoreFailureMode: None, "none", "all", "daily" or "weekly"; kept for the caller.
        ssh: How the peer is reached, where ssh's configuration does not say it.
        transport: "auto" (SFTP, and SCP where the peer has no SFTP), "sftp", "scp" or "rcp".
        guarded: The key is behind a forced command that was written for the original: exactly its requests are sent.
        durable: Whether staged files are on the disk when `stagePeer` returns.
        retry: How often a connection is tried: one that was lost, by default three times, and the first one, by
            default once.
        limits: How much of the peer is taken, in bytes and seconds.
        on_progress: Called with a `Progress` at most ten times a second, in the thread that called `stagePeer`.
        preserve_times: Whether files keep the peer's modification time.
        keep_partial: Whether finished large files of a failed run are kept for the next one (not there yet).
        isolated: Whether to work in a child process of the same user: no thread is started in this one, and its
            deadline holds from outside.

    Raises:
        ValueError: An argument that can not be meant, checked in this order; also at every later assignment.
    """

    collectDir = Checked[str | None](absolute_path("Collect directory"))
    workingDir = Checked[str | None](absolute_path("Working directory"))
    remoteUser = Checked(user_name)
    localUser = Checked(optional_text("Local user"))
    rcpCommand = Checked(optional_text("RCP command"))

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
        durable: bool = True,
        retry: Retry | None = None,
        limits: Limits | None = None,
        on_progress: Callable[[Progress], object] | None = None,
        preserve_times: bool = False,
        keep_partial: bool = False,
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
        for option, kind in ((ssh, SSHOptions), (retry, Retry), (limits, Limits)):
            if option is not None and not isinstance(option, kind):
                raise ValueError(f"{kind.__name__} expected: {option!r}")
        self.ssh = ssh or SSHOptions()
        self.transport = transport
        self.guarded = guarded
        self.durable = durable
        self.retry = retry or Retry()
        self.limits = limits or Limits()
        self.on_progress = on_progress
        self.preserve_times = preserve_times
        self.keep_partial = keep_partial
        self.isolated = isolated
        self._has_no_sftp = False
        self._watchdog: Watchdog | None = None
        self._stacks: dict[bool, Transport] = {}
        self._process = os.getpid()

    def __repr__(self) -> str:
        place = f"{self.collectDir!r}, {self.workingDir!r}, {self.remoteUser!r}"
        return f"RemotePeer({self.name!r}, {place}, ssh={self.ssh!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_watchdog": None, "_stacks": {}}

    def __enter__(self) -> Self:
        if self._watchdog is not None:
            raise StageError("This peer is in a with block already.", peer=self.name, reason=Reason.IN_USE)
        self._watchdog = Watchdog(self.limits, peer=self.name)
        self._process = os.getpid()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._leave_to_the_parent()
        stacks, self._stacks = self._stacks, {}
        watchdog, self._watchdog = self._watchdog, None
        for stack in stacks.values():
            stack.close()
        if watchdog is not None:
            watchdog.close()

    @noting_error
    def stagePeer(
        self, targetDir: StrOrBytesPath, ownership: tuple[int, int] | None = None, permissions: int | None = None
    ) -> int:
        """Stage every file that the shell's ``collectDir/*`` names into *targetDir*.

        Links to files are followed; sub-directories, FIFOs, devices and dangling links are not staged. Files appear
        under their names all at the end; one of the same name is replaced. `last_report` tells what was done.

        Args:
            targetDir: Absolute path of an existing local directory.
            ownership: (uid, gid) of every file; None leaves them to this process, or to `localUser`.
            permissions: Mode of every file (octal); None takes the peer's, & 0777 & ~umask.

        Returns:
            How many files were copied.

        Raises:
            ValueError: The target is not absolute or not a directory, or an argument can not be meant; nothing was
                connected.
            IncompleteStage: Some entries could not be staged. The others are, and stay.
            StageError: Anything else; the run has published nothing, unless its ``report`` tells which files: the disk
                failed between two renames.
        """
        self.last_report = None
        with naming(self.name):
            target = target_directory(targetDir)
        owner, mode = ownership_of(ownership), permissions_of(permissions)
        directory = self._collect_dir()
        try:
            with self._reach() as transport:
                self.last_report = stage(
                    transport,
                    directory,
                    target,
                    peer=self.name,
                    ownership=self._owner(owner),
                    permissions=mode,
                    durable=self.durable,
                    preserve_times=self.preserve_times,
                    threads=not self.isolated and self._copying_user() is None,
                    watchdog=self._watchdog,
                )
        except StageError as exc:
            self.last_report = exc.report
            raise
        return self.last_report.count

    @noting_error
    def checkCollectIndicator(self, collectIndicator: StrOrBytesPath | None = None) -> bool:
        """Whether the peer has finished collecting: the indicator is there as a regular file, links followed.

        Args:
            collectIndicator: A plain file name; default ``cback.collect``.

        Returns:
            False if it is not there, and also if anything failed on the way. Then `last_error` says why, and so does
            the log: at WARNING if the peer could not be reached, refused, or has no collect directory, at ERROR if a
            person has to act here: host keys, logins, the configuration. That it is not there is logged at INFO.

        Raises:
            ValueError: The indicator is not a plain file name, or the peer has no collect directory.
        """
        path = self._indicator(collectIndicator, COLLECT_INDICATOR)
        try:
            with naming(self.name), self._reach() as transport:
                there = probe(transport, path, peer=self.name)
        except StageError as exc:
            hides_login = self._route().by_command and isinstance(exc, (ConnectError, RemoteError))
            return self._not_checked(exc, hides_login=hides_login)  # the status of a command does not tell
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
        """Tell the peer that it was staged: make the indicator an empty file in its collect directory.

        Args:
            stageIndicator: A plain file name; default ``cback.stage``.
            ownership: Only for the `LocalPeer`'s sake: a remote indicator belongs to the remote user.
            permissions: Likewise: it has 0666 & ~the peer's umask.

        Raises:
            ValueError: The indicator is not a plain file name, or the peer has no collect directory.
            StageError: It could not be written.
        """
        path = self._indicator(stageIndicator, STAGE_INDICATOR)
        ownership_of(ownership)
        permissions_of(permissions)
        with self._reach() as transport:
            mark(transport, path, peer=self.name)

    def validate(self) -> None:
        """Refuse what contradicts itself, as every use does. Nothing is connected.

        Raises:
            ValueError: Such as `guarded` together with an rcpCommand.
        """
        self._route().check()

    def cancel(self) -> None:
        """End what another thread has under way on this peer: it raises `Cancelled`, or for a check returns False.

        Nothing is published. In a ``with`` block, later calls of the block are cancelled too.
        """
        self._leave_to_the_parent()
        watchdog = self._watchdog
        if watchdog is not None:
            watchdog.cancel()

    def _leave_to_the_parent(self) -> None:
        """In a forked child, begin the ``with`` block again: connection, threads and locks are the parent's."""
        if self._watchdog is not None and self._process != os.getpid():
            self._watchdog, self._stacks, self._process = Watchdog(self.limits, peer=self.name), {}, os.getpid()

    def _collect_dir(self) -> bytes:
        if self.collectDir is None:
            raise ValueError("This peer has no collect directory.")
        return self._guard(os.fsencode(self.collectDir))

    def _indicator(self, indicator: StrOrBytesPath | None, default: str) -> bytes:
        return self._guard(join(self._collect_dir(), indicator_name(indicator, default)))

    def _guard(self, path: bytes) -> bytes:
        """Return *path*, if it can be sent to this peer."""
        if self.guarded:
            require_plain(path)
        return path

    @contextlib.contextmanager
    def _reach(self, *, for_files: bool = True) -> Iterator[Transport]:
        """Yield the stack of the ``with`` block, or one of this call's own; some peers need another for commands."""
        self._leave_to_the_parent()
        if self._watchdog is None:
            with self, self._reach(for_files=for_files) as transport:
                yield transport
            return
        route = files = self._route()
        if not for_files:
            route = files.for_commands()
        own = route is not files
        with naming(self.name):
            user = self._copying_user()
            if self.keep_partial:
                raise NotAvailable("keep_partial=True is not there yet. Leave it out.")
            if own not in self._stacks:
                self._stacks[own] = self._assemble(user, route, self._watchdog)
        yield self._stacks[own]

    def _assemble(self, user: LocalUser | None, route: Route, watchdog: Watchdog) -> Transport:
        """Return the stack of transports for *route*. `peerstage.testing` puts one in memory in its place."""
        return assemble_as(
            user,
            route,
            isolated=self.isolated,
            limits=self.limits,
            retry=self.retry,
            watchdog=watchdog,
            on_progress=self.on_progress,
            on_fallback=self._remember_scp,
        )

    def _copying_user(self) -> LocalUser | None:
        return copying_user(self.localUser)

    def _shell(self) -> AbstractContextManager[Transport]:
        return self._reach(for_files=False)

    def _route(self) -> Route:
        return Route(
            name=host_of(self.name),
            user=self.remoteUser,
            ssh=self.ssh,
            transport="scp" if self.transport == "auto" and self._has_no_sftp else self.transport,
            rcp_command=self.rcpCommand,
            rsh_command=self.rshCommand,
            guarded=self.guarded,
            preserve_times=self.preserve_times,
            working_directory=self.workingDir,
        )

    def _remember_scp(self) -> None:
        self._has_no_sftp = True

    def _owner(self, ownership: Ownership | None) -> Ownership | None:
        """Return who gets the files: the local user where there is one, but for what is asked for (PARITY 10)."""
        user = self._copying_user()
        return ownership if user is None else user.ownership(ownership)

"""The steps of ``doctor``: those of a stage, in order, until one fails."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Callable, Iterator
from typing import Any

from peerstage.cli.diagnosis import Diagnosis
from peerstage.cli.doctor_results import StepResult
from peerstage.cli.option_names import name_options
from peerstage.cli.preview import preview
from peerstage.cli.remedies import find_remedy
from peerstage.cli.signals import cancel_on_signal
from peerstage.errors import Cancelled, NoSFTP, NothingToStage, ProtocolError, RemoteError, RemoteNotFound, StageError
from peerstage.paths import join_path
from peerstage.printable import escape
from peerstage.reasons import Reason
from peerstage.records import RemoteFile
from peerstage.ssh.auth.key_files import abbreviate_home
from peerstage.ssh.session import Session
from peerstage.ssh.steps import OnStep, ignore_step
from peerstage.stage_options import StageOptions
from peerstage.transport.base import Transport
from peerstage.transport.factory import TransportOptions, build_scp, build_sftp
from peerstage.transport.scp.scp_transport import SCPTransport
from peerstage.transport.sftp.sftp_transport import SFTPTransport
from peerstage.watchdog import Watchdog

#: The steps up to the login, by the names that `Session.connect` has for them.
_CONNECT_STEPS = {
    "address": "name",
    "jump host": "jump host",
    "connection": "TCP",
    "banner": "banner",
    "key exchange": "key exchange",
    "host key": "host key",
    "logged in": "login",
}
_LATER_STEPS = ("SFTP or SCP", "directory", "files", "indicator", "write")
#: Reasons of errors that do not come from an scp program on the peer.
_NOT_FROM_SCP = frozenset(
    {Reason.NO_SCP, Reason.COMMAND_REFUSED, Reason.COMMAND_FAILED, Reason.COMMAND_TOO_LONG, Reason.SESSION_REFUSED}
)
#: Seconds of difference between two clocks that are not reported; file times are whole seconds.
_CLOCK_TOLERANCE = 5


def run_checks(
    options: TransportOptions,
    watchdog: Watchdog,
    arguments: dict[str, Any],
    on_result: Callable[[StepResult], object],
) -> None:
    """Check the peer that *options* lead to; see `PeerChecks`."""
    diagnosis = Diagnosis(
        options.name,
        arguments["user"],
        options.ssh,
        watchdog,
        arguments["directory"] or "",
        local_user=arguments["local_user"],
    )
    stage_options = StageOptions.from_json(arguments["stage"])
    PeerChecks(options, diagnosis, os.fsencode(arguments["indicator"]), stage_options, on_result).run()


class PeerChecks:
    """The checks of one peer.

    Args:
        options: How the peer is reached.
        diagnosis: What is known about the peer; without a directory, only the steps up to the transport are checked.
        indicator: The name of the collect indicator.
        stage_options: Which files are wanted.
        on_result: Called with the result of each step.
    """

    def __init__(
        self,
        options: TransportOptions,
        diagnosis: Diagnosis,
        indicator: bytes,
        stage_options: StageOptions,
        on_result: Callable[[StepResult], object],
    ) -> None:
        self._options = options
        self._diagnosis = diagnosis
        self._watchdog = diagnosis.watchdog
        self._directory = os.fsencode(diagnosis.directory)
        self._indicator = indicator
        self._stage_options = stage_options
        self._on_result = on_result
        self._remaining = ["configuration", *(step for step in _CONNECT_STEPS.values() if step != "jump host")]
        self._remaining += _LATER_STEPS

    def run(self) -> None:
        """Check every step up to the first that fails, and report the others as skipped."""
        why_skipped = "a step that it needs has failed"
        with self._watchdog.operation(), self._catch_failure():
            self._read_configuration()
            session = self._connect(self._on_connect_step)
            if self._directory:
                self._check_transport(session)
            else:
                self._check_sftp_alone(session)
                why_skipped = "no DIR was given"
        for step in self._remaining:
            self._on_result(StepResult(step=step, state="skipped", seen=why_skipped))

    @contextlib.contextmanager
    def _catch_failure(self) -> Iterator[None]:
        """Report a `StageError` in the block as the failure of the next step."""
        try:
            yield
        except StageError as exc:
            if isinstance(self._watchdog.failure, Cancelled):
                raise
            self._fail(exc)

    def _fail(self, error: StageError) -> None:
        step = self._remaining.pop(0)
        self._diagnosis.step = step
        cause, action = find_remedy(error, self._diagnosis)
        seen = name_options(f"{escape(error.path)}: {error.message}" if error.path else error.message)
        self._on_result(
            StepResult(step=step, state="failed", seen=seen, cause=cause, remedy=action, reason=error.reason)
        )

    def _report(self, step: str, seen: str, state: str = "ok", reason: Reason | None = None) -> None:
        del self._remaining[: self._remaining.index(step) + 1]  # a ProxyCommand has no steps "name" and "TCP"
        self._on_result(StepResult(step=step, state=state, seen=seen, reason=reason))

    # Up to the login.

    def _read_configuration(self) -> None:
        config, destination = self._diagnosis.read()
        if destination.hops:
            self._remaining[self._remaining.index("name")] = "jump host"
        files = ", ".join(abbreviate_home(path) for path in config.files) or "no file"
        reader = f"; as the local user {self._diagnosis.local_user}" if self._diagnosis.local_user else ""
        host = f"{destination.user} at {destination.host} port {destination.port}"
        self._report("configuration", f"{host}; read: {files}{reader}")

    def _connect(self, on_step: OnStep = ignore_step) -> Session:
        destination = self._diagnosis.destination
        if destination is None:
            raise RuntimeError("The configuration has not been read yet.")
        return Session.connect(destination, self._options.ssh, watchdog=self._watchdog, on_step=on_step)

    def _on_connect_step(self, step: str, seen: str) -> None:
        if step in _CONNECT_STEPS:
            self._report(_CONNECT_STEPS[step], seen)
        else:
            self._on_result(StepResult(step=step, state="tried" if step == "login" else "ok", seen=seen))

    # After the login.

    def _check_transport(self, session: Session) -> None:
        """Check SFTP, SCP, or SCP after SFTP, as a stage would use them, and the directory over it."""
        with contextlib.closing(self._build_scp(session)) as scp:
            try:
                if not self._options.starts_with_scp:
                    sftp = self._build_sftp(session)
                    if self._open_sftp(sftp):
                        self._check_by_sftp(sftp)
                        return
                self._remaining[0] = "SCP"
                self._check_by_scp(scp)
            except (ProtocolError, RemoteError):
                if self._remaining[0] in ("SFTP", "SCP") and self._options.ssh.elevate is None:
                    self._diagnosis.works_over = self._find_working_transport(session)
                raise

    def _check_sftp_alone(self, session: Session) -> None:
        with contextlib.closing(self._build_sftp(session)) as sftp:
            if not self._options.starts_with_scp:
                self._open_sftp(sftp)

    def _build_sftp(self, session: Session) -> SFTPTransport:
        return build_sftp(session, self._options, self._watchdog)

    def _build_scp(self, session: Session) -> SCPTransport:
        return build_scp(session, self._options, self._watchdog, self._connect)

    def _open_sftp(self, sftp: SFTPTransport) -> bool:
        """Return whether the peer has SFTP; raise `NoSFTP` if a stage would."""
        self._remaining[0] = "SFTP"
        try:
            sftp.open_channel()
        except NoSFTP as exc:
            if not self._options.may_fall_back:
                raise
            self._report("SFTP", f"{exc.message} Trying SCP.", "tried", exc.reason)
            self._remaining.insert(0, "SCP")
            return False
        self._report_transport("SFTP", "version 3")
        return True

    def _report_transport(self, transport: str, seen: str = "the peer's scp answers") -> None:
        self._diagnosis.transport = transport
        self._report(transport, seen)

    def _find_working_transport(self, session: Session) -> str | None:
        """Return the ``--transport`` that works after all; None if none does."""
        for name, guarded in (("scp", False), ("guarded", True)):
            scp = SCPTransport(session, self._watchdog, guarded=guarded)
            try:
                if not guarded:
                    scp.require_directory(self._directory)
                scp.stat(join_path(self._directory, self._indicator))
                return name
            except RemoteError as exc:
                if _is_from_scp(exc):
                    return name
            except (StageError, ValueError):  # a ValueError is a path that CedarBackup2's commands cannot hold
                pass
        return None

    def _check_by_sftp(self, sftp: SFTPTransport) -> None:
        self._check_files(sftp)
        if (found := self._find_indicator(sftp)) is not None:
            self._report("indicator", f"{escape(self._indicator)} exists, {_describe_age(found.mtime)}")
        self._check_write_by_sftp(sftp)

    def _check_by_scp(self, scp: SCPTransport) -> None:
        try:
            if scp.can_skip_content:
                self._check_files(scp)
            else:
                scp.require_files(self._directory)
                self._report_transport("SCP")
                self._report("directory", "it exists; SCP cannot list it")
                self._report("files", "not tried: this server opens a file only to send it", "skipped")
        except NothingToStage as exc:
            self._report_transport("SCP")
            self._report("directory", "this login sees no files in it")
            self._fail(exc)
        except RemoteError as exc:
            if _is_from_scp(exc):
                self._report_transport("SCP")
            raise
        if self._find_indicator(scp) is not None:
            self._report("indicator", f"{escape(self._indicator)} exists; SCP does not report its age")
        if self._options.guarded:
            self._report("write", "a guarded peer runs no command that removes a file", "skipped")
        else:
            self._check_write_by_scp(scp)

    def _check_files(self, transport: SFTPTransport | SCPTransport) -> None:
        """List the directory, and have the peer open files in it."""
        found = preview(transport, self._directory, os.devnull, self._stage_options, self._watchdog.limits)
        if self._remaining[0] == "SCP":
            self._report_transport("SCP")
        self._report("directory", f"{len(found.files)} files, {found.size} bytes")
        failure = found.failure(self._directory)
        if failure is None:
            self._report("files", found.opened_files)
        else:
            self._fail(failure)

    def _find_indicator(self, transport: Transport) -> RemoteFile | None:
        path = join_path(self._directory, self._indicator)
        found = transport.stat(path)
        if found is None:
            self._fail(
                RemoteNotFound("It does not exist, or is not a regular file.", path=path, reason=Reason.NOT_READY)
            )
        return found

    # Write a file and remove it. A signal waits until it is removed.

    def _check_write_by_sftp(self, sftp: SFTPTransport) -> None:
        with self._removed_afterwards(path := self._trial_path(), sftp):
            sftp.create_file(path)
            written, now = sftp.stat(path), time.time()
            if written is None:
                raise RemoteNotFound("The peer has no file there, although it has just created one.", path=path)
        self._report("write", f"an empty file was written and removed{_describe_clock(written.mtime, now)}")

    def _check_write_by_scp(self, scp: SCPTransport) -> None:
        path = self._trial_path()
        try:
            scp.remove_file(path)  # a login that cannot remove files writes none
        except RemoteError as exc:
            guarded = "" if self._options.guarded else " Behind a forced command --transport guarded fits best."
            self._report(
                "write",
                f"not tried: this login could not remove the file again: {exc.message}{guarded}",
                "skipped",
                exc.reason,
            )
            return
        with self._removed_afterwards(path, scp):
            scp.touch(path)
        self._report("write", "an empty file was written, and removed by rm")

    @contextlib.contextmanager
    def _removed_afterwards(self, path: bytes, transport: SFTPTransport | SCPTransport) -> Iterator[None]:
        """Remove the file *path* after the block, even if it failed, over a new connection if necessary."""
        failure: StageError | None = None
        with cancel_on_signal(lambda: None):
            try:
                yield
            except StageError as exc:
                failure = exc
            try:
                self._remove(path, transport)
            except StageError as exc:
                if not isinstance(failure, RemoteError):  # if the peer refused to write it, there is nothing to remove
                    message = (failure or exc).message.rstrip(".")
                    raise StageError(
                        f"The empty file may still be on the peer: {message}. Remove it.",
                        path=path,
                        reason=Reason.FILE_LEFT_BEHIND,
                    ) from exc
        if failure is not None:
            raise failure

    def _remove(self, path: bytes, transport: SFTPTransport | SCPTransport) -> None:
        with contextlib.suppress(RemoteNotFound):
            try:
                transport.remove_file(path)
            except RemoteError:
                raise
            except StageError:
                session = self._connect()
                build = self._build_sftp if isinstance(transport, SFTPTransport) else self._build_scp
                with contextlib.closing(build(session)) as another:
                    another.remove_file(path)

    def _trial_path(self) -> bytes:
        return join_path(self._directory, b".peerstage-doctor-" + secrets.token_hex(4).encode())


def _is_from_scp(error: RemoteError) -> bool:
    return error.reason not in _NOT_FROM_SCP


def _describe_age(mtime: int | None) -> str:
    if mtime is None:
        return "but the peer does not report its age"
    seconds = time.time() - mtime
    if seconds < -_CLOCK_TOLERANCE:
        return f"dated {_format_duration(-seconds)} in the future by this machine's clock"
    return f"{_format_duration(max(0.0, seconds))} old by this machine's clock"


def _describe_clock(mtime: int | None, now: float) -> str:
    """Return by how much the clock of the peer, which has just dated a file, is off."""
    if mtime is None or abs(mtime - now) <= _CLOCK_TOLERANCE:
        return ""
    direction = "ahead of" if mtime > now else "behind"
    return f"; the peer's clock is {_format_duration(abs(mtime - now))} {direction} this machine's"


def _format_duration(duration: float) -> str:
    minutes, seconds = divmod(int(duration), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = ((days, "d"), (hours, "h"), (minutes, "min"), (seconds, "s"))
    return " ".join(f"{number} {unit}" for number, unit in parts if number) or "0 s"

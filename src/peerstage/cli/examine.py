"""The walk of ``doctor``: the way of a stage, step by step, up to the first step that fails."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Callable, Iterator

from peerstage.cli.access import Access
from peerstage.cli.diagnosis import Diagnosis
from peerstage.cli.exits import Exit, code_of
from peerstage.cli.preview import preview
from peerstage.cli.remedies import find_remedy
from peerstage.cli.results import Finding
from peerstage.cli.signals import cancelling
from peerstage.cli.spec import Spec
from peerstage.errors import (
    Cancelled,
    NoSFTP,
    NothingToStage,
    ProtocolError,
    RemoteError,
    RemoteNotFound,
    StageError,
    escape,
)
from peerstage.reasons import Reason
from peerstage.session.handshake import say_nothing
from peerstage.session.keys import default_label
from peerstage.session.session import Session
from peerstage.session.watchdog import Watchdog
from peerstage.transport.base import join
from peerstage.transport.choose import scp_over, sftp_over
from peerstage.transport.scp.transport import SCPTransport
from peerstage.transport.sftp.transport import SFTPTransport

#: The steps to a login, by what `Session.connect` tells of them, in their order; what is told last is the login.
_TOLD = {
    "address": "name",
    "jump host": "jump host",
    "connection": "TCP",
    "banner": "banner",
    "key exchange": "key exchange",
    "host key": "host key",
    "logged in": "login",
}
_BEHIND = ("SFTP or SCP", "directory", "files", "indicator", "write")
#: Reasons of a peer on which no scp has answered.
_NOT_OF_SCP = frozenset(
    {Reason.NO_SCP, Reason.COMMAND_REFUSED, Reason.COMMAND_FAILED, Reason.COMMAND_TOO_LONG, Reason.SESSION_REFUSED}
)
#: Seconds by which clocks may differ before it is worth a word; times of files are whole seconds.
_SAME_CLOCK = 5


class Examination:
    """One walk to one peer.

    Args:
        spec: The peer.
        access: How it is reached.
        indicator: The name of its collect indicator.
        watchdog: Ends it.
        tell: Told of each step when it is done.
    """

    def __init__(
        self, spec: Spec, access: Access, indicator: bytes, watchdog: Watchdog, tell: Callable[[Finding], object]
    ) -> None:
        self._spec = spec
        self._access = access
        self._route = access.route(spec)
        self._indicator = indicator
        self._watchdog = watchdog
        self._tell = tell
        route = self._route
        self._diagnosis = Diagnosis(route.name, route.user, route.ssh, watchdog, spec.directory)
        self._directory = os.fsencode(spec.directory)
        self._left: list[str] = []
        self._exit = Exit.DONE

    def run(self) -> Exit:
        """Walk as far as that goes; the exit status is that of the step that failed."""
        with self._watchdog.operation():
            self._walk()
        return self._exit

    def _walk(self) -> None:
        self._left = ["configuration", *(step for step in _TOLD.values() if step != "jump host"), *_BEHIND]
        with self._step():
            self._configure()
            self._look(self._connect(self._note))
        for step in self._left:
            self._tell(Finding(step=step, state="skipped", seen="what it needs has failed"))

    @contextlib.contextmanager
    def _step(self) -> Iterator[None]:
        """Let what is raised inside be the failure of the step that is next."""
        try:
            yield
        except StageError as exc:
            if isinstance(self._watchdog.failure, Cancelled):
                raise
            self._fail(exc)

    def _fail(self, error: StageError) -> None:
        step = self._left.pop(0)
        self._diagnosis.step = step
        cause, action = find_remedy(error, self._diagnosis)
        seen = f"{escape(error.path)}: {error.message}" if error.path else error.message
        self._tell(Finding(step=step, state="failed", seen=seen, cause=cause, remedy=action, reason=error.reason))
        self._exit = max(self._exit, code_of(error))

    def _pass(self, step: str, seen: str, state: str = "ok", reason: Reason | None = None) -> None:
        del self._left[: self._left.index(step) + 1]  # what lies before it is not on this way
        self._tell(Finding(step=step, state=state, seen=seen, reason=reason))

    # To the login.

    def _configure(self) -> None:
        config, place = self._diagnosis.read()
        if place.hops:
            self._left[self._left.index("name")] = "jump host"
        files = ", ".join(default_label(path) for path in config.files) or "no file"
        self._pass("configuration", f"{place.user} at {place.host} port {place.port}; read: {files}")

    def _connect(self, note: Callable[[str, str], object]) -> Session:
        destination = self._diagnosis.destination
        if destination is None:
            raise StageError("Nothing is known about the way yet.", reason=Reason.IN_USE)
        return Session.connect(
            destination, self._route.ssh, limits=self._access.limits, watchdog=self._watchdog, note=note
        )

    def _connect_again(self) -> Session:
        return self._connect(say_nothing)

    def _note(self, told: str, seen: str) -> None:
        if told == "login":
            self._tell(Finding(step="login", state="tried", seen=seen))
        elif told in _TOLD:
            self._pass(_TOLD[told], seen)
        else:
            self._tell(Finding(step=told, state="ok", seen=seen))

    # Behind the login.

    def _look(self, session: Session) -> None:
        """Walk on as a stage would: by SFTP, by SCP, or by SCP after SFTP."""
        route, limits, watchdog = self._route, self._access.limits, self._watchdog
        scp = scp_over(session, route, self._connect_again, limits=limits, watchdog=watchdog)
        with contextlib.closing(scp):
            try:
                if not route.starts_with_scp:
                    self._left[0] = "SFTP"
                    sftp = sftp_over(session, route, limits=limits, watchdog=watchdog)
                    if self._starts(sftp):
                        self._by_sftp(sftp)
                        return
                self._left[0] = "SCP"
                self._by_scp(scp)
            except (ProtocolError, RemoteError):
                if self._left[0] in ("SFTP", "SCP") and route.ssh.elevate is None:
                    self._diagnosis.works_over = self._find_transport(session)
                raise

    def _starts(self, sftp: SFTPTransport) -> bool:
        """Return whether there is SFTP, where a stage can do without."""
        try:
            sftp.start()
        except NoSFTP as exc:
            if not self._route.falls_back:
                raise
            self._pass("SFTP", f"{exc.message} Trying SCP.", "tried", exc.reason)
            self._left.insert(0, "SCP")
            return False
        self._answers("SFTP", "version 3")
        return True

    def _answers(self, transport: str, seen: str = "the peer's scp answers") -> None:
        self._diagnosis.transport = transport
        self._pass(transport, seen)

    def _find_transport(self, session: Session) -> str | None:
        """Return the ``--transport`` with which the peer answers after all; None if there is none."""
        for name, guarded in (("scp", False), ("guarded", True)):
            scp = SCPTransport(session, self._access.limits, self._watchdog, guarded=guarded)
            try:
                if not guarded:
                    scp.require_directory(self._directory)
                scp.exists(join(self._directory, self._indicator))
                return name
            except RemoteError as exc:
                if _is_answer_of_scp(exc):
                    return name
            except (StageError, ValueError):  # which is a path that a guarded peer cannot be asked for
                pass
        return None

    def _by_sftp(self, sftp: SFTPTransport) -> None:
        self._survey(sftp)
        path = join(self._directory, self._indicator)
        if self._find_indicator(sftp.exists(path)):
            self._pass("indicator", f"{escape(self._indicator)} is there, {_age(sftp.stat(path).mtime)}")
        self._write_by_sftp(sftp)

    def _by_scp(self, scp: SCPTransport) -> None:
        try:
            if scp.opens_without_sending:
                self._survey(scp)
            else:
                scp.require_files(self._directory)
                self._answers("SCP")
                self._pass("directory", "it is there; SCP does not tell what is in it")
                self._pass("files", "not tried: this server opens a file only to send it", "skipped")
        except NothingToStage as exc:
            self._answers("SCP")
            self._pass("directory", "no file in it is known to this login")
            self._fail(exc)
        except RemoteError as exc:
            if _is_answer_of_scp(exc):
                self._answers("SCP")
            raise
        if self._find_indicator(scp.exists(join(self._directory, self._indicator))):
            self._pass("indicator", f"{escape(self._indicator)} is there; SCP does not tell its age")
        if self._route.guarded:
            self._pass("write", "a guarded peer lets nothing be removed", "skipped")
        else:
            self._write_by_scp(scp)

    def _survey(self, transport: SFTPTransport | SCPTransport) -> None:
        """List the directory, and have the peer open files in it."""
        found = preview(transport, self._directory, os.devnull)
        if self._left[0] == "SCP":
            self._answers("SCP")
        self._pass("directory", f"{len(found.files)} files, {found.size} bytes")
        failure = found.failure(self._directory)
        if failure is None:
            self._pass("files", found.trials)
        else:
            self._fail(failure)

    def _find_indicator(self, is_there: bool) -> bool:
        if not is_there:
            path = join(self._directory, self._indicator)
            self._fail(RemoteNotFound("It is not there, or no regular file.", path=path, reason=Reason.NOT_READY))
        return is_there

    # The file that is written and removed. A signal waits until it is gone.

    def _write_by_sftp(self, sftp: SFTPTransport) -> None:
        path = self._trial()
        with cancelling(lambda: None), self._gone_again(path, sftp):
            sftp.create(path)
            mtime, now = sftp.stat(path).mtime, time.time()
        self._pass("write", f"an empty file was written and removed{_clock(mtime, now)}")

    def _write_by_scp(self, scp: SCPTransport) -> None:
        path = self._trial()
        try:
            scp.remove(path)  # before anything is there: what could not be removed is not written
        except RemoteError as exc:
            guarded = "" if self._route.guarded else " Behind a forced command --transport guarded fits best."
            self._pass("write", f"this login could not remove it again: {exc.message}{guarded}", "skipped", exc.reason)
            return
        with cancelling(lambda: None), self._gone_again(path, scp):
            scp.touch(path)
        self._pass("write", "an empty file was written, and removed by rm")

    @contextlib.contextmanager
    def _gone_again(self, path: bytes, transport: SFTPTransport | SCPTransport) -> Iterator[None]:
        """Remove the file *path* after the block, whatever came of that; over another connection if need be."""
        failed: StageError | None = None
        try:
            yield
        except StageError as exc:
            failed = exc
        try:
            try:
                transport.remove(path)
            except RemoteError:
                raise
            except StageError:
                with contextlib.closing(self._again(transport)) as another:
                    another.remove(path)
        except RemoteNotFound:
            pass
        except StageError as exc:
            if not isinstance(failed, RemoteError):  # refused: then there is nothing to remove
                why = (failed or exc).message.rstrip(".")
                raise StageError(
                    f"A file of no use may have stayed behind: {why}. Remove it.",
                    path=path,
                    reason=Reason.FILE_LEFT_BEHIND,
                ) from exc
        if failed is not None:
            raise failed

    def _again(self, transport: SFTPTransport | SCPTransport) -> SFTPTransport | SCPTransport:
        """Return a transport as *transport*, over a connection of its own."""
        session, limits, watchdog = self._connect_again(), self._access.limits, self._watchdog
        if isinstance(transport, SFTPTransport):
            return sftp_over(session, self._route, limits=limits, watchdog=watchdog)
        return scp_over(session, self._route, self._connect_again, limits=limits, watchdog=watchdog)

    def _trial(self) -> bytes:
        return join(self._directory, b".peerstage-doctor-" + secrets.token_hex(4).encode())


def _is_answer_of_scp(error: RemoteError) -> bool:
    return error.reason not in _NOT_OF_SCP


def _age(mtime: int | None) -> str:
    if mtime is None:
        return "the peer does not tell its age"
    seconds = time.time() - mtime
    if seconds < -_SAME_CLOCK:
        return f"dated {_span(-seconds)} in the future by this machine's clock"
    return f"{_span(max(0.0, seconds))} old by this machine's clock"


def _clock(mtime: int | None, now: float) -> str:
    """Say how the peer's clock goes, which has just dated a file, if that is worth a word."""
    if mtime is None or abs(mtime - now) <= _SAME_CLOCK:
        return ""
    which = "ahead of" if mtime > now else "behind"
    return f"; the peer's clock is {_span(abs(mtime - now))} {which} this machine's"


def _span(seconds: float) -> str:
    minutes, left = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = ((days, "d"), (hours, "h"), (minutes, "min"), (left, "s"))
    return " ".join(f"{number} {unit}" for number, unit in parts if number)[:40] or "0 s"

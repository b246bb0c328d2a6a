"""The walk of ``doctor``: the way of a stage, step by step, up to the first step that fails."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Callable, Iterator

from peerstage.cli import mends
from peerstage.cli.access import Access
from peerstage.cli.exits import Exit, code_of
from peerstage.cli.mends import Scene
from peerstage.cli.preview import preview
from peerstage.cli.results import Finding
from peerstage.cli.signals import cancelling
from peerstage.cli.spec import Spec
from peerstage.errors import Cancelled, NoSFTP, RemoteError, RemoteNotFound, StageError, escape
from peerstage.reasons import Reason
from peerstage.session.config import read_config, resolve_destination
from peerstage.session.keys import default_label
from peerstage.session.session import Session
from peerstage.session.watchdog import Watchdog
from peerstage.transport.base import join
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
_BEHIND = ("SFTP or SCP", "directory", "indicator", "write")
_NAMED = 5
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
        self._scene = Scene(spec, self._route.ssh)
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
            with contextlib.closing(self._connect(self._note)) as session:
                self._look(session)
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
        mend = mends.mend(step, error, self._scene)
        path = escape(error.path) + ": " if error.path else ""
        seen = path + error.message
        self._tell(Finding(step=step, state="failed", seen=seen, cause=mend.cause, mend=mend.mend, reason=error.reason))
        self._exit = max(self._exit, code_of(error))

    def _pass(self, step: str, seen: str, state: str = "ok", reason: Reason | None = None) -> None:
        del self._left[: self._left.index(step) + 1]  # what lies before it is not on this way
        self._tell(Finding(step=step, state=state, seen=seen, reason=reason))

    # To the login.

    def _configure(self) -> None:
        route, scene = self._route, self._scene
        dog = self._watchdog
        scene.config = config = read_config(route.name, route.user, route.ssh, watchdog=dog)
        scene.destination = place = resolve_destination(route.name, route.user, route.ssh, watchdog=dog)
        if place.hops:
            self._left[self._left.index("name")] = "jump host"
        files = ", ".join(default_label(path) for path in config.files) or "no file"
        self._pass("configuration", f"{place.user} at {place.host} port {place.port}; read: {files}")

    def _connect(self, note: Callable[[str, str], object]) -> Session:
        destination = self._scene.destination
        if destination is None:
            raise StageError("Nothing is known about the way yet.", reason=Reason.IN_USE)
        return Session.connect(
            destination, self._route.ssh, limits=self._access.limits, watchdog=self._watchdog, note=note
        )

    def _note(self, told: str, seen: str) -> None:
        if told == "login":
            self._tell(Finding(step="login", state="tried", seen=seen))
        elif told in _TOLD:
            self._pass(_TOLD[told], seen)
        else:
            self._tell(Finding(step=told, state="ok", seen=seen))

    # Behind the login.

    def _look(self, session: Session) -> None:
        limits, watchdog = self._access.limits, self._watchdog
        if not (self._route.guarded or self._route.transport == "scp"):
            self._left[0] = "SFTP"
            sftp = SFTPTransport(session, limits, watchdog, elevate=self._route.ssh.elevate)
            try:
                sftp.start()
            except NoSFTP as exc:
                if self._route.transport == "sftp" or self._route.ssh.elevate is not None:
                    raise
                self._pass("SFTP", f"{exc.message} Trying SCP.", "tried", exc.reason)
                self._left.insert(0, "SCP")
            else:
                self._pass("SFTP", "version 3")
                self._by_sftp(sftp)
                return
        self._left[0] = "SCP"
        self._by_scp(SCPTransport(session, limits, watchdog, guarded=self._route.guarded))

    def _by_sftp(self, sftp: SFTPTransport) -> None:
        found = preview(sftp, self._directory, os.devnull)
        seen = f"{len(found.files)} files, {found.size} bytes"
        if found.refused:
            named = "; ".join(f"{one.name}: {one.error}" for one in found.refused[:_NAMED])
            seen += f"; {len(found.refused)} entries would be refused: {named}"
        self._pass("directory", seen)
        path = join(self._directory, self._indicator)
        if self._find_indicator(sftp.exists(path)):
            self._pass("indicator", f"{escape(self._indicator)} is there, {_age(sftp.stat(path).mtime)}")
        self._write_by_sftp(sftp)

    def _by_scp(self, scp: SCPTransport) -> None:
        if self._route.guarded:
            is_there = scp.exists(join(self._directory, self._indicator))
            self._pass("SCP", "the forced command answers")
            self._pass("directory", "a guarded peer is sent nothing but the original's commands", "skipped")
        else:
            try:
                scp.require_directory(self._directory)
            except RemoteError as exc:
                if exc.message.startswith(("It is ", "The peer refuses: ")):  # its scp has answered
                    self._pass("SCP", "the peer's scp answers")
                raise
            self._pass("SCP", "the peer's scp answers")
            self._pass("directory", "it is there; SCP does not tell what is in it")
            is_there = scp.exists(join(self._directory, self._indicator))
        if self._find_indicator(is_there):
            self._pass("indicator", f"{escape(self._indicator)} is there; SCP does not tell its age")
        if self._route.guarded:
            self._pass("write", "a guarded peer lets nothing be removed", "skipped")
        else:
            self._write_by_scp(scp)

    def _find_indicator(self, is_there: bool) -> bool:
        if not is_there:
            path = join(self._directory, self._indicator)
            self._fail(RemoteNotFound("It is not there, or no regular file.", path=path, reason=Reason.NOT_READY))
            self._exit = Exit.NOT_READY
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
            self._pass("write", f"this login could not remove it again: {exc.message}", "skipped", exc.reason)
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
                with contextlib.closing(self._connect(lambda told, seen: None)) as session:
                    type(transport)(session, self._access.limits, self._watchdog).remove(path)
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

    def _trial(self) -> bytes:
        return join(self._directory, b".peerstage-doctor-" + secrets.token_hex(4).encode())


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

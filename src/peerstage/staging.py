"""The operations on a peer, as plain functions over a `Transport`."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import stat
import time
from collections.abc import Callable, Iterator

from peerstage.errors import (
    IncompleteStage,
    LimitExceeded,
    MissingTarget,
    NothingToStage,
    RemoteError,
    StageError,
    escape,
    exhausted,
)
from peerstage.landing.directory import DirectoryLanding
from peerstage.reasons import Reason
from peerstage.records import KIB, FileResult, Ownership, StageReport
from peerstage.session.watchdog import Watchdog
from peerstage.system_errors import is_of_this_machine, system_error, target_reason_of
from peerstage.transport.base import Transport
from peerstage.transport.output import CommandOutput

log = logging.getLogger("peerstage.staging")

_NAMED_FAILURES = 5


def stage(
    transport: Transport,
    directory: bytes,
    target: str,
    *,
    peer: str = "",
    ownership: Ownership | None = None,
    permissions: int | None = None,
    durable: bool = True,
    preserve_times: bool = False,
    threads: bool = True,
    watchdog: Watchdog | None = None,
) -> StageReport:
    """Copy every file of the peer's *directory* into *target*, and publish them all at the end.

    Args:
        transport: How the peer is reached. It is not closed.
        directory: The collect directory.
        target: An existing local directory.
        peer: The peer's name, for errors and the report.
        ownership: Owner and group of every file; None leaves them to this process.
        permissions: Mode of every file (octal); None takes the peer's, & 0777 & ~umask.
        durable: Whether everything is on the disk when this returns.
        preserve_times: Whether files keep the peer's modification time.
        threads: Whether a thread may be started that hands data to the disk while more arrives.
        watchdog: The run's; if it was cancelled, or its deadline has passed, when everything is on the disk, nothing is
            published.

    Raises:
        ValueError: If *permissions* is not an integer from 0 to 0o777.
        IncompleteStage: Some entries could not be staged. The others are; the error's ``report`` tells.
        NothingToStage: The directory holds no file. Nothing was changed.
        LandingError: The disk failed. If that was between two renames, ``report`` tells which files were published;
            else it is None, and nothing was published.
        StageError: Any other: the run was cut off before its commit and has published nothing.
    """
    started, clock = time.time(), time.monotonic()
    with naming(peer):
        landing = DirectoryLanding(
            target,
            ownership=ownership,
            permissions=permissions,
            durable=durable,
            preserve_times=preserve_times,
            threads=threads,
            peer=peer,
        )

        def tell() -> StageReport:
            resumes = transport.capabilities.resumes
            resumed = landing.resumed_bytes if resumes else 0  # before `files` forgets them
            return StageReport(
                peer=peer,
                transport=transport.capabilities.name,
                target=target,
                started=started,
                seconds=time.monotonic() - clock,
                files=tuple(landing.files(resumes=resumes)),
                refused=tuple(landing.refused()),
                retries=transport.retries,
                resumed_bytes=resumed,
                host_key=transport.host_key,
            )

        with landing:
            transport.pull(directory, landing)
            try:
                landing.commit(_check_of_time(watchdog, clock, landing.received))
            except StageError as exc:
                exc.report = tell() if landing.published else None
                raise
            report = tell()
        if report.failed:
            raise IncompleteStage(_tell(report), path=directory, report=report)
        if not report.files:
            raise NothingToStage(
                "There is no file to stage in it. Has the peer collected?", path=directory, report=report
            )
    log.info("%s: staged %d files, %d bytes in %.1f s.", escape(peer), report.count, report.bytes, report.seconds)
    return report


def probe(transport: Transport, path: bytes, *, peer: str = "") -> bool:
    """Whether *path* is a regular file on the peer, links followed.

    Raises:
        RemoteNotFound: If its directory is not there, where the transport can tell.
        StageError: The peer could not be asked.
    """
    with naming(peer):
        return transport.exists(path)


def mark(transport: Transport, path: bytes, *, peer: str = "") -> None:
    """Make *path* an empty file on the peer; one that is there is truncated.

    Raises:
        StageError: The peer could not be reached, or refuses.
    """
    with naming(peer):
        transport.touch(path)


def execute(transport: Transport, command: str, *, peer: str = "", most: int = 64 * KIB) -> None:
    """Run *command* on the peer, and log what it says, line by line.

    Args:
        transport: How the peer is reached. It is not closed.
        command: A command line, sent as it is.
        peer: The peer's name, for errors and the log.
        most: Bytes of what it says that are logged; the rest is read, counted and dropped.

    Raises:
        RemoteError: Its exit status was not 0; the last words are quoted.
        StageError: Any other: it could not be run, or was cut off.
    """
    output = CommandOutput(peer, most)
    with naming(peer):
        try:
            status = transport.execute(os.fsencode(command), output.take)
        finally:
            output.end()
        if status != 0:
            how = "was killed, or ended without a status" if status is None else f"ended with status {status}"
            words = output.last_words
            raise RemoteError(
                f"The command {command!r} {how}, saying {repr(words) if words else 'nothing'}.",
                reason=Reason.COMMAND_FAILED,
            )
    log.info("%s: %s is done.", escape(peer), escape(command))


@contextlib.contextmanager
def naming(peer: str) -> Iterator[None]:
    """Name *peer* in every `StageError` that passes; map what the system or a lack of memory or threads raises."""
    try:
        yield
    except StageError as exc:
        exc.peer = exc.peer or peer
        raise
    except OSError as exc:
        failure = system_error("The system refuses", exc, path=exc.filename if isinstance(exc.filename, str) else None)
        failure.peer = peer
        raise failure from exc
    except (MemoryError, RuntimeError) as exc:
        error = exhausted(exc)
        if error is None:
            raise
        error.peer = peer
        raise error from exc


def _check_of_time(watchdog: Watchdog | None, started: float, received: int) -> Callable[[], None]:
    """Return what raises `Cancelled` or `LimitExceeded` once the run has no time left."""
    if watchdog is None:
        return lambda: None
    allowed = watchdog.limits.seconds_for(received)

    def check() -> None:
        watchdog.check_final()
        if time.monotonic() - started > allowed:
            raise LimitExceeded(
                f"Not done within {allowed:g} s (Limits.deadline, min_rate): everything had come, and the disk was too "
                "slow. Nothing was published; raise the limit.",
                reason=Reason.DEADLINE_PASSED,
                limit="deadline",
            )

    return check


def _tell(report: StageReport) -> str:
    failed: tuple[FileResult, ...] = report.failed
    named = "; ".join(f"{escape(one.name)}: {(one.error or '').rstrip('.')}" for one in failed[:_NAMED_FAILURES])
    more = f"; and {len(failed) - _NAMED_FAILURES} more" if len(failed) > _NAMED_FAILURES else ""
    rest = "The others are staged." if report.count else "Nothing was staged."
    return f"{len(failed)} of {len(failed) + report.count} entries could not be staged: {named}{more}. {rest}"


def target_directory(target: str | bytes | os.PathLike[str] | os.PathLike[bytes] | None) -> str:
    """Return *target* as a path, if it is an absolute one of a directory that exists.

    Raises:
        ValueError: If it is no absolute path.
        MissingTarget: If it is not there, or no directory; a `ValueError`, too.
        StageError: If it cannot be looked at.
    """
    path = encodable_path(target, "Target directory")
    if not os.path.isabs(path):
        raise ValueError(f"Target directory must be an absolute path: {escape(path)}")
    try:
        reason = None if stat.S_ISDIR(os.stat(path).st_mode) else Reason.TARGET_NOT_A_DIRECTORY
    except OSError as exc:
        if is_of_this_machine(exc):
            raise system_error("The target directory cannot be looked at", exc, path=path) from exc
        reason = target_reason_of(exc)
    if reason is not None:
        step = f"Create it with `mkdir -p {shlex.quote(path)}`"
        if reason is Reason.TARGET_NOT_A_DIRECTORY:
            step = "Give another one, or move the file out of the way"
        raise MissingTarget(f"Target directory must exist and be a directory: {escape(path)}. {step}.", reason=reason)
    return path


def encodable_path(path: object, what: str) -> str:
    """Return *path* as ``os.fsdecode`` gives it, if a file system can hold it.

    Raises:
        ValueError: It is no path, is empty, or holds NUL or a surrogate that ``os.fsencode`` can not encode.
    """
    try:
        text = os.fsdecode(path)  # type: ignore[arg-type]
        os.fsencode(text)
    except (TypeError, UnicodeError) as exc:
        raise ValueError(f"{what} can not be a path: {path!r}") from exc
    if not text or "\0" in text:
        raise ValueError(f"{what} can not be a path: {path!r}")
    return text

"""Operations on a peer, as plain functions over a `Transport`."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import time
from collections.abc import Callable, Iterator

from peerstage.errors import IncompleteStage, LimitExceeded, NothingToStage, RemoteError, StageError
from peerstage.printable import describe_exit, escape
from peerstage.reasons import Reason
from peerstage.records import KIB, FileResult, Indicators, RemoteFile, StageReport
from peerstage.system_errors import resource_error, system_error
from peerstage.target.directory import DirectoryTarget
from peerstage.target.file_descriptors import readable_path
from peerstage.transport.base import Transport
from peerstage.transport.execute import CommandOutput
from peerstage.transport.refusals import COLLECT_FIRST
from peerstage.watchdog import Watchdog

log = logging.getLogger("peerstage.staging")

#: Failed entries that an error names.
_MAX_NAMED = 5
#: Entries that were left out whose names are logged.
_MAX_LOGGED = 1000


def stage(
    transport: Transport,
    directory: bytes,
    target: DirectoryTarget,
    *,
    watchdog: Watchdog | None = None,
    on_commit: Callable[[], object] | None = None,
) -> StageReport:
    """Copy every file of the peer's *directory* into *target*, and publish them all at the end.

    Args:
        transport: The transport to the peer. It is not closed.
        directory: The collect directory.
        target: A target that has not been entered; errors and the report name its peer.
        watchdog: The run's watchdog. If the run has been cancelled, or its deadline has passed, when everything is on
            the disk, nothing is published.
        on_commit: Called once, when all data is on the disk and before the first file gets its final name. If it
            raises, nothing is published; an OSError is then the cause of a `StageError`.

    Raises:
        IncompleteStage: If some entries could not be staged. The others are; see the error's ``report``.
        NothingToStage: If the directory has no files, not even files that are left out. Nothing was changed.
        TargetError: If the disk failed. After the first rename, ``report`` tells which files were published; before it,
            ``report`` is None, and nothing was published.
        StageError: If the run was cut off before its commit. Nothing was published.
    """
    started, started_at = time.time(), time.monotonic()

    def summarize() -> StageReport:
        return StageReport(
            peer=target.peer,
            transport=transport.capabilities.name,
            target=readable_path(target.path),
            started=started,
            seconds=time.monotonic() - started_at,
            left_out=tuple(target.selector.left_out.values()),
            retries=transport.retries,
            resumed_bytes=target.resumed_bytes if transport.capabilities.can_resume else 0,
            host_key=transport.host_key,
            verify=target.options.verify,
            notes=target.notes,
            appeared=tuple(map(os.fsdecode, sorted(target.stability.appeared))),
        )

    def report_results() -> StageReport:
        summary = summarize()  # before `pop_results` forgets the files
        files = tuple(target.pop_results(can_resume=transport.capabilities.can_resume))
        return dataclasses.replace(summary, files=files, refused=tuple(target.pop_refused()))

    def before_publishing() -> None:
        if on_commit is not None:
            with with_peer_name(target.peer):  # an OSError is not the disk's
                on_commit()

    if watchdog is not None:
        target.on_local_work = watchdog.count_copied
    with with_peer_name(target.peer):
        with target:
            transport.pull(directory, target)
            check = _deadline_check(watchdog, started_at, target.received_bytes)
            if count := target.start_over_differing_files(check):
                text = "%s: %d resumed or linked files differ from what was expected and are fetched once more."
                log.warning(text, escape(target.peer), count)
                transport.pull(directory, target)
            try:
                target.commit(
                    _deadline_check(watchdog, started_at, target.received_bytes), summarize, before_publishing
                )
            except StageError as exc:
                exc.report = report_results() if target.published else None
                raise
            report = report_results()
        if report.failed:
            raise IncompleteStage(_describe_failures(report), path=directory, report=report)
        if not report.files and not target.selector.has_left_out_files:
            raise NothingToStage(f"It holds no files to stage. {COLLECT_FIRST}", path=directory)
    log.info(
        "%s: staged %d files, %d bytes in %.1f s.", escape(target.peer), report.count, report.bytes, report.seconds
    )
    _log_left_out(report)
    return report


def probe(transport: Transport, path: bytes, *, peer: str = "") -> RemoteFile | None:
    """Return the regular file *path* on the peer, symlinks followed; None if there is no such file.

    Raises:
        RemoteNotFound: If its directory is missing and the transport can tell.
        StageError: If the peer cannot be reached, or refuses to answer.
    """
    with with_peer_name(peer):
        return transport.stat(path)


def read_indicators(transport: Transport, collect: bytes, stage: bytes, *, peer: str = "") -> Indicators:
    """Return the indicators at the paths *collect* and *stage*.

    The stage indicator is only asked for if there is a collect indicator to compare it with, whose time is known. So a
    guarded peer sees no command but the original's.

    Raises:
        StageError: As `probe`.
    """
    collected = probe(transport, collect, peer=peer)
    if collected is None or collected.mtime is None:
        return Indicators(collected)
    return Indicators(collected, probe(transport, stage, peer=peer))


def mark(transport: Transport, path: bytes, *, peer: str = "") -> None:
    """Create *path* as an empty file on the peer, or truncate it.

    Raises:
        StageError: If the peer cannot be reached, or refuses.
    """
    with with_peer_name(peer):
        transport.touch(path)


def execute(transport: Transport, command: str, *, peer: str = "", max_output: int = 64 * KIB) -> None:
    """Run *command* on the peer, and log its output line by line.

    Args:
        transport: The transport to the peer. It is not closed.
        command: A command line, sent unchanged.
        peer: The peer's name, for errors and the log.
        max_output: Bytes of output that are logged; the rest is read, counted and dropped.

    Raises:
        RemoteError: If its exit status was not 0; the error quotes the end of its output.
        StageError: If it could not be run, or was cut off.
    """
    output = CommandOutput(peer, max_output)
    with with_peer_name(peer):
        try:
            status = transport.execute(os.fsencode(command), output.write)
        finally:
            output.close()
        if status != 0:
            outcome = describe_exit(status, output.tail)
            raise RemoteError(f"The command {command!r} {outcome}.", reason=Reason.COMMAND_FAILED)
    log.info("%s: %s is done.", escape(peer), escape(command))


@contextlib.contextmanager
def with_peer_name(peer: str) -> Iterator[None]:
    """Name *peer* in every `StageError` of the block; map errors of the system, and exhausted memory or threads."""
    try:
        yield
    except StageError as exc:
        exc.peer = exc.peer or peer
        raise
    except OSError as exc:
        error = system_error("A system call failed", exc, path=exc.filename if isinstance(exc.filename, str) else None)
        error.peer = peer
        raise error from exc
    except (MemoryError, RuntimeError) as exc:
        exhausted = resource_error(exc)
        if exhausted is None:
            raise
        exhausted.peer = peer
        raise exhausted from exc


def _deadline_check(watchdog: Watchdog | None, started: float, received: int) -> Callable[[], None]:
    """Return a function that raises `Cancelled` or `LimitExceeded` once the run has no time left."""
    if watchdog is None:
        return lambda: None
    allowed = watchdog.limits.deadline_for(received) + watchdog.max_throttled(received)

    def check() -> None:
        watchdog.raise_if_final()
        if time.monotonic() - started > allowed:
            raise LimitExceeded(
                f"The operation did not complete within {allowed:g} s (Limits.deadline, min_rate): all data had "
                "arrived, but the disk was too slow. Nothing was staged; raise the limit.",
                reason=Reason.DEADLINE_PASSED,
                limit="deadline",
            )

    return check


def _log_left_out(report: StageReport) -> None:
    """Log the names of entries that were left out at DEBUG; warn if no file is staged because of that."""
    peer = escape(report.peer)
    for file in report.left_out[:_MAX_LOGGED]:
        log.debug("%s: left out %s: %s", peer, escape(file.name), file.error)
    if len(report.left_out) > _MAX_LOGGED:
        log.debug("%s: left out %d more.", peer, len(report.left_out) - _MAX_LOGGED)
    if report.left_out and not report.files:
        log.warning("%s: no file is staged: the options leave out everything that the peer has.", peer)


def _describe_failures(report: StageReport) -> str:
    failed: tuple[FileResult, ...] = report.failed
    named = "; ".join(f"{escape(entry.name)}: {(entry.error or '').rstrip('.')}" for entry in failed[:_MAX_NAMED])
    more = f"; and {len(failed) - _MAX_NAMED} more" if len(failed) > _MAX_NAMED else ""
    rest = "The others are staged." if report.count else "Nothing was staged."
    return f"{len(failed)} of {len(failed) + report.count} entries could not be staged: {named}{more}. {rest}"

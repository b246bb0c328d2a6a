"""What to do about a peer that lets us in: its transports, its collect directory, the files in it, its indicators."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterable

from peerstage.cli.diagnosis import Diagnosis, Remedy
from peerstage.errors import StageError
from peerstage.reasons import Reason
from peerstage.records import FileResult
from peerstage.transport.base import join
from peerstage.transport.scp import commands

#: Files that a command names.
_MAX_NAMED = 5
#: Names that a peer may bring into a command that a person is to run.
_PLAIN_NAME = re.compile(r"[\w @%+=:,.-]+")
_SFTP_SERVER = "sudo -n /usr/lib/openssh/sftp-server"


# Transports.


def _no_transport(error: StageError, d: Diagnosis) -> Remedy:
    """Return what is to be said where no transport is known to work."""
    subsystem = d.sshd_setting("Subsystem sftp internal-sftp")
    if error.reason is Reason.NO_SFTP:
        return Remedy("its sshd has no SFTP server for this login", subsystem)
    if error.reason is Reason.NO_SCP:
        return Remedy("the peer has neither an SFTP server nor an scp program", subsystem)
    if error.reason in (Reason.TEXT_BEFORE_PROTOCOL, Reason.PROTOCOL_VIOLATION):
        return Remedy(
            "a login script of that user prints text where a protocol is spoken",
            f"remove the output from ~{d.login}/.bashrc (or the like) on the peer; or {subsystem}",
        )
    if error.reason is Reason.SESSION_REFUSED:
        return Remedy(
            "the peer lets this login open no session",
            f"check `MaxSessions` and `ForceCommand` in {d.sshd_config}",
        )
    directory = os.fsencode(d.directory)
    allowed = ", ".join(
        f"`{os.fsdecode(command)}`"
        for command in (
            commands.fetch_all(directory),
            commands.fetch(join(directory, b"cback.collect")),
            b"scp -t " + commands.quote(join(directory, b"cback.stage")),
        )
    )
    return Remedy(
        "a forced command or a restricted shell does not let this login copy from that directory",
        f"give another DIR than {d.directory}, the one that it is for; or let it run {allowed} "
        f"(command= in {d.authorized_keys}, `ForceCommand` in {d.sshd_config})",
    )


def _transport(error: StageError, d: Diagnosis) -> Remedy:
    found = _no_transport(error, d)
    if d.works_over == "guarded":
        return Remedy(
            f"a forced command (command= in {d.authorized_keys}) runs nothing but the commands of the original",
            "give `--transport guarded` (in Python: RemotePeer(guarded=True))",
        )
    if d.works_over is not None:
        return Remedy(found.cause, f"give `--transport {d.works_over}`, which works; or {found.action}")
    return found


def _elevation(error: StageError, d: Diagnosis) -> Remedy:
    return Remedy(
        "the command given with --elevate asks for a password, is not allowed, or does not exist",
        f"add `{d.login} ALL=(root) NOPASSWD: /usr/lib/openssh/sftp-server` to /etc/sudoers.d on the peer, and give "
        f"--elevate {_SFTP_SERVER!r}",
    )


def _too_many_names(error: StageError, d: Diagnosis) -> Remedy:
    return Remedy(
        "the names of all its files do not fit on one command line, which SCP needs",
        f"{d.sshd_setting('Subsystem sftp internal-sftp')}; or let it collect into fewer files",
    )


# The directory.


def _missing_directory(error: StageError, d: Diagnosis) -> Remedy:
    return Remedy(
        "the peer does not collect there, or has not yet",
        f"run `mkdir -p {shlex.quote(d.directory)}` on the peer; or give another DIR than {d.directory}",
    )


def _no_directory(error: StageError, d: Diagnosis) -> Remedy:
    parent = os.path.dirname(d.directory.rstrip("/")) or "/"
    return Remedy(
        "it is a file, and not the directory that holds the files",
        f"give another DIR than {d.directory}, such as {parent}",
    )


def _unreadable_directory(error: StageError, d: Diagnosis) -> Remedy:
    directory = shlex.quote(d.directory)
    return Remedy(
        f"{d.login} may not list it",
        f"run `chmod u+rx {directory}` on the peer, or `chown {shlex.quote(d.login)} {directory}`",
    )


def _other_directory(error: StageError, d: Diagnosis) -> Remedy:
    return Remedy(
        "it is no directory, or cannot be listed",
        f"look at it on the peer: `ls -ld {shlex.quote(d.directory)}`; or give another DIR than {d.directory}",
    )


def _too_much(error: StageError, d: Diagnosis) -> Remedy:
    return Remedy(
        "it holds more, or longer names, than Limits allows",
        "move away what does not belong there; or raise that limit in Python: RemotePeer(limits=Limits(...))",
    )


# Files.


def _nothing(error: StageError, d: Diagnosis) -> Remedy:
    directory = shlex.quote(d.directory)
    return Remedy(
        f"nothing has been collected there yet, or {d.login} may not list it",
        f"let the peer collect; look at it as {d.login} on the peer: `ls -la {directory}`",
    )


def _files(error: StageError, d: Diagnosis) -> Remedy:
    """Return what is to be said about the entries that would not be staged, group by group."""
    failed = error.report.failed if error.report is not None else ()
    if not failed:
        return Remedy("some entries cannot be staged", f"look at them on the peer: `ls -la {shlex.quote(d.directory)}`")
    unreadable = [one for one in failed if one.reason in _UNREADABLE]
    others = [one for one in failed if one.reason not in _UNREADABLE]
    causes, actions = [], []
    if others:
        causes.append(f"{_named(others)}: {_meanings(others)}")
        paths = _paths(others, d)
        move = f"run `mv {paths} ELSEWHERE` on the peer" if paths else f"move these out of {shlex.quote(d.directory)}"
        actions.append(move)
    if unreadable:
        causes.append(f"{d.login} may not read {_named(unreadable)}")
        paths = _paths(unreadable, d) or f"{shlex.quote(d.directory.rstrip('/'))}/*"
        actions.append(f"run `chown {shlex.quote(d.login)} {paths} && chmod u+r {paths}` on the peer")
        if d.transport == "SFTP" and d.options.elevate is None:
            actions[-1] += f", or read as root with --elevate {_SFTP_SERVER!r}"
    return Remedy("; ".join(causes), "; ".join(actions))


def _named(files: list[FileResult]) -> str:
    more = f" and {len(files) - _MAX_NAMED} more" if len(files) > _MAX_NAMED else ""
    return ", ".join(one.name for one in files[:_MAX_NAMED]) + more


def _meanings(files: Iterable[FileResult]) -> str:
    reasons = dict.fromkeys(one.reason for one in files if one.reason is not None)
    return " ".join(reason.meaning for reason in reasons).rstrip(".")


def _paths(files: list[FileResult], d: Diagnosis) -> str:
    """Return *files* as a shell on the peer takes them; "" if they are many, or a name might mislead who copies it."""
    if len(files) > _MAX_NAMED or not all(_PLAIN_NAME.fullmatch(one.name) for one in files):
        return ""
    return " ".join(shlex.quote(f"{d.directory.rstrip('/')}/{one.name}") for one in files)


_UNREADABLE = frozenset({Reason.PERMISSION_DENIED, Reason.ENTRY_UNREADABLE})


# Indicators.


def _not_ready(error: StageError, d: Diagnosis) -> Remedy:
    path = shlex.quote(os.fsdecode(error.path or b""))
    return Remedy(
        "the peer has not finished collecting, or its indicator has another name",
        f"let it collect (by hand: `touch {path}` on the peer), or name its indicator with --indicator",
    )


def explain_write(error: StageError, d: Diagnosis) -> Remedy:
    """Return what is to be said about a file that could not be written, or not be removed again."""
    directory = shlex.quote(d.directory)
    if error.reason is Reason.FILE_LEFT_BEHIND:
        return Remedy(
            "the connection ended while the file was there",
            f"run `rm -f {shlex.quote(os.fsdecode(error.path or b''))}` on the peer",
        )
    if error.reason is Reason.REMOTE_NO_SPACE:
        return Remedy("the peer's disk is full, or a quota is", f"make room on the peer: `df {directory}`")
    return Remedy(
        f"{d.login} may not write there, or the disk is full: the stage indicator could not be written either",
        f"run `chmod u+w {directory}` on the peer, or `chown {shlex.quote(d.login)} {directory}`; `df {directory}` if "
        "that is not it",
    )


FILE_REMEDIES: dict[Reason, Callable[[StageError, Diagnosis], Remedy]] = {
    **dict.fromkeys(
        (
            Reason.NO_SFTP,
            Reason.NO_SCP,
            Reason.TEXT_BEFORE_PROTOCOL,
            Reason.PROTOCOL_VIOLATION,
            Reason.SESSION_REFUSED,
            Reason.COMMAND_REFUSED,
            Reason.COMMAND_FAILED,
        ),
        _transport,
    ),
    Reason.ELEVATION_FAILED: _elevation,
    Reason.COMMAND_TOO_LONG: _too_many_names,
    Reason.NOT_FOUND: _missing_directory,
    Reason.NOT_A_DIRECTORY: _no_directory,
    Reason.PERMISSION_DENIED: _unreadable_directory,
    Reason.REMOTE_FAILURE: _other_directory,
    Reason.LIMIT_EXCEEDED: _too_much,
    Reason.NOTHING_TO_STAGE: _nothing,
    Reason.INCOMPLETE_STAGE: _files,
    Reason.NOT_READY: _not_ready,
    **dict.fromkeys((Reason.WRITE_DENIED, Reason.REMOTE_NO_SPACE, Reason.FILE_LEFT_BEHIND), explain_write),
}

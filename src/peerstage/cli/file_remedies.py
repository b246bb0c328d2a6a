"""Remedies after the login: transports, the collect directory, the files in it, indicators."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterable

from peerstage.cli.diagnosis import Diagnosis
from peerstage.cli.option_names import name_limit
from peerstage.errors import LimitExceeded, StageError
from peerstage.paths import join_path
from peerstage.printable import join_first
from peerstage.reasons import Reason
from peerstage.records import FileResult
from peerstage.ssh.auth.login_remedies import Remedy
from peerstage.transport.scp import commands

#: Files that a command names at most.
_MAX_NAMED = 5
#: File names that are safe in a command that a person is to copy.
_PLAIN_NAME = re.compile(r"[\w @%+=:,.-]+")
_SFTP_SERVER = "sudo -n /usr/lib/openssh/sftp-server"


# Transports.

_LOGIN_SCRIPT = Remedy(
    "a login script of that user prints text, which breaks the protocol",
    "remove the output from ~{login}/.bashrc (or the like) on the peer; or {enable_sftp}",
)
#: The steps at which a login script runs.
_LOGIN_SCRIPT_STEPS = ("SFTP", "SCP")
_VIOLATION = Remedy(
    "the SSH server of {machine} violates the protocol: it is faulty or compromised",
    "update the SSH server of {machine}; {log}",
)
_TRANSPORT_REMEDIES = {
    Reason.NO_SFTP: Remedy("its sshd has no SFTP server for this login", "{enable_sftp}"),
    Reason.NO_SCP: Remedy("the peer has neither an SFTP server nor an scp program", "{enable_sftp}"),
    Reason.TEXT_BEFORE_PROTOCOL: _LOGIN_SCRIPT,
    Reason.PROTOCOL_VIOLATION: _LOGIN_SCRIPT,
    Reason.SESSION_REFUSED: Remedy(
        "the peer refuses to open a session for this login", "check `MaxSessions` and `ForceCommand` in {sshd_config}"
    ),
}


def _explain_transport(error: StageError, d: Diagnosis) -> Remedy:
    if d.works_over == "guarded":
        return Remedy(
            f"a forced command (command= in {d.authorized_keys}) runs only the three commands of CedarBackup2",
            "give `--transport guarded` (in Python: RemotePeer(guarded=True))",
        )
    template = _TRANSPORT_REMEDIES.get(error.reason)
    if error.reason is Reason.PROTOCOL_VIOLATION and d.step not in _LOGIN_SCRIPT_STEPS:
        template = _VIOLATION
    remedy = _explain_forced_command(d) if template is None else template.fill(d.terms(error))
    if d.works_over is not None:
        return Remedy(remedy.cause, f"give `--transport {d.works_over}`, which works; or {remedy.action}")
    return remedy


def _explain_forced_command(d: Diagnosis) -> Remedy:
    where = f"(command= in {d.authorized_keys}, `ForceCommand` in {d.sshd_config})"
    if d.options.elevate is not None:
        cause = "the peer does not let this login run the command given with --elevate"
        return Remedy(cause, f"let it run that command {where}")
    directory = os.fsencode(d.directory)
    allowed = ", ".join(
        f"`{os.fsdecode(command)}`"
        for command in (
            commands.fetch_directory_command(directory),
            commands.fetch_file_command(join_path(directory, b"cback.collect")),
            b"scp -t " + commands.quote(join_path(directory, b"cback.stage")),
        )
    )
    return Remedy(
        "a forced command or a restricted shell refuses to copy from that directory",
        f"give another DIR than {d.directory}, one that it allows; or let it run {allowed} {where}",
    )


# The directory, and the files in it.


def _explain_exceeded_limit(error: StageError, d: Diagnosis) -> Remedy:
    limit = name_limit(error.limit) if isinstance(error, LimitExceeded) and error.limit else "--limit NAME"
    return Remedy(
        f"it holds more, or longer names, than {limit} allows",
        f"move away what does not belong there; or give a higher {limit}=NUMBER",
    )


def _explain_files(error: StageError, d: Diagnosis) -> Remedy:
    """Return the remedy for the entries that would not be staged, by groups."""
    failed = error.report.failed if error.report is not None else ()
    if not failed:
        return Remedy("some entries cannot be staged", f"look at them on the peer: `ls -la {shlex.quote(d.directory)}`")
    unreadable = [file for file in failed if file.reason in _UNREADABLE]
    others = [file for file in failed if file.reason not in _UNREADABLE]
    causes, actions = [], []
    if others:
        causes.append(f"{_names_of(others)}: {_meanings_of(others)}")
        paths = _paths_of(others, d)
        actions.append(
            f"run `mv {paths} ELSEWHERE` on the peer" if paths else f"move these out of {shlex.quote(d.directory)}"
        )
    if unreadable:
        causes.append(f"{d.login} may not read {_names_of(unreadable)}")
        paths = _paths_of(unreadable, d) or f"{shlex.quote(d.directory.rstrip('/'))}/*"
        actions.append(f"run `chown {shlex.quote(d.login)} {paths} && chmod u+r {paths}` on the peer")
        if d.transport == "SFTP" and d.options.elevate is None:
            actions[-1] += f", or read as root with --elevate {_SFTP_SERVER!r}"
    return Remedy("; ".join(causes), "; ".join(actions) + "; or give --exclude PATTERN for what is not wanted")


def _names_of(files: list[FileResult]) -> str:
    return join_first([file.name for file in files], _MAX_NAMED)


def _meanings_of(files: Iterable[FileResult]) -> str:
    reasons = dict.fromkeys(file.reason for file in files if file.reason is not None)
    return " ".join(reason.meaning for reason in reasons).rstrip(".")


def _paths_of(files: list[FileResult], d: Diagnosis) -> str:
    """Return *files* as words for a shell on the peer; "" if they are too many, or a name is not safe to copy."""
    if len(files) > _MAX_NAMED or not all(_PLAIN_NAME.fullmatch(file.name) for file in files):
        return ""
    return " ".join(shlex.quote(f"{d.directory.rstrip('/')}/{file.name}") for file in files)


_UNREADABLE = frozenset({Reason.PERMISSION_DENIED, Reason.ENTRY_UNREADABLE})


WRITE_DENIED = Remedy(
    "{login} may not write there, or the disk is full: the stage indicator could not be written either",
    "run `chmod u+w {directory}` on the peer, or `chown {owner} {directory}`; if that does not help, check "
    "`df {directory}`",
)
#: Remedies for a file that could not be written or removed.
WRITE_REMEDIES = {
    Reason.WRITE_DENIED: WRITE_DENIED,
    Reason.REMOTE_NO_SPACE: Remedy("the peer's disk or a quota is full", "free space on the peer: `df {directory}`"),
    Reason.FILE_LEFT_BEHIND: Remedy(
        "the connection ended before the file was removed", "run `rm -f {path}` on the peer"
    ),
}

FILE_REMEDIES: dict[Reason, Remedy | Callable[[StageError, Diagnosis], Remedy]] = {
    **dict.fromkeys((*_TRANSPORT_REMEDIES, Reason.COMMAND_REFUSED, Reason.COMMAND_FAILED), _explain_transport),
    Reason.ELEVATION_FAILED: Remedy(
        "the command given with --elevate asks for a password, is not allowed, or does not exist",
        "add `{login} ALL=(root) NOPASSWD: /usr/lib/openssh/sftp-server` to /etc/sudoers.d on the peer, and give "
        f"--elevate {_SFTP_SERVER!r}",
    ),
    Reason.COMMAND_TOO_LONG: Remedy(
        "the names of all its files do not fit on one command line, as SCP requires",
        "{enable_sftp}; or let it collect into fewer files",
    ),
    Reason.NOT_FOUND: Remedy(
        "the peer does not collect there, or has not collected yet",
        "run `mkdir -p {directory}` on the peer; or {another_directory}",
    ),
    Reason.NOT_A_DIRECTORY: Remedy(
        "it is a file, not the directory of the files", "{another_directory}, such as {parent}"
    ),
    Reason.PERMISSION_DENIED: Remedy(
        "{login} may not list it", "run `chmod u+rx {directory}` on the peer, or `chown {owner} {directory}`"
    ),
    Reason.REMOTE_FAILURE: Remedy(
        "it is not a directory, or cannot be listed",
        "look at it on the peer: `ls -ld {directory}`; or {another_directory}",
    ),
    Reason.LIMIT_EXCEEDED: _explain_exceeded_limit,
    Reason.NOTHING_TO_STAGE: Remedy(
        "nothing has been collected there yet, or {login} may not list it",
        "let the peer collect; look at it as {login} on the peer: `ls -la {directory}`",
    ),
    Reason.INCOMPLETE_STAGE: _explain_files,
    Reason.NOT_READY: Remedy(
        "the peer has not finished collecting, or its indicator has another name",
        "let it collect (by hand: `touch {path}` on the peer), or name its indicator with --indicator",
    ),
    **WRITE_REMEDIES,
}

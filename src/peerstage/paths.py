"""Paths: validate those that callers give, join and split those of peers."""

from __future__ import annotations

import os
import shlex
import stat

from peerstage.errors import MissingTarget
from peerstage.printable import escape
from peerstage.reasons import Reason
from peerstage.system_errors import is_machine_wide, system_error, target_reason_of

#: The file that a peer creates once it has collected, and the one that the master creates once it has staged.
COLLECT_INDICATOR = "cback.collect"
STAGE_INDICATOR = "cback.stage"
#: The files of a manifest: digests, and the report.
MANIFEST_NAMES = ("peerstage.sha256", "peerstage.json")


def validate_target_directory(target: str | bytes | os.PathLike[str] | os.PathLike[bytes] | None) -> str:
    """Return *target* as text, if it is the absolute path of an existing directory.

    Raises:
        ValueError: If it is not an absolute path.
        MissingTarget: If it does not exist or is not a directory; a `ValueError`, too.
        StageError: If its attributes cannot be read.
    """
    path = validate_path(target, "Target directory")
    if not os.path.isabs(path):
        raise ValueError(f"Target directory must be an absolute path: {escape(path)}")
    try:
        reason = None if stat.S_ISDIR(os.stat(path).st_mode) else Reason.TARGET_NOT_A_DIRECTORY
    except OSError as exc:
        if is_machine_wide(exc):
            raise system_error("Cannot read the attributes of the target directory", exc, path=path) from exc
        reason = target_reason_of(exc)
    if reason is not None:
        advice = f"Create it with `mkdir -p {shlex.quote(path)}`"
        if reason is Reason.TARGET_NOT_A_DIRECTORY:
            advice = "Give another one, or move the file out of the way"
        raise MissingTarget(f"Target directory must exist and be a directory: {escape(path)}. {advice}.", reason=reason)
    return path


def validate_path(path: object, what: str) -> str:
    """Return *path* as text (``os.fsdecode``).

    Raises:
        ValueError: If it is not a path, is empty, or contains NUL or a surrogate that ``os.fsencode`` cannot encode.
    """
    try:
        text = os.fsdecode(path)  # type: ignore[arg-type]
        os.fsencode(text)
    except (TypeError, UnicodeError) as exc:
        raise ValueError(f"{what} must be a valid path: {path!r}") from exc
    if not text or "\0" in text:
        raise ValueError(f"{what} must be a valid path: {path!r}")
    return text


def join_path(directory: bytes, name: bytes) -> bytes:
    """Return the path of *name* in *directory*."""
    return directory + name if directory.endswith(b"/") else directory + b"/" + name


def parent_directory(path: bytes) -> bytes:
    """Return the directory of the absolute *path*."""
    return path.rpartition(b"/")[0] or b"/"


def is_plain_name(name: bytes) -> bool:
    """Return whether a file in a directory can have this name; any other name leads somewhere else, or nowhere."""
    return name not in (b"", b".", b"..") and b"/" not in name and b"\0" not in name

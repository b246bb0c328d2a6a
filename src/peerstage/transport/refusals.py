"""Advice for a path that a peer refuses: one table, by reason, for all transports."""

from __future__ import annotations

import os
import shlex

from peerstage.errors import NotRegular
from peerstage.paths import parent_directory
from peerstage.reasons import Reason

#: Messages about a path that should be a directory.
NO_DIRECTORY = "The peer has no such directory. Create it with `mkdir -p`, or correct the path."
NO_DIRECTORY_BUT_A_FILE = "It is a file, not a directory. Give the directory that holds the files."
#: Advice for a directory without files.
COLLECT_FIRST = "Let the peer collect first."

_ADVICE = {
    Reason.NOT_FOUND: "Create its directory on the peer with `mkdir -p`, or correct the path.",
    Reason.PERMISSION_DENIED: "Give the remote user read permission on it, and search permission on its directory "
    "(`chmod u+rX`, or chown).",
    Reason.REMOTE_NO_SPACE: "Free some space on the peer's disk.",
    Reason.NOT_A_DIRECTORY: "Give the directory that holds the files.",
    Reason.COMMAND_REFUSED: "If a forced command guards the key, compare the directory with its command= in "
    "authorized_keys on the peer.",
}

_ENTRY_REASONS = {Reason.NOT_FOUND: Reason.VANISHED, Reason.REMOTE_FAILURE: Reason.ENTRY_UNREADABLE}


def entry_reason(reason: Reason) -> Reason:
    """Return why a listed entry cannot be staged, if the peer refuses it for *reason*."""
    return _ENTRY_REASONS.get(reason, reason)


def not_regular(name: bytes) -> NotRegular:
    """Return the error of the entry *name*, which is not a regular file."""
    return NotRegular("Only regular files are staged; this is not one.", path=name)


def with_advice(message: str, reason: Reason, path: bytes = b"") -> str:
    """Return *message*, a sentence, followed by advice if there is any for *reason*.

    Args:
        message: The peer's message.
        reason: Why it refused.
        path: The path that it refused to write, if any.
    """
    advice = _ADVICE.get(reason, "")
    if reason is Reason.WRITE_DENIED:
        directory = shlex.quote(os.fsdecode(parent_directory(path)))
        advice = (
            f"Give the remote user write permission on its directory (`chmod u+w {directory}` on the peer, or chown), "
            "and on the file if it exists."
        )
    return f"{message} {advice}".rstrip()

"""The next step after a peer refused a path: one table, by the reason, for all transports."""

from __future__ import annotations

import os
import shlex

from peerstage.reasons import Reason

#: What a peer says of a path that should be a directory.
NO_DIRECTORY = "It is not there on the peer. Create it there with `mkdir -p`, or correct its path."
NO_DIRECTORY_BUT_A_FILE = "It is a file, not a directory. Give the directory that holds the files."

_STEPS = {
    Reason.NOT_FOUND: "Create its directory there with `mkdir -p`, or correct its path.",
    Reason.PERMISSION_DENIED: "Let the user who logs in read it, and enter its directory (`chmod u+rX`, or chown).",
    Reason.REMOTE_NO_SPACE: "Make room on the peer's disk.",
    Reason.NOT_A_DIRECTORY: "Give the directory that holds the files.",
    Reason.COMMAND_REFUSED: "If a forced command guards the key, compare the directory with the command= in the key's "
    "line of authorized_keys on the peer.",
}


def with_step(message: str, reason: Reason, path: bytes = b"") -> str:
    """Return *message*, a sentence, and behind it the next step where *reason* tells it.

    Args:
        message: What the peer said.
        reason: Why it refused.
        path: What was to be written, if that is what it refused.
    """
    step = _STEPS.get(reason, "")
    if reason is Reason.WRITE_DENIED:
        directory = shlex.quote(os.fsdecode(parent(path)))
        step = (
            f"Let the user who logs in write to its directory (`chmod u+w {directory}` on the peer, or chown), and to "
            "the file if there is one."
        )
    return f"{message} {step}".rstrip()


def parent(path: bytes) -> bytes:
    """Return the directory that holds the absolute *path*."""
    return path.rpartition(b"/")[0] or b"/"

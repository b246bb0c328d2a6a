"""Helpers compatible with ``CedarBackup2.util``."""

from __future__ import annotations

from peerstage.paths import validate_path
from peerstage.printable import escape
from peerstage.records import StrOrBytesPath
from peerstage.system_errors import require_free_descriptor
from peerstage.transport.rcp.command_line import split_command_line


def splitCommandLine(commandLine: str) -> list[str]:
    """Split a command line at spaces into arguments. Only double quotes group words.

    As in CedarBackup2, a quoted part is a separate argument even next to other text, and ``""`` is dropped.

    Args:
        commandLine: A command line such as ``/usr/bin/scp -o "ProxyCommand none" -B``.

    Raises:
        ValueError: If it is not a string, or a double quote is not closed.
    """
    if not isinstance(commandLine, str):
        raise ValueError(f"Cannot split {commandLine!r}: a command line must be a string.")
    return split_command_line(commandLine)


def getUidGid(user: str, group: str) -> tuple[int, int]:
    """Return the numeric ids of a user and a group, as ``ownership=`` takes them.

    Raises:
        ValueError: If there is no such user or group.
        StageError: If the user database cannot be opened.
    """
    try:
        import grp
        import pwd

        return pwd.getpwnam(user).pw_uid, grp.getgrnam(group).gr_gid
    except (ImportError, KeyError, TypeError, ValueError):
        require_free_descriptor(f"User {user!r} and group {group!r} cannot be looked up")
        raise ValueError(f"Unable to look up uid and gid of user {user!r} and group {group!r}.") from None


def encodePath(path: StrOrBytesPath | None) -> str | None:
    """Return *path* as a ``str``, decoded by ``os.fsdecode``; None passes.

    Raises:
        ValueError: If it is not a path, or no file system can hold it.
    """
    if path is None:
        return None
    if isinstance(path, (str, bytes)) and not path:
        return ""
    try:
        return validate_path(path, "Path")
    except ValueError as exc:
        raise ValueError(f"Path could not be safely encoded: {escape(repr(path))}") from exc

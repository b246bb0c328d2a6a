"""What the original's page sends its readers to in ``CedarBackup2.util``, with its names and ways (HOUSE 5)."""

from __future__ import annotations

from peerstage.errors import escape
from peerstage.records import StrOrBytesPath
from peerstage.staging import encodable_path
from peerstage.system_errors import require_descriptors
from peerstage.transport.rcp.command import split_command_line


def splitCommandLine(commandLine: str) -> list[str]:
    """Split a command line into a list of arguments: at spaces; double quotes alone group, single quotes do not.

    A quoted part is an argument of its own even where it touches another; ``""`` is none (PARITY 20).

    Args:
        commandLine: Such as ``/usr/bin/scp -o "ProxyCommand none" -B``.

    Raises:
        ValueError: It is None, no string, or a double quote is not closed.
    """
    if not isinstance(commandLine, str):
        raise ValueError(f"Cannot split a command line of {commandLine!r}.")
    return split_command_line(commandLine)


def getUidGid(user: str, group: str) -> tuple[int, int]:
    """Return the numeric ids of a user and a group, as ``ownership=`` takes them.

    Raises:
        ValueError: There is no such user or group.
        StageError: If this process has no descriptor left to look it up.
    """
    try:
        import grp
        import pwd

        return pwd.getpwnam(user).pw_uid, grp.getgrnam(group).gr_gid
    except (ImportError, KeyError, TypeError, ValueError):
        require_descriptors(f"User {user!r} and group {group!r} cannot be looked up")
        raise ValueError(f"Unable to look up uid and gid of user {user!r} and group {group!r}.") from None


def encodePath(path: StrOrBytesPath | None) -> str | None:
    """Return *path*, ``str``, ``bytes`` or ``PathLike``, as a ``str``, as ``os.fsdecode`` gives it; None passes.

    Raises:
        ValueError: It is no path, or no file system can hold it.
    """
    if path is None:
        return None
    if isinstance(path, (str, bytes)) and not path:
        return ""
    try:
        return encodable_path(path, "Path")
    except ValueError as exc:
        raise ValueError(f"Path could not be safely encoded: {escape(repr(path))}") from exc

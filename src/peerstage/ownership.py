"""Owners and modes of files, as people write them."""

from __future__ import annotations

import re
import sys

from peerstage.printable import escape
from peerstage.records import Ownership
from peerstage.system_errors import require_free_descriptor

if sys.platform != "win32":
    import grp
    import pwd


def parse_mode(text: str) -> int:
    """Return the file mode in the octal digits of *text*, as chmod(1) takes it.

    Raises:
        ValueError: If *text* is not such a mode, or has more bits than 777.
    """
    if not re.fullmatch(r"(?:0o)?[0-7]{1,5}", text) or int(text, 8) > 0o777:
        raise ValueError(f"an octal mode such as 640, 777 at most: {escape(text)!r}")
    return int(text, 8)


def parse_owner(text: str) -> Ownership:
    """Return the owner and group in ``USER``, ``USER:GROUP`` or ``:GROUP``, as chown(1) takes them.

    Each is a name or a number; one that is -1 or left out stays unchanged.

    Raises:
        ValueError: If *text* has another form, or names a user or group that does not exist.
        StageError: If this process has no descriptor left to look it up.
    """
    user, colon, group = text.partition(":")
    if ":" in group or not (group if colon else user):
        raise ValueError(f"USER:GROUP, USER or :GROUP, by name or number: {escape(text)!r}")
    return Ownership(_look_up_id("user", user), _look_up_id("group", group))


def _look_up_id(kind: str, name: str) -> int:
    if name in ("", "-1"):
        return -1
    if re.fullmatch(r"\d{1,10}", name, re.ASCII):
        return int(name)
    try:
        return pwd.getpwnam(name).pw_uid if kind == "user" else grp.getgrnam(name).gr_gid
    except (NameError, KeyError, ValueError):
        require_free_descriptor(f"The {kind} {name!r} cannot be looked up")
        raise ValueError(f"a name that this machine knows: it has no {kind} {escape(name)!r}") from None

"""The local user that files are copied as."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

from peerstage.errors import ConfigurationError, NotAvailable
from peerstage.reasons import Reason
from peerstage.records import Ownership
from peerstage.system_errors import require_free_descriptor

if sys.platform != "win32":
    import pwd

#: The PATH of the user's process; root's PATH may hold directories for root only.
_PATH = "/usr/local/bin:/usr/bin:/bin"


@dataclass(frozen=True, slots=True)
class LocalUser:
    """An account on this machine, from the password database."""

    name: str
    uid: int
    gid: int
    home: str
    shell: str

    def environment(self) -> dict[str, str]:
        """Return the environment for a process of this user; only the locale is inherited."""
        locale = {name: value for name, value in os.environ.items() if name == "LANG" or name.startswith("LC_")}
        return {
            **locale,
            "HOME": self.home,
            "USER": self.name,
            "LOGNAME": self.name,
            "SHELL": self.shell,
            "PATH": _PATH,
        }

    def complete_ownership(self, requested: Ownership | None) -> Ownership:
        """Return *requested*, with this user's ids where it leaves them open."""
        uid, gid = requested or (-1, -1)
        return Ownership(self.uid if uid == -1 else uid, self.gid if gid == -1 else gid)


def find_local_user(name: str | None) -> LocalUser | None:
    """Look up the local user to copy as; return None if *name* is None or the user of this process.

    Raises:
        NotAvailable: If this process does not run as root.
        ConfigurationError: If there is no such user, or it has uid 0.
        StageError: If the password database cannot be opened.
    """
    if name is None or name == _own_name():
        return None
    if sys.platform == "win32" or os.geteuid() != 0:
        raise NotAvailable("Only root can remote copy as another user.", reason=Reason.NOT_ROOT)
    try:
        found = pwd.getpwnam(name)
    except (KeyError, ValueError, UnicodeError):
        require_free_descriptor(f"The local user {name!r} cannot be looked up")
        raise ConfigurationError(
            f"There is no local user {name!r} on this machine. Correct localUser, or create the account.",
            reason=Reason.UNKNOWN_LOCAL_USER,
        ) from None
    if found.pw_uid == 0:
        raise ConfigurationError(
            f"The local user {name!r} has uid 0. Name another user, or omit localUser.",
            reason=Reason.UNKNOWN_LOCAL_USER,
        )
    return LocalUser(found.pw_name, found.pw_uid, found.pw_gid, found.pw_dir or "/", found.pw_shell or "/bin/sh")


def _own_name() -> str | None:
    if sys.platform == "win32":
        return None
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        require_free_descriptor("The name of this user cannot be looked up")
        return None

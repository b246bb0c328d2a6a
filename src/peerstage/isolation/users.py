"""The local user that a peer's files are copied as, and the environment of a process that is theirs."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

from peerstage.errors import ConfigurationError, NotAvailable
from peerstage.reasons import Reason
from peerstage.records import Ownership
from peerstage.system_errors import require_descriptors

if sys.platform != "win32":
    import pwd

#: Where that user's commands are found; root's own PATH is root's.
_PATH = "/usr/local/bin:/usr/bin:/bin"


@dataclass(frozen=True, slots=True)
class LocalUser:
    """An account of this machine, as the password database has it."""

    name: str
    uid: int
    gid: int
    home: str
    shell: str

    def environment(self) -> dict[str, str]:
        """Return the whole environment of a process of theirs; of the caller's only how text is encoded."""
        language = {name: value for name, value in os.environ.items() if name == "LANG" or name.startswith("LC_")}
        return {
            **language,
            "HOME": self.home,
            "USER": self.name,
            "LOGNAME": self.name,
            "SHELL": self.shell,
            "PATH": _PATH,
        }

    def ownership(self, wanted: Ownership | None) -> Ownership:
        """Return who gets the files: this user, but for what is *wanted* otherwise (PARITY 10)."""
        if wanted is None:
            return Ownership(self.uid, self.gid)
        return Ownership(
            *(own if given == -1 else given for given, own in zip(wanted, (self.uid, self.gid), strict=True))
        )


def copying_user(name: str | None) -> LocalUser | None:
    """Return the user that *name* says to copy as; None where that is whoever runs this process.

    Raises:
        NotAvailable: This process is not root's.
        ConfigurationError: There is no such user, or it has root's id.
    """
    if name is None or name == _own_name():
        return None
    if sys.platform == "win32" or os.geteuid() != 0:
        raise NotAvailable("Only root can remote copy as another user.", reason=Reason.NOT_ROOT)
    try:
        found = pwd.getpwnam(name)
    except (KeyError, ValueError, UnicodeError):
        require_descriptors(f"The local user {name!r} cannot be looked up")
        raise ConfigurationError(
            f"There is no local user {name!r} on this machine. Correct localUser, or make the account.",
            reason=Reason.UNKNOWN_LOCAL_USER,
        ) from None
    if found.pw_uid == 0:
        raise ConfigurationError(
            f"The local user {name!r} has root's own id. Name another, or leave localUser out.",
            reason=Reason.UNKNOWN_LOCAL_USER,
        )
    return LocalUser(found.pw_name, found.pw_uid, found.pw_gid, found.pw_dir or "/", found.pw_shell or "/bin/sh")


def _own_name() -> str | None:
    if sys.platform == "win32":
        return None
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        require_descriptors("The name of this user cannot be looked up")
        return None

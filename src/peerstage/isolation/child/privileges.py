"""Drop root's privileges for good, in a child that has one thread, and has read none of the user's files yet.

With the user ids the kernel drops the effective, permitted and ambient capabilities. This module drops the rest:
supplementary groups, inheritable capabilities, root's session keyring, core dumps, and the effect of set-id programs.
It also makes the process undumpable, so that other processes of the user cannot read from its memory what the caller
has sent, even where fs.suid_dumpable is 1.

It fails closed: a step that fails or cannot be verified raises `StageError`, and the child runs no job.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import sys
from typing import Any

from peerstage.errors import StageError
from peerstage.isolation.users import LocalUser
from peerstage.reasons import Reason

if sys.platform != "win32":
    import resource

# The options of prctl(2) and their names
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38
_PRCTL_NAMES = {
    _PR_SET_PDEATHSIG: "PR_SET_PDEATHSIG",
    _PR_SET_DUMPABLE: "PR_SET_DUMPABLE",
    _PR_SET_NO_NEW_PRIVS: "PR_SET_NO_NEW_PRIVS",
}
# capset(2), keyctl(2)
_CAPABILITY_VERSION_3 = 0x20080522
_KEYCTL_JOIN_SESSION_KEYRING = 1
_SYS_KEYCTL = {"x86_64": 250, "aarch64": 219, "riscv64": 219, "ppc64le": 271, "s390x": 280}


def drop_privileges(user: LocalUser, *, allow_set_id_programs: bool) -> None:
    """Become *user* irrevocably.

    Args:
        user: The user to become.
        allow_set_id_programs: Whether set-user-ID programs keep their effect: an rcp-like command may be one (rcp was),
            or run one (ssh-keysign). If False, no_new_privs is set (PR_SET_NO_NEW_PRIVS in prctl(2)).

    Raises:
        StageError: If the system refuses a step, or /proc does not show that the privileges were dropped. Some of them
            may be left: the child must do nothing more.
    """
    try:
        _drop_and_verify(user, allow_set_id_programs)
    except StageError:
        raise
    except OSError as exc:
        raise _privilege_error(f"Root privileges were not dropped: {exc.strerror or exc}.") from exc


def _drop_and_verify(user: LocalUser, allow_set_id_programs: bool) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.initgroups(user.name, user.gid)
    groups = set(os.getgroups())
    if hasattr(os, "setresgid"):
        os.setresgid(user.gid, user.gid, user.gid)
        os.setresuid(user.uid, user.uid, user.uid)
    else:
        os.setgid(user.gid)
        os.setuid(user.uid)
    _prctl(_PR_SET_DUMPABLE, 0)
    _clear_capabilities()
    _leave_session_keyring()
    if not allow_set_id_programs:
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _require_dropped(user, groups)


def signal_on_parent_exit(signal_number: int) -> None:
    """Have the kernel send a signal when the thread that started this process exits. A change of ids resets this.

    On systems without prctl(2), a child notices the end of its job channel instead.
    """
    _prctl(_PR_SET_PDEATHSIG, signal_number)


def _require_dropped(user: LocalUser, groups: set[int]) -> None:
    calls = [os.setuid, os.seteuid]
    if user.gid != 0 and 0 not in groups:
        calls += [os.setgid, os.setegid]
    for call in calls:
        with contextlib.suppress(PermissionError):
            call(0)
            raise _privilege_error(f"Root privileges were not dropped: {call.__name__}(0) still succeeds.")
    ids = (*_real_effective_saved(), set(os.getgroups()))
    if ids != ((user.uid,) * 3, (user.gid,) * 3, groups) or any(_capabilities()):
        raise _privilege_error(
            f"Root privileges were not dropped: the ids are {ids}, the capabilities {_capabilities()}."
        )


def _privilege_error(message: str) -> StageError:
    return StageError(message, reason=Reason.PRIVILEGES_NOT_DROPPED)


def _real_effective_saved() -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    if hasattr(os, "getresuid"):
        return os.getresuid(), os.getresgid()
    uid, gid = os.getuid(), os.getgid()
    return (uid, os.geteuid(), uid), (gid, os.getegid(), gid)


def _capabilities() -> list[int]:
    """Return the inheritable, permitted, effective and ambient capability sets; empty where there are none."""
    if not sys.platform.startswith("linux"):
        return []
    wanted = (b"CapInh:", b"CapPrm:", b"CapEff:", b"CapAmb:")  # CapAmb since Linux 4.3
    try:
        with open("/proc/self/status", "rb") as file:  # as bytes: a codec may no longer be importable
            found = [int(line.split()[1], 16) for line in file if line.startswith(wanted)]
    except OSError as exc:
        raise _privilege_error(
            f"Cannot verify that root privileges were dropped: /proc cannot be read ({exc.strerror}). Mount /proc."
        ) from exc
    if len(found) < len(wanted) - 1:
        raise _privilege_error("Cannot verify that root privileges were dropped: /proc shows no capabilities.")
    return found


def _clear_capabilities() -> None:
    """Clear every capability set: a securebit or an old container engine may have left some."""
    libc = _libc()
    if libc is None:
        return
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    if libc.capset(header, (ctypes.c_uint32 * 6)()) != 0:
        raise _system_call_error("capset")


def _leave_session_keyring() -> None:
    """Join a new, empty session keyring. Where keyctl(2) is forbidden, no keyring can be read either."""
    libc, number = _libc(), _SYS_KEYCTL.get(platform.machine())
    if libc is None or number is None or sys.maxsize <= 2**32:
        return
    if libc.syscall(ctypes.c_long(number), ctypes.c_long(_KEYCTL_JOIN_SESSION_KEYRING), None) < 0:
        failure = _system_call_error("keyctl")  # EDQUOT: the user has too many keys
        if failure.errno not in (errno.ENOSYS, errno.EPERM):
            raise failure


def _prctl(option: int, value: int) -> None:
    libc = _libc()
    if libc is not None and libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        raise _system_call_error(f"prctl({_PRCTL_NAMES[option]})")


def _system_call_error(call: str) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, f"{call}: {os.strerror(code)}")


def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True) if sys.platform.startswith("linux") else None

"""Giving up root, for good: run in a child that has one thread, has imported what it needs, and has read nothing yet.

What the kernel takes with the ids: effective, permitted and ambient capabilities. What it leaves is taken here:
supplementary groups, inheritable capabilities, root's session keyring, core files, what a set-id program would give
back, and that other processes of the user may look into this one, which holds what root's caller has sent down (where
fs.suid_dumpable is 1 they could).

It fails closed: a step that fails, or that cannot be verified, is a `StageError` or `OSError`, and nothing is done.
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

# prctl(2)
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38
# capset(2), keyctl(2)
_CAPABILITY_VERSION_3 = 0x20080522
_KEYCTL_JOIN_SESSION_KEYRING = 1
_SYS_KEYCTL = {"x86_64": 250, "aarch64": 219, "riscv64": 219, "ppc64le": 271, "s390x": 280}


def give_up_root(user: LocalUser, *, set_id_programs: bool) -> None:
    """Become *user*, with no way back.

    Args:
        user: Whom to become.
        set_id_programs: Whether set-id programs keep their effect: a foreign command may be one (rcp was), or start
            one (ssh-keysign). This process itself starts none.

    Raises:
        StageError: If root was not given up, or /proc does not show that it was. Nothing may be done then.
        OSError: If the system refuses a step. Likewise.
    """
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
    _drop_capabilities()
    _leave_session_keyring()
    if not set_id_programs:
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _require_given_up(user, groups)


def end_with_parent(signal_number: int) -> None:
    """Have the kernel send a signal when the thread that started this process ends; after the ids have changed.

    On systems that can not, the end of the job's channel has to do.
    """
    _prctl(_PR_SET_PDEATHSIG, signal_number)


def _require_given_up(user: LocalUser, groups: set[int]) -> None:
    ways = [(os.setuid, 0), (os.seteuid, 0)]
    if user.gid != 0 and 0 not in groups:
        ways += [(os.setgid, 0), (os.setegid, 0)]
    for back, number in ways:
        with contextlib.suppress(PermissionError):
            back(number)
            raise StageError(
                f"Root was not given up: {back.__name__}({number}) still works.", reason=Reason.ROOT_NOT_GIVEN_UP
            )
    ids = (*_real_effective_saved(), set(os.getgroups()))
    if ids != ((user.uid,) * 3, (user.gid,) * 3, groups) or any(_capabilities()):
        raise StageError(
            f"Root was not given up: the ids are {ids}, the capabilities {_capabilities()}.",
            reason=Reason.ROOT_NOT_GIVEN_UP,
        )


def _real_effective_saved() -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    if hasattr(os, "getresuid"):
        return os.getresuid(), os.getresgid()
    uid, gid = os.getuid(), os.getgid()
    return (uid, os.geteuid(), uid), (gid, os.getegid(), gid)


def _capabilities() -> list[int]:
    """Return the capabilities that this process has or could get: inheritable, permitted, effective, ambient.

    Raises:
        StageError: If they cannot be read, on a system that has them.
    """
    if not sys.platform.startswith("linux"):
        return []
    wanted = (b"CapInh:", b"CapPrm:", b"CapEff:", b"CapAmb:")  # the last one from Linux 4.3 on
    try:
        with open("/proc/self/status", "rb") as file:  # as bytes: a codec could not be imported any more
            found = [int(line.split()[1], 16) for line in file if line.startswith(wanted)]
    except OSError as exc:
        raise StageError(
            f"/proc does not show that root was given up ({exc.strerror}). Mount it.", reason=Reason.ROOT_NOT_GIVEN_UP
        ) from exc
    if len(found) < len(wanted) - 1:
        raise StageError(
            "/proc does not show that root was given up: it tells of no capabilities.", reason=Reason.ROOT_NOT_GIVEN_UP
        )
    return found


def _drop_capabilities() -> None:
    """Empty every set of capabilities (a secure bit, or an old container engine, may have left some)."""
    libc = _libc()
    if libc is None:
        return
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    if libc.capset(header, (ctypes.c_uint32 * 6)()) != 0:
        raise _failed("capset")


def _leave_session_keyring() -> None:
    """Leave root's session keyring for an empty one. Where keyctl(2) is forbidden, no keyring can be read either."""
    libc, number = _libc(), _SYS_KEYCTL.get(platform.machine())
    if libc is None or number is None or sys.maxsize <= 2**32:
        return
    if libc.syscall(ctypes.c_long(number), ctypes.c_long(_KEYCTL_JOIN_SESSION_KEYRING), None) < 0:
        failure = _failed("keyctl")  # such as EDQUOT, where the user has too many keys
        if failure.errno not in (errno.ENOSYS, errno.EPERM):
            raise failure


def _prctl(option: int, value: int) -> None:
    libc = _libc()
    if libc is not None and libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        raise _failed(f"prctl({option})")


def _failed(call: str) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, f"{call}: {os.strerror(code)}")


def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True) if sys.platform.startswith("linux") else None

"""Create local accounts, print them as JSON, and remove them at the end of standard input.

usage: account_keeper.py NUMBER

It runs in its own session, so that neither Ctrl-C nor SIGKILL of its parent keeps it from removing the accounts.
If something fails, it prints the reason as one JSON string.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

#: Seconds to wait for the lock of the password database; the tools give up after 15.
_LOCK_TIMEOUT = 120


def main(number: int) -> None:
    """Keep *number* accounts until standard input ends."""
    with contextlib.ExitStack() as stack:
        homes = Path(tempfile.mkdtemp(prefix="peerstage-homes-"))
        stack.callback(shutil.rmtree, homes)
        homes.chmod(0o755)
        names = [f"peerstage-{os.getpid()}-{index}" for index in range(number)]
        accounts = [stack.enter_context(_account(name, homes / name)) for name in names]
        print(
            json.dumps([(user.pw_name, user.pw_uid, user.pw_gid, user.pw_dir) for user in accounts]),
            flush=True,
        )
        sys.stdin.read()


@contextlib.contextmanager
def _account(name: str, home: Path) -> Iterator[pwd.struct_passwd]:
    # With the password "*", unlike the default "!", sshd does not regard the account as locked.
    options = ["--no-create-home", "--home-dir", str(home), "--shell", "/bin/sh", "--password", "*"]
    _run("useradd", *options, name)
    try:
        found = pwd.getpwnam(name)
        home.mkdir(mode=0o755)
        os.chown(home, found.pw_uid, found.pw_gid)
        yield found
    finally:
        _kill_all_of(pwd.getpwnam(name).pw_uid)
        _run("userdel", "--force", name)


def _run(*command: str) -> None:
    until = time.monotonic() + _LOCK_TIMEOUT
    while True:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            return
        if "cannot lock" not in done.stderr or time.monotonic() > until:
            raise RuntimeError(f"{command[0]}: {done.stderr.strip()}")


def _kill_all_of(uid: int) -> None:
    """Kill every process of the user *uid*, which only the tests use."""
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if name.isdigit() and os.stat(f"/proc/{name}").st_uid == uid:
                os.kill(int(name), signal.SIGKILL)


if __name__ == "__main__":
    try:
        main(int(sys.argv[1]))
    except FileNotFoundError as exc:
        print(json.dumps(f"{exc}: install Debian's package passwd"))
    except Exception as exc:
        print(json.dumps(str(exc)))

"""Keeps accounts of this machine: makes them, says their names in JSON, and removes them when its standard input ends.

usage: account_keeper.py NUMBER

It is a process of its own, in a session of its own: neither Ctrl-C, however often, nor SIGKILL of the process that
started it keeps it from removing what it has made. If something fails it says why, in one JSON string.
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

#: Seconds to wait for whoever else changes the password database; the tools give up after 15.
_LOCKED = 120


def main(number: int) -> None:
    """Keep *number* accounts until the standard input ends."""
    with contextlib.ExitStack() as stack:
        place = Path(tempfile.mkdtemp(prefix="peerstage-homes-"))
        stack.callback(shutil.rmtree, place)
        place.chmod(0o755)
        names = [f"peerstage-{os.getpid()}-{at}" for at in range(number)]
        made = [stack.enter_context(_account(name, place / name)) for name in names]
        print(json.dumps([(one.pw_name, one.pw_uid, one.pw_gid, one.pw_dir) for one in made]), flush=True)
        sys.stdin.read()


@contextlib.contextmanager
def _account(name: str, home: Path) -> Iterator[pwd.struct_passwd]:
    # With the password "*", unlike the default "!", sshd does not take the account for locked.
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
    until = time.monotonic() + _LOCKED
    while True:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            return
        if "cannot lock" not in done.stderr or time.monotonic() > until:
            raise RuntimeError(f"{command[0]}: {done.stderr.strip()}")


def _kill_all_of(uid: int) -> None:
    """Kill what still runs as the user *uid*, whom nobody but the tests knows."""
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

"""Programs that the tests can not do without."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import cache

#: Debian's package for each program.
_PACKAGES = {
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "scp": "openssh-client",
    "ssh-keygen": "openssh-client",
    "ssh-agent": "openssh-client",
    "rsync": "rsync",
    "sftp-server": "openssh-sftp-server",
}


@cache
def program(name: str) -> str:
    """Return the path of *name*; as root on Debian it is installed, and that is said.

    Raises:
        RuntimeError: It is not there. The tests that need it fail: nothing is skipped.
    """
    found = _find(name)
    if found is None and hasattr(os, "geteuid") and os.geteuid() == 0 and shutil.which("apt-get"):
        package = _PACKAGES[name]
        print(f"\n{name} is missing: installing {package} with apt-get", file=sys.stderr)
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        patiently = ("-o", "DPkg::Lock::Timeout=300")  # another worker may be at it
        subprocess.run(["apt-get", "-qq", *patiently, "update"], check=False, stdout=subprocess.DEVNULL)
        subprocess.run(
            ["apt-get", "-qq", "-y", *patiently, "--no-install-recommends", "install", package],
            check=False,
            stdout=subprocess.DEVNULL,
            env=environment,
        )
        found = _find(name)
    if found is None:
        raise RuntimeError(f"The tests need the program {name}: install {_PACKAGES[name]}, then run them again.")
    return found


def rcp_command(ssh_arguments: list[str]) -> str:
    """Return OpenSSH's scp as an rcp-like command, over the protocol of that name where it knows two."""
    legacy = ["-O"] if _scp_speaks_sftp() else []
    return " ".join([program("scp"), "-q", *legacy, *ssh_arguments])


@cache
def _scp_speaks_sftp() -> bool:
    """Whether scp has a switch for its old protocol, as from 8.7 on."""
    usage = subprocess.run([program("scp")], capture_output=True, text=True).stderr
    return "O" in usage.split("[-", 1)[1].split("]", 1)[0]


def sftp_server() -> str:
    """Return the path of OpenSSH's SFTP server, as a program of its own."""
    return program("sftp-server")


def _find(name: str) -> str | None:
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin:/sbin:/usr/lib/openssh")

"""Programs that the tests need."""

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
    "sha256sum": "coreutils",
    "sftp-server": "openssh-sftp-server",
}


@cache
def require_program(name: str) -> str:
    """Return the path of *name*; as root on Debian, install it if it is missing, with a message.

    Raises:
        RuntimeError: If it is missing. Tests that need it fail instead of being skipped.
    """
    found = _find(name)
    if found is None and hasattr(os, "geteuid") and os.geteuid() == 0 and shutil.which("apt-get"):
        package = _PACKAGES[name]
        print(f"\n{name} is missing: installing {package} with apt-get", file=sys.stderr)
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        patiently = ("-o", "DPkg::Lock::Timeout=300")  # another worker may be running apt-get
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
    """Return OpenSSH's scp as an rcp command that uses the legacy SCP protocol."""
    legacy = ["-O"] if _scp_speaks_sftp() else []
    return " ".join([require_program("scp"), "-q", *legacy, *ssh_arguments])


@cache
def _scp_speaks_sftp() -> bool:
    """Return whether scp has ``-O``, the switch for the legacy protocol, as from 8.7 on."""
    usage = subprocess.run([require_program("scp")], capture_output=True, text=True).stderr
    return "O" in usage.split("[-", 1)[1].split("]", 1)[0]


def sftp_server_path() -> str:
    """Return the path of OpenSSH's sftp-server program."""
    return require_program("sftp-server")


def _find(name: str) -> str | None:
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin:/sbin:/usr/lib/openssh")

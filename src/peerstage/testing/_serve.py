"""The process of the embedded SSH server: a job in JSON on stdin, the port in JSON on stdout.

It exits at the end of its stdin, or if its parent has changed, so that it does not outlive the process that started it.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import json
import logging
import os
import posixpath
import select
import signal
import stat
import sys
import threading
import warnings
from typing import Any

#: Seconds between two checks of the parent's process id.
_PARENT_CHECK_INTERVAL = 1.0


async def serve(job: dict[str, Any]) -> None:
    """Listen, print the port, and serve until the process is killed."""
    import asyncssh

    from peerstage.testing._line_faults import listen_with_faults
    from peerstage.testing.faults import Faults

    directory = job["directory"].encode("latin-1")
    authorized = asyncssh.import_public_key(job["authorized_key"])
    faults = Faults(**{**job["faults"], "deny": tuple(path.encode("latin-1") for path in job["faults"]["deny"])})
    forced_command: str | None = job["forced_command"]
    numbers = itertools.count()

    class OneKeyServer(asyncssh.SSHServer):
        """Accepts one user with one key."""

        def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
            self.faults = faults if faults.apply_to(next(numbers)) else Faults()
            conn.set_extra_info(faults=self.faults)

        def session_requested(self) -> asyncssh.SSHServerSession[Any]:
            return WithoutSFTP()  # called only if the server has no factories

        def begin_auth(self, username: str) -> bool:
            return True

        def public_key_auth_supported(self) -> bool:
            return True

        def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
            return username == job["username"] and key == authorized and not self.faults.refuse_login

    class RootedSFTP(asyncssh.SFTPServer):
        """Serves one directory as ``/``."""

        def __init__(self, channel: asyncssh.SSHServerChannel[Any]) -> None:
            super().__init__(channel, chroot=directory)
            self.faults: Faults = channel.get_extra_info("faults")

        def open(self, path: bytes, pflags: int, attrs: asyncssh.SFTPAttrs) -> Any:
            self.refuse_denied(path)
            if self.faults.no_space and pflags & asyncssh.FXF_WRITE:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if _would_block(self.map_path(path)):
                raise asyncssh.SFTPFailure("Not a regular file")
            return super().open(path, pflags, attrs)

        def scandir(self, path: bytes) -> Any:
            self.refuse_denied(path)
            return super().scandir(path)

        def refuse_denied(self, path: bytes) -> None:
            parts = posixpath.normpath(b"/" + path.lstrip(b"/")).split(b"/")
            for denied in self.faults.deny:
                denied_parts = posixpath.normpath(os.fsencode(denied)).rstrip(b"/").split(b"/")
                if parts[: len(denied_parts)] == denied_parts:
                    text = path.decode("utf-8", "backslashreplace")
                    raise asyncssh.SFTPPermissionDenied(f"{text}: Permission denied")

        def exit(self) -> None:
            self.channel.exit(0)  # clients treat the lack of an exit status as a failure

    class WithoutSFTP(asyncssh.SSHServerProcess[Any]):
        """Runs only ``scp``."""

        def __init__(self) -> None:
            sftp: Any = RootedSFTP
            super().__init__(lambda process: None, sftp, sftp_version=3, allow_scp=True)

        def shell_requested(self) -> bool:
            return False

        def exec_requested(self, command: str) -> bool:
            return command.startswith("scp ")

        def subsystem_requested(self, subsystem: str) -> bool:
            return False

    async def run_forced(process: asyncssh.SSHServerProcess[bytes]) -> None:
        """Run the forced command as sshd does, with the client's command in its environment."""
        child = await asyncio.create_subprocess_shell(
            str(forced_command),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "SSH_ORIGINAL_COMMAND": process.command or ""},
            cwd=directory,
        )
        await process.redirect(stdin=child.stdin, stdout=child.stdout, stderr=child.stderr, send_eof=False)
        for stream in (process.stdout, process.stderr):
            await stream.drain()  # returns at the end of the child's output
        process.stdout.write_eof()
        status = await child.wait()
        if status < 0:
            process.exit_with_signal(signal.Signals(-status).name.removeprefix("SIG"))
        else:
            process.exit(status)

    factories: dict[str, Any] = {}
    if forced_command is not None:
        factories = {"process_factory": run_forced}
    elif job["sftp"]:
        factories = {"sftp_factory": RootedSFTP, "allow_scp": True}
    listener = await asyncssh.create_server(
        OneKeyServer,
        job["host"],
        0,
        server_host_keys=[asyncssh.import_private_key(job["host_key"])],
        **factories,
        allow_pty=False,
        agent_forwarding=False,
        password_auth=False,
        kbdint_auth=False,
        gss_host=None,  # the default asks the name service for this host's name
        encoding=None,
        encryption_algs=["aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "aes256-ctr"],
    )
    port = listener.get_port()
    _print_json(port=await listen_with_faults(job["host"], port, faults) if faults.affect_traffic else port)
    await listener.wait_closed()


def main() -> None:
    """Read the job and serve."""
    debug = bool(os.environ.get("PEERSTAGE_SERVER_DEBUG"))
    logging.basicConfig(stream=sys.stderr, level=logging.DEBUG if debug else logging.CRITICAL)
    if not debug:
        warnings.simplefilter("ignore")
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # nothing to clean up
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()
    job = sys.stdin.buffer.readline()
    if not job:
        return
    threading.Thread(target=_exit_with, args=(parent, sys.stdin.fileno()), daemon=True).start()
    try:
        asyncio.run(serve(json.loads(job)))
    except ImportError as exc:
        _print_json(missing=str(exc))
    except Exception as exc:
        logging.getLogger(__name__).debug("The server did not start.", exc_info=True)
        _print_json(error=f"{type(exc).__name__}: {exc}")


def _exit_with(parent: int, lifeline: int) -> None:
    """Kill this process group at the end of *lifeline*, or once *parent* has exited.

    This runs in a thread, as a request may block the event loop. Both conditions are checked, as a process that the
    parent has forked keeps the lifeline open.
    """
    while os.getppid() == parent:
        if select.select([lifeline], [], [], _PARENT_CHECK_INTERVAL)[0] and not os.read(lifeline, 4096):
            break
    os.killpg(0, signal.SIGKILL)  # a forced command may be running


def _would_block(path: bytes) -> bool:
    """Return whether opening *path* could block the server for all clients, as a FIFO does."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return False  # open() reports why
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _print_json(**values: int | str) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()

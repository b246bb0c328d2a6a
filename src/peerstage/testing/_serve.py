"""The process of the embedded SSH server: a job in JSON on standard input, the port in JSON on standard output.

It ends when its standard input does, or when its parent has changed, so that it never outlives whoever started it.
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

#: Seconds between two looks at who the parent is.
_LOOK = 1.0


async def serve(job: dict[str, Any]) -> None:
    """Listen, say where, and serve without end."""
    import asyncssh

    from peerstage.testing._disturbed import listen_disturbed
    from peerstage.testing.faults import Faults

    directory = job["directory"].encode("latin-1")
    authorized = asyncssh.import_public_key(job["authorized_key"])
    faults = Faults(**{**job["faults"], "deny": tuple(path.encode("latin-1") for path in job["faults"]["deny"])})
    forced_command: str | None = job["forced_command"]
    numbers = itertools.count()

    class OneKey(asyncssh.SSHServer):
        """Knows one user and one key."""

        def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
            self.faults = faults if faults.are_of(next(numbers)) else Faults()
            conn.set_extra_info(faults=self.faults)

        def session_requested(self) -> asyncssh.SSHServerSession[Any]:
            return WithoutSFTP()  # asked for only where the server has no factories

        def begin_auth(self, username: str) -> bool:
            return True

        def public_key_auth_supported(self) -> bool:
            return True

        def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
            return username == job["username"] and key == authorized and not self.faults.refuse_login

    class Files(asyncssh.SFTPServer):
        """One directory, whose path clients see as ``/``."""

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
                above = posixpath.normpath(os.fsencode(denied)).rstrip(b"/").split(b"/")
                if parts[: len(above)] == above:
                    named = path.decode("utf-8", "backslashreplace")
                    raise asyncssh.SFTPPermissionDenied(f"{named}: Permission denied")

        def exit(self) -> None:
            self.channel.exit(0)  # programs take an end without a status for a failure

    class WithoutSFTP(asyncssh.SSHServerProcess[Any]):
        """Runs ``scp`` and nothing else."""

        def __init__(self) -> None:
            files: Any = Files
            super().__init__(lambda process: None, files, sftp_version=3, allow_scp=True)

        def shell_requested(self) -> bool:
            return False

        def exec_requested(self, command: str) -> bool:
            return command.startswith("scp ")

        def subsystem_requested(self, subsystem: str) -> bool:
            return False

    async def run_forced(process: asyncssh.SSHServerProcess[bytes]) -> None:
        """Run the forced command, as sshd does: whatever the client asked for is in its environment."""
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
        factories = {"sftp_factory": Files, "allow_scp": True}
    listener = await asyncssh.create_server(
        OneKey,
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
    _answer(port=await listen_disturbed(job["host"], port, faults) if faults.disturb_the_line else port)
    await listener.wait_closed()


def main() -> None:
    """Read the job and serve."""
    debug = bool(os.environ.get("PEERSTAGE_SERVER_DEBUG"))
    logging.basicConfig(stream=sys.stderr, level=logging.DEBUG if debug else logging.CRITICAL)
    if not debug:
        warnings.simplefilter("ignore")
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # there is nothing to clean up
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()
    job = sys.stdin.buffer.readline()
    if not job:
        return
    threading.Thread(target=_end_with, args=(parent, sys.stdin.fileno()), daemon=True).start()
    try:
        asyncio.run(serve(json.loads(job)))
    except ImportError as exc:
        _answer(missing=str(exc))
    except Exception as exc:
        logging.getLogger(__name__).debug("The server does not start.", exc_info=True)
        _answer(error=f"{type(exc).__name__}: {exc}")


def _end_with(parent: int, lifeline: int) -> None:
    """End this process as soon as *lifeline* ends or *parent* has gone.

    A thread, as a request may hold up the loop; and both signs, as a process that the parent has forked keeps the
    lifeline open.
    """
    while os.getppid() == parent:
        if select.select([lifeline], [], [], _LOOK)[0] and not os.read(lifeline, 4096):
            break
    os.killpg(0, signal.SIGKILL)  # a forced command may run


def _would_block(path: bytes) -> bool:
    """Whether opening *path* could hold up the server for all clients, as a FIFO does."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return False  # opening it will say why
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _answer(**values: int | str) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()

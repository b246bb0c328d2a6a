"""The process of the embedded SSH server: a job in JSON on standard input, the port in JSON on standard output.

It ends when its standard input does, or when its parent has changed, so that it never outlives whoever started it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import select
import signal
import stat
import sys
import threading
import warnings
from typing import Any

#: Seconds between two looks at who the parent is.
_LOOK = 1.0


async def serve(job: dict[str, str]) -> None:
    """Listen, say where, and serve without end."""
    import asyncssh

    directory = job["directory"].encode("latin-1")
    authorized = asyncssh.import_public_key(job["authorized_key"])

    class OneKey(asyncssh.SSHServer):
        """Knows one user and one key."""

        def begin_auth(self, username: str) -> bool:
            return True

        def public_key_auth_supported(self) -> bool:
            return True

        def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
            return username == job["username"] and key == authorized

    class Files(asyncssh.SFTPServer):
        """One directory, whose path clients see as ``/``."""

        def __init__(self, channel: asyncssh.SSHServerChannel[Any]) -> None:
            super().__init__(channel, chroot=directory)

        def open(self, path: bytes, pflags: int, attrs: asyncssh.SFTPAttrs) -> Any:
            if _would_block(self.map_path(path)):
                raise asyncssh.SFTPFailure("Not a regular file")
            return super().open(path, pflags, attrs)

        def exit(self) -> None:
            self.channel.exit(0)  # programs take an end without a status for a failure

    listener = await asyncssh.create_server(
        OneKey,
        job["host"],
        0,
        server_host_keys=[asyncssh.import_private_key(job["host_key"])],
        sftp_factory=Files,
        allow_scp=True,
        allow_pty=False,
        agent_forwarding=False,
        password_auth=False,
        kbdint_auth=False,
        gss_host=None,  # the default asks the name service for this host's name
        encoding=None,
        encryption_algs=["aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "aes256-ctr"],
    )
    _answer(port=listener.get_port())
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
    os._exit(0)


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

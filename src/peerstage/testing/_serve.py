"""The process of the embedded SSH server: a job in JSON on standard input, the port in JSON on standard output.

It ends when its standard input does, so that it never outlives whoever started it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from typing import Any

import asyncssh


async def serve(job: dict[str, str]) -> None:
    """Listen, say where, and serve until standard input ends."""
    directory = os.fsencode(job["directory"])

    def sftp_server(channel: asyncssh.SSHServerChannel[Any]) -> asyncssh.SFTPServer:
        return asyncssh.SFTPServer(channel, chroot=directory)

    class Server(asyncssh.SSHServer):
        """Knows one user and one key."""

        def begin_auth(self, username: str) -> bool:
            return True

        def public_key_auth_supported(self) -> bool:
            return True

        def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
            return username == job["username"] and key == authorized

    authorized = asyncssh.import_public_key(job["authorized_key"])
    listener = await asyncssh.create_server(
        Server,
        job["host"],
        0,
        server_host_keys=[asyncssh.import_private_key(job["host_key"])],
        sftp_factory=sftp_server,
        allow_scp=True,
        encoding=None,
        encryption_algs=["aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "aes256-ctr"],
    )
    sys.stdout.write(json.dumps({"port": listener.get_port()}) + "\n")
    sys.stdout.flush()
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.buffer.read)
    os._exit(0)  # nothing is worth waiting for once the other side is gone


def main() -> None:
    """Read the job and serve."""
    level = logging.DEBUG if os.environ.get("PEERSTAGE_SERVER_DEBUG") else logging.CRITICAL
    logging.basicConfig(stream=sys.stderr, level=level)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    asyncio.run(serve(json.loads(sys.stdin.buffer.readline())))


if __name__ == "__main__":
    main()

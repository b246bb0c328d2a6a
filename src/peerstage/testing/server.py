"""A real SSH server over a directory, in a process of its own: for demonstrations and tests."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import peerstage
from peerstage.errors import NotAvailable, StageError, escape
from peerstage.session.options import SSHOptions

_HOST = "127.0.0.1"
_PATIENCE = 5.0


@dataclass(frozen=True)
class EmbeddedServer:
    """A running server.

    Attributes:
        host: The loopback address that it listens on.
        port: The free port that it was given.
        username: The only user that may log in, with `private_key`.
        directory: What clients see as ``/``.
        options: How a `RemotePeer` reaches it.
        private_key: The user's key, as OpenSSH writes it.
        known_hosts: A known_hosts line with the server's key.
        pid: The server's process.
    """

    host: str
    port: int
    username: str
    directory: Path
    options: SSHOptions
    private_key: bytes = field(repr=False)
    known_hosts: bytes = field(repr=False)
    pid: int


@contextlib.contextmanager
def ssh_server(
    directory: str | os.PathLike[str], *, username: str = "backup", startup_timeout: float = 30.0
) -> Iterator[EmbeddedServer]:
    """Serve *directory* over SSH (SFTP and SCP) on a free loopback port while the block runs.

    The server is a process of its own that sees *directory* as its root, with keys made for this run. It ends with the
    block, and with this process, however that ends.

    Args:
        directory: An existing directory.
        username: Who may log in.
        startup_timeout: Seconds until the server must listen.

    Raises:
        NotAvailable: asyncssh is not installed.
        StageError: The server does not start.
    """
    if importlib.util.find_spec("asyncssh") is None:
        raise NotAvailable("The embedded SSH server needs an extra: pip install 'peerstage[testing]'")
    user_key, host_key = _Key(), _Key()
    job = {
        "directory": str(Path(directory).resolve()),
        "username": username,
        "host": _HOST,
        "host_key": host_key.private.decode("ascii"),
        "authorized_key": user_key.public,
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "peerstage.testing._serve"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": _import_path()},
        start_new_session=True,  # Ctrl-C is for the program that serves itself with it, not for the server
    )
    try:
        port = _start(process, job, startup_timeout)
        known_hosts = f"[{_HOST}]:{port} {host_key.public}\n".encode("ascii")
        yield EmbeddedServer(
            host=_HOST,
            port=port,
            username=username,
            directory=Path(directory),
            options=SSHOptions(port=port, pkey=user_key.private, known_hosts=known_hosts, config=(), agent=False),
            private_key=user_key.private,
            known_hosts=known_hosts,
            pid=process.pid,
        )
    finally:
        _stop(process)


class _Key:
    """A fresh Ed25519 key, as OpenSSH writes it."""

    def __init__(self) -> None:
        key = Ed25519PrivateKey.generate()
        self.private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        )
        self.public = (
            key.public_key()
            .public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
            .decode("ascii")
        )


def _start(process: subprocess.Popen[bytes], job: dict[str, str], timeout: float) -> int:
    """Hand over the job, and return the port once the server listens. Its standard input stays open: its lifeline."""
    stdin, stdout = process.stdin, process.stdout
    if stdin is None or stdout is None:
        raise StageError("The embedded SSH server has no pipes.")
    timer = threading.Timer(timeout, process.kill)
    timer.start()
    try:
        stdin.write(json.dumps(job).encode("ascii") + b"\n")
        stdin.flush()
        answer = stdout.readline()
    except OSError:
        answer = b""
    finally:
        timer.cancel()
        timer.join()
    try:
        return int(json.loads(answer)["port"])
    except (ValueError, KeyError, TypeError):
        raise StageError(
            f"The embedded SSH server did not start within {timeout:g} s: {escape(answer[:200]) or 'it said nothing'}. "
            "PEERSTAGE_SERVER_DEBUG=1 in the environment shows what it has to say."
        ) from None


def _stop(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    process.terminate()
    try:
        process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _import_path() -> str:
    """Let the child find the package where this process found it."""
    package = str(Path(peerstage.__file__).parents[1])
    inherited = os.environ.get("PYTHONPATH")
    return package if not inherited else os.pathsep.join([package, inherited])

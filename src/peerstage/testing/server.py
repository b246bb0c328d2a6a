"""A real SSH server over a directory, in a process of its own: for demonstrations and tests."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import peerstage
from peerstage.documented import Documented
from peerstage.errors import NotAvailable, StageError, escape
from peerstage.reasons import Reason
from peerstage.records import StrOrBytesPath
from peerstage.session.options import SSHOptions
from peerstage.testing.faults import Faults

_HOST = "127.0.0.1"
_MISSING = "The embedded SSH server needs an extra: pip install 'peerstage[testing]'"
_SEE_MORE = "PEERSTAGE_SERVER_DEBUG=1 in the environment shows what it has to say."
#: Finds modules where this process does. What this process has put into its path by itself comes last: a test
#: directory may hold a `queue.py` that only harms whoever starts afresh.
_PROGRAM = (
    "import sys; sys.path[:] = dict.fromkeys([sys.argv[1], *filter(None, sys.path), *sys.argv[2:]]); "
    "from peerstage.testing._serve import main; main()"
)


@dataclass(frozen=True)
class EmbeddedServer(metaclass=Documented):
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
    directory: StrOrBytesPath | None = None,
    *,
    sftp: bool = True,
    forced_command: str | None = None,
    faults: Faults | None = None,
    username: str = "backup",
    startup_timeout: float = 30.0,
    shutdown_timeout: float = 5.0,
) -> Iterator[EmbeddedServer]:
    """Serve *directory* over SSH (SFTP and SCP) on a free loopback port while the block runs.

    The server is a process of its own that sees *directory* as its root, with keys made for this run that are never
    written to a file. It ends with the block, and with this process, however that ends; then nothing listens on its
    port, as with a dead peer. Symbolic links that lie in *directory* are followed wherever they lead, as by any SSH
    server; no path leads out of it.

    Args:
        directory: An existing directory; None for an empty one that is removed at the end.
        sftp: Whether it serves SFTP; without, it serves SCP alone.
        forced_command: A command line that a shell runs in place of every command of a client, as ``command="..."`` in
            authorized_keys: with the client's command in ``SSH_ORIGINAL_COMMAND``, in *directory*, and with this
            machine's own paths. SFTP is refused then.
        faults: What it does wrong.
        username: Who may log in.
        startup_timeout: Seconds until the server must listen.
        shutdown_timeout: Seconds that the server gets to end with the block, before it is killed.

    Raises:
        NotAvailable: asyncssh can not be imported.
        StageError: The server does not start.
        ValueError: *directory* is not a directory.
    """
    if not _is_there("asyncssh"):
        raise NotAvailable(_MISSING)
    if directory is None:
        with (
            tempfile.TemporaryDirectory(prefix="peerstage-server-") as own,
            ssh_server(
                own,
                sftp=sftp,
                forced_command=forced_command,
                faults=faults,
                username=username,
                startup_timeout=startup_timeout,
                shutdown_timeout=shutdown_timeout,
            ) as server,
        ):
            yield server
        return
    root = Path(os.fsdecode(directory)).resolve()
    if not root.is_dir():
        raise ValueError(f"ssh_server: directory must be an existing directory: {escape(root)}")
    user_key, host_key = _Key(), _Key()
    faults = faults or Faults()
    job = {
        "sftp": sftp,
        "forced_command": forced_command,
        "faults": {
            **dataclasses.asdict(faults),
            "deny": [os.fsencode(path).decode("latin-1") for path in faults.deny],
        },
        "directory": os.fsencode(root).decode("latin-1"),  # any bytes, whatever the locale
        "username": username,
        "host": _HOST,
        "host_key": host_key.private.decode("ascii"),
        "authorized_key": user_key.public,
    }
    process = _launch()
    try:
        port = _start(process, job, startup_timeout)
        known_hosts = f"[{_HOST}]:{port} {host_key.public}\n".encode("ascii")
        yield EmbeddedServer(
            host=_HOST,
            port=port,
            username=username,
            directory=Path(os.fsdecode(directory)),
            options=SSHOptions(port=port, pkey=user_key.private, known_hosts=known_hosts, config=(), agent=False),
            private_key=user_key.private,
            known_hosts=known_hosts,
            pid=process.pid,
        )
    finally:
        _stop(process, shutdown_timeout)


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


def _is_there(module: str) -> bool:
    """Whether *module* can be found, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _launch() -> subprocess.Popen[bytes]:
    package = str(Path(peerstage.__file__).parents[1])
    path = [entry for entry in sys.path if isinstance(entry, str)]
    try:
        return subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, package, *path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the program that serves itself with it, not for the server
        )
    except OSError as exc:
        raise StageError(
            f"The embedded SSH server did not start: {escape(str(exc))}", reason=Reason.TEST_SERVER_FAILED
        ) from exc


def _start(process: subprocess.Popen[bytes], job: dict[str, Any], timeout: float) -> int:
    """Hand over the job, and return the port once the server listens. Its standard input stays open: its lifeline."""
    stdin, stdout = process.stdin, process.stdout
    if stdin is None or stdout is None:
        raise StageError("The embedded SSH server has no pipes.", reason=Reason.TEST_SERVER_FAILED)
    with contextlib.suppress(BrokenPipeError):  # that it has ended shows in the answer
        stdin.write(json.dumps(job).encode("ascii") + b"\n")
        stdin.flush()
    with selectors.DefaultSelector() as selector:
        selector.register(stdout, selectors.EVENT_READ)
        if not selector.select(timeout):
            raise StageError(
                f"The embedded SSH server did not start within {timeout:g} s. {_SEE_MORE}",
                reason=Reason.TEST_SERVER_FAILED,
            )
    answer = _parse(stdout.readline())
    if isinstance(answer.get("port"), int):
        return int(answer["port"])
    if "missing" in answer:
        raise NotAvailable(f"{_MISSING} ({escape(str(answer['missing']))})")
    reason = escape(str(answer.get("error", "it ended without an answer.")))
    raise StageError(f"The embedded SSH server did not start: {reason} {_SEE_MORE}", reason=Reason.TEST_SERVER_FAILED)


def _parse(line: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(line)
    except ValueError:
        answer = None
    return answer if isinstance(answer, dict) else {}


def _stop(process: subprocess.Popen[bytes], timeout: float) -> None:
    """End the server. In a process forked in the block nothing happens: `Popen` signals only children of its own."""
    try:
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        _signal(process, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout)
    finally:  # after a second Ctrl-C, too
        _signal(process, signal.SIGKILL)
        process.wait()


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    """Signal the server and the forced commands that it runs, unless it has ended."""
    if process.poll() is None:
        os.killpg(process.pid, number)

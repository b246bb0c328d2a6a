"""A real SSH server for a directory, in its own process: for demonstrations and tests."""

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
from peerstage.errors import NotAvailable, StageError
from peerstage.printable import escape
from peerstage.processes import signal_group
from peerstage.reasons import Reason
from peerstage.records import StrOrBytesPath
from peerstage.ssh.options import SSHOptions
from peerstage.testing.faults import Faults

_HOST = "127.0.0.1"
_MISSING = "The embedded SSH server needs an extra: pip install 'peerstage[testing]'"
_DEBUG_HINT = "Set PEERSTAGE_SERVER_DEBUG=1 to see its log."
#: The server's program: it imports modules from where this process does. The entries that this process has added to
#: `sys.path` come last: a directory of tests may hold a `queue.py` that would shadow the standard library's.
_PROGRAM = (
    "import sys; sys.path[:] = dict.fromkeys([sys.argv[1], *filter(None, sys.path), *sys.argv[2:]]); "
    "from peerstage.testing._serve import main; main()"
)


@dataclass(frozen=True)
class EmbeddedServer(metaclass=Documented):
    """A running server.

    Attributes:
        host: The loopback address that it listens on.
        port: The port that it listens on.
        username: The only user who can log in, with `private_key`.
        directory: What clients see as ``/``.
        options: How a `RemotePeer` reaches it.
        private_key: The user's key in OpenSSH's format.
        known_hosts: A known_hosts line with the server's key.
        pid: The process id of the server.
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

    The server is a separate process that serves *directory* as its root, with keys that are generated for it and never
    written to a file. It exits at the end of the block, and with this process, however that exits; then nothing listens
    on its port, as with a dead peer. Symbolic links in *directory* are followed wherever they lead, as by any SSH
    server; no other path leads out of it.

    Args:
        directory: An existing directory; None for an empty one that is removed at the end.
        sftp: Whether it serves SFTP; otherwise it serves only SCP.
        forced_command: A command line that a shell runs in place of every client's command, as ``command="..."`` in
            authorized_keys: in *directory*, with the client's command in ``SSH_ORIGINAL_COMMAND`` and with the paths of
            this machine. SFTP is refused then.
        faults: The faults to inject; None for none.
        username: The user who can log in.
        startup_timeout: Seconds within which the server must listen.
        shutdown_timeout: Seconds that the server has to exit at the end of the block, before it is killed.

    Raises:
        NotAvailable: If asyncssh cannot be imported.
        StageError: If the server does not start.
        ValueError: If *directory* is not a directory.
    """
    if not _is_installed("asyncssh"):
        raise NotAvailable(_MISSING)
    with contextlib.ExitStack() as stack:
        if directory is None:
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="peerstage-server-"))
        root = Path(os.fsdecode(directory)).resolve()
        if not root.is_dir():
            raise ValueError(f"ssh_server: directory must be an existing directory: {escape(root)}")
        user_key, host_key, faults = _Key(), _Key(), faults or Faults()
        denied = [os.fsencode(path).decode("latin-1") for path in faults.deny]
        job = {
            "sftp": sftp,
            "forced_command": forced_command,
            "faults": {**dataclasses.asdict(faults), "deny": denied},
            "directory": os.fsencode(root).decode("latin-1"),  # any bytes, in any locale
            "username": username,
            "host": _HOST,
            "host_key": host_key.private.decode("ascii"),
            "authorized_key": user_key.public,
        }
        process = _launch()
        stack.callback(_stop, process, shutdown_timeout)
        port = _wait_for_port(process, job, startup_timeout)
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


class _Key:
    """A new Ed25519 key in OpenSSH's format."""

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


def _is_installed(module: str) -> bool:
    """Return whether *module* can be found, without importing it."""
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
            start_new_session=True,  # so that Ctrl-C does not reach the server
        )
    except OSError as exc:
        raise _start_error(str(exc)) from exc


def _start_error(cause: str) -> StageError:
    return StageError(f"The embedded SSH server did not start: {escape(cause)}", reason=Reason.TEST_SERVER_FAILED)


def _wait_for_port(process: subprocess.Popen[bytes], job: dict[str, Any], timeout: float) -> int:
    """Send the job, and return the port once the server listens. Its stdin stays open as its lifeline."""
    stdin, stdout = process.stdin, process.stdout
    if stdin is None or stdout is None:
        raise _start_error("it has no pipes.")
    with contextlib.suppress(BrokenPipeError):  # the reply shows that it has exited
        stdin.write(json.dumps(job).encode("ascii") + b"\n")
        stdin.flush()
    with selectors.DefaultSelector() as selector:
        selector.register(stdout, selectors.EVENT_READ)
        if not selector.select(timeout):
            raise _start_error(f"it did not listen within {timeout:g} s. {_DEBUG_HINT}")
    reply = _parse_reply(stdout.readline())
    if isinstance(reply.get("port"), int):
        return int(reply["port"])
    if "missing" in reply:
        raise NotAvailable(f"{_MISSING} ({escape(str(reply['missing']))})")
    raise _start_error(f"{reply.get('error', 'it exited without a reply.')} {_DEBUG_HINT}")


def _parse_reply(line: bytes) -> dict[str, Any]:
    try:
        reply = json.loads(line)
    except ValueError:
        reply = None
    return reply if isinstance(reply, dict) else {}


def _stop(process: subprocess.Popen[bytes], timeout: float) -> None:
    """End the server; without effect in a fork of this process, where `Popen.poll` says that it has exited (ECHILD)."""
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
    """Signal the server and its forced commands, unless it has exited."""
    if process.poll() is None:
        signal_group(process, number)

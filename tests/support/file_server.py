"""An SSH server in this process that serves local files over SFTP."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paramiko
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from peerstage import SSHOptions
from support.ssh_server import Handler, Policy, listening, paramiko_handler


class Files(paramiko.SFTPServerInterface):
    """The local file system, as it is."""

    def list_folder(self, path: str) -> Any:
        try:
            return [paramiko.SFTPAttributes.from_stat((Path(path) / name).lstat(), name) for name in os.listdir(path)]
        except OSError as exc:
            return paramiko.SFTPServer.convert_errno(exc.errno or 0)

    def stat(self, path: str) -> Any:
        try:
            return paramiko.SFTPAttributes.from_stat(Path(path).stat())
        except OSError as exc:
            return paramiko.SFTPServer.convert_errno(exc.errno or 0)

    lstat = stat

    def open(self, path: str, flags: int, attr: Any) -> Any:
        try:
            file = os.fdopen(os.open(path, flags, 0o666), "wb" if flags & os.O_WRONLY else "rb")
        except OSError as exc:
            return paramiko.SFTPServer.convert_errno(exc.errno or 0)
        handle = paramiko.SFTPHandle(flags)
        handle.readfile = handle.writefile = file  # type: ignore[attr-defined]
        handle.stat = lambda: paramiko.SFTPAttributes.from_stat(os.fstat(file.fileno()))  # type: ignore[assignment,method-assign]
        return handle

    def remove(self, path: str) -> Any:
        try:
            os.remove(path)
        except OSError as exc:
            return paramiko.SFTPServer.convert_errno(exc.errno or 0)
        return paramiko.SFTP_OK


class ServesFiles(Policy):
    """Accepts every login and serves files."""

    check_channel_subsystem_request = paramiko.ServerInterface.check_channel_subsystem_request


def new_identity(path: Path) -> Path:
    """Write a new private key in OpenSSH's format; return *path*."""
    key = Ed25519PrivateKey.generate()
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())
    path.write_bytes(key.private_bytes(*form))
    path.chmod(0o600)
    return path


def serves_files(key: paramiko.PKey, policy: type[Policy] = ServesFiles, **options: Any) -> Handler:
    """Return a handler that serves files to logins that *policy* accepts; *options* are for `paramiko.Transport`."""

    def prepare(transport: paramiko.Transport) -> None:
        transport.set_subsystem_handler("sftp", paramiko.SFTPServer, Files)

    return paramiko_handler(policy, key=key, prepare=prepare, **options)


@contextlib.contextmanager
def serving_files() -> Iterator[tuple[int, str]]:
    """Serve until the block ends; yield the port and the host key as in known_hosts."""
    key = paramiko.ECDSAKey.generate()
    with listening(serves_files(key)) as port:
        yield port, f"{key.get_name()} {key.get_base64()}"


class Master:
    """A master's ssh_config, key and known_hosts for servers in this process.

    Args:
        home: The directory of these files.

    Attributes:
        key: The host key of every known server.
    """

    def __init__(self, home: Path) -> None:
        self.key = paramiko.ECDSAKey.generate()
        self._home = home
        self._identity = new_identity(home / "id")
        self._config = home / "config"
        self._known_hosts = home / "known_hosts"
        for path in (self._config, self._known_hosts):
            path.touch()

    def options(self, **changes: Any) -> SSHOptions:
        """Return options that reach the hosts given to `add_host`."""
        files = {"identity": self._identity, "config": self._config, "known_hosts": self._known_hosts}
        return SSHOptions(**{**{name: str(path) for name, path in files.items()}, "agent": False, **changes})

    def arguments(self) -> list[str]:
        """Return the same as options of the command line."""
        files = {"identity": self._identity, "config": self._config, "known-hosts": self._known_hosts}
        return [word for name, path in files.items() for word in (f"--{name}", str(path))]

    def add_host(self, name: str, port: int, *settings: str, known: bool = True) -> None:
        """Add a host *name* at a local *port* to ssh_config; if *known*, add its key to known_hosts."""
        lines = (f"Host {name}", "HostName 127.0.0.1", f"Port {port}", *settings)
        with self._config.open("a") as config:
            config.write("\n ".join(lines) + "\n")
        if known:
            with self._known_hosts.open("a") as known_hosts:
                known_hosts.write(f"[127.0.0.1]:{port} {self.key.get_name()} {self.key.get_base64()}\n")

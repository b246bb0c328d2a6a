"""An SSH server in this process that serves the files of this machine by SFTP."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paramiko
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from support.ssh_server import Policy, listening, made_of_paramiko


class Files(paramiko.SFTPServerInterface):
    """The files as they are."""

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


class ServesFiles(Policy):
    """Lets everybody in, and serves files."""

    check_channel_subsystem_request = paramiko.ServerInterface.check_channel_subsystem_request


def new_identity(path: Path) -> Path:
    """Write a new private key, as OpenSSH does; return *path*."""
    key = Ed25519PrivateKey.generate()
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())
    path.write_bytes(key.private_bytes(*form))
    path.chmod(0o600)
    return path


@contextlib.contextmanager
def serving_files() -> Iterator[tuple[int, str]]:
    """Serve until the block ends; yield the port, and the host key as known_hosts has it."""
    key = paramiko.ECDSAKey.generate()

    def prepare(transport: paramiko.Transport) -> None:
        transport.set_subsystem_handler("sftp", paramiko.SFTPServer, Files)

    with listening(made_of_paramiko(ServesFiles, key=key, prepare=prepare)) as port:
        yield port, f"{key.get_name()} {key.get_base64()}"

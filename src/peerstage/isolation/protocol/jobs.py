"""What the parent sends to the child: settings, by value, and then jobs.

Each is JSON with a length prefix, sent over a UNIX socket so that a descriptor can go with it.
"""

from __future__ import annotations

import array
import contextlib
import dataclasses
import os
import socket
import struct
from typing import Any

from peerstage.errors import ConfigurationError
from peerstage.isolation.protocol.values import bytes_to_text, decode_json, encode_json, text_to_bytes
from peerstage.records import Limits
from peerstage.ssh.options import SSHOptions
from peerstage.transport.factory import TransportOptions
from peerstage.transport.retry import Retry

_LENGTH = struct.Struct(">I")
#: Options that hold paths. The child's working directory differs, so relative paths are sent as absolute ones.
_PATH_OPTIONS = frozenset({"identity", "certificate", "config", "known_hosts", "agent"})


def encode_job(job: dict[str, Any]) -> bytes:
    """Return *job* in its wire format."""
    body = encode_json(job)
    return _LENGTH.pack(len(body)) + body


def send_part(sock: socket.socket, data: memoryview, fd: int) -> int:
    """Send as much of *data* as fits, with the descriptor *fd* unless it is -1; return the number of bytes sent."""
    ancillary = [] if fd < 0 else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
    return sock.sendmsg([data], ancillary)


def receive_job(sock: socket.socket) -> tuple[dict[str, Any], int] | None:
    """Return the next job and the descriptor sent with it, or -1; None at the end of the stream."""
    head, fd = _receive(sock, _LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    body, later_fd = _receive(sock, length)
    return (decode_json(body), max(fd, later_fd)) if len(body) == length else None


def _receive(sock: socket.socket, size: int) -> tuple[bytes, int]:
    """Return *size* bytes, fewer at the end of the stream, and the descriptor received with them."""
    data = bytearray()
    fd = -1
    while len(data) < size:
        with contextlib.suppress(ConnectionResetError):
            part, fds, _flags, _address = socket.recv_fds(sock, size - len(data), 1)
            for fd in fds:
                os.set_inheritable(fd, False)
            if part:
                data += part
                continue
        break
    return bytes(data), fd


def encode_settings(options: TransportOptions, limits: Limits, retry: Retry) -> dict[str, Any]:
    """Return everything that the child needs to build its transport.

    Raises:
        ConfigurationError: If an option cannot be sent to another process.
    """
    plain = {field.name: getattr(options, field.name) for field in dataclasses.fields(options) if field.name != "ssh"}
    names = [field.name for field in dataclasses.fields(options.ssh)]
    ssh = {name: _encode(getattr(options.ssh, name), name) for name in names}
    return {
        "transport_options": {**plain, "ssh": ssh},
        "limits": dataclasses.asdict(limits),
        "retry": dataclasses.asdict(retry),
    }


def decode_transport_options(settings: dict[str, Any]) -> TransportOptions:
    """Return the transport options that `encode_settings` encoded. The child trusts its parent."""
    ssh = {name: _decode(value) for name, value in settings["transport_options"]["ssh"].items()}
    return TransportOptions(**{**settings["transport_options"], "ssh": SSHOptions(**ssh)})


def _encode(value: Any, option: str) -> Any:
    is_path = option in _PATH_OPTIONS
    if isinstance(value, (tuple, list)):
        return {"items": [_encode(item, option) for item in value]}
    if isinstance(value, os.PathLike) or (isinstance(value, bytes) and is_path and option != "known_hosts"):
        value = os.fsdecode(value)
    if isinstance(value, bytes):
        return {"bytes": bytes_to_text(value)}
    if isinstance(value, str) and is_path and not value.startswith("~"):
        value = _absolute(value, option)
    if value is None or isinstance(value, (str, int, float)):
        return value
    raise ConfigurationError(
        f"SSHOptions({option}=...) holds a {type(value).__name__} object, which cannot be sent to the child process "
        "that localUser and isolated use. Give a path or bytes."
    )


def _absolute(path: str, option: str) -> str:
    try:
        return os.path.abspath(path)
    except OSError as exc:
        raise ConfigurationError(
            f"The option {option} is the relative path {path!r}, and the current directory cannot be determined "
            f"({exc.strerror}). Give an absolute path."
        ) from exc


def _decode(value: Any) -> Any:
    if isinstance(value, dict):
        return text_to_bytes(value["bytes"]) if "bytes" in value else tuple(_decode(item) for item in value["items"])
    return value

"""The unpublished names of paramiko that this package uses, declared in one place.

mypy checks our code against these declarations, and `self_check` compares them with the installed paramiko. The other
modules of this package import paramiko's unpublished classes from here.
"""

# The methods here are declarations, without a body.
# mypy: disable-error-code="empty-body"

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, ClassVar

import paramiko
from paramiko.message import Message

__all__ = [
    "MSG_NAMES",
    "AuthOnlyHandler",
    "BufferedPipe",
    "ChannelMap",
    "KexCurve25519",
    "NeedRekeyException",
    "Packetizer",
]

#: Unpublished classes and tables that the installed paramiko lacks.
missing_imports: list[str] = []

if TYPE_CHECKING:
    from paramiko.auth_handler import AuthOnlyHandler
    from paramiko.buffered_pipe import BufferedPipe
    from paramiko.kex_curve25519 import KexCurve25519
    from paramiko.packet import NeedRekeyException, Packetizer
    from paramiko.transport import ChannelMap

    MSG_NAMES: Collection[int]
else:

    def _load(module: str, name: str) -> Any:
        """Return *name* of *module*; a stand-in if it is missing, so that `self_check` can report it."""
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            missing_imports.append(f"{module}.{name}")
            return type(name, (Exception,), {})

    AuthOnlyHandler = _load("paramiko.auth_handler", "AuthOnlyHandler")
    BufferedPipe = _load("paramiko.buffered_pipe", "BufferedPipe")
    KexCurve25519 = _load("paramiko.kex_curve25519", "KexCurve25519")
    MSG_NAMES = _load("paramiko.common", "MSG_NAMES")
    NeedRekeyException = _load("paramiko.packet", "NeedRekeyException")
    Packetizer = _load("paramiko.packet", "Packetizer")
    ChannelMap = _load("paramiko.transport", "ChannelMap")


class TransportInternals:
    """Members of `paramiko.Transport`."""

    _cipher_info: ClassVar[dict[str, Any]]
    _kex_info: ClassVar[dict[str, Any]]
    _key_info: ClassVar[dict[str, Any]]
    _mac_info: ClassVar[dict[str, Any]]
    _preferred_keys: tuple[str, ...]

    _channels: ChannelMap
    _handler_table: dict[int, Callable[[Message], object]]
    active: bool
    agreed_on_strict_kex: bool
    auth_handler: Any
    auth_timeout: Any
    channel_timeout: float
    clear_to_send: threading.Event
    clear_to_send_lock: Any
    clear_to_send_timeout: float
    host_key_type: str | None
    initial_kex_done: bool
    kex_engine: Any
    local_cipher: str
    local_mac: str | None
    logger: Any
    packetizer: Any
    remote_cipher: str
    remote_mac: str | None
    remote_version: str
    saved_exception: Exception | None
    server_extensions: dict[str, str | bytes]
    session_id: bytes | None
    sock: Any

    @property
    def preferred_keys(self) -> tuple[str, ...]: ...
    def _auth_trigger(self) -> None: ...
    def _parse_disconnect(self, m: Message) -> None: ...
    def _parse_kex_init(self, m: Message) -> None: ...
    def _parse_newkeys(self, m: Message) -> None: ...
    def _sanitize_window_size(self, window_size: int | None) -> int: ...
    def _really_parse_kex_init(self, m: Message, ignore_first_byte: bool = False) -> dict[str, Any]: ...
    def _send_message(self, data: Message) -> None: ...
    def _send_user_message(self, data: Message) -> None: ...
    def _verify_key(self, host_key: bytes, sig: bytes) -> None: ...


class PacketizerInternals:
    """Members of `paramiko.packet.Packetizer`, the packet layer (RFC 4253, section 6)."""

    REKEY_BYTES: int
    _Packetizer__sequence_number_in: int

    @property
    def closed(self) -> bool: ...
    def _trigger_rekey(self) -> None: ...
    def need_rekey(self) -> bool: ...
    def read_all(self, n: int, check_rekey: bool = False) -> bytes: ...
    def read_message(self) -> tuple[int, Message]: ...
    def readline(self, timeout: float) -> str: ...
    def set_inbound_cipher(
        self,
        block_engine: Any,
        block_size: int,
        mac_engine: Any,
        mac_size: int,
        mac_key: Any,
        etm: bool = False,
        aead: bool = False,
        iv_in: bytes | None = None,
    ) -> None: ...

    def set_log(self, log: Any) -> None: ...

    def set_outbound_cipher(
        self,
        block_engine: Any,
        block_size: int,
        mac_engine: Any,
        mac_size: int,
        mac_key: Any,
        sdctr: bool = False,
        etm: bool = False,
        aead: bool = False,
        iv_out: bytes | None = None,
    ) -> None: ...

    def start_handshake(self, timeout: float) -> None: ...
    def write_all(self, out: Any) -> None: ...


class ChannelInternals:
    """Members of `paramiko.Channel`."""

    active: bool
    closed: bool
    eof_received: int
    eof_sent: int
    in_buffer: Any
    in_stderr_buffer: Any
    in_window_size: int
    in_window_sofar: int
    lock: Any
    remote_chanid: int

    def _log(self, level: int, msg: str, *args: object) -> None: ...


class ChannelMapInternals:
    """Members of `paramiko.transport.ChannelMap`, a transport's open channels by number."""

    def delete(self, chanid: int) -> None: ...
    def put(self, chanid: int, chan: paramiko.Channel) -> None: ...
    def values(self) -> list[paramiko.Channel]: ...


class BufferInternals:
    """Members of `paramiko.buffered_pipe.BufferedPipe`, which `ChannelBuffer` replaces."""

    def __len__(self) -> int: ...
    def close(self) -> None: ...
    def empty(self) -> bytes: ...
    def feed(self, data: bytes) -> None: ...
    def read(self, nbytes: int, timeout: float | None = None) -> bytes: ...
    def read_ready(self) -> bool: ...
    def set_event(self, event: threading.Event) -> None: ...


class AuthInternals:
    """Members of `paramiko.auth_handler.AuthOnlyHandler`, the client side of RFC 4252."""

    auth_event: threading.Event | None
    auth_method: str
    transport: Any
    username: str | None

    def _parse_userauth_info_request(self, m: Message) -> None: ...
    def wait_for_response(self, event: threading.Event) -> list[str]: ...


if TYPE_CHECKING:

    class TypedTransport(TransportInternals, paramiko.Transport):
        """`paramiko.Transport` with its unpublished members."""

    class TypedPacketizer(PacketizerInternals, Packetizer):
        """`paramiko.packet.Packetizer` with its unpublished members."""

    class TypedAuthHandler(AuthInternals, AuthOnlyHandler):
        """`paramiko.auth_handler.AuthOnlyHandler` with its unpublished members."""
else:
    TypedTransport, TypedPacketizer, TypedAuthHandler = paramiko.Transport, Packetizer, AuthOnlyHandler

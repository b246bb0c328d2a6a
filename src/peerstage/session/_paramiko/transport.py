"""paramiko's transport with our packet layer, which has its host key judged before anything else, and logs in."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import socket
import threading
from collections.abc import Callable
from typing import Any, ClassVar, cast

import paramiko
from paramiko.common import (
    MSG_CHANNEL_CLOSE,
    MSG_CHANNEL_DATA,
    MSG_CHANNEL_EOF,
    MSG_CHANNEL_EXTENDED_DATA,
    MSG_CHANNEL_WINDOW_ADJUST,
    MSG_NAMES,
    MSG_SERVICE_ACCEPT,
    cMSG_GLOBAL_REQUEST,
    cMSG_SERVICE_REQUEST,
    cMSG_UNIMPLEMENTED,
    cMSG_USERAUTH_REQUEST,
)
from paramiko.kex_curve25519 import KexCurve25519
from paramiko.message import Message
from paramiko.ssh_exception import IncompatiblePeer

from peerstage.records import Limits
from peerstage.session._paramiko.channels import BufferedChannels
from peerstage.session._paramiko.forks import keep_to_this_process
from peerstage.session._paramiko.logs import ParamikoLog
from peerstage.session._paramiko.packets import BoundedPacketizer
from peerstage.session._paramiko.userauth import SERVICE, Login, key_request
from peerstage.session.algorithms import SIGNATURES, Algorithms, key_type, plain_algorithm
from peerstage.session.certificates import plain_key
from peerstage.session.liveness import Liveness
from peerstage.session.pipe import Disconnected, NoCommonAlgorithm, Violation
from peerstage.session.security_keys import SecurityKey
from peerstage.system_errors import start_thread

#: What goes on a channel as long as it is open.
_DATA = frozenset({MSG_CHANNEL_WINDOW_ADJUST, MSG_CHANNEL_DATA, MSG_CHANNEL_EXTENDED_DATA})
#: What ends a channel, or one direction of it.
_ENDS = frozenset({MSG_CHANNEL_EOF, MSG_CHANNEL_CLOSE})
#: Message numbers below are those of the transport and of key exchange itself (RFC 4250, 4.1.2).
_FIRST_AFTER_KEX = 50
#: Answers that may be held back while keys are exchanged.
_MOST_HELD_BACK = 4096


class ClientTransport(paramiko.Transport):
    """A client's side of a connection.

    After the first key exchange (RFC 4253, 8) nothing that comes is looked at before `trust` was called, so that a host
    whose key is refused gets no byte from us after our NEWKEYS, whatever it sends. In a forked child nothing is sent.

    Attributes:
        shown: The host key or certificate that the host showed, as SSH encodes it.
        host_key_algorithms: By which algorithms it says that it can show one (RFC 4253, 7.1).
        kex_name: The key exchange method that was agreed on.
    """

    # RFC 8731 has given the method another name; what is done is the same.
    _kex_info: ClassVar[dict[str, Any]] = {**paramiko.Transport._kex_info, "curve25519-sha256": KexCurve25519}  # type: ignore[attr-defined]

    _key_info: ClassVar[dict[str, Any]] = {
        **paramiko.Transport._key_info,  # type: ignore[attr-defined]
        **{name: lambda key: SecurityKey(plain_key(key.asbytes())) for name in SIGNATURES if name.startswith("sk-")},
    }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.shown = b""
        self.host_key_algorithms: tuple[str, ...] = ()
        self.kex_name = ""
        self._offered: dict[str, Any] = {}
        self._trusted = threading.Event()
        self._accepted = threading.Event()
        self._held_back: list[Message] = []
        self._process = os.getpid()
        keep_to_this_process(self, owned=True)
        hidden: Any = self
        hidden._handler_table[MSG_SERVICE_ACCEPT] = self._parse_service_accept
        for number in frozenset(range(256)).difference(MSG_NAMES):  # paramiko fails over what it has no name for
            hidden._handler_table[number] = self._answer_unimplemented

    @property
    def preferred_keys(self) -> tuple[str, ...]:
        """What is offered of host keys: just that (paramiko's own adds certificates behind everything else)."""
        return tuple(cast(Any, self)._preferred_keys)

    def start(self) -> None:
        """Start the thread; a system that starts no more is no fault of the peer's."""
        start_thread(cast(Any, super()))

    # What paramiko stumbles over, or keeps to itself.

    def _answer_unimplemented(self, m: Message) -> None:
        """Tell the server that we do not know its message (RFC 4253, 11.4)."""
        reply = Message()
        reply.add_byte(cMSG_UNIMPLEMENTED)
        reply.add_int(m.seqno)
        self._send_message(reply)

    def _parse_disconnect(self, m: Message) -> None:
        reason, text = m.get_int(), m.get_binary().decode("utf-8", "replace").strip()
        cast(Any, self).saved_exception = Disconnected(reason, text)

    # The host.

    def trust(self) -> None:
        """Say that the host may be spoken to: the key that it showed is its own."""
        self._trusted.set()

    def _really_parse_kex_init(self, m: Message, ignore_first_byte: bool = False) -> dict[str, Any]:
        parsed: dict[str, Any] = cast(Any, super())._really_parse_kex_init(m, ignore_first_byte)
        self.host_key_algorithms = tuple(parsed["server_key_algo_list"])
        self._offered = parsed
        return parsed

    def _parse_kex_init(self, m: Message) -> None:
        try:
            cast(Any, super())._parse_kex_init(m)
        except IncompatiblePeer as exc:
            raise NoCommonAlgorithm(self._missing_kind(), str(exc)) from exc

    def _missing_kind(self) -> str:
        """Return of which kind the server, whose offers were parsed last, has no algorithm that is accepted here."""
        mine: Any = self.get_security_options()
        for kind, accepted, *offered in (
            ("kex", mine.kex, "kex_algo_list"),
            ("host key", mine.key_types, "server_key_algo_list"),
            ("cipher", mine.ciphers, "client_encrypt_algo_list", "server_encrypt_algo_list"),
            ("mac", mine.digests, "client_mac_algo_list", "server_mac_algo_list"),
        ):
            if any(set(accepted).isdisjoint(self._offered.get(name, ())) for name in offered):
                return kind
        return ""

    def _verify_key(self, host_key: bytes, sig: bytes) -> None:
        """Check that the key is of the type that was agreed on, and that it signed what was exchanged (RFC 4253, 8)."""
        agreed = cast(str, cast(Any, self).host_key_type)
        shown, signed = Message(host_key).get_text(), Message(sig).get_text()
        if shown != key_type(agreed) or signed != plain_algorithm(agreed):
            raise Violation(f"a {shown!r} host key that signs by {signed!r}, where {agreed!r} was agreed on")
        if self.shown and host_key != self.shown:
            raise Violation("another host key than before, in the middle of a connection")
        cast(Any, super())._verify_key(host_key, sig)
        self.shown = host_key
        engine = type(cast(Any, self).kex_engine)
        self.kex_name = next((name for name, kind in self._kex_info.items() if kind is engine), engine.__name__)

    def _parse_newkeys(self, m: Message) -> None:
        cast(Any, super())._parse_newkeys(m)
        while not self._trusted.wait(0.1):
            if not cast(Any, self).active:
                raise EOFError
        with cast(Any, self).clear_to_send_lock:
            held_back, self._held_back = self._held_back, []
        for message in held_back:
            cast(Any, self)._send_message(message)

    # While keys are exchanged nothing else may be sent (RFC 4253, 7.1). paramiko has other threads wait for that, and
    # its own too, which would then wait for itself; so what that one answers to the server is held back. So is the end
    # of a channel: nothing bounds the wait of a thread that closes one.

    def _send_user_message(self, data: Message) -> None:
        if os.getpid() != self._process or self._hold_back(data) or self._hold_back_end(data):
            return
        hidden: Any = self
        cast(Any, super())._send_user_message(data)
        if (
            hidden.packetizer.need_rekey()
        ):  # no more until there are; until paramiko's thread sees it, much could be sent
            with hidden.clear_to_send_lock:
                if hidden.packetizer.need_rekey():
                    hidden.clear_to_send.clear()

    def _send_message(self, data: Message) -> None:
        if os.getpid() == self._process and not self._hold_back(data) and not self._is_too_late(data):
            cast(Any, super())._send_message(data)

    def _is_too_late(self, data: Message) -> bool:
        """Whether this is data for a channel that was closed while the sender waited for new keys (RFC 4254, 5.3).

        A server ends the connection over it. Channels are closed, then say so, under the lock that is held here.
        """
        raw = data.asbytes()
        if raw[0] not in _DATA:
            return False
        number = int.from_bytes(raw[1:5], "big")
        channels = cast(Any, self)._channels.values()
        return not any(channel.remote_chanid == number and not channel.closed for channel in channels)

    def _hold_back(self, data: Message) -> bool:
        hidden: Any = self
        if threading.current_thread() is not self or hidden.clear_to_send.is_set() or not hidden.initial_kex_done:
            return False
        if data.asbytes()[0] < _FIRST_AFTER_KEX:
            return False
        with hidden.clear_to_send_lock:
            if len(self._held_back) >= _MOST_HELD_BACK:
                raise Violation("the server goes on asking while keys are exchanged")
            self._held_back.append(data)
        return True

    def _hold_back_end(self, data: Message) -> bool:
        """Hold back the end of a channel while keys are exchanged; return whether that is what *data* is."""
        hidden: Any = self
        if data.asbytes()[0] not in _ENDS or not hidden.initial_kex_done:
            return False
        with hidden.clear_to_send_lock:
            if hidden.clear_to_send.is_set():
                return False
            self._held_back.append(data)
            return True

    def _auth_trigger(self) -> None:
        cast(Any, super())._auth_trigger()
        cast(Any, self).packetizer.may_rekey = True

    # Whoever logs in (RFC 4252). Everything here is called by, and waits in, the thread that uses the session.

    def request_login(self) -> None:
        """Ask for the service that logs users in; what the server tells of itself (RFC 8308) has come afterwards.

        Raises:
            paramiko.SSHException, EOFError: The connection ended.
        """
        message = Message()
        message.add_byte(cMSG_SERVICE_REQUEST)
        message.add_string("ssh-userauth")
        hidden: Any = self
        self._send_user_message(message)
        while not self._accepted.wait(0.1):
            if not self.is_active():
                raise self.get_exception() or EOFError()
        hidden.auth_handler = Login(self)

    def _parse_service_accept(self, m: Message) -> None:
        if m.get_text() == "ssh-userauth":
            self._accepted.set()

    @property
    def signature_algorithms(self) -> tuple[str, ...] | None:
        """What the server takes of users' keys (RFC 8308, 3.1), None if it does not tell."""
        told = cast(dict[str, Any], cast(Any, self).server_extensions).get("server-sig-algs")
        if told is None:
            return None
        text = told if isinstance(told, str) else bytes(told).decode("ascii", "replace")
        return tuple(text.split(","))

    def log_in_by_key(
        self, user: str, algorithm: str, key: bytes, sign: Callable[[bytes], bytes], *, ask_first: bool = False
    ) -> list[str]:
        """Log in by a public key or certificate (RFC 4252, 7).

        Args:
            user: Who logs in.
            algorithm: The signature's.
            key: The key, as SSH encodes it.
            sign: Returns the signature of what it is given, as SSH encodes it. What it raises comes out, and no
                signature was sent.
            ask_first: Whether to sign only what the server says it would accept: where signing is some work.

        Returns:
            What is wanted besides; empty if that was enough.

        Raises:
            paramiko.AuthenticationException: It was refused; `paramiko.BadAuthenticationType` tells what is offered.
            paramiko.SSHException, EOFError, OSError: The connection ended.
        """
        login = cast(Login, self.auth_handler)
        if ask_first and not login.would_accept(user, algorithm, key):
            return []
        request = key_request(user, algorithm, key, signed=True)
        signed = Message()
        signed.add_string(cast(Any, self).session_id)
        signature = sign(signed.asbytes() + request.asbytes())
        request.add_string(signature)
        return login.ask(user, "publickey", request)

    def log_in_by_password(self, user: str, password: str) -> list[str]:
        """Log in by a password (RFC 4252, 8). See `log_in_by_key`."""
        request = Message()
        request.add_byte(cMSG_USERAUTH_REQUEST)
        for text in (user, SERVICE, "password"):
            request.add_string(text)
        request.add_boolean(False)
        request.add_string(password)
        return cast(Login, self.auth_handler).ask(user, "password", request)


def make_transport(
    sock: Any, limits: Limits, window: int, packet: int, algorithms: Algorithms | None = None, *, peer: str = ""
) -> ClientTransport:
    """Return a transport on *sock* with our packet layer, *algorithms* and bounds; nothing is sent yet.

    What it logs names the *peer*.
    """
    with contextlib.suppress(OSError, AttributeError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    algorithms = algorithms or supported()
    packets = functools.partial(
        BoundedPacketizer,
        limits=limits,
        rekey_bytes=algorithms.rekey_bytes,
        rekey_seconds=algorithms.rekey_seconds,
    )
    transport = ClientTransport(
        sock,
        default_window_size=window,
        default_max_packet_size=packet,
        packetizer_class=cast(Any, packets),
    )
    offer(transport, algorithms)
    hidden: Any = transport
    log = ParamikoLog(peer)
    log.take_transport(transport)
    hidden._channels = BufferedChannels(hidden.packetizer, window, limits.stderr_bytes, log)
    # The watchdog bounds every wait, and says what was waited for; paramiko's own limits would end slow lines.
    hidden.auth_timeout = None
    hidden.clear_to_send_timeout = hidden.channel_timeout = math.inf
    return transport


def supported() -> Algorithms:
    """Return our algorithms as far as this paramiko has them."""
    ours, theirs = Algorithms(), cast(Any, ClientTransport)
    return Algorithms(
        kex=tuple(name for name in ours.kex if name in theirs._kex_info),
        host_keys=tuple(name for name in ours.host_keys if name in theirs._key_info),
        ciphers=tuple(name for name in ours.ciphers if name in theirs._cipher_info),
        macs=tuple(name for name in ours.macs if name in theirs._mac_info),
    )


def offer(transport: ClientTransport, algorithms: Algorithms) -> None:
    """Offer *algorithms*, which are of the `supported` ones, in the key exchange."""
    security = transport.get_security_options()
    security.kex, security.key_types = algorithms.kex, algorithms.host_keys
    security.ciphers, security.digests = algorithms.ciphers, algorithms.macs


def is_protected(transport: paramiko.Transport) -> bool:
    """Whether the agreed algorithms are safe from prefix truncation (CVE-2023-48795).

    They are with strict key exchange, with AES-GCM, and with CTR and a MAC that is not encrypt-then-MAC.
    """
    if has_strict_kex(transport):
        return True
    agreed: Any = transport
    pairs = (agreed.local_cipher, agreed.local_mac), (agreed.remote_cipher, agreed.remote_mac)
    return all("gcm@" in str(cipher) or "-etm@" not in str(mac) for cipher, mac in pairs)


def has_strict_kex(transport: paramiko.Transport) -> bool:
    """Whether both sides agreed on strict key exchange."""
    return bool(cast(Any, transport).agreed_on_strict_kex)


def watch_liveness(transport: paramiko.Transport, interval: float, count: int) -> None:
    """Watch from now on whether the other end of *transport*, which is ours, lives. See `Liveness`."""
    hidden = cast(Any, transport)

    def ask() -> None:
        if not hidden.clear_to_send.is_set():  # keys are being exchanged: nothing else may be sent, they are to come
            return
        message = Message()
        message.add_byte(cMSG_GLOBAL_REQUEST)
        message.add_string("keepalive@openssh.com")
        message.add_boolean(True)
        hidden._send_message(message)

    hidden.packetizer.liveness = Liveness(interval, count, ask)

"""paramiko's client transport: it pauses until the host key is verified, bounds what the server sends, and sends one
authentication request at a time.
"""

from __future__ import annotations

import contextlib
import functools
import math
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import paramiko
from paramiko.common import MSG_SERVICE_ACCEPT, cMSG_GLOBAL_REQUEST, cMSG_SERVICE_REQUEST, cMSG_UNIMPLEMENTED
from paramiko.message import Message
from paramiko.ssh_exception import IncompatiblePeer

from peerstage.records import Limits
from peerstage.ssh._paramiko.channels import BufferedChannels
from peerstage.ssh._paramiko.exceptions import Disconnected, NoCommonAlgorithm, PeerViolation
from peerstage.ssh._paramiko.forks import silence_after_fork
from peerstage.ssh._paramiko.internals import MSG_NAMES, KexCurve25519
from peerstage.ssh._paramiko.packetizer import BoundedPacketizer
from peerstage.ssh._paramiko.paramiko_log import ParamikoLog
from peerstage.ssh._paramiko.rekeying import RekeyingTransport
from peerstage.ssh._paramiko.self_check import check_paramiko, refuse_paramiko
from peerstage.ssh._paramiko.userauth import UserAuthHandler, userauth_request
from peerstage.ssh.algorithms import SIGNATURE_ALGORITHMS, Algorithms, plain_algorithm, signing_key_type
from peerstage.ssh.keepalive import Keepalive
from peerstage.ssh.keys.certificates import plain_key
from peerstage.ssh.keys.public_keys import PublicKey

# RFC 8731 renamed curve25519-sha256@libssh.org; paramiko knows only the old name.
_ADDED_KEX = {"curve25519-sha256": KexCurve25519}
# paramiko cannot verify signatures by FIDO (sk-) host keys.
_ADDED_KEY_TYPES = {
    name: lambda key: PublicKey(plain_key(key.asbytes())) for name in SIGNATURE_ALGORITHMS if name.startswith("sk-")
}


class ClientTransport(RekeyingTransport):
    """The client side of a connection.

    After the first key exchange (RFC 4253, section 8) the client reads no further packet until `accept_host_key`, so
    that a server whose host key is rejected gets no byte after our NEWKEYS, whatever it sends.

    Attributes:
        presented_key: The host key or certificate that the server presented, in the SSH wire format.
        host_key_algorithms: The host key algorithms that the server offers (RFC 4253, section 7.1).
    """

    #: The overrides that paramiko calls during every first key exchange.
    OVERRIDES = frozenset(
        [
            "preferred_keys",
            "_really_parse_kex_init",
            "_parse_kex_init",
            "_verify_key",
            "_parse_newkeys",
            "_send_message",
        ]
    )

    _kex_info: ClassVar[dict[str, Any]] = {**getattr(paramiko.Transport, "_kex_info", {}), **_ADDED_KEX}
    _key_info: ClassVar[dict[str, Any]] = {**getattr(paramiko.Transport, "_key_info", {}), **_ADDED_KEY_TYPES}

    packetizer: BoundedPacketizer
    auth_handler: UserAuthHandler  # None until `request_userauth`

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.presented_key = b""
        self.host_key_algorithms: tuple[str, ...] = ()
        self._kex_name = ""
        self._server_kexinit: dict[str, Any] = {}
        self._is_host_key_accepted = False
        self._host_key_decided = threading.Event()
        self._userauth_started = threading.Event()
        silence_after_fork(self, owned=True)
        self._handler_table[MSG_SERVICE_ACCEPT] = self._handle_service_accept
        unknown = frozenset(range(256)).difference(MSG_NAMES)  # paramiko raises KeyError for these
        self._handler_table.update(dict.fromkeys(unknown, self._reply_unimplemented))

    def run(self) -> None:
        """Receive until the connection ends; paramiko calls this in a thread."""
        try:
            with contextlib.suppress(OSError):  # of close(2), its last step
                super().run()
        finally:
            packets: Any = self.packetizer
            if isinstance(packets, BoundedPacketizer):  # see `require_overrides`
                packets.free_buffer()

    @property
    def preferred_keys(self) -> tuple[str, ...]:
        """The host key algorithms to offer, exactly (paramiko would append a certificate type for each)."""
        self.overrides_run.add("preferred_keys")
        return tuple(self._preferred_keys)

    # The key exchange.

    def _really_parse_kex_init(self, m: Message, ignore_first_byte: bool = False) -> dict[str, Any]:
        self.overrides_run.add("_really_parse_kex_init")
        self._server_kexinit = super()._really_parse_kex_init(m, ignore_first_byte)
        self.host_key_algorithms = tuple(self._server_kexinit["server_key_algo_list"])
        return self._server_kexinit

    def _parse_kex_init(self, m: Message) -> None:
        self.overrides_run.add("_parse_kex_init")
        try:
            super()._parse_kex_init(m)
        except IncompatiblePeer as exc:
            kind, offered = self._find_unmatched_kind()
            text = f"{exc}; the server offers {', '.join(offered) or 'none'}" if kind else str(exc)
            raise NoCommonAlgorithm(kind, text) from exc

    def _find_unmatched_kind(self) -> tuple[str, Sequence[str]]:
        """Return the first kind of algorithm with no match (RFC 4253, section 7.1), and what the server offers for it.

        "" and () if every kind has one.
        """
        ours = self.get_security_options()
        for kind, accepted, lists in (
            ("kex", ours.kex, ["kex_algo_list"]),
            ("host key", ours.key_types, ["server_key_algo_list"]),
            ("cipher", ours.ciphers, ["client_encrypt_algo_list", "server_encrypt_algo_list"]),
            ("mac", ours.digests, ["client_mac_algo_list", "server_mac_algo_list"]),
        ):
            for name in lists:
                offered = self._server_kexinit.get(name, ())
                if set(accepted).isdisjoint(offered):
                    return kind, offered
        return "", ()

    def _verify_key(self, host_key: bytes, sig: bytes) -> None:
        """Verify the signature, and that key and signature have the negotiated types (RFC 4253, section 8)."""
        self.overrides_run.add("_verify_key")
        negotiated = self.host_key_type or ""
        presented, signature = Message(host_key).get_text(), Message(sig).get_text()
        if presented != signing_key_type(negotiated) or signature != plain_algorithm(negotiated):
            raise PeerViolation(
                f"a {presented!r} host key with a {signature!r} signature, although {negotiated!r} was negotiated"
            )
        if self.presented_key and host_key != self.presented_key:
            raise PeerViolation("a different host key in the middle of a connection")
        super()._verify_key(host_key, sig)
        self.presented_key = host_key
        engine = type(self.kex_engine)
        self._kex_name = next((name for name, kind in self._kex_info.items() if kind is engine), engine.__name__)

    def _parse_newkeys(self, m: Message) -> None:
        self.overrides_run.add("_parse_newkeys")
        super()._parse_newkeys(m)
        while not self._is_host_key_accepted:
            self._host_key_decided.wait(0.1)
            if not self.active:
                raise EOFError
        self._send_deferred()

    def accept_host_key(self) -> None:
        """Let the connection continue; call once the presented key is verified to be the host's."""
        self._is_host_key_accepted = True
        self._host_key_decided.set()

    def require_overrides(self, *, after_login: bool = False) -> None:
        """Raise `NotAvailable` if paramiko has bypassed an override that our checks depend on.

        Args:
            after_login: Whether authentication is done, so that `_auth_trigger` must have run as well.
        """
        packets: Any = self.packetizer
        if not isinstance(packets, BoundedPacketizer) or not isinstance(self._channels, BufferedChannels):
            refuse_paramiko("does not use BoundedPacketizer and BufferedChannels")
        bypassed = (self.OVERRIDES - self.overrides_run) | (packets.OVERRIDES - packets.overrides_run)
        if after_login and not packets.may_rekey:
            bypassed |= {"_auth_trigger"}
        if bypassed:
            refuse_paramiko(f"does not call {', '.join(sorted(bypassed))}")

    @property
    def negotiated_algorithms(self) -> tuple[str, str, str]:
        """The key exchange method, host key algorithm and cipher of the last key exchange."""
        return self._kex_name, self.host_key_type or "", self.remote_cipher

    @property
    def has_strict_kex(self) -> bool:
        """Whether both sides support strict key exchange."""
        return self.agreed_on_strict_kex

    @property
    def resists_prefix_truncation(self) -> bool:
        """Whether the negotiated algorithms are safe from CVE-2023-48795.

        True with strict key exchange, with AES-GCM, and with CTR and a MAC that is not encrypt-then-MAC.
        """
        pairs = (self.local_cipher, self.local_mac), (self.remote_cipher, self.remote_mac)
        return self.has_strict_kex or all("gcm@" in cipher or "-etm@" not in str(mac) for cipher, mac in pairs)

    # Other messages.

    def _reply_unimplemented(self, m: Message) -> None:
        """Reply SSH_MSG_UNIMPLEMENTED (RFC 4253, section 11.4)."""
        reply = Message()
        reply.add_byte(cMSG_UNIMPLEMENTED)
        reply.add_int(m.seqno)
        self._send_message(reply)

    def _parse_disconnect(self, m: Message) -> None:
        reason, text = m.get_int(), m.get_binary().decode("utf-8", "replace").strip()
        self.saved_exception = Disconnected(reason, text)

    def abort(self) -> None:
        """End the connection at once, from any thread, without a message; do nothing in a forked child process."""
        if not self._owner.is_current():  # shutdown(2) would end the parent's connection
            return
        with contextlib.suppress(OSError, AttributeError):
            self.sock.shutdown(socket.SHUT_RDWR)
        for close in (self.close, self.sock.close):
            with contextlib.suppress(OSError):
                close()
        self._host_key_decided.set()  # the thread may wait for it

    def _sanitize_window_size(self, window_size: int | None) -> int:
        # paramiko makes it 32 KiB at least, which takes longer than a second at a low bandwidth limit.
        return window_size or super()._sanitize_window_size(window_size)

    def start_keepalive(self, interval: float, max_unanswered: int) -> None:
        """Detect a dead connection from now on. See `Keepalive`."""
        self.packetizer.keepalive = Keepalive(interval, max_unanswered, self._send_keepalive)

    def _send_keepalive(self) -> None:
        # During a key exchange no other message may be sent (RFC 4253, section 7.1), and the server must reply in it.
        if self.clear_to_send.is_set():
            request = Message()
            request.add_byte(cMSG_GLOBAL_REQUEST)
            request.add("keepalive@openssh.com", True)
            self._send_message(request)

    # User authentication (RFC 4252). These methods run, and wait, in the caller's thread.

    def request_userauth(self) -> None:
        """Request the service ssh-userauth; the server's extensions (RFC 8308) are known afterwards.

        Raises:
            paramiko.SSHException, EOFError: If the connection ends.
        """
        request = Message()
        request.add_byte(cMSG_SERVICE_REQUEST)
        request.add("ssh-userauth")
        self._send_user_message(request)
        while not self._userauth_started.wait(0.1):
            if not self.is_active():
                raise self.get_exception() or EOFError()
        self.auth_handler = UserAuthHandler(self)

    def _handle_service_accept(self, m: Message) -> None:
        if m.get_text() == "ssh-userauth":
            self._userauth_started.set()

    def _auth_trigger(self) -> None:
        super()._auth_trigger()
        self.packetizer.may_rekey = True

    @property
    def server_signature_algorithms(self) -> tuple[str, ...] | None:
        """The server's server-sig-algs for user keys (RFC 8308, section 3.1); None if it sent none."""
        value = self.server_extensions.get("server-sig-algs")
        if value is None:
            return None
        text = value if isinstance(value, str) else bytes(value).decode("ascii", "replace")
        return tuple(text.split(","))

    def authenticate_with_key(
        self, user: str, algorithm: str, key: bytes, sign: Callable[[bytes], bytes], *, probe_first: bool = False
    ) -> list[str]:
        """Send a publickey request (RFC 4252, section 7).

        Args:
            user: The remote user.
            algorithm: The signature algorithm.
            key: The public key or certificate in the SSH wire format.
            sign: Returns the signature of its argument in the SSH wire format. If it raises, no signature is sent.
            probe_first: Whether to ask first whether the server would accept the key (RFC 4252, section 7), so that no
                user touches a token in vain.

        Returns:
            The methods that the server wants in addition; empty if the user is logged in.

        Raises:
            paramiko.AuthenticationException: If the server refuses; `paramiko.BadAuthenticationType` has the methods
                that it offers.
            paramiko.SSHException, EOFError, OSError: If the connection ends.
        """
        if probe_first and not self.auth_handler.probe_key(user, algorithm, key):
            return []
        request = userauth_request(user, "publickey", True, algorithm, key)
        signed = Message()
        signed.add_string(self.session_id or b"")
        request.add_string(sign(signed.asbytes() + request.asbytes()))
        return self.auth_handler.request(user, "publickey", request)

    def authenticate_with_password(self, user: str, password: str) -> list[str]:
        """Send a password request (RFC 4252, section 8). See `authenticate_with_key`."""
        return self.auth_handler.request(user, "password", userauth_request(user, "password", False, password))


def server_version(transport: paramiko.Transport) -> str:
    """Return the server's identification string (RFC 4253, section 4.2); "" until it arrives."""
    return transport.remote_version


def make_transport(
    sock: Any, limits: Limits, window: int, max_packet: int, algorithms: Algorithms | None = None, *, peer: str = ""
) -> ClientTransport:
    """Return a transport on *sock*; nothing is sent yet.

    Args:
        sock: A connected socket, or an object with its methods.
        limits: Bounds for what the server sends.
        window: The window of each channel, in bytes.
        max_packet: The largest piece of channel data in one packet, in bytes.
        algorithms: The algorithms to offer, which are among `supported_algorithms`; None for all of these.
        peer: The name in log lines.

    Raises:
        NotAvailable: If the installed paramiko lacks what we need.
        OSError: If the socket fails.
    """
    check_paramiko()
    with contextlib.suppress(OSError, AttributeError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    algorithms = algorithms or supported_algorithms()
    packetizer: Any = functools.partial(
        BoundedPacketizer, limits=limits, rekey_bytes=algorithms.rekey_bytes, rekey_seconds=algorithms.rekey_seconds
    )
    transport = ClientTransport(
        sock, default_window_size=window, default_max_packet_size=max_packet, packetizer_class=packetizer
    )
    security = transport.get_security_options()
    security.kex, security.key_types = algorithms.kex, algorithms.host_keys
    security.ciphers, security.digests = algorithms.ciphers, algorithms.macs
    log = ParamikoLog(peer)
    log.attach_to_transport(transport)
    transport._channels = BufferedChannels(transport.packetizer, window, limits.stderr_bytes, log)
    # The watchdog bounds every wait and reports what it was for; paramiko's own time limits would end slow connections.
    transport.auth_timeout = None
    transport.clear_to_send_timeout = transport.channel_timeout = math.inf
    return transport


def supported_algorithms() -> Algorithms:
    """Return those of our algorithms that the installed paramiko supports.

    Raises:
        NotAvailable: If the installed paramiko lacks what we need.
    """
    check_paramiko()
    ours, theirs = Algorithms(), ClientTransport
    return Algorithms(
        kex=tuple(name for name in ours.kex if name in theirs._kex_info),
        host_keys=tuple(name for name in ours.host_keys if name in theirs._key_info),
        ciphers=tuple(name for name in ours.ciphers if name in theirs._cipher_info),
        macs=tuple(name for name in ours.macs if name in theirs._mac_info),
    )

"""Misbehaving SSH servers: raw sockets, which get no further than the first packets, and servers of paramiko."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import paramiko

from peerstage import SSHOptions

Handler = Callable[[socket.socket], None]


#: The logger of paramiko's servers, apart from that of paramiko's clients.
LOGGER = "server"


@contextlib.contextmanager
def listening(handler: Handler, server: socket.socket | None = None) -> Iterator[int]:
    """Serve every connection with *handler* in a thread of its own; yield the port.

    Args:
        handler: Called with each connection, which is closed afterwards.
        server: A bound socket; by default a new one on the loopback address.
    """
    server = server or socket.create_server(("127.0.0.1", 0))
    server.listen()
    stopped = threading.Event()
    threads: list[threading.Thread] = []
    open_socks: list[socket.socket] = []

    def serve(sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            handler(sock)

    def accept() -> None:
        while not stopped.is_set():
            try:
                sock, _ = server.accept()
            except OSError:
                return
            open_socks.append(sock)
            thread = threading.Thread(target=serve, args=(sock,), daemon=True)
            threads.append(thread)
            thread.start()

    acceptor = threading.Thread(target=accept, daemon=True)
    acceptor.start()
    try:
        yield server.getsockname()[1]
    finally:
        stopped.set()
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
        server.close()
        for sock in open_socks:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        for thread in [acceptor, *threads]:
            thread.join(10)


def options_for(port: int, host_key: paramiko.PKey, **options: Any) -> SSHOptions:
    """Return options to connect to a server on that port of 127.0.0.1, by default without agent and configuration."""
    known = f"[127.0.0.1]:{port} {host_key.get_name()} {host_key.get_base64()}\n".encode()
    values = {"known_hosts": known, "config": (), "agent": False, **options}
    return SSHOptions(port=port, **values)


def in_turn(*handlers: Handler) -> Handler:
    """Return a handler that calls *handlers* in turn, one per connection, and then always the last one."""
    remaining = list(handlers)
    return lambda sock: (remaining.pop(0) if len(remaining) > 1 else remaining[0])(sock)


def count_connections(handler: Handler) -> tuple[Handler, list[socket.socket]]:
    """Return a handler that calls *handler*, and the list of its connections so far."""
    served: list[socket.socket] = []

    def count(sock: socket.socket) -> None:
        served.append(sock)
        handler(sock)

    return count, served


# Raw servers.


def sends_nothing(sock: socket.socket) -> None:
    """Accept, and send nothing."""
    while sock.recv(1024):
        pass


def closes_at_once(sock: socket.socket) -> None:
    """Accept, and close the connection."""


def resets_connection(sock: socket.socket) -> None:
    """Accept, and reset the connection, like a relay whose target is down."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def rejects_address(sock: socket.socket) -> None:
    """Send a reason and close the connection, as OpenSSH does from 9.8 on (PerSourcePenalties)."""
    sock.sendall(b"Not allowed at this time\r\n")


def sends_endless_line(sock: socket.socket) -> None:
    """Send a first line without end."""
    while True:
        sock.sendall(b"x" * 4096)


def sends_endless_lines(sock: socket.socket) -> None:
    """Send lines forever, and no identification string."""
    while True:
        sock.sendall(b"hello\r\n" * 100)


def speaks_http(sock: socket.socket) -> None:
    """Reply as a web server."""
    sock.recv(1024)
    sock.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")


def sends_a_huge_packet(sock: socket.socket) -> None:
    """Announce a packet of 4 GiB before the key exchange."""
    sock.sendall(b"SSH-2.0-huge\r\n" + struct.pack(">IB", 0xFFFFFFFF, 4))
    while True:
        sock.sendall(b"\0" * 65536)


def stops_after_identification(sock: socket.socket) -> None:
    """Send an identification string, and nothing after it."""
    sock.sendall(b"SSH-2.0-silent\r\n")
    sends_nothing(sock)


def stops_after_kexinit(sock: socket.socket) -> None:
    """Send SSH_MSG_KEXINIT, and nothing after it."""
    sock.sendall(b"SSH-2.0-silent\r\n")
    names = [b"curve25519-sha256@libssh.org", b"ssh-ed25519", *[b"aes128-gcm@openssh.com"] * 2, *[b"hmac-sha2-256"] * 2,
             b"none", b"none", b"", b""]  # fmt: skip
    body = b"\x14" + b"\0" * 16 + b"".join(struct.pack(">I", len(n)) + n for n in names) + b"\0" * 5
    padding = 8 - (len(body) + 5) % 8 + 8
    sock.sendall(struct.pack(">IB", len(body) + padding + 1, padding) + body + b"\0" * padding)
    sends_nothing(sock)


# Servers of paramiko.


class Policy(paramiko.ServerInterface):
    """Accepts every login and channel, and serves nothing."""

    password = "sesame"

    def get_allowed_auths(self, username: str) -> str:
        return "publickey,password"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        return paramiko.AUTH_SUCCESSFUL

    def check_auth_password(self, username: str, password: str) -> int:
        return paramiko.AUTH_SUCCESSFUL if password == self.password else paramiko.AUTH_FAILED

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return paramiko.OPEN_SUCCEEDED

    def check_channel_subsystem_request(self, channel: paramiko.Channel, name: str) -> bool:
        threading.Thread(target=self.serve, args=(channel,), daemon=True).start()
        return True

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        timer = threading.Timer(0.05, self.serve, args=(channel,))  # after the reply to the request
        timer.daemon = True
        timer.start()
        return True

    def serve(self, channel: paramiko.Channel) -> None:
        """Serve a channel after its request was accepted."""


class PasswordOnly(Policy):
    """Accepts a password and no key."""

    def get_allowed_auths(self, username: str) -> str:
        return "password"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        return paramiko.AUTH_FAILED


class RefusesEverybody(Policy):
    """Refuses every login."""

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        return paramiko.AUTH_FAILED

    def check_auth_password(self, username: str, password: str) -> int:
        return paramiko.AUTH_FAILED


class RefusesChannels(Policy):
    """Refuses every channel."""

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return paramiko.OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED


class RefusesSubsystems(Policy):
    """Has no SFTP."""

    def check_channel_subsystem_request(self, channel: paramiko.Channel, name: str) -> bool:
        return False


class FloodsStderr(Policy):
    """Sends stderr without end."""

    def serve(self, channel: paramiko.Channel) -> None:
        with contextlib.suppress(OSError, EOFError):
            while True:
                channel.sendall_stderr(b"noise " * 1000)


class SendsBytesOneByOne(Policy):
    """Sends packets of one byte without end."""

    def serve(self, channel: paramiko.Channel) -> None:
        with contextlib.suppress(OSError, EOFError):
            while True:
                channel.sendall(b"\0")


class IgnoresTheWindow(Policy):
    """Sends more than the window allows."""

    def serve(self, channel: paramiko.Channel) -> None:
        with contextlib.suppress(OSError, EOFError):
            while True:
                channel.out_window_size = 1 << 30
                channel.sendall(b"\0" * 32768)


class NeverStarts(Policy):
    """Accepts the subsystem, and sends nothing."""


class EndsAtOnce(Policy):
    """Accepts the subsystem, and closes the channel."""

    def serve(self, channel: paramiko.Channel) -> None:
        channel.close()


class RefusesCommands(Policy):
    """Refuses every command."""

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        return False


class SendsAFile(Policy):
    """Sends a file as scp does, and an exit status."""

    status = 0

    def serve(self, channel: paramiko.Channel) -> None:
        channel.sendall(b"C0644 5 name\n12345\0")
        self.end(channel)

    def end(self, channel: paramiko.Channel) -> None:
        channel.send_exit_status(self.status)
        channel.close()


class FailsAfterAFile(SendsAFile):
    """Sends a whole file, and exit status 1."""

    status = 1


class ClosesWithoutStatus(SendsAFile):
    """Sends a whole file, and closes the channel without an exit status."""

    def end(self, channel: paramiko.Channel) -> None:
        channel.close()


class KeepsChannelOpen(SendsAFile):
    """Sends a whole file, and keeps the channel open."""

    def end(self, channel: paramiko.Channel) -> None:
        pass


class SendsEofWithoutStatus(SendsAFile):
    """Sends a whole file and EOF, and keeps the channel open."""

    def end(self, channel: paramiko.Channel) -> None:
        channel.shutdown_write()


class SendsSlowly(Policy):
    """Sends a file byte by byte, with pauses."""

    def serve(self, channel: paramiko.Channel) -> None:
        with contextlib.suppress(OSError, EOFError):
            channel.sendall(b"C0644 1000000 name\n")
            while True:
                channel.sendall(b"x")
                time.sleep(0.2)


def paramiko_handler(
    policy: type[Policy] = Policy,
    *,
    key: paramiko.PKey,
    prepare: Callable[[Any], object] | None = None,
    after_login: Callable[[paramiko.Transport], object] | None = None,
    **options: Any,
) -> Handler:
    """Return a handler that serves by *policy*; *prepare* may change the transport before it starts."""

    def handle(sock: socket.socket) -> None:
        transport = paramiko.Transport(sock, **options)
        transport.set_log_channel(LOGGER)
        transport.add_server_key(key)
        if prepare is not None:
            prepare(transport)
        done = threading.Event()
        transport.start_server(event=done, server=policy())
        while transport.is_active():
            if transport.is_authenticated() and after_login is not None:
                after_login(transport)
            transport.join(0.05)
        transport.packetizer.complete_handshake()  # cancels its timer
        transport.join(5)

    return handle

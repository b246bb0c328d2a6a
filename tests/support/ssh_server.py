"""SSH servers that misbehave: raw ones, which speak no further than the first packets, and ones made of paramiko's."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import paramiko

Handler = Callable[[socket.socket], None]


#: What servers made of paramiko's log to, and not where a client that uses paramiko might.
LOGGER = "server"


@contextlib.contextmanager
def listening(handler: Handler, server: socket.socket | None = None) -> Iterator[int]:
    """Serve every connection to *server*, or to a socket of its own, with *handler* in a thread; yield the port."""
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


def in_turn(*handlers: Handler) -> Handler:
    """Return a handler that serves a connection with each of *handlers*, and all the others with the last of them."""
    left = list(handlers)
    return lambda sock: (left.pop(0) if len(left) > 1 else left[0])(sock)


def counting(handler: Handler) -> tuple[Handler, list[socket.socket]]:
    """Return *handler*, and the list of the connections that it has served."""
    served: list[socket.socket] = []

    def count(sock: socket.socket) -> None:
        served.append(sock)
        handler(sock)

    return count, served


# Raw servers, a sentence each.


def never_speaks(sock: socket.socket) -> None:
    """Accepts, and is silent."""
    while sock.recv(1024):
        pass


def closes_at_once(sock: socket.socket) -> None:
    """Accepts, and hangs up."""


def resets(sock: socket.socket) -> None:
    """Accepts, and resets the connection, as a relay does that finds nobody behind it."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def turns_away(sock: socket.socket) -> None:
    """Says why it wants nothing of this address, and hangs up, as OpenSSH does from 9.8 on (PerSourcePenalties)."""
    sock.sendall(b"Not allowed at this time\r\n")


def speaks_without_end(sock: socket.socket) -> None:
    """Sends a first line that has no end."""
    while True:
        sock.sendall(b"x" * 4096)


def greets_without_end(sock: socket.socket) -> None:
    """Sends lines for ever, and never its identification."""
    while True:
        sock.sendall(b"hello\r\n" * 100)


def speaks_http(sock: socket.socket) -> None:
    """Is a web server."""
    sock.recv(1024)
    sock.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")


def sends_a_huge_packet(sock: socket.socket) -> None:
    """Announces a packet of 4 GiB before anybody has logged in."""
    sock.sendall(b"SSH-2.0-huge\r\n" + struct.pack(">IB", 0xFFFFFFFF, 4))
    while True:
        sock.sendall(b"\0" * 65536)


def is_silent_after_its_name(sock: socket.socket) -> None:
    """Says that it is an SSH server, and nothing more."""
    sock.sendall(b"SSH-2.0-silent\r\n")
    never_speaks(sock)


def is_silent_after_kexinit(sock: socket.socket) -> None:
    """Proposes algorithms, and never goes on."""
    sock.sendall(b"SSH-2.0-silent\r\n")
    names = [b"curve25519-sha256@libssh.org", b"ssh-ed25519", *[b"aes128-gcm@openssh.com"] * 2, *[b"hmac-sha2-256"] * 2,
             b"none", b"none", b"", b""]  # fmt: skip
    body = b"\x14" + b"\0" * 16 + b"".join(struct.pack(">I", len(n)) + n for n in names) + b"\0" * 5
    padding = 8 - (len(body) + 5) % 8 + 8
    sock.sendall(struct.pack(">IB", len(body) + padding + 1, padding) + body + b"\0" * padding)
    never_speaks(sock)


# Servers of paramiko's.


class Policy(paramiko.ServerInterface):
    """Lets everybody in, opens every channel, serves nothing."""

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
        timer = threading.Timer(0.05, self.serve, args=(channel,))  # once the answer to the request is on its way
        timer.daemon = True
        timer.start()
        return True

    def serve(self, channel: paramiko.Channel) -> None:
        """What happens on a channel whose subsystem was accepted."""


class PasswordOnly(Policy):
    """Takes a password and no key."""

    def get_allowed_auths(self, username: str) -> str:
        return "password"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        return paramiko.AUTH_FAILED


class RefusesEverybody(Policy):
    """Lets nobody in."""

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        return paramiko.AUTH_FAILED

    def check_auth_password(self, username: str, password: str) -> int:
        return paramiko.AUTH_FAILED


class RefusesChannels(Policy):
    """Opens no channel."""

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return paramiko.OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED


class RefusesSubsystems(Policy):
    """Has no SFTP."""

    def check_channel_subsystem_request(self, channel: paramiko.Channel, name: str) -> bool:
        return False


class FloodsStderr(Policy):
    """Says more on stderr than anybody wants to know."""

    def serve(self, channel: paramiko.Channel) -> None:
        with contextlib.suppress(OSError, EOFError):
            while True:
                channel.sendall_stderr(b"noise " * 1000)


class SendsBytesOneByOne(Policy):
    """Fills the window with packets of a byte each."""

    def serve(self, channel: paramiko.Channel) -> None:
        with contextlib.suppress(OSError, EOFError):
            while True:
                channel.sendall(b"\0")


class IgnoresTheWindow(Policy):
    """Sends on, however little the client wants."""

    def serve(self, channel: paramiko.Channel) -> None:
        with contextlib.suppress(OSError, EOFError):
            while True:
                channel.out_window_size = 1 << 30
                channel.sendall(b"\0" * 32768)


class NeverStarts(Policy):
    """Accepts the subsystem, and says nothing."""


class EndsAtOnce(Policy):
    """Accepts the subsystem, and ends it."""

    def serve(self, channel: paramiko.Channel) -> None:
        channel.close()


class RefusesCommands(Policy):
    """Runs nothing."""

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        return False


class SendsAFile(Policy):
    """Sends a file as scp does, and ends with a status."""

    status = 0

    def serve(self, channel: paramiko.Channel) -> None:
        channel.sendall(b"C0644 5 name\n12345\0")
        self.leave(channel)

    def leave(self, channel: paramiko.Channel) -> None:
        channel.send_exit_status(self.status)
        channel.close()


class FailsAfterAFile(SendsAFile):
    """Sends a whole file, and says that something went wrong."""

    status = 1


class LeavesWithoutAStatus(SendsAFile):
    """Sends a whole file, and nothing about how it ended."""

    def leave(self, channel: paramiko.Channel) -> None:
        channel.close()


class NeverLeaves(SendsAFile):
    """Sends a whole file, and keeps the channel open."""

    def leave(self, channel: paramiko.Channel) -> None:
        pass


class NeverSaysHowItEnded(SendsAFile):
    """Sends a whole file and the end of the stream, and keeps the channel open."""

    def leave(self, channel: paramiko.Channel) -> None:
        channel.shutdown_write()


class Drips(Policy):
    """Sends a file a byte at a time, with long pauses."""

    def serve(self, channel: paramiko.Channel) -> None:
        with contextlib.suppress(OSError, EOFError):
            channel.sendall(b"C0644 1000000 name\n")
            while True:
                channel.sendall(b"x")
                time.sleep(0.2)


def made_of_paramiko(
    policy: type[Policy] = Policy,
    *,
    key: paramiko.PKey,
    prepare: Callable[[Any], object] | None = None,
    after_login: Callable[[paramiko.Transport], object] | None = None,
    **options: Any,
) -> Handler:
    """Return a handler that serves by *policy*; *prepare* may bend the transport before it starts."""

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
        transport.packetizer.complete_handshake()  # ends its timer
        transport.join(5)

    return handle

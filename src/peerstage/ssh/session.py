"""`Session`: an authenticated SSH connection to one peer."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

import paramiko

from peerstage.errors import ConfigurationError, ConnectError, NoSFTP, RemoteError, StageError
from peerstage.forks import OwnerProcess
from peerstage.printable import escape
from peerstage.reasons import Reason
from peerstage.ssh._paramiko.channels import (
    enlarge_window,
    replace_buffers,
    require_bounded_buffers,
    set_window,
    was_refused,
)
from peerstage.ssh._paramiko.client_transport import ClientTransport, server_version
from peerstage.ssh._paramiko.forks import silence_after_fork
from peerstage.ssh._paramiko.self_check import check_paramiko
from peerstage.ssh.config.destination import Destination
from peerstage.ssh.connect.client_connection import MAX_PACKET_SIZE, open_client_connection, window_size
from peerstage.ssh.connect.underlying import UnderlyingConnection
from peerstage.ssh.handshake import verify_and_log_in
from peerstage.ssh.hostkeys.verifier import HostKeyVerifier
from peerstage.ssh.keys.public_keys import fingerprint
from peerstage.ssh.options import SSHOptions
from peerstage.ssh.paramiko_errors import translate_exception
from peerstage.ssh.steps import OnStep, ignore_step
from peerstage.ssh.stream import MAX_FORWARDING_WINDOW_SIZE, ChannelSocket, ChannelStream, Stream
from peerstage.watchdog import Watchdog

#: Seconds in which to retry a refused channel, since the server may not have closed the previous one yet.
_CHANNEL_RETRY_SECONDS = 2.0
#: Seconds that paramiko waits longer than the watchdog, whose errors are more precise.
_AFTER_WATCHDOG = 1.0
_JOIN_SECONDS = 2.0
#: SSH_OPEN_ADMINISTRATIVELY_PROHIBITED (RFC 4254, section 5.1).
_PROHIBITED = 1


class Session:
    """An SSH connection after the login. Made by `connect`.

    A session belongs to one thread, and to the process that made it, not to a fork of it. After any error but a
    `RemoteError`, only `close` is allowed, which always succeeds.

    Attributes:
        fingerprint: SHA-256 fingerprint of the host key that the peer presented.
    """

    def __init__(
        self,
        transport: paramiko.Transport,
        watchdog: Watchdog,
        *,
        fingerprint: str,
        underlying: UnderlyingConnection | None = None,
    ) -> None:
        self.fingerprint = fingerprint
        self._underlying = underlying
        self._transport = transport
        self._own_transport = transport if isinstance(transport, ClientTransport) else None
        self._watchdog = watchdog
        self._owner = OwnerProcess()
        self._streams: list[Stream] = []
        self._has_opened_channel = False
        self._lost: StageError | None = None
        watchdog.add_callback(self._abort)

    @classmethod
    def connect(
        cls,
        destination: Destination,
        options: SSHOptions,
        *,
        watchdog: Watchdog,
        depth: int = 0,
        on_step: OnStep = ignore_step,
    ) -> Session:
        """Connect, through jump hosts if configured, verify the host key, and log in.

        Args:
            destination: The host.
            options: The options that *destination* was resolved from.
            watchdog: Enforces the time limits; its limits also bound what the peer, and each jump host, sends.
            depth: The number of jump hosts that depend on this session.
            on_step: Called after each step, except those of jump hosts.

        Raises:
            ConnectError: If there is no connection.
            HostKeyError: If the key is unknown, changed or revoked; nothing was sent after the key exchange.
            LoginError: If the server refuses every credential.
            ProtocolError: If the server violates the SSH protocol.
            NotAvailable: If the installed paramiko is not supported.
            ConfigurationError: If SSHOptions(sock=...) is closed or not logged in, SSHOptions(pkey=...) cannot be used,
                or a jump host jumps through itself.
            LimitExceeded, Cancelled: If it takes too long, or is cancelled.
        """
        watchdog.reset()
        if isinstance(options.sock, paramiko.Transport):
            return cls._on_callers_transport(options.sock, watchdog)
        verifier = HostKeyVerifier.read(destination)
        connection = open_client_connection(
            destination, options, verifier, watchdog=watchdog, connect_session=cls.connect, depth=depth, on_step=on_step
        )
        transport, started = connection.transport, connection.connected_at
        with (
            connection.closed_on_failure(watchdog),
            watchdog.phase("complete the login", watchdog.limits.login_timeout, Reason.LOGIN_TIMEOUT, since=started),
        ):
            verified = verify_and_log_in(transport, destination, options, verifier, watchdog, on_step)
        if destination.server_alive_interval:
            transport.start_keepalive(destination.server_alive_interval, destination.server_alive_count_max)
        return cls(transport, watchdog, fingerprint=verified, underlying=connection.underlying)

    @classmethod
    def _on_callers_transport(cls, transport: paramiko.Transport, watchdog: Watchdog) -> Session:
        """Return a session on a transport of the caller, who has verified its host key. It is never closed here."""
        check_paramiko()
        if not (transport.is_active() and transport.is_alive() and transport.is_authenticated()):
            raise ConfigurationError(
                "SSHOptions(sock=...) is a Transport that is not logged in, or not in this process. "
                "Log in, in this process, before passing it."
            )
        silence_after_fork(transport, owned=False)
        presented = fingerprint(transport.get_remote_server_key().asbytes())
        return cls(transport, watchdog, fingerprint=presented)

    @property
    def server(self) -> str:
        """The server's identification string (RFC 4253, section 4.2), such as ``SSH-2.0-OpenSSH_9.2p1``."""
        return server_version(self._transport)

    def open_direct_tcpip(self, host: str, port: int, timeout: float) -> ChannelSocket:
        """Return a channel through this jump host to *host* (RFC 4254, section 7.2); close the session on failure.

        The jump host resolves *host*. *timeout* is in seconds.

        Raises:
            ConnectError: If the jump host cannot connect there, or does not forward connections.
            ConnectionLost, LimitExceeded, Cancelled: If the connection ends, takes too long, or is cancelled.
        """
        window = min(MAX_FORWARDING_WINDOW_SIZE, window_size(self._watchdog.limits))
        try:
            with self._watchdog.phase(
                f"answer at {escape(host)} port {port} through the jump host", timeout, Reason.CONNECT_TIMEOUT
            ):
                channel = self._transport.open_channel(
                    "direct-tcpip",
                    (host, port),
                    ("127.0.0.1", 0),
                    window_size=window,
                    max_packet_size=MAX_PACKET_SIZE,
                )
            require_bounded_buffers(channel)
        except paramiko.ChannelException as exc:
            self.close()
            if exc.code == _PROHIBITED:
                reason = Reason.FORWARDING_REFUSED
                advice = "Allow it in the jump host's sshd_config (AllowTcpForwarding, PermitOpen)."
            else:
                reason = Reason.HOP_CANNOT_CONNECT
                advice = "Check that the peer is up, and that its sshd listens on this port."
            text = exc.text or exc
            raise ConnectError(
                f"The jump host cannot connect to {host} port {port}: {text}. {advice}", reason=reason
            ) from exc
        except Exception as exc:
            failure = self._failure_of(exc)
            self.close()
            raise failure from exc
        set_window(channel, window)
        return ChannelSocket(channel)

    def open_subsystem(self, name: str) -> Stream:
        """Return a stream to the subsystem *name* (RFC 4254, section 6.5).

        Raises:
            RemoteError: If the peer refuses the channel.
            NoSFTP: If it has no such subsystem.
            ConnectionLost, LimitExceeded, Cancelled: If the connection ends, takes too long, or is cancelled.
        """
        refused = NoSFTP(
            f"The peer offers no {name} subsystem. Add `Subsystem sftp internal-sftp` to its sshd_config and restart "
            "its sshd, or choose the transport scp."
        )
        return self._open(f"open the {name} subsystem", lambda channel: channel.invoke_subsystem(name), refused)

    def open_command(self, command: bytes, *, merge_stderr: bool = False) -> Stream:
        """Return a stream to *command*, which the peer's shell runs (RFC 4254, section 6.5).

        Raises:
            RemoteError: If the peer refuses the channel or the command.
            ConnectionLost, LimitExceeded, Cancelled: If the connection ends, takes too long, or is cancelled.
        """
        refused = RemoteError(
            "The peer does not let this login run commands. Check its authorized_keys and sshd_config.",
            reason=Reason.COMMAND_REFUSED,
        )

        def request(channel: paramiko.Channel) -> None:
            channel.set_combine_stderr(merge_stderr)
            channel.exec_command(command)

        return self._open("start the command", request, refused)

    def _open(self, action: str, request: Callable[[paramiko.Channel], object], refused: StageError) -> Stream:
        """Open a channel, send *request* on it, and return its stream; raise *refused* if the server refuses it."""
        self.require_same_process()
        with self._watchdog.phase(action, self._watchdog.limits.reply_timeout, Reason.REPLY_TIMEOUT):
            channel = self._open_channel()
            try:
                with self._watchdog.on_failure(channel.close):
                    request(channel)
            except Exception as exc:
                is_refusal = was_refused(channel)
                with contextlib.suppress(Exception):  # a channel that fails to close ends with its connection
                    channel.close()
                if is_refusal and self._watchdog.failure is None:
                    raise refused from exc
                raise self._failure_of(exc) from exc
        stream = ChannelStream(channel, self._watchdog, self._failure_of)
        self._streams.append(stream)
        return stream

    def _open_channel(self) -> paramiko.Channel:
        """Open a channel; retry for a while, since the server may still count the previous one (``MaxSessions 1``).

        With a bandwidth limit, the channel's window bounds what the server sends ahead (RFC 4254, section 5.2).
        """
        until = time.monotonic() + (_CHANNEL_RETRY_SECONDS if self._has_opened_channel else 0.0)
        # The watchdog ends a wait by closing the connection, but not the caller's: paramiko's time limit applies there.
        timeout = None if self._own_transport is not None else self._watchdog.limits.reply_timeout + _AFTER_WATCHDOG
        bandwidth = self._watchdog.bandwidth
        max_window = window_size(self._watchdog.limits)
        window = max_window if bandwidth is None else min(max_window, bandwidth.max_in_flight())
        while True:
            sent_at = time.monotonic()
            try:
                channel = self._transport.open_session(window, MAX_PACKET_SIZE, timeout)
                break
            except paramiko.ChannelException as exc:
                if time.monotonic() > until or not self._transport.is_active():
                    raise self._failure_of(exc) from exc
                self._watchdog.sleep(0.1)
            except Exception as exc:
                raise self._failure_of(exc) from exc
        self._has_opened_channel = True
        self._streams[:] = [stream for stream in self._streams if not stream.is_closed]
        if self._own_transport is None:
            replace_buffers(channel, window, self._watchdog.limits.stderr_bytes)
        require_bounded_buffers(channel)
        if bandwidth is not None:
            round_trip = time.monotonic() - sent_at
            enlarge_window(channel, min(max_window, bandwidth.max_in_flight(round_trip)))
        return channel

    def _failure_of(self, exc: BaseException | None) -> StageError:
        """Return the first error that ended the connection; *exc* translated if the connection is alive."""
        if self._watchdog.failure is not None:
            return self._watchdog.failure
        if self._lost is not None:
            return self._lost
        if self._transport.is_active():  # only the channel failed
            return translate_exception(exc, logged_in=True)
        self._lost = self.add_command_output(
            translate_exception(self._transport.get_exception() or exc, logged_in=True)
        )
        return self._lost

    def add_command_output(self, failure: StageError) -> StageError:
        """Return *failure* with the output of the ProxyCommand, if there is one."""
        return failure if self._underlying is None else self._underlying.add_command_output(failure, logged_in=True)

    def _abort(self) -> None:
        """End every wait at once, in any thread: abort our connection, or close the channels on the caller's."""
        if self._own_transport is not None:
            self._own_transport.abort()
        elif self._owner.is_current():
            for stream in list(self._streams):
                stream.close()

    def close(self) -> None:
        """Close the connection, or only our channels on the caller's; do nothing in a forked child process."""
        if not self._owner.is_current():
            return
        self._watchdog.remove_callback(self._abort)
        self._abort()
        if self._own_transport is not None and self._own_transport is not threading.current_thread():
            self._own_transport.join(_JOIN_SECONDS)
            for stream in self._streams:
                stream.close()
        if self._underlying is not None:
            self._underlying.close()

    def require_same_process(self) -> None:
        """Raise `StageError` if this process was forked from the one that made the session."""
        self._owner.require_current()

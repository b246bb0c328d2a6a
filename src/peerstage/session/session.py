"""`Session`: an authenticated SSH connection to one peer."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from typing import Any, cast

import paramiko

from peerstage.errors import ConfigurationError, ConnectError, NoSFTP, RemoteError, StageError, escape
from peerstage.reasons import Reason
from peerstage.records import Limits
from peerstage.session import jump
from peerstage.session._paramiko.channels import replace_buffers, was_refused
from peerstage.session._paramiko.forks import keep_to_this_process
from peerstage.session._paramiko.transport import watch_liveness
from peerstage.session.config import Destination
from peerstage.session.handshake import Note, log_in, say_nothing
from peerstage.session.host_key import HostKeys
from peerstage.session.jump import ChannelSocket
from peerstage.session.known_hosts import fingerprint
from peerstage.session.mapping import translate
from peerstage.session.options import SSHOptions
from peerstage.session.reach import PACKET, WINDOW, Ending, reach
from peerstage.session.stream import ChannelStream, Stream
from peerstage.session.watchdog import Watchdog
from peerstage.session.way import Way

#: Seconds that a peer gets to notice that an earlier channel is closed, before its refusal of another is believed.
_CHANNEL_PATIENCE = 2.0
#: Seconds that paramiko waits longer than the watchdog, which says what was waited for.
_AFTER_WATCHDOG = 1.0
#: SSH_OPEN_ADMINISTRATIVELY_PROHIBITED (RFC 4254, 5.1).
_PROHIBITED = 1


class Session:
    """An SSH connection, logged in. Made by `connect`.

    Attributes:
        fingerprint: SHA-256 fingerprint of the host key that the peer showed.

    A session belongs to one thread. It can not be used in a process forked from the one that made it. After any failure
    it is good for nothing but `close`, which always succeeds.
    """

    def __init__(
        self,
        transport: paramiko.Transport,
        watchdog: Watchdog,
        limits: Limits,
        *,
        owned: bool,
        fingerprint: str,
        way: Way | None = None,
    ) -> None:
        self.fingerprint = fingerprint
        self._way = way
        self._transport = transport
        self._watchdog = watchdog
        self._limits = limits
        self._owned = owned
        self._process = os.getpid()
        self._streams: list[Stream] = []
        self._opened = False
        self._lost: StageError | None = None
        self._end = Ending(transport if owned else None, self._streams)
        watchdog.attach(self._end)

    @classmethod
    def connect(
        cls,
        destination: Destination,
        options: SSHOptions,
        *,
        limits: Limits,
        watchdog: Watchdog,
        depth: int = 0,
        note: Note = say_nothing,
    ) -> Session:
        """Connect, through as many hops as that takes, check the host key, log in.

        Args:
            destination: Where to.
            options: What `destination` was made of.
            limits: Bounds for what the peer may send, and each hop.
            watchdog: Ends it.
            depth: How many hops lie behind this one.
            note: Told of each step that is done, hops' steps excepted.

        Raises:
            ConnectError: No SSH connection came about.
            HostKeyError: The key is unknown, changed or revoked; nothing was sent after the key exchange.
            LoginError: Every way to log in was refused.
            ProtocolError: What answers does not speak SSH as it should.
            LimitExceeded, Cancelled: It took too long, or was cancelled.
        """
        watchdog.renew()
        if isinstance(options.sock, paramiko.Transport):
            return cls._over(options.sock, watchdog, limits)
        hosts = HostKeys.read(destination)
        reached = reach(
            destination, options, hosts, limits=limits, watchdog=watchdog, connect=cls.connect, depth=depth, note=note
        )
        transport = reached.transport
        since = reached.since
        with (
            reached.watched(watchdog),
            watchdog.phase("complete the login", limits.login_timeout, Reason.LOGIN_TIMEOUT, since=since),
        ):
            shown = log_in(transport, destination, options, hosts, watchdog, note)
        if destination.alive_interval:
            watch_liveness(transport, destination.alive_interval, destination.alive_count)
        return cls(transport, watchdog, limits, owned=True, fingerprint=shown, way=reached.way)

    @classmethod
    def _over(cls, transport: paramiko.Transport, watchdog: Watchdog, limits: Limits) -> Session:
        """Use a connection of the caller's. It is trusted as it is, and never closed."""
        if not (transport.is_active() and transport.is_alive() and transport.is_authenticated()):
            raise ConfigurationError(
                "SSHOptions(sock=...) is a Transport that is not logged in, or that was before a fork. Log in first."
            )
        keep_to_this_process(transport, owned=False)
        shown = fingerprint(transport.get_remote_server_key().asbytes())
        return cls(transport, watchdog, limits, owned=False, fingerprint=shown)

    @property
    def server(self) -> str:
        """The server's identification string (RFC 4253, 4.2), such as ``SSH-2.0-OpenSSH_9.2p1``."""
        return str(self._transport.remote_version)

    def open_way(self, host: str, port: int, timeout: float) -> ChannelSocket:
        """Return a way from here to *host*, as a hop (RFC 4254, 7.2). The session is closed if there is none.

        Raises:
            ConnectError: The hop does not get there, or does not let us.
            ConnectionLost, LimitExceeded, Cancelled: The connection ended, took too long, or was ended.
        """
        try:
            with self._watchdog.phase(f"connect {escape(host)} port {port}", timeout, Reason.CONNECT_TIMEOUT):
                channel = self._transport.open_channel(
                    "direct-tcpip", (host, port), ("127.0.0.1", 0), window_size=jump.WINDOW, max_packet_size=PACKET
                )
        except paramiko.ChannelException as exc:
            self.close()
            raise ConnectError(
                f"The jump host can not connect to {host} port {port}: {exc.text or exc}. Is the peer up, is that its "
                "port, and does the jump host's AllowTcpForwarding let us?",
                reason=(Reason.FORWARDING_REFUSED if exc.code == _PROHIBITED else Reason.HOP_CANNOT_CONNECT),
            ) from exc
        except Exception as exc:
            failure = self.failure(exc)
            self.close()
            raise failure from exc
        cast(Any, channel.in_buffer).limit(jump.WINDOW)
        return ChannelSocket(channel)

    def open_subsystem(self, name: str) -> Stream:
        """Return a stream to the subsystem *name* (RFC 4254, 6.5).

        Raises:
            RemoteError: The peer refused the channel.
            NoSFTP: It has no such subsystem.
            ConnectionLost, LimitExceeded, Cancelled: The connection ended, took too long, or was ended.
        """
        refused = NoSFTP(
            f"The peer offers no {name} subsystem. Add `Subsystem sftp internal-sftp` to its sshd_config and restart "
            "its sshd, or choose the transport scp."
        )
        return self._open(f"open the {name} subsystem", lambda channel: channel.invoke_subsystem(name), refused)

    def open_command(self, command: bytes, *, merged: bool = False) -> Stream:
        """Return a stream to *command*, which the peer's shell runs (RFC 4254, 6.5), with its stderr if *merged*.

        Raises:
            RemoteError: The peer refused the channel or the command.
            ConnectionLost, LimitExceeded, Cancelled: The connection ended, took too long, or was ended.
        """
        refused = RemoteError(
            "The peer lets this login run no command. Check its authorized_keys and sshd_config.",
            reason=Reason.COMMAND_REFUSED,
        )

        def ask(channel: paramiko.Channel) -> None:
            channel.set_combine_stderr(merged)
            channel.exec_command(command)

        return self._open("run a command", ask, refused)

    def _open(self, what: str, ask: Callable[[paramiko.Channel], object], refused: StageError) -> Stream:
        """Open a channel, *ask* for what is to run on it, and return its stream; raise *refused* if that is."""
        self.require_same_process()
        with self._watchdog.phase(what, self._limits.reply_timeout, Reason.REPLY_TIMEOUT):
            channel = self._open_channel()
            try:
                with self._watchdog.ending(channel.close):
                    ask(channel)
            except Exception as exc:
                is_answer = was_refused(channel)
                with contextlib.suppress(Exception):  # it goes with its connection, then
                    channel.close()
                if is_answer and self._watchdog.failure is None:
                    raise refused from exc
                raise self.failure(exc) from exc
        stream = ChannelStream(channel, self._watchdog, self.failure)
        self._streams.append(stream)
        return stream

    def _open_channel(self) -> paramiko.Channel:
        """Open a channel; where one was open before, its end may not have come through yet (``MaxSessions 1``)."""
        until = time.monotonic() + (_CHANNEL_PATIENCE if self._opened else 0.0)
        # Of a connection of ours the watchdog ends every wait. It does not end the caller's, so paramiko has to.
        timeout = None if self._owned else self._limits.reply_timeout + _AFTER_WATCHDOG
        while True:
            try:
                channel = self._transport.open_session(window_size=WINDOW, max_packet_size=PACKET, timeout=timeout)
                break
            except paramiko.ChannelException as exc:
                if time.monotonic() > until or not self._transport.is_active():
                    raise self.failure(exc) from exc
                self._watchdog.sleep(0.1)
            except Exception as exc:
                raise self.failure(exc) from exc
        self._opened = True
        self._streams[:] = [stream for stream in self._streams if not stream.is_closed]
        if not self._owned:
            replace_buffers(channel, WINDOW, self._limits.stderr_bytes)
        return channel

    def failure(self, exc: BaseException | None) -> StageError:
        """Return why the connection can not be used any more; the first reason stays."""
        if self._watchdog.failure is not None:
            return self._watchdog.failure
        if self._lost is not None:
            return self._lost
        if self._transport.is_active():  # it was about one channel
            return translate(exc, logged_in=True)
        self._lost = self.explain(translate(self._transport.get_exception() or exc, logged_in=True))
        return self._lost

    def explain(self, failure: StageError) -> StageError:
        """Return *failure* with what a ProxyCommand has to say to it, if there is one on the way."""
        return failure if self._way is None else self._way.explain(failure, logged_in=True)

    def close(self) -> None:
        """Close the connection, or on a Transport of the caller's only what was opened on it; not in a forked child."""
        if os.getpid() != self._process:
            return
        self._watchdog.detach(self._end)
        self._end()
        if self._owned and self._transport is not threading.current_thread():
            self._transport.join(2.0)
        if self._way is not None:
            self._way.close()

    def require_same_process(self) -> None:
        """Raise `StageError` in a process that was forked from the one that connected."""
        if os.getpid() != self._process:
            raise StageError(
                "This connection was made before a fork and can not be used in the child. Connect anew.",
                reason=Reason.FORKED,
            )

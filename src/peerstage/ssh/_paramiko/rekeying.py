"""During a key exchange, send nothing but its own messages (RFC 4253, section 7.1)."""

from __future__ import annotations

import threading
from typing import Any

from paramiko.common import (
    MSG_CHANNEL_CLOSE,
    MSG_CHANNEL_DATA,
    MSG_CHANNEL_EOF,
    MSG_CHANNEL_EXTENDED_DATA,
    MSG_CHANNEL_WINDOW_ADJUST,
)
from paramiko.message import Message

from peerstage.forks import OwnerProcess
from peerstage.ssh._paramiko.exceptions import PeerViolation
from peerstage.ssh._paramiko.internals import TypedTransport

_CHANNEL_TRAFFIC = frozenset({MSG_CHANNEL_WINDOW_ADJUST, MSG_CHANNEL_DATA, MSG_CHANNEL_EXTENDED_DATA})
_CHANNEL_ENDS = frozenset({MSG_CHANNEL_EOF, MSG_CHANNEL_CLOSE})
#: Lower message numbers belong to the transport layer and the key exchange itself (RFC 4250, section 4.1.2).
_FIRST_AFTER_KEX = 50
_MAX_DEFERRED = 4096


class RekeyingTransport(TypedTransport):
    """A transport that defers messages during a key exchange where paramiko would send them, or deadlock.

    paramiko lets every thread wait until the exchange is over, including its own, which has to complete it. Here,
    paramiko's thread defers its replies instead. Every thread defers the end of a channel, because no time limit
    applies to closing one. A forked child process sends nothing.

    Attributes:
        overrides_run: Names of our methods that paramiko has called.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.overrides_run: set[str] = set()
        self._deferred: list[Message] = []
        self._owner = OwnerProcess()

    def _send_user_message(self, data: Message) -> None:
        if not self._owner.is_current():
            return
        if threading.current_thread() is self or data.asbytes()[0] in _CHANNEL_ENDS:
            self._send_or_defer(data)
        else:
            super()._send_user_message(data)
        if self.packetizer.need_rekey():  # stop now; until paramiko's thread notices, much more could be sent
            with self.clear_to_send_lock:
                if self.packetizer.need_rekey():
                    self.clear_to_send.clear()

    def _send_message(self, data: Message) -> None:
        self.overrides_run.add("_send_message")
        if self._owner.is_current() and not self._defer_reply(data) and not self._is_for_closed_channel(data):
            super()._send_message(data)

    def _send_or_defer(self, data: Message) -> None:
        """Send *data*; during a key exchange, defer it rather than wait.

        Any thread may stop the traffic, so the lock is held from the check until *data* is sent.
        """
        with self.clear_to_send_lock:
            if not self.clear_to_send.is_set():
                self._defer(data)
            elif self.active:
                self._send_message(data)

    def _send_deferred(self) -> None:
        """Send the deferred messages, after the key exchange."""
        with self.clear_to_send_lock:
            deferred, self._deferred = self._deferred, []
        for message in deferred:
            self._send_message(message)

    def _defer_reply(self, data: Message) -> bool:
        """Defer a message of paramiko's own thread during a key exchange; return whether it was deferred."""
        if threading.current_thread() is not self or self.clear_to_send.is_set() or not self.initial_kex_done:
            return False
        if data.asbytes()[0] < _FIRST_AFTER_KEX:
            return False
        with self.clear_to_send_lock:
            self._defer(data)
        return True

    def _defer(self, data: Message) -> None:
        """Send *data* after the key exchange. The caller holds `clear_to_send_lock`."""
        if threading.current_thread() is self and len(self._deferred) >= _MAX_DEFERRED:
            raise PeerViolation("the server keeps sending requests during the key exchange")
        self._deferred.append(data)

    def _is_for_closed_channel(self, data: Message) -> bool:
        """Return whether *data* is for a channel that was closed while its sender waited (RFC 4254, section 5.3).

        A server would end the connection over it. A channel is marked as closed before SSH_MSG_CHANNEL_CLOSE is sent
        under the lock that is held here.
        """
        raw = data.asbytes()
        if raw[0] not in _CHANNEL_TRAFFIC:
            return False
        number = int.from_bytes(raw[1:5], "big")
        channels: list[Any] = self._channels.values()
        return not any(channel.remote_chanid == number and not channel.closed for channel in channels)

"""Keep a forked child process from sending anything on its parent's connections.

The child has copies of the parent's keys and packet counters. Any packet from it, even SSH_MSG_CHANNEL_CLOSE for a
garbage-collected channel, would break the parent's sequence numbers and reuse a nonce of AES-GCM (RFC 5647, 7.1).
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from typing import cast

import paramiko

from peerstage.forks import call_in_forked_child
from peerstage.ssh._paramiko.internals import TransportInternals

_owned_transports: weakref.WeakSet[paramiko.Transport] = weakref.WeakSet()
_callers_transports: weakref.WeakSet[paramiko.Transport] = weakref.WeakSet()
_channels: weakref.WeakSet[paramiko.Channel] = weakref.WeakSet()


def silence_after_fork(transport: paramiko.Transport, *, owned: bool) -> None:
    """Mark *transport* as inactive in forked child processes, and close its socket there if it is *owned*."""
    (_owned_transports if owned else _callers_transports).add(transport)


def silence_channel_after_fork(channel: paramiko.Channel) -> None:
    """Mark *channel* as closed in forked child processes, without a message to the server."""
    _channels.add(channel)


def _silence_in_child() -> None:
    """Silence everything, then close the sockets: one may be a channel of another transport."""
    owned = list(_owned_transports)
    for transport in (*owned, *_callers_transports):
        cast(TransportInternals, transport).active = False
    for channel in list(_channels):
        channel.lock = threading.Lock()  # a thread that does not exist in the child may have held it
        channel.closed, channel.active = True, False
    for transport in owned:
        with contextlib.suppress(OSError):
            transport.sock.close()  # without shutdown(2), which would end the parent's connection
    for registry in (_owned_transports, _callers_transports, _channels):
        registry.clear()


call_in_forked_child(_silence_in_child)

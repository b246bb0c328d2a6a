"""In a forked child nothing is sent on the parent's connections: packet numbers and nonces would be used twice.

A child has copies of the parent's keys and packet counters. Any packet from it, even the close of a channel that is
garbage collected, would put the parent's connection out of step, and under AES-GCM reuse a nonce (RFC 5647, 7.1).
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from typing import Any, cast

import paramiko

_ours: weakref.WeakSet[paramiko.Transport] = weakref.WeakSet()
_callers: weakref.WeakSet[paramiko.Transport] = weakref.WeakSet()
_channels: weakref.WeakSet[paramiko.Channel] = weakref.WeakSet()


def keep_to_this_process(transport: paramiko.Transport, *, owned: bool) -> None:
    """Have *transport* say nothing in forked children, where its socket is closed if it is *owned*."""
    (_ours if owned else _callers).add(transport)


def keep_channel_to_this_process(channel: paramiko.Channel) -> None:
    """Have *channel* be closed in forked children, without a word to the server."""
    _channels.add(channel)


def _let_go_in_child() -> None:
    """Silence everything first; only then are sockets closed, one of which may be a channel of another transport."""
    ours = list(_ours)
    for transport in (*ours, *_callers):
        cast(Any, transport).active = False
    for channel in list(_channels):
        channel.lock = threading.Lock()  # a thread that is not in the child may have held it
        channel.closed, channel.active = True, False
    for transport in ours:
        with contextlib.suppress(OSError):
            transport.sock.close()  # no shutdown(2), which the parent's connection would feel
    for kept in (_ours, _callers, _channels):
        kept.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_in_child)

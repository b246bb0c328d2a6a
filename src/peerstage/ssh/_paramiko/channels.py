"""Bounded buffers for a transport's channels."""

from __future__ import annotations

import threading
from typing import cast

import paramiko

from peerstage.ssh._paramiko.channel_buffer import ChannelBuffer, StderrBuffer
from peerstage.ssh._paramiko.forks import silence_channel_after_fork
from peerstage.ssh._paramiko.internals import ChannelInternals, ChannelMap
from peerstage.ssh._paramiko.packetizer import BoundedPacketizer
from peerstage.ssh._paramiko.paramiko_log import ParamikoLog
from peerstage.ssh._paramiko.self_check import refuse_paramiko


class BufferedChannels(ChannelMap):
    """A transport's channel table. Replaces the buffers of each new channel before its first packet can arrive."""

    def __init__(self, packetizer: BoundedPacketizer, window: int, max_stderr: int, log: ParamikoLog) -> None:
        super().__init__()
        self._log = log
        self._packetizer = packetizer
        self._window = window
        self._max_stderr = max_stderr
        self._buffers: dict[int, ChannelBuffer] = {}
        self._buffers_lock = threading.Lock()

    def put(self, chanid: int, chan: paramiko.Channel) -> None:
        """Add a channel."""
        self._log.attach_to_channel(chan)
        buffer = replace_buffers(chan, self._window, self._max_stderr, defer_wakeups=True)
        with self._buffers_lock:
            self._buffers[chanid] = buffer
            self._update_wake_readers()
        super().put(chanid, chan)

    def delete(self, chanid: int) -> None:
        """Remove a channel."""
        with self._buffers_lock:
            self._buffers.pop(chanid, None)
            self._update_wake_readers()
        super().delete(chanid)

    def _update_wake_readers(self) -> None:
        self._packetizer.wake_readers = tuple(buffer.wake_reader for buffer in self._buffers.values())


def replace_buffers(
    channel: paramiko.Channel, window: int, max_stderr: int, *, defer_wakeups: bool = False
) -> ChannelBuffer:
    """Replace the buffers of *channel*, before data arrives for it; return the one for data.

    Forked child processes mark their copy of *channel* as closed.

    Args:
        channel: The channel.
        window: Bytes that the peer may send before they are read.
        max_stderr: Bytes of stderr to accept over the life of the channel.
        defer_wakeups: As for `ChannelBuffer`.
    """
    silence_channel_after_fork(channel)
    buffer = ChannelBuffer(
        window, "more than the channel's window allows (RFC 4254, section 5.2)", defer_wakeups=defer_wakeups
    )
    internals = _internals(channel)
    internals.in_buffer, internals.in_stderr_buffer = buffer, StderrBuffer(max_stderr)
    return buffer


def require_bounded_buffers(channel: paramiko.Channel) -> None:
    """Raise `NotAvailable` unless *channel* has our buffers: paramiko would no longer call `BufferedChannels.put`."""
    internals = _internals(channel)
    buffers = internals.in_buffer, internals.in_stderr_buffer
    if not all(map(isinstance, buffers, (ChannelBuffer, StderrBuffer))):
        refuse_paramiko("does not use the buffers that BufferedChannels.put gives to a channel")


def set_window(channel: paramiko.Channel, window: int) -> None:
    """Bound the data that *channel* holds by *window* bytes."""
    _internals(channel).in_buffer.set_max_bytes(window)


def enlarge_window(channel: paramiko.Channel, window: int) -> None:
    """Enlarge the window of a new *channel* to *window* bytes; the server learns it when its first data is read."""
    internals = _internals(channel)
    internals.in_window_sofar = window - internals.in_window_size
    set_window(channel, window)


def discard_data(channel: paramiko.Channel) -> None:
    """Free the memory of data that *channel* has received and nobody will read."""
    _internals(channel).in_buffer.empty()


def was_refused(channel: paramiko.Channel) -> bool:
    """Return whether the server refused a request on *channel* or closed it; call before sending EOF.

    paramiko answers SSH_MSG_CHANNEL_FAILURE and SSH_MSG_CHANNEL_CLOSE with EOF. When the connection ends, it closes its
    channels without EOF, a moment before it marks the connection as inactive.
    """
    return bool(_internals(channel).eof_sent)


def has_received_eof(channel: paramiko.Channel) -> bool:
    """Return whether the peer sent SSH_MSG_CHANNEL_EOF; a peer may close *channel* without it."""
    return bool(_internals(channel).eof_received)


def _internals(channel: paramiko.Channel) -> ChannelInternals:
    return cast(ChannelInternals, channel)

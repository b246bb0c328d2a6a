"""Channels with buffers of ours: chunks as they come, and no more of them than the window allows."""

from __future__ import annotations

import threading
from typing import Any, cast

import paramiko
from paramiko.transport import ChannelMap

from peerstage.session._paramiko.forks import keep_channel_to_this_process
from peerstage.session._paramiko.logs import ParamikoLog
from peerstage.session._paramiko.packets import BoundedPacketizer
from peerstage.session.pipe import ChunkPipe, StderrPipe


class BufferedChannels(ChannelMap):
    """paramiko's table of channels, which gives each its buffers before the first packet for it can come."""

    def __init__(self, packetizer: BoundedPacketizer, window: int, stderr_bytes: int, log: ParamikoLog) -> None:
        super().__init__()
        self._log = log
        self._packetizer = packetizer
        self._window = window
        self._stderr_bytes = stderr_bytes
        self._pipes: dict[int, ChunkPipe] = {}
        self._changing = threading.Lock()

    def put(self, chanid: int, chan: paramiko.Channel) -> None:
        self._log.take_channel(chan)
        pipe = replace_buffers(chan, self._window, self._stderr_bytes, patient=True)
        with self._changing:
            self._pipes[chanid] = pipe
            self._tell_packetizer()
        super().put(chanid, chan)

    def delete(self, chanid: int) -> None:
        with self._changing:
            self._pipes.pop(chanid, None)
            self._tell_packetizer()
        super().delete(chanid)

    def _tell_packetizer(self) -> None:
        self._packetizer.wakers = tuple(pipe.wake for pipe in self._pipes.values())


def replace_buffers(channel: paramiko.Channel, window: int, stderr_bytes: int, *, patient: bool = False) -> ChunkPipe:
    """Give *channel* our buffers, before anything has come for it; return the one for data."""
    keep_channel_to_this_process(channel)
    pipe = ChunkPipe(window, "more than the channel's window allows (RFC 4254, 5.2)", patient=patient)
    channel.in_buffer = cast(Any, pipe)
    channel.in_stderr_buffer = cast(Any, StderrPipe(stderr_bytes))
    return pipe


def was_refused(channel: paramiko.Channel) -> bool:
    """Return whether the server has refused or closed *channel*, of which we have not sent the end; to be asked first.

    paramiko answers SSH_MSG_CHANNEL_FAILURE and SSH_MSG_CHANNEL_CLOSE with an EOF. When the connection ends it closes
    its channels without one, and a moment before it calls the connection inactive.
    """
    return bool(cast(Any, channel).eof_sent)

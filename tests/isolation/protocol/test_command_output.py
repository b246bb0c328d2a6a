"""Output of a command that a child runs: it arrives at once and whole, and only if a command was run."""

from __future__ import annotations

import os
import threading

import pytest

from peerstage.errors import ProtocolError
from peerstage.isolation.child.frame_writer import FrameWriter
from peerstage.isolation.parent.frame_receiver import FrameReceiver
from peerstage.isolation.protocol.frames import (
    MAX_BODY,
    FrameParser,
    Output,
    encode_frame,
)
from peerstage.records import Limits


def test_output_arrives_at_once_and_whole_in_frames_of_bounded_size() -> None:
    read_end, write_end = os.pipe()
    output = os.urandom(3 * MAX_BODY + 1)
    writer = FrameWriter(write_end)
    thread = threading.Thread(target=lambda: (writer.put_output(b"first"), writer.put_output(memoryview(output))))
    thread.start()
    parser, received = FrameParser(), b""
    while len(received) < len(output) + 5:
        for frame in parser.feed(memoryview(os.read(read_end, 65536))):
            assert isinstance(frame, Output)
            assert len(frame.data) <= MAX_BODY
            received += frame.data
    thread.join()
    assert received == b"first" + output
    os.close(read_end)
    os.close(write_end)


def test_output_is_rejected_if_no_command_was_run() -> None:
    receiver = FrameReceiver(None, Limits())
    (frame,) = FrameParser().feed(memoryview(encode_frame(Output(b"words"))))
    with pytest.raises(ProtocolError, match="no command was run"):
        receiver.handle(frame)

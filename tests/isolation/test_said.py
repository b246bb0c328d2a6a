"""What a command says on its way up from a child: whole, in order, and only where one was run."""

from __future__ import annotations

import os
import threading

import pytest

from peerstage.errors import ProtocolError
from peerstage.isolation.frames import HEADER, MOST_BODY, FrameParser, Kind, Said, encode
from peerstage.isolation.receive import Receiver
from peerstage.isolation.upward import Upward
from peerstage.records import Limits


def test_what_is_said_comes_up_at_once_and_whole_in_frames_of_bounded_size() -> None:
    reading, writing = os.pipe()
    said = os.urandom(3 * MOST_BODY + 1)
    upward = Upward(writing)
    thread = threading.Thread(target=lambda: (upward.put_said(b"first"), upward.put_said(memoryview(said))))
    thread.start()
    parser, found = FrameParser(), b""
    while len(found) < len(said) + 5:
        for record in parser.feed(memoryview(os.read(reading, 65536))):
            assert isinstance(record, Said)
            assert len(record.piece) <= MOST_BODY
            found += record.piece
    thread.join()
    assert found == b"first" + said
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize(
    "frame",
    [
        HEADER.pack(Kind.SAID, 0, 0, MOST_BODY + 1),
        HEADER.pack(Kind.SAID, 1, 0, 1) + b"x",
        HEADER.pack(Kind.SAID, 0, 0, 0),
    ],
)
def test_a_frame_that_no_child_sends_is_refused(frame: bytes) -> None:
    with pytest.raises(ProtocolError):
        list(FrameParser().feed(memoryview(frame)))


def test_words_of_a_command_that_nobody_has_run_are_refused() -> None:
    receiver = Receiver(None, Limits())
    (record,) = FrameParser().feed(memoryview(encode(Said(b"words"))))
    with pytest.raises(ProtocolError, match="none was run"):
        receiver.take(record)

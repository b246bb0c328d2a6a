"""As many files as `Limits` allows: the cost per file does not grow with their number."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, cast

import pytest

from peerstage import Limits
from peerstage.cli.preview import PreviewTarget
from peerstage.isolation.child.child_target import ChildTarget
from peerstage.isolation.parent.frame_receiver import FrameReceiver
from peerstage.isolation.protocol.frames import (
    Expect,
    Finish,
    FrameParser,
    Open,
    Reply,
    encode_frame,
)
from peerstage.records import Entry
from support.sftp_server import RecordingTarget

pytestmark = pytest.mark.usefixtures("patience")


def test_files_received_before_a_lost_connection_do_not_count_as_opened_again() -> None:
    parser, receiver = FrameParser(), FrameReceiver(RecordingTarget(), Limits(), tries=2)

    class DirectWriter:
        """Passes frames to the receiver at once."""

        def put(self, frame: Any) -> None:
            for parsed in parser.feed(memoryview(encode_frame(frame))):
                receiver.handle(parsed)

    target = ChildTarget(cast(Any, DirectWriter()))
    entries = [Entry(b"file-%06d" % number, 0, mtime=1) for number in range(5000)]
    for entry in entries:
        target.open(entry).finish()
    assert all(target.open(entry).is_finished for entry in entries)


def test_the_frames_of_120_000_files_are_handled_in_seconds(target: Path) -> None:
    count = Limits().entries
    preview_target, parser = PreviewTarget(str(target)), FrameParser()
    receiver = FrameReceiver(preview_target, Limits())
    frames = [encode_frame(Expect(count, count))]
    for number in range(count):
        frames += [encode_frame(Open(number, Entry(b"file-%06d" % number, 1))), encode_frame(Finish(number))]
    stream = memoryview(b"".join(frames) + encode_frame(Reply({})))
    started = time.monotonic()
    for at in range(0, len(stream), 1 << 16):
        for frame in parser.feed(stream[at : at + (1 << 16)]):
            receiver.handle(frame)
    assert time.monotonic() - started < 60
    assert len(preview_target.preview.files) == count
    assert receiver.reply == {}

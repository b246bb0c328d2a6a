"""As many files as `Limits` allows: what each costs the parent does not grow with their number."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, cast

import pytest

from peerstage import Limits
from peerstage.cli.preview import PreviewLanding
from peerstage.isolation.frames import Expect, Finish, FrameParser, Open, Result, encode
from peerstage.isolation.receive import Receiver
from peerstage.isolation.upward import UpwardLanding
from peerstage.records import Entry
from support.sftp_server import RecordingLanding

pytestmark = pytest.mark.usefixtures("patience")


def test_files_that_came_before_a_lost_connection_do_not_count_as_begun_again() -> None:
    parser, receiver = FrameParser(), Receiver(RecordingLanding(), Limits(), tries=2)

    class Pipe:
        """What a child says, heard by its parent at once."""

        def put(self, record: Any) -> None:
            for one in parser.feed(memoryview(encode(record))):
                receiver.take(one)

    upward = UpwardLanding(cast(Any, Pipe()))
    entries = [Entry(b"file-%06d" % number, 0, mtime=1) for number in range(5000)]
    for entry in entries:
        upward.open(entry).finish()
    assert all(upward.open(entry).is_finished for entry in entries)


def test_the_frames_of_120_000_files_are_taken_in_seconds(target: Path) -> None:
    count = Limits().entries
    landing, parser = PreviewLanding(str(target)), FrameParser()
    receiver = Receiver(landing, Limits())
    frames = [encode(Expect(count, count))]
    for number in range(count):
        frames += [encode(Open(number, Entry(b"file-%06d" % number, 1))), encode(Finish(number))]
    wire = memoryview(b"".join(frames) + encode(Result({})))
    started = time.monotonic()
    for at in range(0, len(wire), 1 << 16):
        for record in parser.feed(wire[at : at + (1 << 16)]):
            receiver.take(record)
    assert time.monotonic() - started < 60
    assert len(landing.preview.files) == count
    assert receiver.result == {}

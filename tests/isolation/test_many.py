"""As many files as `Limits` allows: what each costs the parent does not grow with their number."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from peerstage import Limits
from peerstage.cli.preview import PreviewLanding
from peerstage.isolation.frames import Expect, Finish, FrameParser, Open, Result, encode
from peerstage.isolation.receive import Receiver
from peerstage.records import Entry

pytestmark = pytest.mark.usefixtures("patience")


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

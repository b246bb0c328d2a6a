"""As many files as `Limits` allows: the cost per file does not grow with their number."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from peerstage import Limits
from peerstage.cli.preview import PreviewTarget
from peerstage.isolation.parent.frame_receiver import FrameReceiver
from peerstage.isolation.protocol.entry_codec import split_entries
from peerstage.isolation.protocol.frames import Admit, Finish, FrameParser, Reply, encode_frame
from peerstage.records import Entry
from support.child_link import ChildLink
from support.sftp_server import RecordingTarget

pytestmark = pytest.mark.usefixtures("patience")


def test_files_received_before_a_lost_connection_are_listed_again_and_not_fetched() -> None:
    link = ChildLink(RecordingTarget(), tries=2)
    entries = [Entry(b"file-%06d" % number, 0, mtime=1) for number in range(5000)]
    for _ in range(3):
        for file in link.child_target.admit(entries):
            file.finish()
        assert link.child_target.admit(entries) == []
        entries.append(Entry(b"another-%d" % len(entries), 0, mtime=1))


def test_the_frames_of_40_000_files_are_handled_in_seconds(target: Path) -> None:
    count = 40_000
    preview_target, parser = PreviewTarget(str(target)), FrameParser()
    receiver = FrameReceiver(preview_target, Limits())
    frames, number = [], 0
    for part in split_entries([Entry(b"file-%06d" % number, 1) for number in range(count)]):
        frames.append(encode_frame(Admit(number, part)))
        number += len(part)
    frames += [encode_frame(Finish(number)) for number in range(count)]
    stream = memoryview(b"".join(frames) + encode_frame(Reply({})))
    started = time.monotonic()
    for at in range(0, len(stream), 1 << 16):
        for frame in parser.feed(stream[at : at + (1 << 16)]):
            receiver.handle(frame)
    assert time.monotonic() - started < 60
    assert len(preview_target.preview.files) == count
    assert receiver.reply == {}

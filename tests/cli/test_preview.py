"""What would come, told by opening files and reading none: requests, packets and verdicts, without a connection."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from peerstage.cli.preview import Preview, PreviewLanding, preview
from peerstage.errors import IncompleteStage, NothingToStage
from peerstage.isolation.frames import FrameParser, Result, encode
from peerstage.isolation.receive import Receiver
from peerstage.isolation.upward import UpwardLanding
from peerstage.landing.base import MAX_TRIALS
from peerstage.records import Limits
from peerstage.transport.sftp import wire
from support import scp_server, sftp_server
from support.scp_server import Says, Shell
from support.sftp_server import Node, Server


class KeepsSome(Server):
    """Lists every file, and opens none whose mode is 0."""

    def open(self, number: int, path: bytes, rest: bytes) -> list[bytes]:
        node = self.node_of(path)
        if node is not None and not node.mode & 0o777:
            return self.status(number, wire.FX_PERMISSION_DENIED)
        return super().open(number, path, rest)


def preview_of(server: Server, target: Path) -> Preview:
    return preview(sftp_server.transport_to(server), b"/c", str(target))


def names(found: Preview) -> tuple[list[str], list[str]]:
    return [file.name for file in found.files], [file.name for file in found.refused]


def test_files_are_opened_and_closed_and_none_is_read(target: Path) -> None:
    server = KeepsSome({b"good": Node(b"x" * 100), b"secret": Node(b"y", mode=0o100000)})
    found = preview_of(server, target)
    assert names(found) == (["good"], ["secret"])
    assert "denies permission" in (found.refused[0].error or "")
    assert (found.opened, found.size) == (1, 100)
    assert server.kinds[wire.READ] == 0
    assert server.handles == {}
    with pytest.raises(IncompleteStage, match="secret: It could not be opened"):
        raise found.failure(b"/c") or AssertionError


def test_a_thousand_files_are_opened_in_few_packets_and_the_rest_not_at_all(target: Path) -> None:
    server = Server({b"%04d" % number: Node(b"x") for number in range(MAX_TRIALS + 234)}, most_handles=400)
    found = preview_of(server, target)
    assert (len(found.files), found.opened, server.kinds[wire.OPEN]) == (1234, MAX_TRIALS, MAX_TRIALS)
    assert found.trials == "1000 of 1234 files were opened on the peer, 234 others were not tried"
    assert server.sends < 350, "a listing of 1234 names is 177 of them"
    assert found.failure(b"/c") is None


def test_an_empty_directory_would_fail(target: Path) -> None:
    assert isinstance(preview_of(Server(), target).failure(b"/c"), NothingToStage)


def test_what_is_a_directory_in_the_target_is_not_even_opened(target: Path) -> None:
    (target / "taken").mkdir()
    server = Server({b"taken": Node(b"x")})
    assert names(preview_of(server, target)) == ([], ["taken"])
    assert server.kinds[wire.OPEN] == 0


def test_over_scp_files_are_opened_and_every_one_is_skipped(target: Path) -> None:
    stream = Says([b"C0644 9999999 good\n\x01scp: /c/secret: Permission denied\nC0644 5 other\n"], status=1)
    shell = Shell(lambda command: stream)
    found = preview(scp_server.transport_to(shell), b"/c", str(target))
    assert names(found) == (["good", "other"], ["secret"])
    assert found.opened == 2
    assert shell.commands == [b"scp -f /c/*"], "the very command of a stage"
    assert stream.sent.startswith(b"\0\1\n\1\n"), "it may begin, and is to send neither file"
    assert b"\0" not in stream.sent[1:]


def test_a_server_that_may_not_know_how_to_skip_sends_and_what_it_sends_is_dropped(target: Path) -> None:
    stream = scp_server.TakesMessages(scp_server.file(b"good", b"x" * 10))
    shell = Shell(lambda command: stream, "SSH-2.0-mod_sftp")
    found = preview(scp_server.transport_to(shell), b"/c", str(target))
    assert (names(found), found.opened) == ((["good"], []), 1)
    assert b"\1" not in stream.sent


def test_by_way_of_a_child_process_as_many_files_are_opened(target: Path) -> None:
    class Pipe:
        """What a child says, heard by its parent at once."""

        def __init__(self, landing: PreviewLanding) -> None:
            self.parser, self.receiver = FrameParser(), Receiver(landing, Limits())

        def put(self, record: Any) -> None:
            for one in self.parser.feed(memoryview(encode(record))):
                self.receiver.take(one)

    landing = PreviewLanding(str(target))
    pipe = Pipe(landing)
    server = KeepsSome({b"%04d" % number: Node(b"x") for number in range(5000)}, most_handles=400)
    server.files[b"0000"].mode = 0o100000
    sftp_server.transport_to(server).pull(b"/c", UpwardLanding(cast(Any, pipe), wants_content=False))
    pipe.put(Result({}))
    found = landing.preview
    assert (len(found.files), len(found.refused), found.opened) == (4999, 1, MAX_TRIALS - 1)
    assert server.kinds[wire.OPEN] == MAX_TRIALS

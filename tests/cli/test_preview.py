"""Previews: files are opened and not read. Requests and packets, without a connection."""

from __future__ import annotations

from pathlib import Path

import pytest

from peerstage.cli.preview import Preview, PreviewTarget, preview
from peerstage.errors import ConnectionLost, IncompleteStage, LimitExceeded, NothingToStage
from peerstage.reasons import Reason
from peerstage.records import Entry, Limits
from peerstage.stage_options import StageOptions
from peerstage.target.base import MAX_TRIAL_OPENS
from peerstage.transport.sftp import wire
from support import scp_server, sftp_server
from support.child_link import ChildLink
from support.scp_server import ScriptedCommand, ScriptedSession
from support.sftp_server import DropsConnectionAfter, FakeSFTPServer, Node


class KeepsSome(FakeSFTPServer):
    """Lists every file, and opens none whose mode is 0."""

    def open(self, request_id: int, path: bytes, rest: bytes) -> list[bytes]:
        node = self.node_of(path)
        if node is not None and not node.mode & 0o777:
            return self.status(request_id, wire.FX_PERMISSION_DENIED)
        return super().open(request_id, path, rest)


def preview_of(server: FakeSFTPServer, target: Path) -> Preview:
    return preview(sftp_server.transport_to(server), b"/c", str(target))


def names(result: Preview) -> tuple[list[str], list[str]]:
    return [file.name for file in result.files], [file.name for file in result.refused]


def test_files_are_opened_and_closed_and_none_is_read(target: Path) -> None:
    server = KeepsSome({b"good": Node(b"x" * 100), b"secret": Node(b"y", mode=0o100000)})
    result = preview_of(server, target)
    assert names(result) == (["good"], ["secret"])
    assert "denies permission" in (result.refused[0].error or "")
    assert (result.opened, result.size) == (1, 100)
    assert server.requests[wire.FXP_READ] == 0
    assert server.handles == {}
    with pytest.raises(IncompleteStage, match="secret: It could not be opened"):
        raise result.failure(b"/c") or AssertionError


def test_a_thousand_files_are_opened_in_few_packets_and_the_rest_not_at_all(target: Path) -> None:
    server = FakeSFTPServer({b"%04d" % number: Node(b"x") for number in range(MAX_TRIAL_OPENS + 234)}, max_handles=400)
    result = preview_of(server, target)
    assert (len(result.files), result.opened, server.requests[wire.FXP_OPEN]) == (
        1234,
        MAX_TRIAL_OPENS,
        MAX_TRIAL_OPENS,
    )
    assert result.opened_files == "1000 of 1234 files were opened on the peer, 234 others were not tried"
    assert server.sends < 350, "a listing of 1234 names is 177 of them"
    assert result.failure(b"/c") is None


def test_an_empty_directory_would_fail(target: Path) -> None:
    assert isinstance(preview_of(FakeSFTPServer(), target).failure(b"/c"), NothingToStage)


def test_an_entry_with_the_name_of_a_local_directory_is_not_opened(target: Path) -> None:
    (target / "taken").mkdir()
    server = FakeSFTPServer({b"taken": Node(b"x")})
    assert names(preview_of(server, target)) == ([], ["taken"])
    assert server.requests[wire.FXP_OPEN] == 0


def test_what_a_stage_would_leave_out_is_listed_and_not_opened(target: Path) -> None:
    server = KeepsSome(
        {
            b"a": Node(b"x"),
            b"large": Node(b"x" * 100),
            b"secret.tmp": Node(b"y", mode=0o100000),
            b"sub.tmp": Node(b"", mode=0o040755),
        }
    )
    options = StageOptions(exclude="*.tmp", max_size=50)
    result = preview(sftp_server.transport_to(server), b"/c", str(target), options)
    assert names(result) == (["a"], [])
    assert [(file.name, file.reason) for file in result.left_out] == [
        ("large", Reason.ABOVE_MAX_SIZE),
        ("secret.tmp", Reason.EXCLUDED),
        ("sub.tmp", Reason.EXCLUDED),
    ]
    assert (result.opened, result.failure(b"/c")) == (1, None)
    assert server.requests[wire.FXP_OPEN] == 1


@pytest.mark.parametrize("through_child", [False, True])
def test_a_directory_in_which_everything_is_left_out_would_succeed_unless_it_has_no_file(
    target: Path, through_child: bool
) -> None:
    options = StageOptions(exclude="*")
    for files, succeeds in (({b"sub": Node(b"", mode=0o040755)}, False), ({b"a": Node(b"x", mode=0o100000)}, True)):
        preview_target = PreviewTarget(str(target), options)
        recorder = ChildLink(preview_target).child_target if through_child else preview_target
        sftp_server.transport_to(KeepsSome(files)).pull(b"/c", recorder)
        assert names(preview_target.preview) == ([], [])
        assert len(preview_target.preview.left_out) == 1
        assert (preview_target.preview.failure(b"/c") is None) == succeeds


def test_limits_on_sizes_apply(target: Path) -> None:
    server = FakeSFTPServer({b"a": Node(b"x"), b"large": Node(b"x" * 100)})
    result = preview(sftp_server.transport_to(server), b"/c", str(target), limits=Limits(file_bytes=50))
    assert names(result) == (["a"], ["large"])
    assert result.refused[0].reason is Reason.FILE_TOO_LARGE
    with pytest.raises(LimitExceeded, match="total_bytes"):
        preview(sftp_server.transport_to(server), b"/c", str(target), limits=Limits(total_bytes=100))


def test_after_a_lost_connection_the_last_sizes_decide_what_is_left_out(target: Path) -> None:
    preview_target = PreviewTarget(str(target), StageOptions(max_size=50), Limits(total_bytes=100))
    preview_target.admit([Entry(b"a", 50), Entry(b"b", 60), Entry(b"c", 40)])
    preview_target.admit([Entry(b"a", 70), Entry(b"b", 45), Entry(b"c", 45)])
    assert names(preview_target.preview) == (["b", "c"], [])
    assert [file.name for file in preview_target.preview.left_out] == ["a"]


def test_over_scp_files_are_opened_and_every_one_is_skipped(target: Path) -> None:
    stream = ScriptedCommand([b"C0644 9999999 good\n\x01scp: /c/secret: Permission denied\nC0644 5 other\n"], status=1)
    shell = ScriptedSession(lambda command: stream)
    result = preview(scp_server.transport_to(shell), b"/c", str(target))
    assert names(result) == (["good", "other"], ["secret"])
    assert result.opened == 2
    assert shell.commands == [b"scp -f /c/*"], "the very command of a stage"
    assert stream.received.startswith(b"\0\1\n\1\n"), "the command may start, and skips both files"
    assert b"\0" not in stream.received[1:]


def test_over_scp_with_times_every_file_is_declined_in_turn(target: Path) -> None:
    stream = ScriptedCommand([b"T1 0 1 0\nC0644 9999999 good\nT1 0 1 0\nC0644 5 other\n"], status=1)
    shell = ScriptedSession(lambda command: stream)
    result = preview(scp_server.transport_to(shell, preserve_times=True), b"/c", str(target))
    assert (names(result), result.opened) == ((["good", "other"], []), 2)
    assert stream.received == b"\0" + b"\0\1\n" * 2


def test_content_from_a_server_that_cannot_skip_is_dropped(target: Path) -> None:
    stream = scp_server.AcknowledgesPerPacket(scp_server.pack_file(b"good", b"x" * 10))
    shell = ScriptedSession(lambda command: stream, "SSH-2.0-mod_sftp")
    result = preview(scp_server.transport_to(shell), b"/c", str(target))
    assert (names(result), result.opened) == ((["good"], []), 1)
    assert b"\1" not in stream.received


def test_as_many_files_are_opened_through_a_child_process(target: Path) -> None:
    preview_target = PreviewTarget(str(target))
    link = ChildLink(preview_target)
    server = KeepsSome({b"%04d" % number: Node(b"x") for number in range(5000)}, max_handles=400)
    server.files[b"0000"].mode = 0o100000
    sftp_server.transport_to(server).pull(b"/c", link.child_target)
    result = preview_target.preview
    assert (len(result.files), len(result.refused), result.opened) == (4999, 1, MAX_TRIAL_OPENS - 1)
    assert server.requests[wire.FXP_OPEN] == MAX_TRIAL_OPENS


@pytest.mark.parametrize("through_child", [False, True])
def test_after_a_lost_connection_no_file_is_opened_twice(target: Path, through_child: bool) -> None:
    preview_target = PreviewTarget(str(target))
    recorder = ChildLink(preview_target, tries=2).child_target if through_child else preview_target
    files = {b"%04d" % number: Node(b"x") for number in range(MAX_TRIAL_OPENS + 50)}
    first = DropsConnectionAfter(dict(files), max_handles=100)
    first.bytes_left = 100_000
    with pytest.raises(ConnectionLost):
        sftp_server.transport_to(first).pull(b"/c", recorder)
    opened = sum(file.was_opened for file in preview_target._files.values())
    assert 0 < opened < MAX_TRIAL_OPENS
    second = FakeSFTPServer(dict(files), max_handles=400)
    sftp_server.transport_to(second).pull(b"/c", recorder)
    assert second.requests[wire.FXP_OPEN] == MAX_TRIAL_OPENS - opened
    assert preview_target.preview.opened == MAX_TRIAL_OPENS

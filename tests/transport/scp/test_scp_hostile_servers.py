"""Hostile and broken ``scp`` programs: the run ends or an entry fails, and nothing is left behind."""

from __future__ import annotations

import itertools
import os
import tracemalloc
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from peerstage.errors import (
    ConnectionLost,
    IncompleteStage,
    LimitExceeded,
    NothingToStage,
    ProtocolError,
    RemoteError,
    RemoteNotFound,
    StageError,
    TargetError,
)
from peerstage.reasons import Reason
from peerstage.records import Indicators, Limits, RemoteFile, StageReport
from peerstage.ssh.stream import Stream
from peerstage.stage_options import StageOptions
from peerstage.staging import read_indicators, stage
from peerstage.target import DirectoryTarget
from peerstage.testing.contract import files_in
from peerstage.transport.scp.scp_transport import SCPTransport
from support.scp_server import (
    COLLECT,
    AcknowledgesPerPacket,
    ScriptedCommand,
    ScriptedSession,
    pack_file,
    stage_from,
    transport_to,
)
from support.sftp_server import RecordingTarget

GOOD = pack_file(b"good", b"content")


def assert_run_ends(
    target: Path, error: type[StageError], *chunks: bytes, match: str | None = None, **options: Any
) -> None:
    """Assert that staging *chunks* raises *error* as one line, and publishes nothing."""
    (target / "old").write_bytes(b"old")
    with pytest.raises(error, match=match) as caught:
        stage_from(chunks, target, **options)
    assert str(caught.value).isprintable()
    assert str(caught.value).startswith("peer ")
    assert files_in(target) == {b"old": b"old"}


def incomplete_report(chunks: Iterable[bytes], target: Path, match: str, **options: Any) -> StageReport:
    """Stage *chunks*, which must raise `IncompleteStage` as one line; return its report."""
    with pytest.raises(IncompleteStage, match=match) as caught:
        stage_from(chunks, target, **options)
    assert str(caught.value).isprintable()
    assert caught.value.report is not None
    return caught.value.report


def transport_to_command(stream: Stream, server: str = "SSH-2.0-OpenSSH_9.2p1") -> SCPTransport:
    return transport_to(ScriptedSession(lambda command: stream, server))


# Messages.


@pytest.mark.parametrize(
    "name",
    [b"../../etc/x", b"/etc/x", b"..", b".", b".hidden", b"a/b", b"a/", b"/", b"a\0b", b"", b"./a", b"..\\x/y"],
)
def test_a_name_that_was_not_requested_ends_the_run(target: Path, name: bytes) -> None:
    assert_run_ends(target, ProtocolError, GOOD, pack_file(name, b"planted"))


@pytest.mark.parametrize(
    "message",
    [
        b"D0755 0 sub\n",
        b"D0755 0 ..\n",
        b"D0755 0 .\nC0644 1 x\na\0E\n",
        b"E\n",
        b"T1700000000 0 1700000000 0\n" + GOOD,
    ],
)
def test_a_message_that_was_not_requested_ends_the_run(target: Path, message: bytes) -> None:
    assert_run_ends(target, ProtocolError, GOOD, message)


@pytest.mark.parametrize(
    "message",
    [
        b"C0644 -5 name\n",
        b"C0644 99999999999999999999 name\n",
        b"C0644 9223372036854775808 name\n",
        b"C0644 +5 name\n",
        b"C0644 05 name\n",
        b"C0644 0x5 name\n",
        b"C0644 5\n",
        b"C0644 5 \n",
        b"C0644  5 name\n",
        b"C644 5 name\n",
        b"C00644 5 name\n",
        b"C0888 5 name\n",
        b"C 5 name\n",
        b"C\n",
        b"\n",
        b"\0\n",
        b"0644 5 name\n",
        b"c0644 5 name\n",
        b"C0644 \xd9\xa5 name\n",
    ],
)
def test_a_malformed_message_ends_the_run(target: Path, message: bytes) -> None:
    assert_run_ends(target, ProtocolError, GOOD, message + b"12345\0")


@pytest.mark.parametrize(
    "times",
    [b"T1\n", b"T-1 0 0 0\n", b"T1 0 0 0 0\n", b"T9999999999999 0 0 0\n", b"T1 0 0 0\nT1 0 0 0\n", b"T1 0 0 0\n"],
)
def test_malformed_times_end_the_run(target: Path, times: bytes) -> None:
    assert_run_ends(target, ProtocolError, GOOD, times, request_times=True)


def test_times_are_preserved_if_they_were_requested(target: Path) -> None:
    report = stage_from([b"T1700000000 0 1600000000 0\n", GOOD], target, request_times=True)
    assert report.files[0].mtime == 1_700_000_000
    assert (target / "good").stat().st_mtime == 1_700_000_000


@pytest.mark.parametrize("greeting", [b"Welcome to db1!\n", b"\x1b[2JHello\r\n", b"This account is not available.\n"])
def test_text_of_a_login_script_is_quoted(target: Path, greeting: bytes) -> None:
    assert_run_ends(target, ProtocolError, greeting, GOOD, match="which is not SCP. A login script")


def test_a_duplicate_name_ends_the_run(target: Path) -> None:
    assert_run_ends(target, ProtocolError, GOOD, GOOD, match="twice")
    assert_run_ends(target, ProtocolError, GOOD, b"\x01scp: /c/good: no\n", match="twice")


@pytest.mark.parametrize("cut", range(1, len(GOOD)))
def test_a_stream_that_ends_within_a_file_ends_the_run(target: Path, cut: int) -> None:
    assert_run_ends(target, StageError, pack_file(b"whole", b"x"), GOOD[:cut])


@pytest.mark.parametrize("piece", [1, 2, 3, 5, 7, 1000])
def test_messages_may_be_split_over_packets_and_merged_into_one(target: Path, piece: int) -> None:
    stream = GOOD + b"\x01scp: /c/sub: not a regular file\n" + pack_file(b"empty", b"") + pack_file(b"last", b"z" * 50)
    chunks = (stream[at : at + piece] for at in range(0, len(stream), piece))
    report = incomplete_report(chunks, target, "sub", status=1)
    assert files_in(target) == {b"good": b"content", b"empty": b"", b"last": b"z" * 50}
    assert [(file.name, file.reason) for file in report.refused] == [("sub", Reason.NOT_A_FILE)]


@pytest.mark.parametrize("status", [b"C0644 1 x\n", b"\n", b"x\n", b"T1 0 0 0\n", b"\xff"])
def test_a_file_without_its_status_ends_the_run(target: Path, status: bytes) -> None:
    assert_run_ends(target, ProtocolError, pack_file(b"good", b"content", status=status))


def test_a_message_without_end_is_cut_off() -> None:
    endless: Iterator[bytes] = itertools.repeat(b"C0644 5 " + b"x" * 8192)
    with pytest.raises(ProtocolError, match="message of over"):
        transport_to_command(ScriptedCommand(endless)).stat(b"/c/x")


# Warnings and errors.


def test_a_warning_after_the_data_fails_that_file_alone(target: Path) -> None:
    bad = pack_file(b"bad", b"\0" * 9, status=b"\x01scp: /c/bad: Input/output error\n")
    report = incomplete_report([bad, GOOD], target, "bad: The peer could not read it: Input/output error", status=1)
    assert files_in(target) == {b"good": b"content"}
    assert [file.reason for file in report.failed] == [Reason.ENTRY_UNREADABLE]


@pytest.mark.parametrize("at", [0, 1, 2])
def test_warnings_before_between_and_after_the_files_refuse_the_entries_they_name(target: Path, at: int) -> None:
    chunks = [GOOD, pack_file(b"other", b"o")]
    chunks.insert(at, b"\x01scp: /c/\x1b[2Jsub: Permission denied\n")
    report = incomplete_report(chunks, target, "Permission denied", status=1)
    assert files_in(target) == {b"good": b"content", b"other": b"o"}
    assert [file.reason for file in report.failed] == [Reason.PERMISSION_DENIED]


@pytest.mark.parametrize("warning", [b"\x01out of memory\n", b"\x01\n", b"\x01out of memory\n" * 3])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_warnings_that_name_no_entry_are_one_refused_entry_and_the_files_are_staged(
    target: Path, warning: bytes, at: int
) -> None:
    chunks = [GOOD, pack_file(b"other", b"o")]
    chunks.insert(at, warning)
    match = r"1 of 3 .*\*: The peer's scp warned without naming a file: (out of mem|no rea)"
    report = incomplete_report(chunks, target, match, status=1)
    assert files_in(target) == {b"good": b"content", b"other": b"o"}
    assert [file.name for file in report.refused] == ["*"]


def test_a_flood_of_warnings_that_name_no_entry_is_one_refused_entry(target: Path) -> None:
    flood = (b"\x01warning %d\n" % number for number in range(20_000))
    report = incomplete_report(itertools.chain([GOOD], flood), target, "warning 0", status=1)
    assert len(report.refused) == 1


def test_nothing_but_warnings_that_name_no_entry_end_the_run(target: Path) -> None:
    assert_run_ends(target, RemoteError, b"\x01ambiguous target\n", match="warned: ambiguous target", status=1)


def test_the_error_mentions_the_other_entries_only_if_there_are_others(target: Path) -> None:
    sub = b"\x01scp: /c/sub: not a regular file\n"
    alone = r"1 of 1 entries could not be staged: sub: .*\. Nothing was staged\.$"
    incomplete_report([sub], target, alone, status=1)
    incomplete_report([sub, GOOD], target, r"1 of 2 entries .*: sub: .*\. The others are staged\.$", status=1)


def test_a_server_that_ends_with_a_warning_and_status_0_may_have_omitted_files(target: Path) -> None:
    refuses = b"\x01/c/sub: Operation not permitted\n"
    match = r"sub: The peer did not send it.*\*: .*may be missing"
    report = incomplete_report([GOOD, refuses], target, match, status=0)
    assert files_in(target) == {b"good": b"content"}
    assert [file.name for file in report.refused] == ["sub", "*"]


def test_a_warning_about_the_glob_is_an_entry_beside_others_and_alone_an_unreadable_directory(target: Path) -> None:
    warning = b"\x01scp: /c/*: Permission denied\n"
    assert_run_ends(target, RemoteError, warning, status=1, match="cannot read it")
    incomplete_report([GOOD, warning], target, r"\*: The peer did not send it", status=1)


@pytest.mark.parametrize("chunks", [(b"\x02scp: no\n",), (GOOD, b"\x02scp: no\n"), (GOOD[:-1] + b"\x02scp: no\n",)])
def test_a_fatal_error_ends_the_run(target: Path, chunks: tuple[bytes, ...]) -> None:
    assert_run_ends(target, RemoteError, *chunks, match="scp aborted: scp: no")


# The end of the command.


@pytest.mark.parametrize("status", [1, 2, 127, 137, 255])
def test_an_error_status_without_a_message_ends_the_run(target: Path, status: int) -> None:
    assert_run_ends(target, RemoteError, GOOD, status=status, stderr=b"scp: lost\n")


def test_a_missing_exit_status_is_a_lost_connection(target: Path) -> None:
    assert_run_ends(target, ConnectionLost, GOOD, status=None)


def test_a_peer_without_scp_is_reported_as_such(target: Path) -> None:
    assert_run_ends(target, RemoteError, status=127, match="no scp program", stderr=b"sh: scp: not found\n")


def test_more_names_than_fit_on_a_command_line_are_reported_as_such(target: Path) -> None:
    stderr = b"bash: line 1: /usr/bin/scp: Argument list too long\n"
    assert_run_ends(target, RemoteError, status=126, match="do not fit on one command line", stderr=stderr)


def test_stderr_is_quoted(target: Path) -> None:
    assert_run_ends(target, RemoteError, status=1, match="guard: refused", stderr=b"\x1b[31mguard: refused\n")


def test_an_unmatched_glob_is_an_empty_directory_unless_the_directory_is_missing(target: Path) -> None:
    unmatched = b"\x01scp: /c/*: No such file or directory\n"
    missing = b"\x01scp: /c: No such file or directory\n"
    assert_run_ends(target, NothingToStage, unmatched, status=1)
    session = ScriptedSession(
        lambda command: ScriptedCommand([unmatched if command.endswith(b"*") else missing], status=1)
    )
    with pytest.raises(RemoteNotFound):
        transport_to(session).pull(COLLECT, RecordingTarget())


@pytest.mark.parametrize("stderr", [b"scp: No match.\n", b"zsh:1: no matches found: /c/*\n"])
def test_shells_that_run_nothing_without_a_match_are_recognized(target: Path, stderr: bytes) -> None:
    assert_run_ends(target, NothingToStage, status=1, stderr=stderr)


def test_everything_is_closed_after_a_failure() -> None:
    stream = ScriptedCommand([b"nonsense\n"])
    with pytest.raises(ProtocolError):
        transport_to_command(stream).pull(COLLECT, RecordingTarget())
    assert stream.closed


# Limits.


@pytest.mark.parametrize(
    ("chunks", "limits", "limit"),
    [
        ((pack_file(b"n" * 256, b""),), Limits(), "name_bytes"),
        ((pack_file(b"n" * 20, b""),), Limits(name_bytes=19), "name_bytes"),
        (tuple(pack_file(b"%d" % n, b"") for n in range(12)), Limits(entries=10), "entries"),
        (tuple(b"\x01scp: /c/%d: no\n" % n for n in range(12)), Limits(entries=10), "entries"),
        (tuple(pack_file(b"%d" % n, b"") for n in range(12)), Limits(listing_bytes=300), "listing_bytes"),
    ],
)
def test_an_exceeded_limit_is_named(target: Path, chunks: tuple[bytes, ...], limits: Limits, limit: str) -> None:
    assert_run_ends(target, LimitExceeded, *chunks, limits=limits, match=rf"Limits\.{limit}")


def test_a_path_that_is_too_long_is_never_sent() -> None:
    session = ScriptedSession(lambda command: ScriptedCommand())
    transport = transport_to(session, Limits(path_bytes=10))
    for operation in (transport.stat, transport.touch):
        with pytest.raises(LimitExceeded, match="path_bytes"):
            operation(b"/c/" + b"x" * 8)
    assert not session.commands


@pytest.mark.parametrize(
    ("size", "kind", "message"), [(1 << 60, LimitExceeded, "total_bytes"), (1 << 43, TargetError, "Free some space")]
)
def test_a_huge_size_is_refused_before_its_first_byte(
    target: Path, size: int, kind: type[StageError], message: str
) -> None:
    assert_run_ends(target, kind, GOOD, b"C0644 %d huge\n" % size, b"x" * 100, match=message)


def test_a_flood_of_warnings_takes_little_memory(target: Path) -> None:
    flood = (b"\x01scp: /c/w%d%s: %s\n" % (number, b"\xff" * 40, b"no " * 600) for number in range(11_000))
    tracemalloc.start(1)
    try:
        incomplete_report(flood, target, "could not be staged", status=1)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


# Files.


def test_a_name_that_may_stand_for_one_with_a_newline_is_refused_alone(target: Path) -> None:
    chunks = [GOOD, pack_file(b"new\\^Jline", b"12345"), pack_file(b"last", b"l")]
    incomplete_report(chunks, target, r"newline.*Use SFTP")
    assert files_in(target) == {b"good": b"content", b"last": b"l"}


def test_set_id_bits_are_dropped(target: Path) -> None:
    stage_from([pack_file(b"program", b"", 0o7777)], target)
    assert (target / "program").stat().st_mode & 0o7000 == 0


def test_a_symlink_under_the_final_name_is_replaced_and_not_followed(target: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"precious")
    (target / "good").symlink_to(tmp_path / "precious")
    stage_from([GOOD], target)
    assert (tmp_path / "precious").read_bytes() == b"precious"
    assert files_in(target) == {b"good": b"content"}


# Indicators.


@pytest.mark.parametrize(
    "reply", [b"C0644 0 other\n", b"C0644 0 cback.collect/x\n", b"D0755 0 cback.collect\n", b"T1 0 1 0\n", b"hello\n"]
)
def test_a_check_accepts_only_the_requested_file(reply: bytes) -> None:
    with pytest.raises(ProtocolError):
        transport_to_command(ScriptedCommand([reply])).stat(b"/c/cback.collect")


def test_a_check_receives_no_data() -> None:
    stream = ScriptedCommand([b"C0644 %d cback.collect\n" % 2**50])
    assert transport_to_command(stream).stat(b"/c/cback.collect") == RemoteFile(2**50)
    assert stream.closed
    assert stream.received == b"\0\2\n", "the command is told to end"


@pytest.mark.parametrize(
    ("chunks", "status", "reason", "match"),
    [
        ([b"\x01scp: /c/cback.stage: Permission denied\n"], 1, Reason.WRITE_DENIED, "Permission denied"),
        ([b"\0\x01scp: /c/cback.stage: Permission", b" denied\n"], 1, Reason.WRITE_DENIED, "Permission denied"),
        ([b"\0\0\x01scp: x: No space left on device\n"], 1, Reason.REMOTE_NO_SPACE, "No space"),
        ([b"\0\0\x01scp: x: No such file or directory\n"], 1, Reason.NOT_FOUND, "No such"),
        ([b"\0\0\x01scp: disk full\n"], 1, Reason.REMOTE_FAILURE, "disk full"),
        ([b"\0\0\0"], 1, Reason.COMMAND_FAILED, "status 1"),
        ([b"\0\0\0"], None, Reason.COMMAND_FAILED, "without an exit status"),
        ([b"\0\0"], 0, Reason.COMMAND_FAILED, "status 0"),
        ([], 1, Reason.COMMAND_REFUSED, "status 1"),
        ([], 127, Reason.NO_SCP, "no scp program"),
        ([b"Welcome!\n"], 0, Reason.TEXT_BEFORE_PROTOCOL, "not SCP"),
        ([b"\x02" + b"x" * 100_000], 1, Reason.PROTOCOL_VIOLATION, "message of over"),
    ],
)
def test_an_indicator_whose_write_is_not_confirmed_is_an_error(
    chunks: list[bytes], status: int | None, reason: Reason, match: str
) -> None:
    with pytest.raises((RemoteError, ProtocolError), match=match) as caught:
        transport_to_command(ScriptedCommand(chunks, status=status)).touch(b"/c/cback.stage")
    assert caught.value.reason is reason


def test_an_indicator_is_sent_as_an_empty_file_of_mode_0666_for_the_umask_to_reduce() -> None:
    stream = ScriptedCommand([b"\0", b"\0", b"\0"])
    session = ScriptedSession(lambda command: stream)
    transport_to(session).touch(b"/c/cback.stage")
    assert session.commands == [b"scp -t /c/cback.stage"]
    assert stream.received == b"C0666 0 cback.stage\n\0"
    assert stream.at_eof
    assert stream.closed


def test_guarded_sends_only_the_commands_of_the_original() -> None:
    def answer(command: bytes) -> Stream:
        if b"-t" in command:
            return ScriptedCommand([b"\0\0\0"])
        return ScriptedCommand([b"\x01scp: x: No such file or directory\n"])

    session = ScriptedSession(answer)
    transport = transport_to(session, guarded=True)
    assert not transport.stat(b"/c/cback.collect")
    transport.touch(b"/c/cback.stage")
    session.answer = lambda command: ScriptedCommand([b"\x01scp: /c/*: No such file or directory\n"], status=1)
    with pytest.raises(NothingToStage, match="or is missing"):
        transport.pull(COLLECT, RecordingTarget())
    assert session.commands == [b"scp -f /c/cback.collect", b"scp -t /c/cback.stage", b"scp -f /c/*"]


@pytest.mark.parametrize("guarded", [True, False])
def test_the_stage_indicator_is_not_asked_for_since_scp_tells_no_times(guarded: bool) -> None:
    session = ScriptedSession(lambda command: ScriptedCommand([b"C0644 5 cback.collect\n"]))
    found = read_indicators(transport_to(session, guarded=guarded), b"/c/cback.collect", b"/c/cback.stage")
    assert found == Indicators(RemoteFile(5))
    assert session.commands == [b"scp -f /c/cback.collect"]


@pytest.mark.parametrize("path", [b"/with space/x", b"/c/*", b"/c/a'b", b"/c/$x", os.fsencode("/c/ü")])
def test_guarded_rejects_a_path_that_needs_quotes(path: bytes) -> None:
    session = ScriptedSession(lambda command: ScriptedCommand())
    transport = transport_to(session, guarded=True)
    for operation in (transport.stat, transport.touch):
        with pytest.raises(ValueError, match="quotes"):
            operation(path)
    assert not session.commands


# Servers with SCP built in.

BUILT_IN = "SSH-2.0-mod_sftp"


def test_a_server_that_counts_packets_gets_one_acknowledgement_for_each_message(target: Path) -> None:
    files = (pack_file(b"%d" % number, b"x" * number) for number in range(300))
    stream = AcknowledgesPerPacket(GOOD, pack_file(b"empty", b""), *files)
    report = stage(
        transport_to_command(stream, BUILT_IN),
        COLLECT,
        DirectoryTarget(str(target), options=StageOptions(durable=False)),
    )
    assert report.count == 302
    assert files_in(target)[b"299"] == b"x" * 299
    assert stream.received == bytes(1 + 2 * 302)


@pytest.mark.parametrize(
    "server", ["SSH-2.0-OpenSSH_9.2p1 Debian-2", "SSH-1.99-OpenSSH_3.9p1", "SSH-2.0-dropbear_2022.83"]
)
def test_an_scp_program_gets_acknowledgements_ahead(target: Path, server: str) -> None:
    stream = ScriptedCommand([GOOD])
    stage(
        transport_to_command(stream, server), COLLECT, DirectoryTarget(str(target), options=StageOptions(durable=False))
    )
    assert len(stream.received) > 1000


@pytest.mark.parametrize("server", [BUILT_IN, "SSH-2.0-AsyncSSH_2.18.0", "SSH-2.0-Go", "SSH-2.0-NotOpenSSH_1", ""])
def test_every_command_gets_its_own_login_unless_an_scp_program_runs(server: str) -> None:
    sessions: list[ScriptedSession] = []

    def answer(command: bytes) -> Stream:
        return ScriptedCommand([b"\0\0\0"] if b"-t" in command else [b"C0644 0 cback.collect\n"])

    def connect() -> ScriptedSession:
        assert all(session.closed for session in sessions)
        sessions.append(ScriptedSession(answer, server))
        return sessions[-1]

    transport = transport_to(connect(), connect=connect)
    assert transport.stat(b"/c/cback.collect")
    transport.touch(b"/c/cback.stage")
    assert transport.stat(b"/c/cback.collect")
    assert [len(session.commands) for session in sessions] == [1, 1, 1]
    transport.close()
    assert sessions[-1].closed


def test_the_commands_of_an_scp_program_share_one_login() -> None:
    session = ScriptedSession(lambda command: ScriptedCommand([b"C0644 0 cback.collect\n"]))
    transport = transport_to(session, connect=lambda: pytest.fail("There was another login."))
    assert all(transport.stat(b"/c/cback.collect") for _ in range(3))
    assert len(session.commands) == 3


def test_an_indicator_gets_mode_0644_from_a_server_that_may_apply_no_umask() -> None:
    stream = ScriptedCommand([b"\0", b"\0", b"\0"])
    transport_to_command(stream, BUILT_IN).touch(b"/c/cback.stage")
    assert stream.received == b"C0644 0 cback.stage\n\0"


@pytest.mark.parametrize("text", [b"not a regular file", b"Operation not permitted"])
def test_a_directory_is_not_an_indicator_and_one_without_files_is_empty(target: Path, text: bytes) -> None:
    def answer(command: bytes) -> Stream:
        if command.endswith(b"*"):
            return ScriptedCommand([b"\1/c/*: No such file or directory\n"])
        return ScriptedCommand([b"\1" + command.rpartition(b" ")[2] + b": " + text + b"\n"])

    transport = transport_to(ScriptedSession(answer, BUILT_IN))
    assert not transport.stat(b"/c/sub")
    with pytest.raises(NothingToStage):
        stage(transport, COLLECT, DirectoryTarget(str(target)))

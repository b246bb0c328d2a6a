"""Hostile and broken ``scp`` programs, a sentence each (TRUST): what they get, and that nothing is left behind."""

from __future__ import annotations

import itertools
import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from peerstage.errors import (
    ConnectionLost,
    IncompleteStage,
    LandingError,
    LimitExceeded,
    NothingToStage,
    ProtocolError,
    RemoteError,
    RemoteNotFound,
    StageError,
)
from peerstage.reasons import Reason
from peerstage.records import Limits
from peerstage.session.stream import Stream
from peerstage.staging import stage
from peerstage.testing.contract import landed
from support.scp_server import COLLECT, Says, Shell, TakesMessages, file, stage_from, transport_to
from support.sftp_server import RecordingLanding

GOOD = file(b"good", b"content")


def ends_the_run(
    target: Path, kind: type[StageError], *chunks: bytes, words: str | None = None, **options: object
) -> None:
    """Nothing is published, the old file is as it was, the message is one line."""
    (target / "old").write_bytes(b"old")
    with pytest.raises(kind, match=words) as caught:
        stage_from(*chunks, target=target, **options)  # type: ignore[arg-type]
    assert str(caught.value).isprintable()
    assert str(caught.value).startswith("peer ")
    assert landed(target) == {b"old": b"old"}


@pytest.mark.parametrize(
    "name",
    [b"../../etc/x", b"/etc/x", b"..", b".", b".hidden", b"a/b", b"a/", b"/", b"a\0b", b"", b"./a", b"..\\x/y"],
)
def test_a_name_that_was_not_asked_for_ends_the_run(target: Path, name: bytes) -> None:
    ends_the_run(target, ProtocolError, GOOD, file(name, b"planted"))


@pytest.mark.parametrize(
    "record",
    [
        b"D0755 0 sub\n",
        b"D0755 0 ..\n",
        b"D0755 0 .\nC0644 1 x\na\0E\n",
        b"E\n",
        b"T1700000000 0 1700000000 0\n" + GOOD,
    ],
)
def test_what_was_not_asked_for_ends_the_run(target: Path, record: bytes) -> None:
    ends_the_run(target, ProtocolError, GOOD, record)


@pytest.mark.parametrize(
    "record",
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
def test_a_record_that_is_none_ends_the_run(target: Path, record: bytes) -> None:
    ends_the_run(target, ProtocolError, GOOD, record + b"12345\0")


@pytest.mark.parametrize(
    "times",
    [b"T1\n", b"T-1 0 0 0\n", b"T1 0 0 0 0\n", b"T9999999999999 0 0 0\n", b"T1 0 0 0\nT1 0 0 0\n", b"T1 0 0 0\n"],
)
def test_times_that_are_none_end_the_run(target: Path, times: bytes) -> None:
    ends_the_run(target, ProtocolError, GOOD, times, times=True)


def test_times_are_kept_if_they_were_asked_for(target: Path) -> None:
    report = stage_from(b"T1700000000 0 1600000000 0\n", GOOD, target=target, times=True, preserve_times=True)
    assert report.files[0].mtime == 1_700_000_000
    assert (target / "good").stat().st_mtime == 1_700_000_000


@pytest.mark.parametrize("greeting", [b"Welcome to db1!\n", b"\x1b[2JHello\r\n", b"This account is not available.\n"])
def test_text_of_a_login_script_is_quoted(target: Path, greeting: bytes) -> None:
    ends_the_run(target, ProtocolError, greeting, GOOD, words="which is not SCP. A login script")


def test_a_name_that_comes_twice_ends_the_run(target: Path) -> None:
    ends_the_run(target, ProtocolError, GOOD, GOOD, words="twice")
    ends_the_run(target, ProtocolError, GOOD, b"\x01scp: /c/good: no\n", words="twice")


@pytest.mark.parametrize("cut", range(1, len(GOOD)))
def test_a_stream_that_ends_within_a_file_ends_the_run(target: Path, cut: int) -> None:
    ends_the_run(target, StageError, file(b"whole", b"x"), GOOD[:cut])


@pytest.mark.parametrize("piece", [1, 2, 3, 5, 7, 1000])
def test_records_may_be_split_over_packets_and_merged_into_one(target: Path, piece: int) -> None:
    whole = GOOD + b"\x01scp: /c/sub: not a regular file\n" + file(b"empty", b"") + file(b"last", b"z" * 50)
    with pytest.raises(IncompleteStage, match="sub") as caught:
        stage_from(*(whole[at : at + piece] for at in range(0, len(whole), piece)), target=target, status=1)
    assert landed(target) == {b"good": b"content", b"empty": b"", b"last": b"z" * 50}
    assert caught.value.report is not None
    assert [(one.name, one.reason) for one in caught.value.report.refused] == [("sub", Reason.NOT_A_FILE)]


@pytest.mark.parametrize("behind", [b"C0644 1 x\n", b"\n", b"x\n", b"T1 0 0 0\n", b"\xff"])
def test_a_file_without_its_status_ends_the_run(target: Path, behind: bytes) -> None:
    ends_the_run(target, ProtocolError, file(b"good", b"content", status=behind))


def test_a_warning_behind_the_data_fails_that_file_alone(target: Path) -> None:
    bad = file(b"bad", b"\0" * 9, status=b"\x01scp: /c/bad: Input/output error\n")
    with pytest.raises(IncompleteStage, match="bad: The peer could not read it: Input/output error") as caught:
        stage_from(bad, GOOD, target=target, status=1)
    assert landed(target) == {b"good": b"content"}
    assert caught.value.report is not None
    assert [one.reason for one in caught.value.report.failed] == [Reason.ENTRY_UNREADABLE]


@pytest.mark.parametrize("at", [0, 1, 2])
def test_warnings_before_between_and_after_the_files_refuse_what_they_name(target: Path, at: int) -> None:
    chunks = [GOOD, file(b"other", b"o")]
    chunks.insert(at, b"\x01scp: /c/\x1b[2Jsub: Permission denied\n")
    with pytest.raises(IncompleteStage, match="Permission denied") as caught:
        stage_from(*chunks, target=target, status=1)
    assert str(caught.value).isprintable()
    assert landed(target) == {b"good": b"content", b"other": b"o"}
    assert caught.value.report is not None
    assert [one.reason for one in caught.value.report.failed] == [Reason.PERMISSION_DENIED]


@pytest.mark.parametrize("warning", [b"\x01out of memory\n", b"\x01\n", b"\x01out of memory\n" * 3])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_warning_that_names_no_entry_is_refused_as_one_and_the_files_stay(
    target: Path, warning: bytes, at: int
) -> None:
    chunks = [GOOD, file(b"other", b"o")]
    chunks.insert(at, warning)
    with pytest.raises(
        IncompleteStage, match=r"1 of 3 .*\*: The peer warns, and names no file: (out of mem|no rea)"
    ) as caught:
        stage_from(*chunks, target=target, status=1)
    assert landed(target) == {b"good": b"content", b"other": b"o"}
    assert caught.value.report is not None
    assert [one.name for one in caught.value.report.refused] == ["*"]


def test_the_error_says_what_became_of_the_others_only_if_there_are_others(target: Path) -> None:
    sub = b"\x01scp: /c/sub: not a regular file\n"
    with pytest.raises(IncompleteStage, match=r"1 of 1 entries could not be staged: sub: .*\. Nothing was staged\.$"):
        stage_from(sub, target=target, status=1)
    with pytest.raises(
        IncompleteStage, match=r"1 of 2 entries could not be staged: sub: .*\. The others are staged\.$"
    ):
        stage_from(sub, GOOD, target=target, status=1)


def test_a_flood_of_warnings_that_name_no_entry_is_one_refused_entry(target: Path) -> None:
    flood = (b"\x01warning %d\n" % number for number in range(20_000))
    with pytest.raises(IncompleteStage, match="warning 0") as caught:
        stage_from(chunks=itertools.chain([GOOD], flood), target=target, status=1)
    assert caught.value.report is not None
    assert len(caught.value.report.refused) == 1


def test_a_warning_that_names_no_entry_and_nothing_else_is_the_peer_s_refusal(target: Path) -> None:
    ends_the_run(target, RemoteError, b"\x01ambiguous target\n", words="warns: ambiguous target", status=1)


def test_a_server_that_ends_with_a_warning_and_no_error_may_have_left_files_out(target: Path) -> None:
    refuses = b"\x01/c/sub: Operation not permitted\n"
    with pytest.raises(IncompleteStage, match=r"sub: The peer does not send it.*\*: .*may not have sent") as caught:
        stage_from(GOOD, refuses, target=target, status=0)
    assert landed(target) == {b"good": b"content"}
    assert caught.value.report is not None
    assert [one.name for one in caught.value.report.refused] == ["sub", "*"]


@pytest.mark.parametrize("chunks", [(b"\x02scp: no\n",), (GOOD, b"\x02scp: no\n"), (GOOD[:-1] + b"\x02scp: no\n",)])
def test_a_fatal_error_ends_the_run(target: Path, chunks: tuple[bytes, ...]) -> None:
    ends_the_run(target, RemoteError, *chunks, words="gives up: scp: no")


@pytest.mark.parametrize("status", [1, 2, 127, 137, 255])
def test_a_status_that_nothing_explains_ends_the_run(target: Path, status: int) -> None:
    ends_the_run(target, RemoteError, GOOD, status=status, stderr=b"scp: lost\n")


def test_no_status_at_all_is_a_lost_connection(target: Path) -> None:
    ends_the_run(target, ConnectionLost, GOOD, status=None)


def test_a_peer_without_scp_is_told_so(target: Path) -> None:
    ends_the_run(target, RemoteError, status=127, words="no scp program", stderr=b"sh: scp: not found\n")


def test_more_names_than_fit_on_a_command_line_are_told_from_other_failures(target: Path) -> None:
    said = b"bash: line 1: /usr/bin/scp: Argument list too long\n"
    ends_the_run(target, RemoteError, status=126, words="do not fit on one command line", stderr=said)


def test_what_stderr_says_is_quoted(target: Path) -> None:
    ends_the_run(target, RemoteError, status=1, words="guard: refused", stderr=b"\x1b[31mguard: refused\n")


def test_a_line_without_end_is_cut_off(target: Path) -> None:
    endless: Iterator[bytes] = itertools.repeat(b"C0644 5 " + b"x" * 8192)
    shell = Shell(lambda command: Says(endless))
    with pytest.raises(ProtocolError, match="line of over"):
        transport_to(shell).exists(b"/c/x")


@pytest.mark.parametrize(
    ("chunks", "limits", "bound"),
    [
        ((file(b"n" * 256, b""),), Limits(), "name_bytes"),
        ((file(b"n" * 20, b""),), Limits(name_bytes=19), "name_bytes"),
        (tuple(file(b"%d" % n, b"") for n in range(12)), Limits(entries=10), "entries"),
        (tuple(b"\x01scp: /c/%d: no\n" % n for n in range(12)), Limits(entries=10), "entries"),
        (tuple(file(b"%d" % n, b"") for n in range(12)), Limits(listing_bytes=300), "listing_bytes"),
    ],
)
def test_each_bound_is_named_when_it_is_passed(
    target: Path, chunks: tuple[bytes, ...], limits: Limits, bound: str
) -> None:
    ends_the_run(target, LimitExceeded, *chunks, limits=limits, words=rf"Limits\.{bound}")


def test_a_path_that_is_too_long_is_never_sent(target: Path) -> None:
    shell = Shell(lambda command: Says())
    transport = transport_to(shell, Limits(path_bytes=10))
    for call in (transport.exists, transport.touch):
        with pytest.raises(LimitExceeded, match="path_bytes"):
            call(b"/c/" + b"x" * 8)
    assert not shell.commands


def test_a_size_of_2_to_the_60_is_refused_before_its_first_byte(target: Path) -> None:
    ends_the_run(target, LandingError, GOOD, b"C0644 %d huge\n" % 2**60, b"x" * 100, words="Make room")


def test_a_flood_of_warnings_and_of_files_takes_little_memory(target: Path) -> None:
    def flood() -> Iterator[bytes]:
        for number in range(11_000):
            yield b"\x01scp: /c/w%d%s: %s\n" % (number, b"\xff" * 40, b"no " * 600)

    tracemalloc.start(1)
    try:
        with pytest.raises(IncompleteStage):
            stage_from(*(), target=target, status=1, chunks=flood())  # type: ignore[arg-type]
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


def test_a_name_that_may_hold_a_newline_is_that_entrys_error(target: Path) -> None:
    with pytest.raises(IncompleteStage, match=r"newline.*Use SFTP"):
        stage_from(GOOD, file(b"new\\^Jline", b"12345"), file(b"last", b"l"), target=target)
    assert landed(target) == {b"good": b"content", b"last": b"l"}


def test_set_id_bits_are_not_taken(target: Path) -> None:
    stage_from(file(b"program", b"", 0o7777), target=target)
    assert (target / "program").stat().st_mode & 0o7000 == 0


def test_a_link_under_the_final_name_is_replaced_and_not_followed(target: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"precious")
    (target / "good").symlink_to(tmp_path / "precious")
    stage_from(GOOD, target=target)
    assert (tmp_path / "precious").read_bytes() == b"precious"
    assert landed(target) == {b"good": b"content"}


def test_nothing_that_matches_is_an_empty_directory_and_a_missing_one_is_missing(target: Path) -> None:
    unmatched = b"\x01scp: /c/*: No such file or directory\n"
    ends_the_run(target, NothingToStage, unmatched, status=1)
    shell = Shell(
        lambda command: Says(
            [unmatched if command.endswith(b"*") else b"\x01scp: /c: No such file or directory\n"], status=1
        )
    )
    with pytest.raises(RemoteNotFound):
        transport_to(shell).pull(COLLECT, RecordingLanding())


def test_a_star_among_others_is_an_entry_and_alone_a_directory_that_can_not_be_read(target: Path) -> None:
    star = b"\x01scp: /c/*: Permission denied\n"
    ends_the_run(target, RemoteError, star, status=1, words="cannot read it")
    with pytest.raises(IncompleteStage, match=r"\*: The peer does not send it"):
        stage_from(GOOD, star, target=target, status=1)


@pytest.mark.parametrize("shell_says", [b"scp: No match.\n", b"zsh:1: no matches found: /c/*\n"])
def test_shells_that_run_nothing_without_a_match_are_understood(target: Path, shell_says: bytes) -> None:
    ends_the_run(target, NothingToStage, status=1, stderr=shell_says)


@pytest.mark.parametrize(
    "answer", [b"C0644 0 other\n", b"C0644 0 cback.collect/x\n", b"D0755 0 cback.collect\n", b"T1 0 1 0\n", b"hello\n"]
)
def test_a_check_believes_no_other_answer(answer: bytes) -> None:
    with pytest.raises(ProtocolError):
        transport_to(Shell(lambda command: Says([answer]))).exists(b"/c/cback.collect")


def test_a_check_takes_no_data() -> None:
    stream = Says([b"C0644 %d cback.collect\n" % 2**50])
    assert transport_to(Shell(lambda command: stream)).exists(b"/c/cback.collect")
    assert stream.closed
    assert stream.sent == b"\0\2\n", "the command is told to end"


@pytest.mark.parametrize(
    ("chunks", "status", "reason", "words"),
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
        ([b"\x02" + b"x" * 100_000], 1, Reason.PROTOCOL_VIOLATION, "line of over"),
    ],
)
def test_an_indicator_that_is_not_surely_written_is_an_error(
    chunks: list[bytes], status: int | None, reason: Reason, words: str
) -> None:
    with pytest.raises((RemoteError, ProtocolError), match=words) as caught:
        transport_to(Shell(lambda command: Says(chunks, status=status))).touch(b"/c/cback.stage")
    assert caught.value.reason is reason


def test_an_indicator_is_sent_as_an_empty_file_that_all_may_write_less_the_umask() -> None:
    stream = Says([b"\0", b"\0", b"\0"])
    shell = Shell(lambda command: stream)
    transport_to(shell).touch(b"/c/cback.stage")
    assert shell.commands == [b"scp -t /c/cback.stage"]
    assert stream.sent == b"C0666 0 cback.stage\n\0"
    assert stream.ended
    assert stream.closed


def test_everything_is_closed_after_a_failure(target: Path) -> None:
    stream = Says([b"nonsense\n"])
    with pytest.raises(ProtocolError):
        transport_to(Shell(lambda command: stream)).pull(COLLECT, RecordingLanding())
    assert stream.closed


def test_guarded_sends_exactly_the_original_s_commands_and_nothing_to_find_out_more() -> None:
    def answer(command: bytes) -> Stream:
        return Says([b"\0\0\0"] if b"-t" in command else [b"\x01scp: x: No such file or directory\n"], status=0)

    shell = Shell(answer)
    transport = transport_to(shell, guarded=True)
    assert not transport.exists(b"/c/cback.collect")
    transport.touch(b"/c/cback.stage")
    shell._answer = lambda command: Says([b"\x01scp: /c/*: No such file or directory\n"], status=1)
    with pytest.raises(NothingToStage, match="or it is missing"):
        transport.pull(COLLECT, RecordingLanding())
    assert shell.commands == [b"scp -f /c/cback.collect", b"scp -t /c/cback.stage", b"scp -f /c/*"]


@pytest.mark.parametrize("path", [b"/with space/x", b"/c/*", b"/c/a'b", b"/c/$x", os.fsencode("/c/ü")])
def test_guarded_refuses_what_it_would_have_to_quote(path: bytes) -> None:
    shell = Shell(lambda command: Says())
    transport = transport_to(shell, guarded=True)
    for call in (transport.exists, transport.touch):
        with pytest.raises(ValueError, match="quotes"):
            call(path)
    assert not shell.commands


# Servers that have SCP built in.

BUILT_IN = "SSH-2.0-mod_sftp"


def test_a_server_that_takes_one_message_as_one_acknowledgement_gets_one_for_each_record(target: Path) -> None:
    stream = TakesMessages(GOOD, file(b"empty", b""), *(file(b"%d" % number, b"x" * number) for number in range(300)))
    report = stage(transport_to(Shell(lambda command: stream, BUILT_IN)), COLLECT, str(target), durable=False)
    assert report.count == 302
    assert landed(target)[b"299"] == b"x" * 299
    assert stream.sent == bytes(1 + 2 * 302)


@pytest.mark.parametrize(
    "server", ["SSH-2.0-OpenSSH_9.2p1 Debian-2", "SSH-1.99-OpenSSH_3.9p1", "SSH-2.0-dropbear_2022.83"]
)
def test_an_scp_program_gets_its_acknowledgements_ahead(target: Path, server: str) -> None:
    stream = Says([GOOD])
    stage(transport_to(Shell(lambda command: stream, server)), COLLECT, str(target), durable=False)
    assert len(stream.sent) > 1000


@pytest.mark.parametrize("server", [BUILT_IN, "SSH-2.0-AsyncSSH_2.18.0", "SSH-2.0-Go", "SSH-2.0-NotOpenSSH_1", ""])
def test_every_command_gets_a_login_of_its_own_where_no_scp_program_is_known_to_run(server: str) -> None:
    logins: list[Shell] = []

    def connect() -> Shell:
        for earlier in logins:
            assert earlier.closed
        answer = lambda command: Says([b"\0\0\0"] if b"-t" in command else [b"C0644 0 cback.collect\n"])  # noqa: E731
        logins.append(Shell(answer, server))
        return logins[-1]

    transport = transport_to(connect(), connect=connect)
    assert transport.exists(b"/c/cback.collect")
    transport.touch(b"/c/cback.stage")
    assert transport.exists(b"/c/cback.collect")
    assert [len(one.commands) for one in logins] == [1, 1, 1]
    transport.close()
    assert logins[-1].closed


def test_an_indicator_is_not_left_to_a_umask_that_may_not_be_heeded() -> None:
    stream = Says([b"\0", b"\0", b"\0"])
    transport_to(Shell(lambda command: stream, BUILT_IN)).touch(b"/c/cback.stage")
    assert stream.sent == b"C0644 0 cback.stage\n\0"


@pytest.mark.parametrize("why", [b"not a regular file", b"Operation not permitted"])
def test_a_directory_is_no_indicator_and_one_without_files_is_empty(target: Path, why: bytes) -> None:
    def answer(command: bytes) -> Stream:
        said = (
            b"/c/*: No such file or directory" if command.endswith(b"*") else command.rpartition(b" ")[2] + b": " + why
        )
        return Says([b"\1" + said + b"\n"])

    transport = transport_to(Shell(answer, BUILT_IN))
    assert not transport.exists(b"/c/sub")
    with pytest.raises(NothingToStage):
        stage(transport, COLLECT, str(target))


def test_an_scp_program_s_commands_share_one_login() -> None:
    shell = Shell(lambda command: Says([b"C0644 0 cback.collect\n"]))
    transport = transport_to(shell, connect=lambda: pytest.fail("There was another login."))
    assert all(transport.exists(b"/c/cback.collect") for _ in range(3))
    assert len(shell.commands) == 3

"""Replies that answer something else, answer twice, or are damaged: one error of ours, and nothing left behind."""

from __future__ import annotations

import random
import stat
import struct
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peerstage.errors import (
    ConnectionLost,
    IncompleteStage,
    NoSFTP,
    ProtocolError,
    RemoteError,
    RemoteNotFound,
    StageError,
)
from peerstage.testing.contract import landed
from peerstage.transport.sftp import wire
from support.sftp_server import (
    AnyOrder,
    HangsUp,
    Node,
    RecordingLanding,
    Server,
    attributes,
    packet,
    stage_from,
    string,
    transport_to,
)

LINK = stat.S_IFLNK | 0o777
GOOD = {b"good": Node(b"good"), b"other": Node(b"o" * 9000)}
ALL = {**GOOD, b"link": Node(mode=LINK, leads_to=GOOD[b"good"])}

REPLIES = {
    wire.HANDLE: string(b"handle"),
    wire.DATA: string(b"d"),
    wire.NAME: struct.pack(">I", 1) + string(b"n") + string(b"l") + attributes(Node()),
    wire.ATTRS: attributes(Node()),
    wire.EXTENDED_REPLY: bytes(32),
    wire.VERSION_REPLY: b"",
    wire.READ: b"",
    0: b"",
    255: b"?" * 50,
}
ANSWERS = {
    wire.EXTENDED: wire.EXTENDED_REPLY,
    wire.OPENDIR: wire.HANDLE,
    wire.READDIR: wire.NAME,
    wire.STAT: wire.ATTRS,
    wire.OPEN: wire.HANDLE,
    wire.FSTAT: wire.ATTRS,
    wire.READ: wire.DATA,
    wire.CLOSE: wire.STATUS,
}


class AnswersOne(Server):
    """Answers the n-th request of one type in its own way.

    Attributes:
        kind: Which type of request.
        nth: Which of them; the first CLOSE is of the directory.
        reply: Type and body of the answer.
    """

    kind = wire.READ
    nth = 1
    reply: tuple[int, bytes] = (wire.STATUS, b"")

    def answer(self, request: bytes) -> list[bytes]:
        replies = super().answer(request)
        if request[0] != self.kind or self.kinds[self.kind] != self.nth:
            return replies
        (number,) = struct.unpack_from(">I", request, 1)
        return [packet(self.reply[0], number, self.reply[1])]


def ends_with_one_line(server: Server, target: Path) -> ProtocolError:
    (target / "old").write_bytes(b"old")
    with pytest.raises(ProtocolError) as caught:
        stage_from(server, target)
    assert str(caught.value).startswith("peer")
    assert str(caught.value).isprintable()
    assert landed(target) == {b"old": b"old"}
    return caught.value


@pytest.mark.parametrize(
    ("kind", "nth", "reply"),
    [
        (kind, nth, reply)
        for kind, right in ANSWERS.items()
        for nth in ((1, 2) if kind == wire.CLOSE else (1,))
        for reply in REPLIES
        if reply != right
    ],
)
def test_an_answer_of_another_type_ends_the_run(target: Path, kind: int, nth: int, reply: int) -> None:
    server = AnswersOne(dict(ALL))
    server.kind, server.nth, server.reply = kind, nth, (reply, REPLIES[reply])
    ends_with_one_line(server, target)


@pytest.mark.parametrize("kind", ANSWERS)
@pytest.mark.parametrize("body", [b"", b"\0\0\0", struct.pack(">II", 5, 1000), b"\xff" * 200])
def test_an_answer_of_the_right_type_that_is_malformed_ends_the_run(target: Path, kind: int, body: bytes) -> None:
    server = AnswersOne(dict(ALL))
    server.kind, server.reply = kind, (ANSWERS[kind], body)
    ends_with_one_line(server, target)


@pytest.mark.parametrize("kind", [kind for kind in ANSWERS if kind != wire.EXTENDED])
def test_an_answer_that_comes_twice_ends_the_run(target: Path, kind: int) -> None:
    class Repeats(Server):
        """Gives every answer of one type twice."""

        def answer(self, request: bytes) -> list[bytes]:
            return super().answer(request) * (2 if request[0] == kind else 1)

    assert "not open" in str(ends_with_one_line(Repeats(dict(ALL)), target))


@pytest.mark.parametrize("kind", [wire.OPENDIR, wire.READDIR, wire.STAT, wire.OPEN, wire.FSTAT, wire.READ])
def test_an_answer_ahead_of_its_request_and_the_true_one_end_the_run(target: Path, kind: int) -> None:
    class Predicts(Server):
        """Guesses the number of the next request, and answers it before it was made."""

        def answer(self, request: bytes) -> list[bytes]:
            replies = super().answer(request)
            if request[0] == kind and self.kinds[kind] == 1:
                (number,) = struct.unpack_from(">I", request, 1)
                replies += self.status((number + 1) & 0xFFFFFFFF, wire.FX_EOF)
            return replies

    ends_with_one_line(Predicts(dict(ALL)), target)


@pytest.mark.parametrize("refused", [wire.FX_FAILURE, 8, 2**32 - 1])
def test_limits_that_are_refused_are_those_of_a_server_without_them(target: Path, refused: int) -> None:
    server = AnswersOne({b"%d" % number: Node(b"x" * 70_000) for number in range(40)})
    server.kind, server.reply = wire.EXTENDED, (wire.STATUS, struct.pack(">I", refused))
    assert stage_from(server, target).count == 40
    assert server.peak <= 16
    assert max(length for _, _, length in server.asked) == 32768


@pytest.mark.parametrize(("kind", "reason"), [(wire.OPEN, "opened"), (wire.FSTAT, "attributes"), (wire.READ, "read")])
@pytest.mark.parametrize("body", [struct.pack(">I", 3), struct.pack(">I", 3) + string(b"")])
def test_a_status_without_message_is_understood(target: Path, kind: int, reason: str, body: bytes) -> None:
    server = AnswersOne({b"bad": Node(b"b" * 9000), **GOOD})
    server.kind, server.reply = kind, (wire.STATUS, body)
    with pytest.raises(IncompleteStage, match=rf"bad: .*{reason}.*denies permission") as caught:
        stage_from(server, target)
    assert str(caught.value).isprintable()
    assert landed(target) == {name: node.data for name, node in GOOD.items()}


def test_what_a_status_says_is_shown_without_its_escapes(target: Path) -> None:
    server = AnswersOne({b"bad": Node(b"b"), **GOOD})
    says = "\x1b]0;owned\x07\r\n\u202eI/O error\u2028".encode() + b"\xff"
    server.kind, server.reply = wire.READ, (wire.STATUS, struct.pack(">I", 4) + string(says))
    with pytest.raises(IncompleteStage, match="I/O error") as caught:
        stage_from(server, target)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("kind", [wire.OPENDIR, wire.READDIR])
@pytest.mark.parametrize(("code", "error"), [(2, RemoteNotFound), (3, RemoteError), (4, RemoteError)])
def test_a_directory_that_can_not_be_listed_is_an_error_that_names_it(
    target: Path, kind: int, code: int, error: type[RemoteError]
) -> None:
    server = AnswersOne(dict(ALL))
    server.kind, server.reply = kind, (wire.STATUS, struct.pack(">I", code))
    with pytest.raises(error) as caught:
        stage_from(server, target)
    assert str(caught.value).startswith("peer /c: ")
    assert server.kinds[wire.CLOSE] == (kind == wire.READDIR), "what was opened is closed"
    assert landed(target) == {}


# What is listed.


def test_names_that_are_not_utf_8_arrive_as_they_are(target: Path) -> None:
    names = [b"\xff\xfe", b"caf\xe9", b"\xed\xa0\x80", b"a\xc0\xaf", b"\x80" * 255]
    assert stage_from(Server({name: Node(name) for name in names}), target).count == len(names)
    assert landed(target) == {name: name for name in names}


def test_what_longnames_say_is_never_looked_at(target: Path) -> None:
    class TellsTales(Server):
        """Puts escapes and other names into its longnames."""

        def readdir(self, number: int, handle: bytes, rest: bytes) -> list[bytes]:
            some, self.unlisted = self.unlisted, []
            if not some:
                return self.status(number, wire.FX_EOF)
            tale = string(b"drwxrwxrwx 1 root root 999 ../../etc/passwd\n\x1b[2J\0\xff")
            told = b"".join(string(name) + tale + attrs for name, attrs in some)
            return [packet(wire.NAME, number, struct.pack(">I", len(some)) + told)]

    stage_from(TellsTales(dict(GOOD)), target)
    assert landed(target) == {name: node.data for name, node in GOOD.items()}


@pytest.mark.parametrize("name", [b"..", b"."])
def test_dots_that_come_twice_are_no_names(target: Path, name: bytes) -> None:
    class ListsDots(Server):
        """Lists the directory or its parent as a file, and more than once."""

        def listing(self) -> list[tuple[bytes, bytes]]:
            return [*super().listing(), (name, attributes(Node(b"x"))), (name, attributes(Node(b"x")))]

    assert stage_from(ListsDots(dict(GOOD)), target).count == len(GOOD)


@pytest.mark.parametrize("name", [b".x/../../y", b".\0", b".hidden"])
def test_names_with_a_leading_dot_are_checked_as_any_other(target: Path, name: bytes) -> None:
    class Hides(Server):
        """Lists a name twice, or one that can not be, where it would be left out."""

        def listing(self) -> list[tuple[bytes, bytes]]:
            return [*super().listing(), *[(name, attributes(Node(b"x")))] * 2]

    ends_with_one_line(Hides(dict(GOOD)), target)


@pytest.mark.parametrize("mtime", [0, 2**31, 2**32 - 1])
@pytest.mark.parametrize("bits", [0o7777, 0o4755, 0o2070, 0o1000, 0])
def test_no_bit_but_those_of_permission_is_taken_over(target: Path, bits: int, mtime: int) -> None:
    stage_from(Server({b"a": Node(b"a", mode=stat.S_IFREG | bits, mtime=mtime)}), target)
    assert stat.S_IMODE((target / "a").stat().st_mode) & ~(bits & 0o777) == 0


def test_a_file_that_grows_while_it_is_read_fails_alone(target: Path) -> None:
    class Grows(Server):
        """Appends to a file whenever it is read."""

        def data(self, number: int, node: Node, offset: int, length: int) -> list[bytes]:
            replies = super().data(number, node, offset, length)
            if node is log:
                log.data += b"one more line\n"
            return replies

    log = Node(b"line\n" * 5000)
    server = Grows({**GOOD, b"log": log})
    with pytest.raises(IncompleteStage, match="log: Its size changed from 25000"):
        stage_from(server, target)
    assert landed(target) == {name: node.data for name, node in GOOD.items()}
    assert server.handles == {}


@pytest.mark.parametrize("extra", [1, 4096, 20_000])
def test_more_than_was_asked_for_is_refused_in_the_middle_of_a_file_too(target: Path, extra: int) -> None:
    class SendsMore(Server):
        """Answers the first read of a file with what was asked for and some of what follows."""

        def data(self, number: int, node: Node, offset: int, length: int) -> list[bytes]:
            return super().data(number, node, offset, length + extra if offset == 0 else length)

    error = ends_with_one_line(SendsMore({b"a": Node(b"a" * 50_000)}), target)
    assert f"sent {4096 + extra} bytes where 4096 were asked for" in str(error)


# The stream.


@pytest.mark.parametrize("said", [b"\0\0\0\x05\x02", b"\0\0\0\x05\x02\0\0"])
def test_a_conversation_that_ends_within_the_version_is_a_lost_connection(target: Path, said: bytes) -> None:
    class Leaves(HangsUp):
        """Says little and goes."""

        def answer(self, request: bytes) -> list[bytes]:
            return [said]

    with pytest.raises(ConnectionLost):
        stage_from(Leaves(dict(GOOD)), target)
    assert landed(target) == {}


@pytest.mark.parametrize("version", [0, 1, 2, 4, 6, 2**32 - 1])
def test_another_version_than_3_is_refused(target: Path, version: int) -> None:
    class Speaks(Server):
        """Speaks another version."""

        def answer(self, request: bytes) -> list[bytes]:
            return [struct.pack(">IBI", 5, wire.VERSION_REPLY, version)]

    assert f"version {version}" in str(ends_with_one_line(Speaks(dict(GOOD)), target))


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    damage=st.lists(st.tuples(st.integers(0, 6000), st.binary(min_size=1, max_size=6)), min_size=1, max_size=4),
    inserts=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_a_damaged_stream_ends_in_an_error_of_ours_and_leaves_nothing_behind(
    damage: list[tuple[int, bytes]], inserts: bool, seed: int
) -> None:
    class Damages(HangsUp, AnyOrder):
        """Overwrites or inserts bytes in what it sends."""

        sent = 0

        def answer(self, request: bytes) -> list[bytes]:
            try:
                return super().answer(request)
            except (KeyError, AssertionError):  # the client was told a damaged handle, and no server knows it
                return self.status(*struct.unpack_from(">I", request, 1), wire.FX_FAILURE)

        def cut(self, out: object) -> bytes:
            chunk = bytearray(super().cut(out))  # type: ignore[arg-type]
            for at, put in damage:
                if 0 <= at - self.sent < len(chunk):
                    chunk[at - self.sent : at - self.sent + (0 if inserts else len(put))] = put
            self.sent += len(chunk)
            return bytes(chunk)

    chance = random.Random(seed)
    files = {b"%d" % size: Node(chance.randbytes(size)) for size in (0, 1, 700, 1500)}
    server = Damages(files, read_bytes=1024)
    server.chance, server.shortens = chance, False
    error: StageError | None = None
    with tempfile.TemporaryDirectory() as target:
        try:
            stage_from(server, Path(target))
        except StageError as exc:
            error = exc
        found = landed(Path(target))
    assert error is None or str(error).isprintable()
    assert error is None or isinstance(error, IncompleteStage) or found == {}, "a run that is cut off publishes nothing"
    assert not [name for name in found if name.startswith(b".peerstage")], "nothing is left behind"
    assert server.receives < 5000, "it comes to an end"


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=400), st.sampled_from([wire.INIT, wire.OPENDIR, wire.OPEN, wire.READ]))
def test_any_bytes_in_place_of_an_answer_end_the_run(noise: bytes, kind: int) -> None:
    class Noisy(HangsUp):
        """Answers one type of request with noise, and hangs up."""

        def answer(self, request: bytes) -> list[bytes]:
            return [noise] * bool(noise) if request[0] == kind else super().answer(request)

    with pytest.raises((ProtocolError, ConnectionLost, NoSFTP)) as caught:
        transport_to(Noisy(dict(GOOD))).pull(b"/c", RecordingLanding())
    assert str(caught.value).isprintable()

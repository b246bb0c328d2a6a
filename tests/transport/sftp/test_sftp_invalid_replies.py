"""Mismatched, duplicate and damaged replies: the run ends with one `StageError`, and nothing is left behind."""

from __future__ import annotations

import random
import stat
import struct
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
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
from peerstage.testing.contract import files_in
from peerstage.transport.sftp import wire
from support.examples import examples
from support.sftp_server import (
    ClosesChannel,
    FakeSFTPServer,
    Node,
    RecordingTarget,
    ReorderingServer,
    pack_attributes,
    pack_packet,
    pack_string,
    stage_from,
    transport_to,
)

SYMLINK = stat.S_IFLNK | 0o777
GOOD = {b"good": Node(b"good"), b"other": Node(b"o" * 9000)}
ALL = {**GOOD, b"link": Node(mode=SYMLINK, leads_to=GOOD[b"good"])}

REPLIES = {
    wire.FXP_HANDLE: pack_string(b"handle"),
    wire.FXP_DATA: pack_string(b"d"),
    wire.FXP_NAME: struct.pack(">I", 1) + pack_string(b"n") + pack_string(b"l") + pack_attributes(Node()),
    wire.FXP_ATTRS: pack_attributes(Node()),
    wire.FXP_EXTENDED_REPLY: bytes(32),
    wire.FXP_VERSION: b"",
    wire.FXP_READ: b"",
    0: b"",
    255: b"?" * 50,
}
EXPECTED = {
    wire.FXP_EXTENDED: wire.FXP_EXTENDED_REPLY,
    wire.FXP_OPENDIR: wire.FXP_HANDLE,
    wire.FXP_READDIR: wire.FXP_NAME,
    wire.FXP_STAT: wire.FXP_ATTRS,
    wire.FXP_OPEN: wire.FXP_HANDLE,
    wire.FXP_FSTAT: wire.FXP_ATTRS,
    wire.FXP_READ: wire.FXP_DATA,
    wire.FXP_CLOSE: wire.FXP_STATUS,
}


class RepliesWrongly(FakeSFTPServer):
    """Replies to the n-th request of one type with *reply*.

    Attributes:
        request_type: The type of request.
        nth: Which of them; the first CLOSE is that of the directory.
        reply: The type and body of the reply.
    """

    request_type = wire.FXP_READ
    nth = 1
    reply: tuple[int, bytes] = (wire.FXP_STATUS, b"")

    def answer(self, request: bytes) -> list[bytes]:
        replies = super().answer(request)
        if request[0] != self.request_type or self.requests[self.request_type] != self.nth:
            return replies
        (request_id,) = struct.unpack_from(">I", request, 1)
        return [pack_packet(self.reply[0], request_id, self.reply[1])]


def assert_run_ends(server: FakeSFTPServer, target: Path) -> ProtocolError:
    """Assert that staging raises `ProtocolError` as one line, and publishes nothing; return the error."""
    (target / "old").write_bytes(b"old")
    with pytest.raises(ProtocolError) as caught:
        stage_from(server, target)
    assert str(caught.value).startswith("peer")
    assert str(caught.value).isprintable()
    assert files_in(target) == {b"old": b"old"}
    return caught.value


@pytest.mark.parametrize(
    ("request_type", "nth", "reply_type"),
    [
        (request_type, nth, reply_type)
        for request_type, expected in EXPECTED.items()
        for nth in ((1, 2) if request_type == wire.FXP_CLOSE else (1,))
        for reply_type in REPLIES
        if reply_type != expected
    ],
)
def test_a_reply_of_another_type_ends_the_run(target: Path, request_type: int, nth: int, reply_type: int) -> None:
    server = RepliesWrongly(dict(ALL))
    server.request_type, server.nth, server.reply = request_type, nth, (reply_type, REPLIES[reply_type])
    assert_run_ends(server, target)


@pytest.mark.parametrize("request_type", EXPECTED)
@pytest.mark.parametrize("body", [b"", b"\0\0\0", struct.pack(">II", 5, 1000), b"\xff" * 200])
def test_a_malformed_reply_ends_the_run(target: Path, request_type: int, body: bytes) -> None:
    server = RepliesWrongly(dict(ALL))
    server.request_type, server.reply = request_type, (EXPECTED[request_type], body)
    assert_run_ends(server, target)


@pytest.mark.parametrize("request_type", [kind for kind in EXPECTED if kind != wire.FXP_EXTENDED])
def test_a_duplicate_reply_ends_the_run(target: Path, request_type: int) -> None:
    class Repeats(FakeSFTPServer):
        """Replies twice to one type of request."""

        def answer(self, request: bytes) -> list[bytes]:
            return super().answer(request) * (2 if request[0] == request_type else 1)

    assert "not outstanding" in str(assert_run_ends(Repeats(dict(ALL)), target))


@pytest.mark.parametrize(
    "request_type", [wire.FXP_OPENDIR, wire.FXP_READDIR, wire.FXP_STAT, wire.FXP_OPEN, wire.FXP_FSTAT, wire.FXP_READ]
)
def test_a_reply_before_its_request_ends_the_run(target: Path, request_type: int) -> None:
    class Predicts(FakeSFTPServer):
        """Predicts the id of the next request, and replies before the request arrives."""

        def answer(self, request: bytes) -> list[bytes]:
            replies = super().answer(request)
            if request[0] == request_type and self.requests[request_type] == 1:
                (request_id,) = struct.unpack_from(">I", request, 1)
                replies += self.status((request_id + 1) & 0xFFFFFFFF, wire.FX_EOF)
            return replies

    assert_run_ends(Predicts(dict(ALL)), target)


@pytest.mark.parametrize("code", [wire.FX_FAILURE, 8, 2**32 - 1])
def test_refused_limits_mean_the_defaults(target: Path, code: int) -> None:
    server = RepliesWrongly({b"%d" % number: Node(b"x" * 70_000) for number in range(40)})
    server.request_type, server.reply = wire.FXP_EXTENDED, (wire.FXP_STATUS, struct.pack(">I", code))
    assert stage_from(server, target).count == 40
    assert server.peak_handles <= 16
    assert max(length for _, _, length in server.reads) == 32768


@pytest.mark.parametrize(
    ("request_type", "match"), [(wire.FXP_OPEN, "opened"), (wire.FXP_FSTAT, "attributes"), (wire.FXP_READ, "read")]
)
@pytest.mark.parametrize("body", [struct.pack(">I", 3), struct.pack(">I", 3) + pack_string(b"")])
def test_a_status_without_a_message_is_accepted(target: Path, request_type: int, match: str, body: bytes) -> None:
    server = RepliesWrongly({b"bad": Node(b"b" * 9000), **GOOD})
    server.request_type, server.reply = request_type, (wire.FXP_STATUS, body)
    with pytest.raises(IncompleteStage, match=rf"bad: .*{match}.*denies permission") as caught:
        stage_from(server, target)
    assert str(caught.value).isprintable()
    assert files_in(target) == {name: node.data for name, node in GOOD.items()}


def test_the_message_of_a_status_is_quoted_without_escape_sequences(target: Path) -> None:
    server = RepliesWrongly({b"bad": Node(b"b"), **GOOD})
    message = "\x1b]0;owned\x07\r\n\u202eI/O error\u2028".encode() + b"\xff"
    server.request_type, server.reply = wire.FXP_READ, (wire.FXP_STATUS, struct.pack(">I", 4) + pack_string(message))
    with pytest.raises(IncompleteStage, match="I/O error") as caught:
        stage_from(server, target)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("request_type", [wire.FXP_OPENDIR, wire.FXP_READDIR])
@pytest.mark.parametrize(("code", "error"), [(2, RemoteNotFound), (3, RemoteError), (4, RemoteError)])
def test_a_directory_that_cannot_be_listed_is_an_error_that_names_it(
    target: Path, request_type: int, code: int, error: type[RemoteError]
) -> None:
    server = RepliesWrongly(dict(ALL))
    server.request_type, server.reply = request_type, (wire.FXP_STATUS, struct.pack(">I", code))
    with pytest.raises(error) as caught:
        stage_from(server, target)
    assert str(caught.value).startswith("peer /c: ")
    assert server.requests[wire.FXP_CLOSE] == (request_type == wire.FXP_READDIR), "the handle is closed"
    assert files_in(target) == {}


# Listings.


def test_names_that_are_not_utf_8_are_staged_unchanged(target: Path) -> None:
    names = [b"\xff\xfe", b"caf\xe9", b"\xed\xa0\x80", b"a\xc0\xaf", b"\x80" * 255]
    assert stage_from(FakeSFTPServer({name: Node(name) for name in names}), target).count == len(names)
    assert files_in(target) == {name: name for name in names}


def test_longnames_are_ignored(target: Path) -> None:
    class FakesLongnames(FakeSFTPServer):
        """Puts escape sequences and other names into its longnames."""

        def readdir(self, request_id: int, handle: bytes, rest: bytes) -> list[bytes]:
            entries, self.unlisted = self.unlisted, []
            if not entries:
                return self.status(request_id, wire.FX_EOF)
            longname = pack_string(b"drwxrwxrwx 1 root root 999 ../../etc/passwd\n\x1b[2J\0\xff")
            names = b"".join(pack_string(name) + longname + attrs for name, attrs in entries)
            return [pack_packet(wire.FXP_NAME, request_id, struct.pack(">I", len(entries)) + names)]

    stage_from(FakesLongnames(dict(GOOD)), target)
    assert files_in(target) == {name: node.data for name, node in GOOD.items()}


@pytest.mark.parametrize("name", [b"..", b"."])
def test_repeated_dot_entries_are_ignored(target: Path, name: bytes) -> None:
    class ListsDots(FakeSFTPServer):
        """Lists the directory or its parent as a file, and more than once."""

        def listing(self) -> list[tuple[bytes, bytes]]:
            return [*super().listing(), (name, pack_attributes(Node(b"x"))), (name, pack_attributes(Node(b"x")))]

    assert stage_from(ListsDots(dict(GOOD)), target).count == len(GOOD)


@pytest.mark.parametrize("name", [b".x/../../y", b".\0", b".hidden"])
def test_hidden_names_are_checked_as_any_other(target: Path, name: bytes) -> None:
    class Hides(FakeSFTPServer):
        """Lists a hidden name twice, or an invalid one."""

        def listing(self) -> list[tuple[bytes, bytes]]:
            return [*super().listing(), *[(name, pack_attributes(Node(b"x")))] * 2]

    assert_run_ends(Hides(dict(GOOD)), target)


@pytest.mark.parametrize("mtime", [0, 2**31, 2**32 - 1])
@pytest.mark.parametrize("bits", [0o7777, 0o4755, 0o2070, 0o1000, 0])
def test_only_permission_bits_are_copied(target: Path, bits: int, mtime: int) -> None:
    stage_from(FakeSFTPServer({b"a": Node(b"a", mode=stat.S_IFREG | bits, mtime=mtime)}), target)
    assert stat.S_IMODE((target / "a").stat().st_mode) & ~(bits & 0o777) == 0


def test_a_file_that_grows_while_it_is_read_fails_alone(target: Path) -> None:
    class Grows(FakeSFTPServer):
        """Appends to a file whenever it is read."""

        def data(self, request_id: int, node: Node, offset: int, length: int) -> list[bytes]:
            replies = super().data(request_id, node, offset, length)
            if node is log:
                log.data += b"one more line\n"
            return replies

    log = Node(b"line\n" * 5000)
    server = Grows({**GOOD, b"log": log})
    with pytest.raises(IncompleteStage, match="log: Its size changed from 25098"):
        stage_from(server, target)
    assert files_in(target) == {name: node.data for name, node in GOOD.items()}
    assert server.handles == {}


@pytest.mark.parametrize("extra", [1, 4096, 20_000])
def test_excess_data_in_the_middle_of_a_file_ends_the_run(target: Path, extra: int) -> None:
    class SendsMore(FakeSFTPServer):
        """Replies to the first READ of a file with some of the following data, too."""

        def data(self, request_id: int, node: Node, offset: int, length: int) -> list[bytes]:
            return super().data(request_id, node, offset, length + extra if offset == 0 else length)

    error = assert_run_ends(SendsMore({b"a": Node(b"a" * 50_000)}), target)
    assert f"sent {4096 + extra} bytes for a READ of 4096" in str(error)


# The stream.


@pytest.mark.parametrize("output", [b"\0\0\0\x05\x02", b"\0\0\0\x05\x02\0\0"])
def test_a_channel_that_closes_within_the_version_is_a_lost_connection(target: Path, output: bytes) -> None:
    class SendsPartOfVersion(ClosesChannel):
        """Sends *output* and closes the channel."""

        def answer(self, request: bytes) -> list[bytes]:
            return [output]

    with pytest.raises(ConnectionLost):
        stage_from(SendsPartOfVersion(dict(GOOD)), target)
    assert files_in(target) == {}


@pytest.mark.parametrize("version", [0, 1, 2, 4, 6, 2**32 - 1])
def test_any_version_but_3_ends_the_run(target: Path, version: int) -> None:
    class SpeaksVersion(FakeSFTPServer):
        """Speaks SFTP of that version."""

        def answer(self, request: bytes) -> list[bytes]:
            return [struct.pack(">IBI", 5, wire.FXP_VERSION, version)]

    assert f"version {version}" in str(assert_run_ends(SpeaksVersion(dict(GOOD)), target))


@examples(30, suppress_health_check=list(HealthCheck))
@given(
    damage=st.lists(st.tuples(st.integers(0, 6000), st.binary(min_size=1, max_size=6)), min_size=1, max_size=4),
    inserts=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_a_damaged_stream_raises_a_stage_error_and_leaves_nothing_behind(
    damage: list[tuple[int, bytes]], inserts: bool, seed: int
) -> None:
    class Damages(ClosesChannel, ReorderingServer):
        """Overwrites or inserts bytes in its stream."""

        sent = 0

        def answer(self, request: bytes) -> list[bytes]:
            try:
                return super().answer(request)
            except (KeyError, AssertionError):  # the client sent a handle that was damaged
                return self.status(*struct.unpack_from(">I", request, 1), wire.FX_FAILURE)

        def next_chunk(self, replies: object) -> bytes:
            chunk = bytearray(super().next_chunk(replies))  # type: ignore[arg-type]
            for at, put in damage:
                if 0 <= at - self.sent < len(chunk):
                    chunk[at - self.sent : at - self.sent + (0 if inserts else len(put))] = put
            self.sent += len(chunk)
            return bytes(chunk)

    rng = random.Random(seed)
    files = {b"%d" % size: Node(rng.randbytes(size)) for size in (0, 1, 700, 1500)}
    server = Damages(files, max_read_length=1024)
    server.random, server.shortens = rng, False
    error: StageError | None = None
    with tempfile.TemporaryDirectory() as target:
        try:
            stage_from(server, Path(target))
        except StageError as exc:
            error = exc
        found = files_in(Path(target))
    assert error is None or str(error).isprintable()
    assert error is None or isinstance(error, IncompleteStage) or found == {}, (
        "a run that was cut off publishes nothing"
    )
    assert not [name for name in found if name.startswith(b".peerstage")], "no private directory is left behind"
    assert server.receives < 5000, "the run ends"


@examples(40)
@given(st.binary(max_size=400), st.sampled_from([wire.FXP_INIT, wire.FXP_OPENDIR, wire.FXP_OPEN, wire.FXP_READ]))
def test_any_bytes_instead_of_a_reply_end_the_run(noise: bytes, request_type: int) -> None:
    class Noisy(ClosesChannel):
        """Replies to one type of request with noise, and closes the channel."""

        def answer(self, request: bytes) -> list[bytes]:
            return [noise] * bool(noise) if request[0] == request_type else super().answer(request)

    with pytest.raises((ProtocolError, ConnectionLost, NoSFTP)) as caught:
        transport_to(Noisy(dict(GOOD))).pull(b"/c", RecordingTarget())
    assert str(caught.value).isprintable()

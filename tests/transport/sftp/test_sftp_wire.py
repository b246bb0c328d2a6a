"""The wire format: packing and parsing are inverse, and any bytes yield a value or `ProtocolError`."""

from __future__ import annotations

import itertools
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerstage.errors import ConnectionLost, ProtocolError
from peerstage.transport.sftp import wire
from peerstage.transport.sftp.packet_reader import Packet, PacketReader
from support.examples import examples
from support.sftp_server import pack_packet, pack_string

u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
strings = st.binary(max_size=40)

PARSERS = [
    wire.parse_version,
    wire.parse_status,
    wire.parse_handle,
    wire.parse_attributes,
    wire.parse_limits,
    lambda body: wire.parse_names(body, max_names=1000),
]


@st.composite
def packed_attributes(draw: st.DrawFn) -> tuple[bytes, wire.Attributes]:
    """Packed attributes with any of their fields omitted, and what they parse to."""
    size, mode, mtime = (draw(st.none() | field) for field in (u64, u32, u32))
    has_owner, extensions = draw(st.booleans()), draw(st.none() | st.lists(st.tuples(strings, strings), max_size=3))
    body = b""
    flags = 0
    if size is not None:
        flags, body = flags | 1, body + struct.pack(">Q", size)
    if has_owner:
        flags, body = flags | 2, body + struct.pack(">II", 0, 0)
    if mode is not None:
        flags, body = flags | 4, body + struct.pack(">I", mode)
    if mtime is not None:
        flags, body = flags | 8, body + struct.pack(">II", 7, mtime)
    if extensions is not None:
        flags, body = flags | 0x80000000, body + struct.pack(">I", len(extensions))
        body += b"".join(pack_string(name) + pack_string(value) for name, value in extensions)
    return struct.pack(">I", flags) + body, wire.Attributes(size, mode, mtime)


@examples(30)
@given(packed_attributes())
def test_attributes_are_parsed_with_any_fields_omitted(sample: tuple[bytes, wire.Attributes]) -> None:
    body, expected = sample
    assert wire.parse_attributes(body) == expected


@examples(30)
@given(st.lists(st.tuples(strings, strings, packed_attributes()), min_size=1, max_size=8))
def test_names_are_parsed_with_their_attributes(entries: list[tuple[bytes, bytes, Any]]) -> None:
    body = struct.pack(">I", len(entries)) + b"".join(
        pack_string(n) + pack_string(long) + a for n, long, (a, _) in entries
    )
    assert wire.parse_names(body, max_names=8) == [(name, expected) for name, _, (_, expected) in entries]


@pytest.mark.parametrize(("count", "words"), [(0, "listed no entry"), (4, r"more than 3 \(Limits.entries, ")])
def test_a_reply_without_names_and_one_with_too_many_are_refused(count: int, words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        wire.parse_names(struct.pack(">I", count), max_names=3)


@examples(30)
@given(u32, st.text(max_size=30))
def test_a_status_is_parsed_with_or_without_its_message(code: int, text: str) -> None:
    head = struct.pack(">I", code)
    assert wire.parse_status(head) == (code, "")
    assert wire.parse_status(head + pack_string(text.encode())) == (code, text)
    assert wire.parse_status(head + pack_string(text.encode()) + pack_string(b"en")) == (code, text)


def test_only_the_beginning_of_a_message_is_kept() -> None:
    assert len(wire.parse_status(struct.pack(">I", 4) + pack_string(b"m" * 100_000)).message) < 200


@examples(40)
@given(st.binary(min_size=1, max_size=256))
def test_a_handle_is_any_string_of_1_to_256_bytes(handle: bytes) -> None:
    assert wire.parse_handle(pack_string(handle)) == handle


@pytest.mark.parametrize("handle", [b"", b"h" * 257])
def test_an_empty_and_a_longer_handle_are_rejected(handle: bytes) -> None:
    with pytest.raises(ProtocolError):
        wire.parse_handle(pack_string(handle))


@examples(40)
@given(st.tuples(u64, u64, u64, u64))
def test_limits_are_four_integers(numbers: tuple[int, int, int, int]) -> None:
    assert wire.parse_limits(struct.pack(">QQQQ", *numbers)) == numbers


@examples(40)
@given(u32, st.dictionaries(strings, strings, max_size=5))
def test_a_version_is_parsed_with_its_extensions(version: int, extensions: dict[bytes, bytes]) -> None:
    body = struct.pack(">I", version) + b"".join(pack_string(k) + pack_string(v) for k, v in extensions.items())
    assert wire.parse_version(body) == (version, extensions)


@examples(40)
@given(u32, st.binary(max_size=30), u64, u32)
def test_a_read_is_packed_as_the_draft_defines_it(request_id: int, handle: bytes, offset: int, length: int) -> None:
    packed = wire.pack_request(wire.FXP_READ, request_id, wire.pack_read(handle, offset, length))
    assert packed == pack_packet(wire.FXP_READ, request_id, pack_string(handle) + struct.pack(">QI", offset, length))


@examples(50)
@given(body=st.binary(max_size=200))
@pytest.mark.parametrize("parse", PARSERS)
def test_parsers_return_a_value_or_raise_protocol_error(parse: Any, body: bytes) -> None:
    try:
        parse(body)
    except ProtocolError as exc:
        assert str(exc).isprintable()


@examples(25)
@given(
    bodies=st.sampled_from(
        [
            struct.pack(">I", 3) + pack_string(wire.LIMITS_EXTENSION) + pack_string(b"1"),
            struct.pack(">I", 4) + pack_string(b"Failure") + pack_string(b"en"),
            pack_string(b"handle"),
            struct.pack(">IQIIIII", 0xF, 10, 0, 0, 0o100644, 0, 1),
            struct.pack(">QQQQ", 1, 2, 3, 4),
            struct.pack(">I", 1)
            + pack_string(b"name")
            + pack_string(b"long")
            + struct.pack(">IQIIIII", 0xF, 10, 0, 0, 1, 0, 1),
        ]
    ),
    at=st.integers(0, 60),
    put=st.binary(min_size=1, max_size=4),
    cut=st.integers(0, 60),
)
@pytest.mark.parametrize("parse", PARSERS)
def test_parsers_return_a_value_or_raise_protocol_error_for_damaged_replies(
    parse: Any, bodies: bytes, at: int, put: bytes, cut: int
) -> None:
    damaged = bodies[:at] + put + bodies[at + len(put) :]
    for body in (damaged, damaged[:cut], bodies[:cut], bodies + put):
        try:
            parse(body)
        except ProtocolError as exc:
            assert str(exc).isprintable()


@pytest.mark.parametrize(
    "body",
    [
        struct.pack(">I", 0x80000000) + struct.pack(">I", 0xFFFFFFFF),
        struct.pack(">I", 0x80000000) + struct.pack(">II", 1, 0xFFFFFFFF),
    ],
    ids=["count", "length"],
)
def test_counts_and_lengths_of_extended_attributes_are_checked_against_the_body(body: bytes) -> None:
    with pytest.raises(ProtocolError, match="ends within a field"):
        wire.parse_attributes(body)


# Packets.


class Chunks:
    """Returns *data* in chunks that end at *cuts*, then ``b""``."""

    def __init__(self, data: bytes, cuts: list[int]) -> None:
        ends = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
        self.chunks = [data[a:b] for a, b in itertools.pairwise(ends)]

    def __call__(self) -> bytes:
        return self.chunks.pop(0) if self.chunks else b""


def with_joined_body(read: Packet) -> tuple[int, int, bytes]:
    return read.type, read.request_id, read.body if isinstance(read.body, bytes) else b"".join(read.body)


@examples(50)
@given(st.lists(st.tuples(st.integers(0, 255), u32, st.binary(max_size=50)), max_size=8), st.lists(u32, max_size=20))
def test_packets_are_read_as_they_were_sent_wherever_the_stream_is_split(
    sent: list[tuple[int, int, bytes]], cuts: list[int]
) -> None:
    data = b"".join(pack_packet(k, n, pack_string(body) if k == wire.FXP_DATA else body) for k, n, body in sent)
    reader = PacketReader(Chunks(data, cuts), max_packet_bytes=100)
    assert [with_joined_body(reader.read_packet()) for _ in sent] == sent
    assert not reader.has_more
    with pytest.raises(ConnectionLost):
        reader.read_packet()


@examples(100)
@given(st.binary(max_size=300), st.lists(u32, max_size=20))
def test_any_stream_is_packets_up_to_an_error_or_its_end(data: bytes, cuts: list[int]) -> None:
    reader = PacketReader(Chunks(data, cuts), max_packet_bytes=200)
    with pytest.raises((ProtocolError, ConnectionLost)) as caught:
        list(itertools.islice(iter(reader.read_packet, None), len(data) // 9 + 1))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("kind", [wire.FXP_NAME, wire.FXP_DATA, wire.FXP_STATUS])
@pytest.mark.parametrize("cuts", [[], [13], [14], [20], list(range(200))])
def test_a_packet_above_the_limit_is_rejected_however_the_stream_is_split(kind: int, cuts: list[int]) -> None:
    body = pack_string(b"x" * 96) if kind == wire.FXP_DATA else b"x" * 100
    reader = PacketReader(
        Chunks(pack_packet(wire.FXP_STATUS, 1, b"....") + pack_packet(kind, 2, body), cuts), max_packet_bytes=104
    )
    reader.read_packet()
    with pytest.raises(ProtocolError, match="of 105 bytes; 5 to 104 are allowed"):
        reader.read_packet()

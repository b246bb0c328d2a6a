"""Values to bytes and back, and bytes of any kind to values or `ProtocolError`."""

from __future__ import annotations

import itertools
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peerstage.errors import ConnectionLost, ProtocolError
from peerstage.transport.sftp import wire
from peerstage.transport.sftp.framing import Packet, PacketReader
from support.sftp_server import packet, string

u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
strings = st.binary(max_size=40)

PARSERS = [
    wire.parse_version,
    wire.parse_status,
    wire.parse_handle,
    wire.parse_attributes,
    wire.parse_limits,
    lambda body: wire.parse_names(body, most=1000),
]


@st.composite
def told(draw: st.DrawFn) -> tuple[bytes, wire.Attributes]:
    """Attributes on the wire with any of their parts left out, and what they say."""
    size, mode, mtime = (draw(st.none() | one) for one in (u64, u32, u32))
    owner, more = draw(st.booleans()), draw(st.none() | st.lists(st.tuples(strings, strings), max_size=3))
    body = b""
    flags = 0
    if size is not None:
        flags, body = flags | 1, body + struct.pack(">Q", size)
    if owner:
        flags, body = flags | 2, body + struct.pack(">II", 0, 0)
    if mode is not None:
        flags, body = flags | 4, body + struct.pack(">I", mode)
    if mtime is not None:
        flags, body = flags | 8, body + struct.pack(">II", 7, mtime)
    if more is not None:
        flags, body = flags | 0x80000000, body + struct.pack(">I", len(more))
        body += b"".join(string(name) + string(value) for name, value in more)
    return struct.pack(">I", flags) + body, wire.Attributes(size, mode, mtime)


@settings(max_examples=60, deadline=None)
@given(told())
def test_attributes_are_read_whatever_parts_of_them_are_told(sample: tuple[bytes, wire.Attributes]) -> None:
    body, expected = sample
    assert wire.parse_attributes(body) == expected


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(strings, strings, told()), min_size=1, max_size=8))
def test_names_are_read_with_their_attributes(entries: list[tuple[bytes, bytes, Any]]) -> None:
    body = struct.pack(">I", len(entries)) + b"".join(string(n) + string(long) + a for n, long, (a, _) in entries)
    assert wire.parse_names(body, most=8) == [(name, expected) for name, _, (_, expected) in entries]


@settings(max_examples=60, deadline=None)
@given(u32, st.text(max_size=30))
def test_a_status_is_read_with_its_message_or_without(code: int, text: str) -> None:
    head = struct.pack(">I", code)
    assert wire.parse_status(head) == (code, "")
    assert wire.parse_status(head + string(text.encode())) == (code, text)
    assert wire.parse_status(head + string(text.encode()) + string(b"en")) == (code, text)


def test_of_a_message_only_the_beginning_is_kept() -> None:
    assert len(wire.parse_status(struct.pack(">I", 4) + string(b"m" * 100_000)).message) < 200


@given(st.binary(min_size=1, max_size=256))
def test_a_handle_is_any_string_of_up_to_256_bytes(handle: bytes) -> None:
    assert wire.parse_handle(string(handle)) == handle


@pytest.mark.parametrize("handle", [b"", b"h" * 257])
def test_an_empty_handle_and_a_longer_one_are_refused(handle: bytes) -> None:
    with pytest.raises(ProtocolError):
        wire.parse_handle(string(handle))


@given(st.tuples(u64, u64, u64, u64))
def test_limits_are_four_numbers(numbers: tuple[int, int, int, int]) -> None:
    assert wire.parse_limits(struct.pack(">QQQQ", *numbers)) == numbers


@given(u32, st.dictionaries(strings, strings, max_size=5))
def test_a_version_comes_with_its_extensions(version: int, extensions: dict[bytes, bytes]) -> None:
    body = struct.pack(">I", version) + b"".join(string(k) + string(v) for k, v in extensions.items())
    assert wire.parse_version(body) == (version, extensions)


@given(u32, st.binary(max_size=30), u64, u32)
def test_a_request_to_read_says_what_it_means(number: int, handle: bytes, offset: int, length: int) -> None:
    sent = wire.request(wire.READ, number, wire.read(handle, offset, length))
    assert sent == packet(wire.READ, number, string(handle) + struct.pack(">QI", offset, length))


@settings(max_examples=120, deadline=None)
@given(body=st.binary(max_size=200))
@pytest.mark.parametrize("parse", PARSERS)
def test_parsers_return_a_value_or_refuse(parse: Any, body: bytes) -> None:
    try:
        parse(body)
    except ProtocolError as exc:
        assert str(exc).isprintable()


@settings(max_examples=50, deadline=None)
@given(
    bodies=st.sampled_from(
        [
            struct.pack(">I", 3) + string(wire.LIMITS) + string(b"1"),
            struct.pack(">I", 4) + string(b"Failure") + string(b"en"),
            string(b"handle"),
            struct.pack(">IQIIIII", 0xF, 10, 0, 0, 0o100644, 0, 1),
            struct.pack(">QQQQ", 1, 2, 3, 4),
            struct.pack(">I", 1) + string(b"name") + string(b"long") + struct.pack(">IQIIIII", 0xF, 10, 0, 0, 1, 0, 1),
        ]
    ),
    at=st.integers(0, 60),
    put=st.binary(min_size=1, max_size=4),
    cut=st.integers(0, 60),
)
@pytest.mark.parametrize("parse", PARSERS)
def test_parsers_return_a_value_or_refuse_what_is_nearly_right(
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
def test_counts_and_lengths_of_extended_attributes_are_held_against_what_is_there(body: bytes) -> None:
    with pytest.raises(ProtocolError, match="shorter"):
        wire.parse_attributes(body)


# Framing.


class Chunks:
    """Gives *data* in chunks that end at *cuts*, and then nothing."""

    def __init__(self, data: bytes, cuts: list[int]) -> None:
        ends = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
        self.chunks = [data[a:b] for a, b in itertools.pairwise(ends)]

    def __call__(self) -> bytes:
        return self.chunks.pop(0) if self.chunks else b""


def joined(read: Packet) -> tuple[int, int, bytes]:
    return read.kind, read.number, read.body if isinstance(read.body, bytes) else b"".join(read.body)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 255), u32, st.binary(max_size=50)), max_size=8), st.lists(u32, max_size=20))
def test_packets_come_out_as_they_went_in_wherever_the_stream_is_cut(
    sent: list[tuple[int, int, bytes]], cuts: list[int]
) -> None:
    data = b"".join(packet(k, n, string(body) if k == wire.DATA else body) for k, n, body in sent)
    reader = PacketReader(Chunks(data, cuts), most=100)
    assert [joined(reader.next()) for _ in sent] == sent
    assert not reader.has_more
    with pytest.raises(ConnectionLost):
        reader.next()


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=300), st.lists(u32, max_size=20))
def test_any_bytes_are_packets_until_they_are_refused_or_end(data: bytes, cuts: list[int]) -> None:
    reader = PacketReader(Chunks(data, cuts), most=200)
    with pytest.raises((ProtocolError, ConnectionLost)) as caught:
        list(itertools.islice(iter(reader.next, None), len(data) // 9 + 1))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("kind", [wire.NAME, wire.DATA, wire.STATUS])
@pytest.mark.parametrize("cuts", [[], [13], [14], [20], list(range(200))])
def test_a_packet_that_is_too_long_is_refused_however_it_is_cut(kind: int, cuts: list[int]) -> None:
    body = string(b"x" * 96) if kind == wire.DATA else b"x" * 100
    reader = PacketReader(Chunks(packet(wire.STATUS, 1, b"....") + packet(kind, 2, body), cuts), most=104)
    reader.next()
    with pytest.raises(ProtocolError, match="of 105 bytes; at most 104"):
        reader.next()

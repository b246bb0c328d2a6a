"""Frames survive encoding and parsing, however the stream is split; invalid frames are rejected."""

from __future__ import annotations

import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerstage.errors import LoginError, NotRegular, ProtocolError, StageError
from peerstage.isolation.protocol.entry_codec import MAX_ENTRIES, split_entries
from peerstage.isolation.protocol.frames import (
    HEADER,
    MAX_BODY,
    MAX_DATA,
    Admit,
    Alive,
    Appeared,
    AskMissing,
    Data,
    Fail,
    Fallback,
    Finish,
    Frame,
    FrameParser,
    ImportFile,
    Kind,
    Log,
    Refuse,
    Reply,
    Vanished,
    encode_frame,
)
from peerstage.reasons import Reason
from peerstage.records import Entry
from support.examples import examples

NAMES = st.binary(min_size=1, max_size=255).filter(
    lambda name: b"/" not in name and b"\0" not in name and not name.startswith(b".")
)
SIZES = st.integers(0, 2**63 - 1)
FILE_NUMBERS = st.integers(0, 2**32 - 1)
ENTRIES = st.builds(Entry, NAMES, SIZES, st.none() | st.integers(0, 0o7777), st.none() | st.integers(0, 2**40))
PARTS = st.lists(ENTRIES, min_size=1, max_size=5).map(tuple)
FRAMES = st.one_of(
    st.builds(Admit, FILE_NUMBERS, PARTS, st.booleans(), st.booleans(), st.booleans()),
    st.builds(Appeared, st.just(()) | PARTS),
    st.builds(Vanished, PARTS),
    st.builds(AskMissing, FILE_NUMBERS),
    st.builds(Finish, FILE_NUMBERS),
    st.builds(ImportFile, NAMES),
    st.builds(Alive),
    st.builds(Fallback),
    st.builds(Log, st.integers(0, 50), st.just("peerstage.ssh"), st.text(max_size=100)),
    st.builds(Reply, st.dictionaries(st.text(max_size=9), st.none() | st.booleans() | st.text(max_size=9))),
)


def parse(stream: bytes, chunk_size: int = 1 << 20) -> list[Frame]:
    parser = FrameParser()
    frames: list[Frame] = []
    for at in range(0, len(stream), chunk_size):
        for frame in parser.feed(memoryview(stream[at : at + chunk_size])):
            frames.append(frame._replace(data=memoryview(bytes(frame.data))) if isinstance(frame, Data) else frame)
    return frames


def pack(kind: int, file_number: int = 0, offset: int = 0, body: bytes = b"", length: int | None = None) -> bytes:
    return HEADER.pack(kind, file_number, offset, len(body) if length is None else length) + body


@examples(25)
@given(st.lists(FRAMES, max_size=8), st.integers(1, 64))
def test_parsed_frames_equal_the_encoded_ones_however_the_stream_is_split(frames: list[Frame], chunk_size: int) -> None:
    assert parse(b"".join(encode_frame(frame) for frame in frames), chunk_size) == frames


@examples(40)
@given(st.binary(min_size=1, max_size=3000), st.integers(0, 2**40), st.integers(1, 500))
def test_file_data_is_passed_on_as_it_arrives(data: bytes, offset: int, chunk_size: int) -> None:
    stream = encode_frame(Data(7, offset, memoryview(data))) + encode_frame(Finish(7))
    *parts, last = parse(stream, chunk_size)
    assert last == Finish(7)
    at = offset
    for part in parts:
        assert isinstance(part, Data)
        assert (part.file_number, part.offset) == (7, at)
        at += len(part.data)
    assert b"".join(bytes(part.data) for part in parts if isinstance(part, Data)) == data


def test_errors_keep_their_class_and_attributes() -> None:
    failed, refused = parse(
        encode_frame(Fail(3, LoginError("no\nkey", path=b"\xff", errno=13, reason=Reason.LOGIN_REFUSED)))
        + encode_frame(Refuse(b"a b", NotRegular("x")))
    )
    assert isinstance(failed, Fail)
    assert isinstance(refused, Refuse)
    assert (type(failed.error), failed.error.message, failed.error.path, failed.error.errno) == (
        LoginError, "no\nkey", b"\xff", 13,
    )  # fmt: skip
    assert "\n" not in str(failed.error)
    assert (refused.name, type(refused.error)) == (b"a b", NotRegular)


def pack_entry(name: bytes, size: int = 1, mode: int = -1, mtime: int = -1, length: int | None = None) -> bytes:
    return struct.pack(">QiqI", size, mode, mtime, len(name) if length is None else length) + name


def pack_admit(name: bytes, size: int = 1, mode: int = -1, mtime: int = -1) -> bytes:
    return pack(Kind.ADMIT, body=b"\0" + pack_entry(name, size, mode, mtime))


def pack_json(kind: Kind, value: object) -> bytes:
    return pack(kind, body=json.dumps(value).encode())


ERROR = {"kind": "NotRegular", "reason": "not-a-file", "message": "x", "path": None, "errno": None}


@pytest.mark.parametrize(
    "stream",
    [
        pack(0),
        pack(99),
        pack(255, 1, 1),
        pack(Kind.ADMIT),
        pack(Kind.ADMIT, body=b"\0"),
        pack(Kind.ADMIT, body=b"\10" + pack_entry(b"a")),
        pack(Kind.ADMIT, body=b"\0" + pack_entry(b"a", length=2)),
        pack(Kind.ADMIT, body=b"\0" + pack_entry(b"a", length=2**32 - 1)),
        pack(Kind.ADMIT, body=b"\0" + pack_entry(b"a") + b"b"),
        pack(Kind.ADMIT, body=b"\0" + b"".join(pack_entry(b"%d" % at) for at in range(MAX_ENTRIES + 1))),
        pack(Kind.ADMIT, 0, 1, b"\0" + pack_entry(b"a")),
        pack(Kind.APPEARED, 1, 0, pack_entry(b"a")),
        pack(Kind.APPEARED, body=b"x"),
        pack(Kind.APPEARED, body=pack_entry(b"a/b")),
        pack(Kind.VANISHED),
        pack(Kind.VANISHED, 0, 1, pack_entry(b"a")),
        pack(Kind.ASK_MISSING, 0, 1),
        pack(Kind.ASK_MISSING, body=b"x"),
        pack_admit(b""),
        pack_admit(b"."),
        pack_admit(b".."),
        pack_admit(b".hidden"),
        pack_admit(b"../x"),
        pack_admit(b"/etc/passwd"),
        pack_admit(b"a/b"),
        pack_admit(b"a\0b"),
        pack_admit(b"a", 2**63),
        pack_admit(b"a", 1, 0o10000),
        pack_admit(b"a", 1, -2),
        pack_admit(b"a", 1, 0, 2**41),
        pack(Kind.DATA),
        pack(Kind.DATA, length=MAX_DATA + 1),
        pack(Kind.DATA, 0, 2**63, b"x"),
        pack(Kind.FINISH, 0, 1),
        pack(Kind.FINISH, body=b"x"),
        pack(Kind.FAIL, body=b"not json"),
        pack(Kind.FAIL, body=b"[" * 100_000),
        pack_json(Kind.FAIL, []),
        pack_json(Kind.FAIL, {"kind": "SystemExit", "message": "x"}),
        pack_json(Kind.FAIL, {"kind": "IncompleteStage", "message": "x"}),
        pack_json(Kind.FAIL, {"kind": "LoginError", "message": 7}),
        pack_json(Kind.FAIL, {**ERROR, "path": "\u2603"}),
        pack_json(Kind.FAIL, {**ERROR, "errno": True}),
        pack_json(Kind.REFUSE, ["a"]),
        pack_json(Kind.REFUSE, [7, ERROR]),
        pack_json(Kind.REFUSE, ["\u2603", ERROR]),
        pack_json(Kind.REFUSE, ["a/b", ERROR]),
        pack_json(Kind.REFUSE, ["a", {}]),
        pack(Kind.IMPORT, body=b"../a"),
        pack(Kind.IMPORT),
        pack(Kind.IMPORT, 1, 0, b"a"),
        pack_json(Kind.LOG, [99, "peerstage.ssh", "x"]),
        pack_json(Kind.LOG, [10, "peerstage.ssh"]),
        pack_json(Kind.LOG, [10, "peerstage.ssh", 7]),
        pack(Kind.FALLBACK, body=b"x"),
        pack(Kind.ALIVE, 1),
        pack(Kind.ALIVE, 0, 1),
        pack(Kind.ALIVE, body=b"x"),
        pack_json(Kind.REPLY, []),
        pack(Kind.REPLY, body=b"{"),
        pack(Kind.REPLY, length=MAX_BODY + 1),
        pack(Kind.OUTPUT),
        pack(Kind.OUTPUT, length=MAX_BODY + 1),
        pack(Kind.OUTPUT, 1, 0, b"x"),
    ],
)
def test_an_invalid_frame_is_rejected(stream: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        parse(stream)
    assert str(caught.value).isprintable()


@examples(40)
@given(st.binary(max_size=400), st.integers(1, 50))
def test_random_bytes_give_a_frame_or_a_protocol_error(junk: bytes, chunk_size: int) -> None:
    try:
        parse(junk, chunk_size)
    except StageError as exc:
        assert isinstance(exc, ProtocolError)


def test_a_long_frame_is_not_buffered() -> None:
    parser = FrameParser()
    list(parser.feed(memoryview(pack(Kind.DATA, length=MAX_DATA))))
    for _ in range(MAX_DATA // 65536):
        assert len(list(parser.feed(memoryview(bytes(65536))))) == 1
        assert len(parser._buffer) == 0
    assert parser.is_between_frames


@given(st.lists(ENTRIES, max_size=20), st.integers(1, 200))
@examples(20)
def test_a_listing_is_split_into_frames_of_a_limited_size(few: list[Entry], repeats: int) -> None:
    entries = few * repeats
    parts = list(split_entries(entries))
    assert [entry for part in parts for entry in part] == entries
    for part in parts:
        assert 0 < len(part) <= MAX_ENTRIES
        assert len(encode_frame(Admit(0, part))) <= 128 * 1024 + 300
    assert len(parts) <= 1 + len(entries) // 400, "few frames"

"""Frames: what a child says comes out as it was, in whatever pieces it came; what no child says is refused."""

from __future__ import annotations

import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerstage.errors import LoginError, NotRegular, ProtocolError, StageError
from peerstage.isolation.frames import (
    HEADER,
    MOST_BODY,
    MOST_DATA,
    Adopt,
    Alive,
    Data,
    Expect,
    Fail,
    Finish,
    FrameParser,
    Kind,
    Log,
    Open,
    Record,
    Refuse,
    Result,
    Shared,
    encode,
)
from peerstage.reasons import Reason
from peerstage.records import Entry

NAMES = st.binary(min_size=1, max_size=255).filter(
    lambda name: b"/" not in name and b"\0" not in name and not name.startswith(b".")
)
SIZES = st.integers(0, 2**63 - 1)
SLOTS = st.integers(0, 2**32 - 1)
RECORDS = st.one_of(
    st.builds(Expect, SLOTS, SIZES),
    st.builds(
        Open,
        SLOTS,
        st.builds(Entry, NAMES, SIZES, st.none() | st.integers(0, 0o7777), st.none() | st.integers(0, 2**40)),
    ),
    st.builds(Shared, SLOTS, SIZES, SIZES, st.integers(1, MOST_DATA), SIZES),
    st.builds(Finish, SLOTS),
    st.builds(Adopt, NAMES),
    st.builds(Alive),
    st.builds(Log, st.integers(0, 50), st.just("peerstage.session"), st.text(max_size=100)),
    st.builds(Result, st.dictionaries(st.text(max_size=9), st.none() | st.booleans() | st.text(max_size=9))),
)


def parse(data: bytes, cut: int = 1 << 20) -> list[Record]:
    parser = FrameParser()
    found: list[Record] = []
    for at in range(0, len(data), cut):
        for record in parser.feed(memoryview(data[at : at + cut])):
            found.append(record._replace(piece=bytes(record.piece)) if isinstance(record, Data) else record)
    return found


def frame(kind: int, slot: int = 0, number: int = 0, body: bytes = b"", length: int | None = None) -> bytes:
    return HEADER.pack(kind, slot, number, len(body) if length is None else length) + body


@given(st.lists(RECORDS, max_size=8), st.integers(1, 64))
def test_records_come_out_as_they_went_in_in_whatever_pieces(records: list[Record], cut: int) -> None:
    assert parse(b"".join(encode(record) for record in records), cut) == records


@given(st.binary(min_size=1, max_size=3000), st.integers(0, 2**40), st.integers(1, 500))
def test_the_bytes_of_a_file_are_handed_on_as_they_come(data: bytes, offset: int, cut: int) -> None:
    wire = encode(Data(7, offset, memoryview(data))) + encode(Finish(7))
    *parts, last = parse(wire, cut)
    assert last == Finish(7)
    at = offset
    for part in parts:
        assert isinstance(part, Data)
        assert (part.slot, part.offset) == (7, at)
        at += len(part.piece)
    assert b"".join(bytes(part.piece) for part in parts if isinstance(part, Data)) == data


def test_errors_come_up_as_what_they_were() -> None:
    parts = parse(
        encode(Fail(3, LoginError("no\nkey", path=b"\xff", errno=13, reason=Reason.LOGIN_REFUSED)))
        + encode(Refuse(b"a b", NotRegular("x")))
    )
    failed, refused = parts
    assert isinstance(failed, Fail)
    assert isinstance(refused, Refuse)
    assert (type(failed.error), failed.error.message, failed.error.path, failed.error.errno) == (
        LoginError, "no\nkey", b"\xff", 13,
    )  # fmt: skip
    assert "\n" not in str(failed.error)
    assert (refused.name, type(refused.error)) == (b"a b", NotRegular)


def opened(name: bytes, size: int = 1, mode: int = -1, mtime: int = -1) -> bytes:
    return frame(
        Kind.OPEN, 0, size, mode.to_bytes(4, "big", signed=True) + mtime.to_bytes(8, "big", signed=True) + name
    )


def said(error: object) -> bytes:
    return json.dumps(error).encode()


@pytest.mark.parametrize(
    "wire",
    [
        frame(0),
        frame(10),
        frame(255, 1, 1),
        frame(Kind.EXPECT, 1, 2**63),
        frame(Kind.EXPECT, 1, 1, b"x"),
        opened(b""),
        opened(b"."),
        opened(b".."),
        opened(b".hidden"),
        opened(b"../x"),
        opened(b"/etc/passwd"),
        opened(b"a/b"),
        opened(b"a\0b"),
        opened(b"a", 2**63),
        opened(b"a", 1, 0o10000),
        opened(b"a", 1, -2),
        opened(b"a", 1, 0, 2**41),
        frame(Kind.OPEN, 0, 1, b"short"),
        frame(Kind.DATA, 0, 0),
        frame(Kind.DATA, 0, 0, length=MOST_DATA + 1),
        frame(Kind.DATA, 0, 2**63, b"x"),
        frame(Kind.SHARED, 0, 0, struct.pack(">QQQ", 0, 0, 0)),
        frame(Kind.SHARED, 0, 0, struct.pack(">QQQ", 0, MOST_DATA + 1, 0)),
        frame(Kind.SHARED, 0, 2**63, struct.pack(">QQQ", 0, 1, 0)),
        frame(Kind.SHARED, 0, 0, bytes(23)),
        frame(Kind.FINISH, 0, 1),
        frame(Kind.FINISH, 0, 0, b"x"),
        frame(Kind.FAIL, 0, 0, b"not json"),
        frame(Kind.FAIL, 0, 0, b"[" * 100_000),
        frame(Kind.FAIL, 0, 0, said([])),
        frame(Kind.FAIL, 0, 0, said({"kind": "SystemExit", "message": "x"})),
        frame(Kind.FAIL, 0, 0, said({"kind": "IncompleteStage", "message": "x"})),
        frame(Kind.FAIL, 0, 0, said({"kind": "LoginError", "message": 7})),
        frame(Kind.FAIL, 0, 0, said({"kind": "LoginError", "message": "x", "path": "\u2603"})),
        frame(Kind.FAIL, 0, 0, said({"kind": "LoginError", "message": "x", "errno": True})),
        frame(Kind.REFUSE, 5, 0, b"abc"),
        frame(Kind.REFUSE, 3, 0, b"a/b" + said({"kind": "NotRegular", "message": "x"})),
        frame(Kind.ADOPT, 0, 0, b"../a"),
        frame(Kind.ADOPT, 0, 0, b""),
        frame(Kind.LOG, 99, 0, said(["peerstage.session", "x"])),
        frame(Kind.LOG, 10, 0, said(["peerstage.session"])),
        frame(Kind.LOG, 10, 0, said(["peerstage.session", 7])),
        frame(Kind.ALIVE, 1),
        frame(Kind.ALIVE, 0, 1),
        frame(Kind.ALIVE, 0, 0, b"x"),
        frame(Kind.RESULT, 0, 0, said([])),
        frame(Kind.RESULT, 0, 0, b"{"),
        frame(Kind.RESULT, 0, 0, length=MOST_BODY + 1),
    ],
)
def test_what_no_child_says_is_refused(wire: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        parse(wire)
    assert str(caught.value).isprintable()


@given(st.binary(max_size=400), st.integers(1, 50))
def test_junk_is_a_record_or_a_protocol_error_and_nothing_else(junk: bytes, cut: int) -> None:
    try:
        parse(junk, cut)
    except StageError as exc:
        assert isinstance(exc, ProtocolError)


def test_a_long_frame_costs_no_memory() -> None:
    parser = FrameParser()
    list(parser.feed(memoryview(frame(Kind.DATA, 0, 0, length=MOST_DATA))))
    for _ in range(MOST_DATA // 65536):
        assert len(list(parser.feed(memoryview(bytes(65536))))) == 1
        assert len(parser._held) == 0
    assert parser.is_between_frames

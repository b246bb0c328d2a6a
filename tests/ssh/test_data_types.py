"""The reader of SSH's data types: it returns what was packed, and never reads past the end."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerstage.ssh.data_types import DataReader, MalformedData, pack_string, pack_uint32
from support.examples import examples

READS: list[Callable[[DataReader], object]] = [
    DataReader.read_uint32,
    DataReader.read_uint64,
    DataReader.read_string,
    DataReader.read_text,
    DataReader.read_mpint,
    DataReader.skip_string,
    lambda reader: reader.skip(3),
    list,
]


@examples(40)
@given(strings=st.lists(st.binary(max_size=20)), number=st.integers(0, 2**32 - 1))
@pytest.mark.parametrize("convert", [bytes, bytearray, memoryview])
def test_packed_values_are_read_back(convert: Callable[[bytes], bytes], strings: list[bytes], number: int) -> None:
    reader = DataReader(convert(pack_uint32(number) + b"".join(map(pack_string, strings))))
    assert reader.read_uint32() == number
    assert list(reader) == strings
    reader.expect_end()


@examples(40)
@given(data=st.binary(max_size=40), reads=st.lists(st.sampled_from(READS)))
def test_arbitrary_data_is_never_read_past_its_end(data: bytes, reads: list[Callable[[DataReader], object]]) -> None:
    reader = DataReader(data)
    for read in reads:
        position = reader.position
        try:
            read(reader)
        except MalformedData:
            return
        assert position <= reader.position <= len(data)
    rest = data[reader.position :]
    assert reader.remaining == len(rest)
    assert reader.read_remaining() == rest


@pytest.mark.parametrize("data", [b"", b"\0\0\0", b"\0\0\0\1", b"\xff\xff\xff\xff", b"\0\0\0\2x"])
def test_truncated_string_is_malformed(data: bytes) -> None:
    with pytest.raises(MalformedData):
        DataReader(data).read_string()
    with pytest.raises(MalformedData):
        DataReader(data).skip_string()


@pytest.mark.parametrize(("raw", "number"), [(b"", 0), (b"\0\x80", 128), (b"\x80", -128), (b"\1\0", 256)])
def test_mpint_is_signed(raw: bytes, number: int) -> None:
    assert DataReader(pack_string(raw)).read_mpint() == number


def test_trailing_data_is_malformed() -> None:
    reader = DataReader(pack_string(b"a") + b"x")
    assert reader.read_string() == b"a"
    with pytest.raises(MalformedData, match="1 bytes follow"):
        reader.expect_end()

"""The format of sha256sum: every name survives, the real program agrees, and nothing malformed is read."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerstage.target import checksum_file
from peerstage.target.checksum_file import MAX_LINE_BYTES, format_checksum, parse_checksum, read_checksums
from support.examples import examples

DIGEST = hashlib.sha256(b"").hexdigest()
#: Names with everything that is escaped, and what looks like it.
WILD_NAMES = (
    *(b"plain", b"two  spaces", b" leading", b"*star", b"#comment", b"-dash", b"\\", b"\\n", b"back\\slash", b"a\\\\"),
    *(b"new\nline", b"\n", b"carriage\rreturn", b"\r", b"ends in\r", b"\\r\r\\n\n\\", b"\xff\xfe", "ä€".encode()),
    *(b"x" * 255, b"\n" * 255, b"tab\t", b"\x1b[31m", DIGEST.encode() + b"  x"),
)


def read(data: bytes) -> list[tuple[bytes, str]]:
    return list(read_checksums(io.BytesIO(data)))


@pytest.mark.parametrize("name", WILD_NAMES)
def test_a_name_survives_writing_and_reading(name: bytes) -> None:
    line = format_checksum(name, DIGEST)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert b"\r" not in line
    assert read(line) == [(name, DIGEST)]


@given(st.lists(st.tuples(st.binary(min_size=1).map(lambda name: name.replace(b"\0", b"\\")), st.binary())))
@examples(25)
def test_any_names_survive_writing_and_reading(pairs: list[tuple[bytes, bytes]]) -> None:
    expected = [(name, hashlib.sha256(data).hexdigest()) for name, data in pairs]
    assert read(b"".join(format_checksum(*pair) for pair in expected)) == expected


@given(st.binary(max_size=200))
@examples(40)
def test_any_bytes_are_read_or_refused_with_the_number_of_the_line(data: bytes) -> None:
    try:
        found = read(data)
    except ValueError as exc:
        assert str(exc).startswith("line ")
    else:
        assert b"".join(format_checksum(*pair) for pair in found) == data or data.startswith(b"#")


def test_what_sha256sum_writes_in_other_modes_is_read() -> None:
    upper = DIGEST.upper().encode()
    assert read(b"# a comment\n%s *binary\n%s  text\n" % (upper, upper)) == [(b"binary", DIGEST), (b"text", DIGEST)]


HEX = DIGEST.encode()


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b"%s  cut off" % HEX, "has no end"),
        (b"# cut off", "has no end"),
        (b"\n", "is not a SHA-256 digest"),
        (b"%s  \n" % HEX, "is not a SHA-256 digest"),
        (b"%s x\n" % HEX, "is not a SHA-256 digest"),
        (b"%s\tx\n" % HEX, "is not a SHA-256 digest"),
        (b" %s  x\n" % HEX, "is not a SHA-256 digest"),
        (b"%s  x\n" % HEX[:-2], "is not a SHA-256 digest"),
        (b"%sab  x\n" % HEX, "is not a SHA-256 digest"),
        (b"SHA256 (x) = %s\n" % HEX, "is not a SHA-256 digest"),
        (b"%s  a\0b\n" % HEX, "is not a SHA-256 digest"),
        (b"\\%s  a\\\n" % HEX, "escapes nothing"),
        (b"\\%s  a\\tb\n" % HEX, "escapes nothing"),
        (b"\\%s  a\\\\\\\n" % HEX, "escapes nothing"),
        (b"%s  windows\r\n" % HEX, "carriage return"),
        (b"%s  %s\n" % (HEX, b"x" * MAX_LINE_BYTES), f"is longer than {MAX_LINE_BYTES} bytes"),
        (b"\x1b[31m\n", r"\\x1b\[31m"),
    ],
)
def test_a_line_of_another_form_is_refused_and_named(line: bytes, complaint: str) -> None:
    with pytest.raises(ValueError, match=rf"^line 2 .*{complaint}"):
        read(format_checksum(b"first", DIGEST) + line)


def test_more_lines_than_the_bound_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksum_file, "MAX_LINES", 2)
    line = format_checksum(b"x", DIGEST)
    assert len(read(2 * line)) == 2
    with pytest.raises(ValueError, match="more than 2 lines"):
        read(3 * line)


def test_more_bytes_than_the_bound_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    line = format_checksum(b"x", DIGEST)
    monkeypatch.setattr(checksum_file, "MAX_BYTES", 2 * len(line))
    assert len(read(2 * line)) == 2
    with pytest.raises(ValueError, match=f"more than {2 * len(line)} bytes"):
        read(3 * line)


def test_a_line_without_end_takes_no_more_memory_than_the_bound() -> None:
    class Endless(io.RawIOBase):
        """A file of one line that never ends."""

        given = 0

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
            buffer[:] = b"0" * len(buffer)
            self.given += len(buffer)
            return len(buffer)

    raw = Endless()
    with pytest.raises(ValueError, match="line 1"):
        list(read_checksums(io.BufferedReader(raw)))  # type: ignore[arg-type]
    assert raw.given < 4 * MAX_LINE_BYTES


@pytest.mark.parametrize(("name", "digest"), [(b"", DIGEST), (b"a\0b", DIGEST), (b"a", "0" * 63), (b"a", "G" * 64)])
def test_what_cannot_be_read_is_not_written(name: bytes, digest: str) -> None:
    with pytest.raises(ValueError, match="Not a name and a SHA-256 digest"):
        format_checksum(name, digest)


@pytest.fixture
def wild_directory(tmp_path: Path) -> Path:
    """A directory with a file for each of the wild names."""
    for name in WILD_NAMES:
        with open(os.fsencode(tmp_path) + b"/" + name, "wb") as file:
            file.write(name)
    return tmp_path


@pytest.mark.usefixtures("coreutils")
def test_sha256sum_writes_what_we_write_and_we_read_what_it_writes(wild_directory: Path) -> None:
    command = [b"sha256sum", b"--", *WILD_NAMES]
    written = subprocess.run(command, cwd=wild_directory, capture_output=True, check=True).stdout
    assert dict(read(written)) == {name: hashlib.sha256(name).hexdigest() for name in WILD_NAMES}
    assert written == b"".join(format_checksum(name, hashlib.sha256(name).hexdigest()) for name in WILD_NAMES)


@pytest.mark.usefixtures("coreutils")
def test_sha256sum_checks_what_we_write(wild_directory: Path) -> None:
    lines = [format_checksum(name, hashlib.sha256(name).hexdigest()) for name in WILD_NAMES]
    (wild_directory / "SUMS").write_bytes(b"".join(lines))
    command = ["sha256sum", "--check", "--strict", "--quiet", "SUMS"]
    assert subprocess.run(command, cwd=wild_directory, capture_output=True, check=True).stdout == b""
    (wild_directory / "plain").write_bytes(b"other")
    done = subprocess.run(command, cwd=wild_directory, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (1, b"plain: FAILED\n")


def test_parsing_a_single_line_names_no_number() -> None:
    with pytest.raises(ValueError, match=r"^is not a SHA-256 digest"):
        parse_checksum(b"x\n")

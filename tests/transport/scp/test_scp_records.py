"""Records and commands as pure functions: against a naive reading of the protocol, and against a real shell."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peerstage.errors import IncompleteStage, NothingToStage, StageError
from peerstage.records import Limits
from peerstage.testing.contract import landed
from peerstage.transport.scp import commands
from peerstage.transport.scp.records import Fatal, File, Times, Warn, blamed, parse_record
from support.scp_server import file, stage_from

#: A warning about ``*`` alone says that no name matched, or is about a file of this name: nobody can tell.
NAMES = st.binary(min_size=1, max_size=20).filter(
    lambda name: (
        name != b"*" and not (name.startswith(b".") or any(bad in name for bad in (b"/", b"\0", b"\n", b"\\^J")))
    )
)
REASONS = st.sampled_from([b"Permission denied", b"not a regular file", b"No such file or directory"])


@pytest.mark.parametrize(
    ("line", "record"),
    [
        (b"C0644 0 a", File(b"a", 0, 0o644)),
        (b"C4755 9223372036854775807 a b ", File(b"a b ", 2**63 - 1, 0o4755)),
        (b"C0600 1 \xff\xfe", File(b"\xff\xfe", 1, 0o600)),
        (b"C0600 1 tab\there", File(b"tab\there", 1, 0o600)),
        (b"C0600 1 -n", File(b"-n", 1, 0o600)),
        (b"T1700000000 0 0 999999", Times(1_700_000_000)),
        (b"\x01scp: no", Warn("scp: no")),
        (b"\x02", Fatal("")),
    ],
)
def test_records_are_read_as_what_they_are(line: bytes, record: object) -> None:
    assert parse_record(line, Limits()) == record


@given(st.binary(max_size=300))
def test_any_other_line_is_an_error_of_ours(line: bytes) -> None:
    try:
        record = parse_record(line, Limits())
    except StageError as exc:
        assert str(exc).isprintable()
    else:
        if isinstance(record, File):  # what was understood says the same when it is written again
            assert b"C%04o %d %s" % (record.mode, record.size, record.name) == line


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("scp: /var/collect/sub: not a regular file", b"sub"),
        ("scp: /var/collect/a: b: Permission denied", b"a: b"),
        ("scp: sub: not a regular file", b"sub"),
        ("/var/collect/sub: not a regular file", b"sub"),
        ("scp: /var/collect/", None),
        ("lost", None),
        ("", None),
    ],
)
def test_a_warning_names_the_entry_that_it_is_about(text: str, name: bytes | None) -> None:
    assert blamed(text) == name


def naive(stream: bytes) -> tuple[dict[bytes, bytes], set[bytes]]:
    """Read a stream that keeps the protocol, a byte at a time: what is staged, and what is not."""
    staged: dict[bytes, bytes] = {}
    failed: set[bytes] = set()
    at = 0
    while at < len(stream):
        end = stream.index(b"\n", at)
        line, at = stream[at:end], end + 1
        if line[0] == 1:
            failed.add(line.split(b"/")[-1].split(b": ")[0])
            continue
        _, size, name = line.split(b" ", 2)
        data, at = stream[at : at + int(size)], at + int(size)
        if stream[at] == 0:
            staged[name] = data
            at += 1
        else:
            failed.add(name)
            at = stream.index(b"\n", at) + 1
    return staged, failed


SENT = st.lists(
    st.tuples(NAMES, st.binary(max_size=200), st.sampled_from(["file", "broken", "warning"]), REASONS),
    unique_by=lambda one: one[0],
    max_size=8,
)


@settings(max_examples=200, deadline=None)
@given(SENT, st.data())
def test_whatever_is_sent_is_staged_as_a_naive_reader_reads_it(
    sent: list[tuple[bytes, bytes, str, bytes]], data: st.DataObject
) -> None:
    stream = b""
    for name, content, how, reason in sent:
        warning = b"\x01scp: /c/" + name.replace(b": ", b"__") + b": " + reason + b"\n"
        if how == "warning":
            stream += warning
        else:
            stream += file(name, content, status=b"\0" if how == "file" else warning)
    staged, failed = naive(stream)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    chunks = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    with tempfile.TemporaryDirectory() as target:
        try:
            report = stage_from(*chunks, target=Path(target), status=1 if failed else 0)
        except IncompleteStage as exc:
            assert exc.report is not None
            assert len(exc.report.failed) == len([one for one in sent if one[2] != "file"])
        except NothingToStage:
            assert not sent
        else:
            assert report.count == len(staged)
            assert not failed
        assert landed(Path(target)) == staged


@pytest.mark.usefixtures("patience")
@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=60), SENT.map(lambda s: b"".join(file(n, d) for n, d, _, _ in s)))))
def test_noise_ends_in_an_error_of_ours_or_is_no_noise_and_leaves_nothing_else(chunks: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        target = Path(directory) / "target"
        target.mkdir()
        error: StageError | None = None
        try:
            stage_from(*chunks, target=target)
        except StageError as exc:
            error = exc
        assert os.listdir(directory) == ["target"]
        assert error is None or isinstance(error, IncompleteStage) or landed(target) == {}
        assert not [name for name in os.listdir(target) if name.startswith(".")]


@pytest.mark.parametrize(
    ("directory", "command"),
    [
        (b"/var/backup/collect", b"scp -f /var/backup/collect/*"),
        (b"/var/backup/collect/", b"scp -f /var/backup/collect/*"),
        (b"/", b"scp -f /*"),
        (b"/a b", b"scp -f '/a b/'*"),
    ],
)
def test_a_directory_is_asked_for_as_the_original_did_and_quoted_where_it_has_to_be(
    directory: bytes, command: bytes
) -> None:
    assert commands.fetch_all(directory) == command
    assert commands.fetch_all(directory, times=True) == command.replace(b"-f", b"-p -f")


@settings(max_examples=100, deadline=None)
@given(st.binary(min_size=1, max_size=30).filter(lambda path: b"\0" not in path))
def test_a_shell_reads_a_quoted_path_as_that_one_word(path: bytes) -> None:
    quoted = commands.quote(b"/" + path)
    said = subprocess.run([b"sh", b"-c", b"printf %s\\\\n " + quoted], capture_output=True, check=True).stdout
    assert said == b"/" + path + b"\n"
    if b"\n" not in path:
        assert shlex.split(os.fsdecode(quoted)) == [os.fsdecode(b"/" + path)]

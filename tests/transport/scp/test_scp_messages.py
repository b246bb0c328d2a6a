"""Messages and commands: compared with a naive reading of the protocol, and with a real shell."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerstage.errors import IncompleteStage, NothingToStage, StageError
from peerstage.records import Limits
from peerstage.testing.contract import files_in
from peerstage.transport.scp import commands
from peerstage.transport.scp.messages import (
    FatalMessage,
    FileMessage,
    TimesMessage,
    WarningMessage,
    entry_in_warning,
    parse_message,
)
from support.examples import examples
from support.scp_server import pack_file, stage_from

#: A warning about ``*`` alone is ambiguous: no name matched, or a file has this name.
NAMES = st.binary(min_size=1, max_size=20).filter(
    lambda name: (
        name != b"*" and not (name.startswith(b".") or any(bad in name for bad in (b"/", b"\0", b"\n", b"\\^J")))
    )
)
REASONS = st.sampled_from([b"Permission denied", b"not a regular file", b"No such file or directory"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"C0644 0 a", FileMessage(b"a", 0, 0o644)),
        (b"C4755 9223372036854775807 a b ", FileMessage(b"a b ", 2**63 - 1, 0o4755)),
        (b"C0600 1 \xff\xfe", FileMessage(b"\xff\xfe", 1, 0o600)),
        (b"C0600 1 tab\there", FileMessage(b"tab\there", 1, 0o600)),
        (b"C0600 1 -n", FileMessage(b"-n", 1, 0o600)),
        (b"T1700000000 0 0 999999", TimesMessage(1_700_000_000)),
        (b"\x01scp: no", WarningMessage("scp: no")),
        (b"\x02", FatalMessage("")),
    ],
)
def test_a_message_is_parsed(line: bytes, message: object) -> None:
    assert parse_message(line, Limits()) == message


@examples(40)
@given(st.binary(max_size=300))
def test_any_line_is_a_message_or_raises_a_stage_error(line: bytes) -> None:
    try:
        message = parse_message(line, Limits())
    except StageError as exc:
        assert str(exc).isprintable()
    else:
        if isinstance(message, FileMessage):  # the parsed message packs to the same line
            assert b"C%04o %d %s" % (message.mode, message.size, message.name) == line


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
def test_the_entry_in_a_warning_is_found(text: str, name: bytes | None) -> None:
    assert entry_in_warning(text) == name


def parse_naively(stream: bytes) -> tuple[dict[bytes, bytes], set[bytes]]:
    """Parse a valid stream naively; return the files that are staged, and the names of the others."""
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
    unique_by=lambda file: file[0],
    max_size=8,
)


@examples(70)
@given(SENT, st.data())
def test_a_valid_stream_is_staged_as_a_naive_parser_reads_it(
    sent: list[tuple[bytes, bytes, str, bytes]], data: st.DataObject
) -> None:
    stream = b""
    for name, content, outcome, reason in sent:
        warning = b"\x01scp: /c/" + name.replace(b": ", b"__") + b": " + reason + b"\n"
        if outcome == "warning":
            stream += warning
        else:
            stream += pack_file(name, content, status=b"\0" if outcome == "file" else warning)
    staged, failed = parse_naively(stream)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    chunks = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    with tempfile.TemporaryDirectory() as target:
        try:
            report = stage_from(chunks, Path(target), status=1 if failed else 0)
        except IncompleteStage as exc:
            assert exc.report is not None
            assert len(exc.report.failed) == len([outcome for _, _, outcome, _ in sent if outcome != "file"])
        except NothingToStage:
            assert not sent
        else:
            assert report.count == len(staged)
            assert not failed
        assert files_in(Path(target)) == staged


@pytest.mark.usefixtures("patience")
@examples(100)
@given(st.lists(st.one_of(st.binary(max_size=60), SENT.map(lambda s: b"".join(pack_file(n, d) for n, d, _, _ in s)))))
def test_noise_is_staged_or_raises_a_stage_error_and_leaves_nothing_behind(chunks: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        target = Path(directory) / "target"
        target.mkdir()
        error: StageError | None = None
        try:
            stage_from(chunks, target)
        except StageError as exc:
            error = exc
        assert os.listdir(directory) == ["target"]
        assert error is None or isinstance(error, IncompleteStage) or files_in(target) == {}
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
def test_a_directory_is_requested_as_the_original_did_and_quoted_only_if_necessary(
    directory: bytes, command: bytes
) -> None:
    assert commands.fetch_directory_command(directory) == command
    assert commands.fetch_directory_command(directory, preserve_times=True) == command.replace(b"-f", b"-p -f")


@examples(40)
@given(st.binary(min_size=1, max_size=30).filter(lambda path: b"\0" not in path))
def test_a_shell_reads_a_quoted_path_as_one_word(path: bytes) -> None:
    quoted = commands.quote(b"/" + path)
    output = subprocess.run([b"sh", b"-c", b"printf %s\\\\n " + quoted], capture_output=True, check=True).stdout
    assert output == b"/" + path + b"\n"
    if b"\n" not in path:
        assert shlex.split(os.fsdecode(quoted)) == [os.fsdecode(b"/" + path)]

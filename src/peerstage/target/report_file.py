"""``peerstage.json``: the report of a stage as one JSON object, with one result per line. The file is untrusted input.

Reading line by line bounds the memory; a parser that is given a whole JSON file may need 25 times its size.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO, NamedTuple

from peerstage.paths import is_plain_name
from peerstage.records import LINKED, MIB, RESUMED, STAGED, FileResult, StageReport

#: Bounds on a file that is read: its bytes, its lines, and the bytes of each.
MAX_BYTES = 256 * MIB
MAX_LINES = 1_000_000
MAX_LINE_BYTES = 64 * 1024
#: The key of the files that earlier runs staged. `StageReport.from_json` ignores it.
KEPT = "kept"
#: The key of a staged file's own modification time in a result. `FileResult.from_dict` ignores it.
STAGED_MTIME_NS = "staged_mtime_ns"

_MAX_ERROR_CHARS = 4096
_MAX_INT = (1 << 63) - 1
_FIELDS = tuple(field.name for field in dataclasses.fields(FileResult))
_SECTION = re.compile(rb'"(\w{1,64})": \[\n')
_END_OF_SECTION = b"],\n"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_STAGED_OUTCOMES = {outcome: outcome for outcome in (STAGED, RESUMED, LINKED)}


class RecordedFile(NamedTuple):
    """What a report says of a file in its directory, in little memory.

    Attributes:
        size: Size in bytes.
        mode: Permission bits; None if unknown.
        mtime: The peer's modification time in whole seconds; None if unknown.
        outcome: How it was staged.
        sha256: Its SHA-256; None if unknown.
        staged_mtime_ns: The modification time of the staged file itself, in nanoseconds, when the report was written;
            None if unknown.
    """

    size: int
    mode: int | None
    mtime: int | None
    outcome: str
    sha256: bytes | None
    staged_mtime_ns: int | None

    def to_result(self, name: bytes) -> FileResult:
        """Return the result that was recorded."""
        sha256 = None if self.sha256 is None else self.sha256.hex()
        return FileResult(os.fsdecode(name), self.size, self.mode, self.mtime, outcome=self.outcome, sha256=sha256)


def write_report(
    file: BinaryIO,
    report: StageReport,
    files: Iterable[FileResult],
    refused: Iterable[FileResult],
    kept: Iterable[FileResult],
    staged_mtime_ns: Callable[[FileResult], int | None] = lambda result: None,
) -> None:
    """Write a report in the form of `StageReport.to_json`, with line breaks, and with the key `KEPT` in addition.

    Args:
        file: A binary file.
        report: The report; its `files` and `refused` are not read.
        files: What is written as `files`. Iterators save the memory for the results.
        refused: What is written as `refused`.
        kept: The files that earlier runs staged, and that this run did not touch.
        staged_mtime_ns: Returns the own modification time of a file of *files* or *kept* that is staged, in
            nanoseconds, or None if it is unknown.

    Raises:
        OSError: If it cannot be written.
    """
    values = {field.name: getattr(report, field.name) for field in dataclasses.fields(report)}
    lists = {name: value for name, value in values.items() if isinstance(value, tuple)}
    head = json.dumps({name: value for name, value in values.items() if name not in lists})
    file.write(head.encode().removesuffix(b"}") + b",\n")
    count = size = 0

    def count_staged() -> Iterator[FileResult]:
        nonlocal count, size
        for result in files:
            if result.is_staged:
                count, size = count + 1, size + result.size
            yield result

    for name, results in {**lists, "files": count_staged(), "refused": refused, KEPT: kept}.items():
        file.write(b'"%s": [' % name.encode())
        separator = b"\n"
        for result in results:
            is_file = isinstance(result, FileResult) and result.is_staged
            file.write(separator + _encode(result, staged_mtime_ns(result) if is_file else None))
            separator = b",\n"
        file.write(b"\n" + _END_OF_SECTION)
    file.write(b'"count": %d, "bytes": %d}\n' % (count, size))


def _encode(value: Any, mtime_ns: int | None) -> bytes:
    if isinstance(value, FileResult):
        fields = {name: getattr(value, name) for name in _FIELDS}
        if mtime_ns is not None:
            fields[STAGED_MTIME_NS] = mtime_ns
        if value.error is not None:
            fields["error"] = value.error[:_MAX_ERROR_CHARS]
        value = fields
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    return json.dumps(value).encode()


def read_report(
    file: BinaryIO, on_head: Callable[[dict[str, Any]], object] = lambda head: None
) -> Iterator[tuple[bytes, RecordedFile]]:
    """Yield name and record of every file in the directory that `write_report` recorded: staged by that run, or kept.

    The types of all values are checked; the name is a plain name.

    Args:
        file: A binary file, at its beginning.
        on_head: Called with the report's values that are not lists, before the first record. Only the type of "schema"
            was checked. An exception that it raises is passed on.

    Raises:
        ValueError: If the file has another form than `write_report` gives it, is cut off, or exceeds a bound; possibly
            after some results.
        OSError: If it cannot be read.
    """
    number, size, section = 0, 0, None
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        size += len(line)
        try:
            if number > MAX_LINES or size > MAX_BYTES or not line.endswith(b"\n") or len(line) > MAX_LINE_BYTES:
                raise ValueError("has no end, or a bound is exceeded")
            if number == 1:
                on_head(_parse_head(line))
            elif section is None:
                found = _SECTION.fullmatch(line)
                if found is None:
                    _parse_object(b"{" + line)
                    if file.read(1):
                        raise ValueError("is not the last one")
                    return
                section = found[1].decode()
            elif line == _END_OF_SECTION:
                section = None
            elif section in ("files", KEPT) and (named := _parse_result(line)) is not None:
                yield named
        except (ValueError, RecursionError) as exc:
            raise ValueError(f"line {number} is not as peerstage writes it ({exc})") from None
    raise ValueError("it is empty, or was cut off")


def _parse_object(text: bytes) -> dict[str, Any]:
    value = json.loads(text.decode("ascii"))
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def _parse_head(line: bytes) -> dict[str, Any]:
    if not line.endswith(b",\n"):
        raise ValueError("it does not begin like a report")
    head = _parse_object(line[:-2] + b"}")
    schema = head.get("schema")
    if not isinstance(schema, int) or isinstance(schema, bool):
        raise ValueError("its schema is not a number")
    return head


def _parse_result(line: bytes) -> tuple[bytes, RecordedFile] | None:
    """Return name and record of a result; None if the file is not staged."""
    raw = _parse_object(line.removesuffix(b"\n").removesuffix(b","))
    values = {name: raw.get(name, default) for name, (default, _) in _PARSED_FIELDS.items()}
    for name, (_, is_valid) in _PARSED_FIELDS.items():
        if not is_valid(values[name]):
            raise ValueError(f"invalid {name}")
    outcome = _STAGED_OUTCOMES.get(values["outcome"] or (STAGED if raw.get("error") is None else ""))
    if outcome is None:
        return None
    sha256 = None if values["sha256"] is None else bytes.fromhex(values["sha256"])
    return os.fsencode(values["name"]), RecordedFile(
        values["size"], values["mode"], values["mtime"], outcome, sha256, values[STAGED_MTIME_NS]
    )


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and is_plain_name(os.fsencode(value))


def _is_int(value: Any) -> bool:
    return type(value) is int and abs(value) <= _MAX_INT


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


#: The fields that are read of a result: the default of each, and a check.
_PARSED_FIELDS: dict[str, tuple[Any, Callable[[Any], bool]]] = {
    "name": (None, _is_name),
    "size": (0, lambda value: _is_int(value) and value >= 0),
    "mode": (None, lambda value: value is None or _is_int(value)),
    "mtime": (None, lambda value: value is None or _is_int(value)),
    "outcome": ("", lambda value: isinstance(value, str)),
    "sha256": (None, lambda value: value is None or _is_digest(value)),
    STAGED_MTIME_NS: (None, lambda value: value is None or _is_int(value)),
}

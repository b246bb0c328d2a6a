"""The manifest of a staging directory: ``peerstage.sha256``, which sha256sum can check, and ``peerstage.json``.

Both are untrusted input: another user may have been able to write them, and disks fail. They are opened relative to the
directory, without following symlinks or waiting for FIFOs, and everything that is read has a bound.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Collection, Iterable
from typing import Any, BinaryIO, TypeVar

from peerstage.errors import EntryError, TargetError
from peerstage.paths import MANIFEST_NAMES, is_plain_name
from peerstage.printable import escape
from peerstage.reasons import Reason
from peerstage.system_errors import reason_of
from peerstage.target.checksum_file import read_checksums
from peerstage.target.file_descriptors import NO_FOLLOW, READ_WITHOUT_WAITING
from peerstage.target.report_file import RecordedFile, read_report

CHECKSUMS, REPORT = MANIFEST_NAMES
#: The names that the manifest takes in a staging directory.
NAMES = frozenset({os.fsencode(CHECKSUMS), os.fsencode(REPORT)})

_OPTION = "StageOptions(manifest=True)"

_VALUES_PER_CHECK = 1000

T = TypeVar("T")


class _CheckFailed(Exception):
    """Carries an error of a callback past the handlers for errors of the file."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def reserved_names(checksums: str | None) -> frozenset[bytes]:
    """Return the names that no collected file may have, with or without a manifest: a peer must not deliver one.

    Args:
        checksums: `StageOptions.checksums`. That file may be the manifest of the peer's directory, since every file is
            compared with it.
    """
    return NAMES if checksums is None else NAMES - {os.fsencode(checksums)}


def reserved_name_error() -> EntryError:
    """Return the error of a collected file that has a reserved name."""
    message = "This name is reserved for the manifest. Exclude the file, or rename it on the peer."
    return EntryError(message, reason=Reason.NAME_RESERVED)


def read_digests(
    dir_fd: int, path: str, without: Collection[bytes] = (), check: Callable[[], object] | None = None
) -> dict[bytes, bytes]:
    """Return the SHA-256 digest of every file in the manifest of a directory.

    Args:
        dir_fd: Descriptor of the directory.
        path: Its path, for errors.
        without: Names to leave out.
        check: Called again and again while the manifest is read; what it raises ends that.

    Raises:
        TargetError: If the directory has no manifest, or one that is invalid or cannot be read.
    """
    return _read(dir_fd, path, CHECKSUMS, lambda file: _by_name(_checked(read_checksums(file), check), without))


def read_results(dir_fd: int, path: str, without: Collection[bytes] = ()) -> dict[bytes, RecordedFile]:
    """Return the record of every file in the manifest of a directory: staged by its last stage, or kept by it.

    Nothing says that the files still exist, or are unchanged.

    Args:
        dir_fd: Descriptor of the directory.
        path: Its path, for errors.
        without: Names to leave out.

    Raises:
        TargetError: If the directory has no manifest, or one that is invalid or cannot be read.
    """

    def parse(file: BinaryIO) -> dict[bytes, RecordedFile]:
        return {name: record for name, record in read_report(file) if name not in without}

    return _read(dir_fd, path, REPORT, parse)


def read_confirmed_results(
    dir_fd: int,
    path: str,
    is_trusted: Callable[[os.stat_result], bool],
    on_head: Callable[[dict[str, Any]], object],
    *,
    max_files: int,
    check: Callable[[], object],
) -> dict[bytes, RecordedFile]:
    """Return what `read_results` does, without the files of which both parts of the manifest do not have one digest.

    They differ if a run was killed between the two renames.

    Args:
        dir_fd: Descriptor of the directory.
        path: Its path, for errors.
        is_trusted: Returns whether a file with these attributes was written by somebody who is trusted.
        on_head: Called as by `read_report`.
        max_files: Maximum number of files.
        check: Called again and again while the manifest is read; what it raises ends that.

    Raises:
        TargetError: If a part of the manifest is missing, invalid or not trusted, or cannot be read.
    """

    def require_trusted(file: BinaryIO) -> None:
        if not is_trusted(os.fstat(file.fileno())):
            raise ValueError("another user may have written it")

    def parse_report(file: BinaryIO) -> dict[bytes, RecordedFile]:
        require_trusted(file)
        found: dict[bytes, RecordedFile] = {}
        for name, record in _checked(read_report(file, on_head), check):
            found[name] = record
            if len(found) > max_files:
                raise ValueError(f"it has more than {max_files} files (Limits.entries)")
        return found

    def parse(file: BinaryIO) -> dict[bytes, RecordedFile]:
        require_trusted(file)
        confirmed: dict[bytes, RecordedFile] = {}
        for name, digest in _checked(read_checksums(file), check):
            record = results.get(name)
            if record is not None and record.sha256 == bytes.fromhex(digest):
                confirmed[name] = record
            else:
                confirmed.pop(name, None)
                results.pop(name, None)
        return confirmed

    results = _read(dir_fd, path, REPORT, parse_report)
    return _read(dir_fd, path, CHECKSUMS, parse)


def _read(dir_fd: int, path: str, name: str, parse: Callable[[BinaryIO], T]) -> T:
    try:
        with _open_regular(name, dir_fd) as file:
            return parse(file)
    except _CheckFailed as exc:
        raise exc.error from None
    except FileNotFoundError as exc:
        raise TargetError(
            f"There is no {name} in it. Stage into it with {_OPTION}.",
            path=path,
            errno=exc.errno,
            reason=Reason.NO_MANIFEST,
        ) from exc
    except OSError as exc:
        raise TargetError(
            f"{name} cannot be read: {exc.strerror}. Let this user read it, or move it away.",
            path=path,
            errno=exc.errno,
            reason=reason_of(exc),
        ) from exc
    except ValueError as exc:
        raise TargetError(
            f"{name} is not a valid manifest: {escape(str(exc))}. Move it away, then stage again with {_OPTION}.",
            path=path,
            reason=Reason.INVALID_MANIFEST,
        ) from exc


def _open_regular(name: str, dir_fd: int) -> BinaryIO:
    """Open the regular file *name*; raise `ValueError` for anything else of that name."""
    if not stat.S_ISREG(os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode):
        raise ValueError("it is not a regular file")
    flags = READ_WITHOUT_WAITING | NO_FOLLOW
    file = open(name, "rb", opener=lambda name, _: os.open(name, flags, dir_fd=dir_fd))  # noqa: SIM115
    try:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("it is not a regular file")
    except BaseException:
        file.close()
        raise
    return file


def _checked(values: Iterable[T], check: Callable[[], object] | None) -> Iterable[T]:
    """Yield *values*, and call *check* in between; what it raises becomes a `_CheckFailed`."""
    for number, value in enumerate(values):
        if check is not None and number % _VALUES_PER_CHECK == 0:
            try:
                check()
            except Exception as exc:
                raise _CheckFailed(exc) from exc
        yield value


def _by_name(checksums: Iterable[tuple[bytes, str]], without: Collection[bytes]) -> dict[bytes, bytes]:
    """Return *checksums* by name, but for those *without*.

    Raises:
        ValueError: If a name leads out of the directory, belongs to the manifest itself, or has two digests.
    """
    found: dict[bytes, bytes] = {}
    for name, text in checksums:
        digest = bytes.fromhex(text)
        if not is_plain_name(name) or name in NAMES:
            raise ValueError(f"it names {escape(name)!r}")
        if name not in without and found.setdefault(name, digest) != digest:
            raise ValueError(f"it has two digests of {escape(name)!r}")
    return found

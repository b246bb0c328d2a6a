"""Comparison of received files with a checksum file that the peer collected in the same directory.

It finds what changed after the peer computed the digests, a mixture of two versions, and data that a disk or a memory
damaged since. It does not find what a compromised peer changes: such a peer writes the checksum file, too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from peerstage.errors import EntryError, StageError
from peerstage.paths import COLLECT_INDICATOR, STAGE_INDICATOR
from peerstage.printable import escape
from peerstage.reasons import Reason
from peerstage.target.checksum_file import MAX_BYTES, read_checksums
from peerstage.target.partial_file import PartialFile
from peerstage.target.run_state import Failure

#: Files that a peer creates after the checksum file. As long as they are empty, they need no digest.
_INDICATORS = frozenset({COLLECT_INDICATOR.encode(), STAGE_INDICATOR.encode()})

_NOTHING_STAGED = "Every file is to be compared with it, so that nothing was staged."


def find_differences(
    checksums: str, files: Mapping[bytes, PartialFile], refused: Mapping[bytes, Failure]
) -> Iterator[tuple[PartialFile, EntryError]]:
    """Yield each complete file whose SHA-256 the checksum file does not confirm, and why.

    The checksum file itself needs no digest, and neither does an empty indicator. In the checksum file, a name may
    begin with ``./``; names that are not among *files* are ignored. If it has two digests of a name, one differs.

    Args:
        checksums: Name of the checksum file.
        files: All files of the run, of which every complete one has its digest.
        refused: Why other entries could not be staged.

    Raises:
        StageError: If the checksum file is missing, too large or invalid.
        OSError: If the disk failed.
    """
    name, quoted = os.fsencode(checksums), escape(checksums)
    checksum_file = files.get(name)
    if checksum_file is None or not checksum_file.is_ready:
        failure = refused.get(name) if checksum_file is None else checksum_file.failure
        raise missing_error(checksums, None if failure is None else failure.text)
    confirmed: set[bytes] = set()
    differing: set[bytes] = set()
    for listed, digest in _read(checksums, checksum_file):
        listed = listed.removeprefix(b"./")
        file = files.get(listed)
        if file is not None and file.sha256 is not None:
            (confirmed if file.sha256.hex() == digest else differing).add(listed)
    for name, file in files.items():
        if not file.is_ready or file is checksum_file:
            continue
        if name in differing:
            message = f"Its SHA-256 is not the one in {quoted}. Have the peer write that file last, then stage again."
            yield file, EntryError(message, path=name, reason=Reason.DIGEST_MISMATCH)
        elif name not in confirmed and (file.entry.size or name not in _INDICATORS):
            message = f"{quoted} has no digest of it. Have the peer add one, or move the file away."
            yield file, EntryError(message, path=name, reason=Reason.NO_DIGEST)


def _read(checksums: str, file: PartialFile) -> Iterator[tuple[bytes, str]]:
    """Yield the names in the checksum file, and their digests.

    Raises:
        StageError: If it is too large or invalid.
        OSError: If the disk failed.
    """
    if file.entry.size > MAX_BYTES:
        raise _invalid(checksums, f"it has {file.entry.size} bytes, more than {MAX_BYTES}")
    with os.fdopen(file.open_complete(), "rb") as stream:
        try:
            yield from read_checksums(stream)
        except ValueError as exc:
            raise _invalid(checksums, str(exc)) from None


def missing_error(checksums: str, failure: str | None) -> StageError:
    """Return the error of a stage without the checksum file; *failure* is why it cannot be staged, if it is there."""
    if failure is not None:
        problem = f"It cannot be staged: {failure.rstrip('.')}"
    elif checksums.startswith("."):
        problem = "It was not listed: hidden files of remote peers are not staged"
    else:
        problem = "The peer has no such file"
    return StageError(
        f"{problem}. {_NOTHING_STAGED} Have the peer write it with sha256sum, before its collect indicator.",
        path=checksums,
        reason=Reason.CHECKSUM_FILE_MISSING,
    )


def _invalid(checksums: str, problem: str) -> StageError:
    return StageError(
        f"It is not in the format of sha256sum: {escape(problem)}. {_NOTHING_STAGED}",
        path=checksums,
        reason=Reason.CHECKSUM_FILE_INVALID,
    )

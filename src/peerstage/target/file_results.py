"""The results of files and refused entries, for the report and the manifest."""

from __future__ import annotations

import os
from collections.abc import Callable

from peerstage.records import FAILED, LINKED, RESUMED, STAGED, Entry, FileResult
from peerstage.target.partial_file import PartialFile
from peerstage.target.run_state import Failure


def result_of(
    file: PartialFile, mode_of: Callable[[Entry], int], is_racy: Callable[[Entry], bool], *, can_resume: bool
) -> FileResult:
    """Return the result of an admitted file.

    Args:
        file: The file.
        mode_of: Returns the permission bits of a staged file.
        is_racy: Returns whether a change of a file that was fetched could have gone unnoticed.
        can_resume: Whether the transport fetches only the rest of a file that has begun.
    """
    entry, failure, name = file.entry, file.failure, os.fsdecode(file.entry.name)
    if failure is not None:
        return FileResult(name, entry.size, None, entry.mtime, failure.text, FAILED, failure.reason)
    outcome = RESUMED if can_resume and file.resumed_bytes else STAGED
    outcome = outcome if file.linked is None else LINKED
    sha256 = None if file.sha256 is None else file.sha256.hex()
    racy = file.linked is None and is_racy(entry)
    return FileResult(name, entry.size, mode_of(entry), entry.mtime, outcome=outcome, sha256=sha256, racy=racy)


def result_of_refused(name: bytes, failure: Failure) -> FileResult:
    """Return the result of an entry that was not read."""
    return FileResult(os.fsdecode(name), 0, None, None, failure.text, FAILED, failure.reason)

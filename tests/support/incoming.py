"""Files that a target admits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peerstage.records import Entry
from peerstage.target import DirectoryTarget, Selection, Target


def admit_one(target: Target, entry: Entry) -> Any:
    """Return the file for *entry*, which *target* must admit."""
    (file,) = target.admit([entry])
    assert file.entry == entry
    return file


class DecliningTarget(DirectoryTarget):
    """Declines the files of some names.

    Args:
        path: See `DirectoryTarget`.
        declined: Names, or one name.
        options: See `DirectoryTarget`.
    """

    selection = Selection.SOME

    def __init__(self, path: str, *, declined: Sequence[bytes] | bytes, **options: Any) -> None:
        super().__init__(path, **options)
        self._declined = [declined] if isinstance(declined, bytes) else declined

    def admit(self, entries: Sequence[Entry]) -> list[Any]:
        return super().admit([entry for entry in entries if entry.name not in self._declined])

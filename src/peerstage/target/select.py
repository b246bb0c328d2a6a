"""Selection of entries by name and size, as `StageOptions` wants it."""

from __future__ import annotations

import fnmatch
import os
import re
from typing import NamedTuple

from peerstage.errors import StageError
from peerstage.printable import escape
from peerstage.reasons import Reason
from peerstage.records import LEFT_OUT, Entry, FileResult
from peerstage.stage_options import StageOptions
from peerstage.target.base import UNNAMED

#: Why an entry that was refused is no file.
_NO_FILE = frozenset({Reason.NOT_A_FILE, Reason.VANISHED})


class LeftOut(NamedTuple):
    """Why an entry is left out.

    Attributes:
        text: One printable line.
        reason: The machine-readable reason.
    """

    text: str
    reason: Reason


class Selector:
    """Decides which entries are wanted, and keeps the results of the others.

    Equal texts share an object, since a peer may have many entries.

    Args:
        options: Patterns for names, and the maximum size.

    Attributes:
        left_out: The results of the entries that are left out, by name.
        has_left_out_files: Whether a file was left out, and not only entries of other kinds.
        selects: Whether any entry may be left out.
    """

    def __init__(self, options: StageOptions) -> None:
        self.left_out: dict[bytes, FileResult] = {}
        self.has_left_out_files = False
        self.selects = bool(options.include or options.exclude or options.max_size is not None)
        self._include = [_compile(pattern) for pattern in options.include]
        self._exclude = [
            (_compile(pattern), LeftOut(f"Its name matches the exclude pattern {escape(pattern)}.", Reason.EXCLUDED))
            for pattern in options.exclude
        ]
        self._max_size = options.max_size
        self._checksums = None if options.checksums is None else os.fsencode(options.checksums)
        self._not_included = LeftOut("Its name matches no include pattern.", Reason.NOT_INCLUDED)
        self._too_large = LeftOut(
            f"It is larger than the maximum size of {options.max_size} bytes.", Reason.ABOVE_MAX_SIZE
        )

    def leaves_out(self, entry: Entry) -> bool:
        """Return whether the file *entry* is not wanted; then keep its result."""
        if not self.selects:
            return False
        name, size = entry.name, entry.size
        self.left_out.pop(name, None)
        left_out = self.check_file(name, size)
        if left_out is None:
            return False
        text = os.fsdecode(name)
        self.left_out[name] = FileResult(text, size, None, entry.mtime, left_out.text, LEFT_OUT, left_out.reason)
        self.has_left_out_files = True
        return True

    def leaves_out_refused(self, name: bytes, error: StageError) -> bool:
        """Return whether the entry *name*, which cannot be staged due to *error*, is not wanted; then keep its result.

        The peer has not told its size. An entry that it did not name may be any, so it is wanted.
        """
        self.left_out.pop(name, None)
        left_out = self.check_name(name) if name != UNNAMED else None
        if left_out is None:
            return False
        self.left_out[name] = FileResult(
            os.fsdecode(name), error=left_out.text, outcome=LEFT_OUT, reason=left_out.reason
        )
        self.has_left_out_files |= error.reason not in _NO_FILE
        return True

    def check_name(self, name: bytes) -> LeftOut | None:
        """Return why no entry called *name* is wanted; None if one may be."""
        if not self._exclude and not self._include:
            return None
        text = os.fsdecode(name)
        for pattern, left_out in self._exclude:
            if pattern.match(text):
                return left_out
        if self._include and not any(pattern.match(text) for pattern in self._include):
            return self._not_included
        return None

    def check_file(self, name: bytes, size: int) -> LeftOut | None:
        """Return why the file *name* of *size* bytes is not wanted; None if it is."""
        left_out = self.check_name(name)
        if left_out is None and self._max_size is not None and size > self._max_size and name != self._checksums:
            return self._too_large
        return left_out


def _compile(pattern: str) -> re.Pattern[str]:
    """Return the regular expression for a pattern of fnmatch(3), as `fnmatch.fnmatchcase` applies it."""
    return re.compile(fnmatch.translate(pattern))

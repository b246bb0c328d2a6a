"""Keep what later listings of a run show: files that changed, vanished or appeared while others were transferred."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence

from peerstage.errors import ChangedFile
from peerstage.peer_log import PeerLog
from peerstage.printable import escape
from peerstage.records import RACY_SECONDS, Entry
from peerstage.target.base import CHANGED_ADVICE, ListingChanges
from peerstage.target.partial_file import PartialFile
from peerstage.target.select import Selector

#: Names of files that appeared which a report keeps, and those that a note quotes.
_MAX_APPEARED = 1000
_MAX_QUOTED = 5

_CHANGED_TWICE = f"It changed while it was staged, and again while it was fetched once more. {CHANGED_ADVICE}"


class StabilityCheck:
    """What the listings of one run show about its files.

    Args:
        files: The files of the run by name.
        selector: Decides which files are wanted.

    Attributes:
        appeared: The first names of wanted files that the peer has now, and did not list at first.
        notes: What the user should know about them, as sentences, once `write_notes` was called.
    """

    def __init__(self, files: Mapping[bytes, PartialFile], selector: Selector) -> None:
        self.appeared: list[bytes] = []
        self.notes: tuple[str, ...] = ()
        self._appeared_count = 0
        self._files = files
        self._selector = selector
        self._vanished: set[bytes] = set()
        self._fetched_again: set[bytes] = set()
        self._newest: int | None = None
        self._has_relisted = False

    def note_listing(self, entries: Sequence[Entry]) -> None:
        """Take note of a first listing, or of a part of it."""
        mtimes = [entry.mtime for entry in entries if entry.mtime is not None]
        self._newest = max([*mtimes, *(() if self._newest is None else (self._newest,))], default=None)
        self.appeared.clear()  # during an earlier pull
        self._appeared_count = 0
        if self._vanished:
            self._vanished.difference_update(entry.name for entry in entries)

    def find_changed(self, changes: ListingChanges) -> list[Entry]:
        """Take note of *changes*, fail files that changed for the second time, and return those to fetch again."""
        self._has_relisted = True
        self._vanished.update(entry.name for entry in changes.vanished if self._is_ready(entry.name))
        for entry in changes.appeared:
            if self._selector.check_file(entry.name, entry.size) is not None:
                continue
            self._appeared_count += 1
            if len(self.appeared) < _MAX_APPEARED:
                self.appeared.append(entry.name)
        changed = []
        for entry in changes.changed:
            file = self._files.get(entry.name)
            if file is None:
                continue
            if entry.name in self._fetched_again:
                file.fail(ChangedFile(_CHANGED_TWICE))
            else:
                self._fetched_again.add(entry.name)
                changed.append(entry)
        return changed

    def is_racy(self, entry: Entry) -> bool:
        """Return whether *entry* was modified so late that a later listing may not show another change."""
        if not self._has_relisted or entry.mtime is None or self._newest is None:
            return False
        return entry.mtime >= self._newest - RACY_SECONDS

    def write_notes(self, log: PeerLog) -> None:
        """Set `notes`, and log each as a warning."""
        notes = []
        if self._appeared_count:
            files = _count_files(self._appeared_count)
            names = _quote(self.appeared, self._appeared_count)
            notes.append(
                f"The peer is still collecting: {files} appeared while others were staged, and are not staged: "
                f"{names}. {CHANGED_ADVICE}"
            )
        vanished = sorted(name for name in self._vanished if self._is_ready(name))
        if vanished:
            notes.append(
                f"The peer removed {_count_files(len(vanished))} before the last comparison. What was read is staged: "
                f"{_quote(vanished, len(vanished))}."
            )
        self.notes = tuple(notes)
        for note in notes:
            log.warning("%s", note)

    def _is_ready(self, name: bytes) -> bool:
        file = self._files.get(name)
        return file is not None and file.is_ready


def _count_files(count: int) -> str:
    return f"{count} file{'s' if count > 1 else ''}"


def _quote(names: Collection[bytes], count: int) -> str:
    """Return the first of *names*, and how many of *count* there are besides."""
    first = sorted(names)[:_MAX_QUOTED]
    rest = f" and {count - len(first)} more" if count > len(first) else ""
    return ", ".join(escape(os.fsdecode(name)) for name in first) + rest

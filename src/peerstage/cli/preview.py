"""What a stage would bring, from the peer's listing alone: nothing is read there, and nothing written here."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from typing import NamedTuple

from peerstage.errors import StageError, escape
from peerstage.landing.base import Buffer, Landing, Slot
from peerstage.reasons import Reason
from peerstage.records import Entry, FileResult
from peerstage.transport.base import Transport


class Preview(NamedTuple):
    """What would come, and what would not."""

    files: tuple[FileResult, ...]
    refused: tuple[FileResult, ...]

    @property
    def size(self) -> int:
        """Bytes that would come."""
        return sum(file.size for file in self.files)


class PreviewLanding(Landing):
    """Takes note of every entry and wants no byte of it.

    Args:
        target: The directory that the files would come to; an entry whose name is a directory there is refused.
    """

    wants_content = False

    def __init__(self, target: str) -> None:
        self._target = target
        self._files: dict[bytes, FileResult] = {}
        self._refused: dict[bytes, FileResult] = {}

    def expect(self, files: int, size: int) -> None:
        """Nothing is made ready for them."""

    def open(self, entry: Entry) -> Slot:
        """Return a slot that is finished: a transport asks the peer for nothing."""
        name = os.fsdecode(entry.name)
        if _is_directory(os.path.join(self._target, name)):
            why = "A directory has this name in the target. Move it away, then stage again."
            self._refused[entry.name] = FileResult(name, error=why, reason=Reason.NAME_TAKEN)
        else:
            self._files[entry.name] = FileResult(name, entry.size, entry.mode, entry.mtime)
        return _Satisfied()

    def refuse(self, name: bytes, error: StageError) -> None:
        """See `Landing.refuse`."""
        self._refused[name] = FileResult(os.fsdecode(name), error=escape(error.message), reason=error.reason)

    @property
    def preview(self) -> Preview:
        """What has been noted, by name."""
        return Preview(
            tuple(self._files[name] for name in sorted(self._files)),
            tuple(self._refused[name] for name in sorted(self._refused)),
        )


class _Satisfied(Slot):
    """A slot that needs nothing more."""

    __slots__ = ()

    @property
    def is_finished(self) -> bool:
        return True

    def missing(self) -> Sequence[tuple[int, int]]:
        return ()

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        """What comes unasked is dropped."""

    def finish(self) -> None:
        """It is."""

    def fail(self, error: StageError) -> None:
        """The peer was asked for nothing."""


def preview(transport: Transport, directory: bytes, target: str) -> Preview:
    """Return what a stage of the peer's *directory* into *target* would bring.

    Raises:
        StageError: The peer could not be asked.
    """
    landing = PreviewLanding(target)
    transport.pull(directory, landing)
    return landing.preview


def _is_directory(path: str) -> bool:
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return False

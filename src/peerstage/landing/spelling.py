"""File systems that take different names for the same one: by case (vfat, ntfs, casefold ext4, SMB), by Unicode
normalisation (HFS+, zfs), by both (apfs), or by a dot at the end (vfat).

There the rename of ``dump`` replaces ``Dump``, and one of two files that were both staged is lost. What such a file
system takes for the same is its own secret (it depends on its tables, its mount options and the directory), so it is
asked: each name is claimed in a directory of its own, inside the private one, before the first rename.
"""

from __future__ import annotations

import errno
import os
import unicodedata
from collections.abc import Collection, Iterator

from peerstage.errors import EntryError
from peerstage.landing.private import close_quietly, empty_directory, open_directory
from peerstage.landing.slot import FileSlot
from peerstage.reasons import Reason

#: What a system call can say that is the matter of that one name, and not of the disk.
NAME_ERRORS = frozenset(
    {
        *(errno.EISDIR, errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL),
        errno.EBUSY,  # something is mounted on what has the name
        errno.EPERM,  # what has the name is immutable, or another user's in a sticky directory
    }
)

_CLAIMS = "names"
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)

#: A name, and others that are different names: in other case, decomposed, with a dot at the end.
_PROBE = "Prob\u00e9".encode()
_OTHERS = ("pROB\u00e9".encode(), "Probe\u0301".encode(), _PROBE + b".")


def bad_name(exc: OSError) -> EntryError:
    """Return what the local file system says of one name as that entry's error."""
    if exc.errno == errno.EISDIR:
        return EntryError(
            "A directory has this name in the target. Move it away, then stage again.", reason=Reason.NAME_TAKEN
        )
    return EntryError(
        f"The target's file system refuses the name: {exc.strerror}.", reason=Reason.NAME_NOT_REPRESENTABLE
    )


def find_collisions(
    slots: Collection[FileSlot], target_fd: int, private_fd: int
) -> Iterator[tuple[FileSlot, EntryError]]:
    """Yield the files that must not get their names, with the reason; nothing on a file system that keeps names apart.

    Where two files of one run have the same name, the first gets it, or rather the one that is in the target under this
    very spelling: so staging again overwrites the same one again. A file that the target has under another spelling
    alone is not replaced. Spellings that differ in Unicode normalisation alone are one: nobody sees the difference, and
    a file system that normalises does not tell which it was given.

    Raises:
        OSError: If the disk fails.
    """
    if not _takes_names_for_others(private_fd):
        return
    there = _Spellings(os.listdir(target_fd))
    claimed = _Spellings([])
    os.mkdir(_CLAIMS, 0o700, dir_fd=private_fd)
    claims = open_directory(_CLAIMS, dir_fd=private_fd)
    try:
        for slot in sorted(slots, key=lambda slot: not there.has_exactly(os.fsdecode(slot.entry.name))):
            name = os.fsdecode(slot.entry.name)
            try:
                os.close(os.open(slot.entry.name, _CREATE, 0o600, dir_fd=claims))
            except FileExistsError:
                other = claimed.like(name)
                yield (
                    slot,
                    EntryError(
                        f"To the target's file system this is the same name as {other}. Rename one.",
                        reason=Reason.NAME_COLLISION,
                    ),
                )
                continue
            except OSError as exc:
                if exc.errno not in NAME_ERRORS:
                    raise
                yield slot, bad_name(exc)
                continue
            claimed.add(name)
            if not there.has(name) and _exists(slot.entry.name, target_fd):
                other = there.like(name)
                yield (
                    slot,
                    EntryError(
                        f"To the target's file system this is the same name as {other}. Move that away.",
                        reason=Reason.NAME_COLLISION,
                    ),
                )
        empty_directory(claims)
    finally:
        close_quietly(claims)
    os.rmdir(_CLAIMS, dir_fd=private_fd)


class _Spellings:
    """A set of names that can be asked for one like another."""

    def __init__(self, names: list[str]) -> None:
        self._exact: set[str] = set()
        self._composed: set[str] = set()
        self._alike: dict[str, str] = {}
        for name in names:
            self.add(name)

    def add(self, name: str) -> None:
        self._exact.add(name)
        self._composed.add(_composed(name))
        self._alike.setdefault(_loosely(name), name)

    def has_exactly(self, name: str) -> bool:
        return name in self._exact

    def has(self, name: str) -> bool:
        """Whether it is there, normalised in whichever way."""
        return _composed(name) in self._composed

    def like(self, name: str) -> str:
        """Return the name that is probably the one that collides, for a message."""
        other = self._alike.get(_loosely(name))
        return "that of another file" if other is None else repr(other)


def _takes_names_for_others(private_fd: int) -> bool:
    """Whether a directory like this one takes some names for others; where it refuses to tell, it may."""
    try:
        os.close(os.open(_PROBE, _CREATE, 0o600, dir_fd=private_fd))
        try:
            return any(_exists(other, private_fd) for other in _OTHERS)
        finally:
            os.unlink(_PROBE, dir_fd=private_fd)
    except OSError as exc:
        if exc.errno not in NAME_ERRORS:
            raise
        return True


def _exists(name: bytes, directory: int) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _loosely(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold().rstrip(". ")

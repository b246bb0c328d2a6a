"""Find different names that the target's file system treats as equal: case-insensitively (vfat, ntfs, casefold ext4,
SMB), after Unicode normalization (HFS+, zfs), both (apfs), or without a trailing dot (vfat).

On such a file system, renaming a file to ``dump`` replaces ``Dump``, and one of two staged files is lost. Which names
are equal depends on case-folding tables, mount options and flags of the directory, so the file system is asked: before
the first rename, each name is created in an empty directory inside the private one.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Collection, Iterator

from peerstage.errors import EntryError
from peerstage.reasons import Reason
from peerstage.target.disk_errors import NAME_ERRORS, name_error
from peerstage.target.file_descriptors import CREATE_NEW, closing, open_directory
from peerstage.target.partial_file import PartialFile
from peerstage.target.private_directory import empty_directory

_DIRECTORY = "names"

#: A name, and variants of it: in other case, in another normalization, with a trailing dot.
_PROBE = "Prob\u00e9".encode()
_VARIANTS = ("pROB\u00e9".encode(), "Probe\u0301".encode(), _PROBE + b".")


def find_collisions(
    files: Collection[PartialFile], target_fd: int, private_fd: int, reserved: Collection[bytes] = ()
) -> Iterator[tuple[PartialFile, EntryError]]:
    """Yield the files that must not be published, each with the reason; none if the file system tells all names apart.

    If two files of a run collide, the one whose exact spelling the target already has is published, otherwise the
    first; so staging again replaces the same file. A file that the target has only under another spelling is not
    replaced. Spellings that differ only in Unicode normalization count as one: they look the same, and a file system
    that normalizes does not report which one it was given.

    Args:
        files: The files to publish.
        target_fd: Descriptor of the target.
        private_fd: Descriptor of the private directory.
        reserved: Names of the manifest, which none of *files* has.

    Raises:
        OSError: If the disk fails.
    """
    if not _names_may_collide(private_fd):
        return
    existing = os.listdir(target_fd)
    exact, normalized = set(existing), set(map(_normalize, existing))
    existing_by_fold = {_fold(name): name for name in existing}
    created_by_fold: dict[str, str] = {}
    os.mkdir(_DIRECTORY, 0o700, dir_fd=private_fd)
    with closing(open_directory(_DIRECTORY, dir_fd=private_fd)) as directory:
        for name_of_ours in reserved:
            os.close(os.open(name_of_ours, CREATE_NEW, 0o600, dir_fd=directory))
            created_by_fold[_fold(os.fsdecode(name_of_ours))] = os.fsdecode(name_of_ours)
        for file in sorted(files, key=lambda file: os.fsdecode(file.entry.name) not in exact):
            name = os.fsdecode(file.entry.name)
            try:
                os.close(os.open(file.entry.name, CREATE_NEW, 0o600, dir_fd=directory))
            except FileExistsError:
                yield file, _collision(created_by_fold.get(_fold(name)), "Rename one of the files.")
                continue
            except OSError as exc:
                if exc.errno not in NAME_ERRORS:
                    raise
                yield file, name_error(exc)
                continue
            created_by_fold.setdefault(_fold(name), name)
            if _normalize(name) not in normalized and _exists(file.entry.name, target_fd):
                yield file, _collision(existing_by_fold.get(_fold(name)), "Move that file away.")
        empty_directory(directory)
    os.rmdir(_DIRECTORY, dir_fd=private_fd)


def _collision(other: str | None, fix: str) -> EntryError:
    quoted = "that of another file" if other is None else repr(other)
    return EntryError(
        f"The target's file system does not distinguish this name from {quoted}. {fix}", reason=Reason.NAME_COLLISION
    )


def _names_may_collide(private_fd: int) -> bool:
    """Return whether a directory like this one may treat different names as equal."""
    try:
        os.close(os.open(_PROBE, CREATE_NEW, 0o600, dir_fd=private_fd))
        try:
            return any(_exists(variant, private_fd) for variant in _VARIANTS)
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


def _normalize(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _fold(name: str) -> str:
    """Return a form that names share if they probably collide, for messages."""
    return unicodedata.normalize("NFKC", name).casefold().rstrip(". ")

"""Real files for demonstrations and tests: many small, some large, odd names, an empty one."""

from __future__ import annotations

import errno
import hashlib
import os
import random

from peerstage.records import StrOrBytesPath
from peerstage.testing.contract import ODD_NAMES

_PIECE = 1 << 20
#: Sizes around what programs read at once.
_EDGES = tuple(size + near for size in (32 * 1024, 255 * 1024, 256 * 1024) for near in (-1, 0, 1))
_NAMES = (*ODD_NAMES, "filing cabinet 🗄".encode())
#: How file systems refuse a name.
_REFUSALS = frozenset({errno.EILSEQ, errno.EINVAL, errno.ENAMETOOLONG})


def make_sample(
    directory: StrOrBytesPath,
    *,
    small: int = 1000,
    large: int = 3,
    large_bytes: int = 32 << 20,
    seed: int = 1,
) -> dict[bytes, str]:
    """Fill *directory* with files whose names and bytes depend on nothing but the arguments.

    Among them are the collect indicator, an empty file, sizes around what programs read at once, and names that
    something on the way might trip over.

    Args:
        directory: An existing directory.
        small: How many files of up to 16 KiB.
        large: How many files of *large_bytes* each.
        large_bytes: Size of a large file, in bytes.
        seed: Other numbers make other bytes.

    Returns:
        The SHA-256 of each file, in hexadecimal, by name. Names that this file system refuses are left out.

    Raises:
        OSError: A file can not be written.
    """
    chance = random.Random(seed)  # noqa: S311 - content, not secrets
    sizes: dict[bytes, int] = {b"cback.collect": 0, b"empty": 0}
    sizes.update({b"small-%05d.dat" % number: chance.randrange(16 * 1024) for number in range(small)})
    sizes.update({b"edge-%d.dat" % size: size for size in _EDGES})
    sizes.update({name: 100 + number for number, name in enumerate(_NAMES)})
    sizes.update({b"large-%d.dat" % number: large_bytes for number in range(large)})
    root = os.fsencode(directory)
    made = {}
    for name, size in sizes.items():
        try:
            made[name] = _write(os.path.join(root, name), size, chance)
        except OSError as exc:
            if name not in _NAMES or exc.errno not in _REFUSALS:
                raise
            chance.randbytes(size)  # the other files stay what they are elsewhere
    return made


def digests(directory: StrOrBytesPath) -> dict[bytes, str]:
    """Return the SHA-256, in hexadecimal, of every regular file of *directory* whose name begins with no dot."""
    root = os.fsencode(directory)
    found = {}
    for name in sorted(os.listdir(root)):
        path = os.path.join(root, name)
        if not name.startswith(b".") and os.path.isfile(path):
            found[name] = _digest(path)
    return found


def _write(path: bytes, size: int, chance: random.Random) -> str:
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        while size:
            piece = chance.randbytes(min(size, _PIECE))
            file.write(piece)
            digest.update(piece)
            size -= len(piece)
    return digest.hexdigest()


def _digest(path: bytes) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()

"""Real files for demonstrations and tests: many small, some large, odd names, an empty one."""

from __future__ import annotations

import errno
import hashlib
import os
import random

from peerstage.records import StrOrBytesPath
from peerstage.testing.contract import ODD_NAMES

_CHUNK_SIZE = 1 << 20
#: Sizes around common read lengths.
_EDGES = tuple(size + offset for size in (32 * 1024, 255 * 1024, 256 * 1024) for offset in (-1, 0, 1))
_NAMES = (*ODD_NAMES, "filing cabinet 🗄".encode())
#: Errors with which file systems refuse a name.
_NAME_ERRORS = frozenset({errno.EILSEQ, errno.EINVAL, errno.ENAMETOOLONG})


def make_sample(
    directory: StrOrBytesPath,
    *,
    small: int = 1000,
    large: int = 3,
    large_bytes: int = 32 << 20,
    seed: int = 1,
) -> dict[bytes, str]:
    """Fill *directory* with files whose names and content depend only on the arguments.

    Among them are the collect indicator, an empty file, sizes around common read lengths, and unusual names.

    Args:
        directory: An existing directory.
        small: The number of files of up to 16 KiB.
        large: The number of files of *large_bytes* each.
        large_bytes: Size of a large file, in bytes.
        seed: The seed of the random content.

    Returns:
        The SHA-256 of each file in hexadecimal, by name. Names that this file system refuses are omitted.

    Raises:
        OSError: If a file cannot be written.
    """
    generator = random.Random(seed)  # noqa: S311 - content, not secrets
    sizes: dict[bytes, int] = {b"cback.collect": 0, b"empty": 0}
    sizes.update({b"small-%05d.dat" % number: generator.randrange(16 * 1024) for number in range(small)})
    sizes.update({b"edge-%d.dat" % size: size for size in _EDGES})
    sizes.update({name: 100 + number for number, name in enumerate(_NAMES)})
    sizes.update({b"large-%d.dat" % number: large_bytes for number in range(large)})
    root = os.fsencode(directory)
    digests = {}
    for name, size in sizes.items():
        try:
            digests[name] = _write(os.path.join(root, name), size, generator)
        except OSError as exc:
            if name not in _NAMES or exc.errno not in _NAME_ERRORS:
                raise
            generator.randbytes(size)  # so that the other files are the same everywhere
    return digests


def hash_files(directory: StrOrBytesPath) -> dict[bytes, str]:
    """Return the SHA-256 in hexadecimal of every regular file in *directory*, except dotfiles, by name."""
    root = os.fsencode(directory)
    digests = {}
    for name in sorted(os.listdir(root)):
        path = os.path.join(root, name)
        if not name.startswith(b".") and os.path.isfile(path):
            digests[name] = _hash_file(path)
    return digests


def _write(path: bytes, size: int, generator: random.Random) -> str:
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        while size:
            chunk = generator.randbytes(min(size, _CHUNK_SIZE))
            file.write(chunk)
            digest.update(chunk)
            size -= len(chunk)
    return digest.hexdigest()


def _hash_file(path: bytes) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_SIZE):
            digest.update(chunk)
    return digest.hexdigest()

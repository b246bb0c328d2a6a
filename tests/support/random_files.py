"""Random content, generated once: incompressible, unique, and the same in every process."""

from __future__ import annotations

import random
from functools import cache

from peerstage.testing.contract import ODD_NAMES

_KIB = 1024


@cache
def random_bytes(size: int) -> bytes:
    """Return *size* bytes, the same in every process."""
    return random.Random(size).randbytes(size)


@cache
def make_real_files(*, newlines: bool = True, bulk: bool = True) -> dict[bytes, bytes]:
    """Return realistic contents of a collect directory: large and small files, sizes around packet sizes, odd names.

    Args:
        newlines: Whether to include a name with a newline.
        bulk: 28 MiB in one file and 600 small ones, more than is in flight at a time, instead of 8 MiB and 100.
    """
    around = [size + by for size in (32 * _KIB, 255 * _KIB, 256 * _KIB) for by in (-1, 0, 1)]
    sizes = (0, 1, *around, 3 * 1024 * _KIB + 7, (28 if bulk else 8) * 1024 * _KIB)
    files = {b"%d bytes" % size: random_bytes(size) for size in sizes}
    for number in range(600 if bulk else 100):
        files[b"small %04d" % number] = random.Random(number).randbytes(number % 301)  # no two alike
    return files | {name: b"content of " + name for name in ODD_NAMES if newlines or b"\n" not in name}

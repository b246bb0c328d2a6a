"""Random content, made once: what a test stages has to be incompressible and its own, and not another one each time."""

from __future__ import annotations

import random
from functools import cache

from peerstage.testing.contract import ODD_NAMES

_KIB = 1024


@cache
def random_bytes(size: int) -> bytes:
    """Return so many bytes, the same in every process."""
    return random.Random(size).randbytes(size)


@cache
def real_files() -> dict[bytes, bytes]:
    """Return a set of files as a collect directory might hold them: some large, many small, sizes around the lengths of
    packets, and odd names."""
    around = [size + by for size in (32 * _KIB, 255 * _KIB, 256 * _KIB) for by in (-1, 0, 1)]
    sizes = (0, 1, *around, 3 * 1024 * _KIB + 7, 64 * 1024 * _KIB)
    files = {b"%d bytes" % size: random_bytes(size) for size in sizes}
    files |= {b"small %04d" % number: random.Random(number).randbytes(number % 301) for number in range(2000)}
    return files | {name: b"content of " + name for name in ODD_NAMES}

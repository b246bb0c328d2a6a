"""Files on their way into containers and out of them, as tar archives."""

from __future__ import annotations

import io
import tarfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: Debian's fixed number of the user that logs in, and of its group.
UID = 34


class Files:
    """Files of a collect directory that is still to be filled, of every kind that tar knows."""

    def __init__(self, **files: bytes) -> None:
        self._entries: list[tuple[tarfile.TarInfo, bytes]] = []
        self._archive: bytes | None = None
        for name, data in files.items():
            self.file(name, data)

    def file(
        self, name: str | bytes, data: bytes = b"", mode: int = 0o644, *, mtime: int | None = None, owner: int = UID
    ) -> Files:
        """Add a regular file."""
        return self._add(name, tarfile.REGTYPE, mode, data=data, mtime=mtime, owner=owner)

    def all(self, files: Mapping[bytes, bytes]) -> Files:
        """Add regular files by their names."""
        for name, data in files.items():
            self.file(name, data)
        return self

    def directory(self, name: str | bytes) -> Files:
        """Add a directory."""
        return self._add(name, tarfile.DIRTYPE, 0o755)

    def link(self, name: str | bytes, to: str) -> Files:
        """Add a symbolic link."""
        return self._add(name, tarfile.SYMTYPE, 0o777, to=to)

    def fifo(self, name: str | bytes) -> Files:
        """Add a FIFO."""
        return self._add(name, tarfile.FIFOTYPE, 0o644)

    def archive(self) -> bytes:
        """Return them as a tar archive."""
        if self._archive is None:
            self._archive = self._pack()
        return self._archive

    def _pack(self) -> bytes:
        raw = io.BytesIO()
        how: dict[str, Any] = {"format": tarfile.GNU_FORMAT, "encoding": "utf-8", "errors": "surrogateescape"}
        with tarfile.open(fileobj=raw, mode="w", **how) as tar:
            for info, data in self._entries:
                tar.addfile(info, io.BytesIO(data))
        return raw.getvalue()

    def _add(
        self,
        name: str | bytes,
        kind: bytes,
        mode: int,
        *,
        data: bytes = b"",
        to: str = "",
        mtime: int | None = None,
        owner: int = UID,
    ) -> Files:
        text = name if isinstance(name, str) else name.decode("utf-8", "surrogateescape")
        info = tarfile.TarInfo(f"./{text}")
        info.type, info.mode, info.size, info.linkname = kind, mode, len(data), to
        info.uid = info.gid = owner
        info.mtime = int(time.time()) if mtime is None else mtime
        self._entries.append((info, data))
        self._archive = None
        return self


@dataclass(frozen=True)
class Found:
    """A regular file as it lies in a container."""

    data: bytes
    mode: int
    uid: int

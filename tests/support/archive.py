"""Files to copy into containers and out of them, as tar archives."""

from __future__ import annotations

import io
import tarfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: The user and group id of Debian's `backup`, the login of every peer.
UID = 34


class FileTree:
    """Builder of a tar archive: the files of a collect directory, of every type that tar knows."""

    def __init__(self, **files: bytes) -> None:
        self._entries: list[tuple[tarfile.TarInfo, bytes]] = []
        self._archive: bytes | None = None
        for name, data in files.items():
            self.add_file(name, data)

    def add_file(
        self, name: str | bytes, data: bytes = b"", mode: int = 0o644, *, mtime: int | None = None, owner: int = UID
    ) -> FileTree:
        """Add a regular file."""
        return self._add(name, tarfile.REGTYPE, mode, data=data, mtime=mtime, owner=owner)

    def add_files(self, files: Mapping[bytes, bytes]) -> FileTree:
        """Add regular files, contents by name."""
        for name, data in files.items():
            self.add_file(name, data)
        return self

    def add_directory(self, name: str | bytes) -> FileTree:
        """Add a directory."""
        return self._add(name, tarfile.DIRTYPE, 0o755)

    def add_link(self, name: str | bytes, target: str) -> FileTree:
        """Add a symbolic link."""
        return self._add(name, tarfile.SYMTYPE, 0o777, link_target=target)

    def add_fifo(self, name: str | bytes) -> FileTree:
        """Add a FIFO."""
        return self._add(name, tarfile.FIFOTYPE, 0o644)

    def to_tar(self) -> bytes:
        """Return the tar archive."""
        if self._archive is None:
            self._archive = self._pack()
        return self._archive

    def _pack(self) -> bytes:
        raw = io.BytesIO()
        options: dict[str, Any] = {"format": tarfile.GNU_FORMAT, "encoding": "utf-8", "errors": "surrogateescape"}
        with tarfile.open(fileobj=raw, mode="w", **options) as tar:
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
        link_target: str = "",
        mtime: int | None = None,
        owner: int = UID,
    ) -> FileTree:
        text = name if isinstance(name, str) else name.decode("utf-8", "surrogateescape")
        info = tarfile.TarInfo(f"./{text}")
        info.type, info.mode, info.size, info.linkname = kind, mode, len(data), link_target
        info.uid = info.gid = owner
        info.mtime = int(time.time()) if mtime is None else mtime
        self._entries.append((info, data))
        self._archive = None
        return self


@dataclass(frozen=True)
class StoredFile:
    """A regular file in a container."""

    data: bytes
    mode: int
    uid: int

"""The staging directories as cback3 creates them: all at once, and with a warning for each that exists."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

from peerstage.fleet.pool.daily_directories import DailyDirectories, OpenedDirectory, map_errors
from peerstage.printable import escape
from peerstage.records import Ownership
from peerstage.target.file_descriptors import close_quietly, closing


class StagingDirectories(DailyDirectories):
    """The daily directory and one in it for each peer, created on entering the ``with`` block.

    Args:
        staging_directory: The staging directory, created if it does not exist.
        day: The daily directory in it, such as ``2026/11/24``.
        names: The names of the peers.
        ownership: Owner and group of new directories; None leaves them to this process. If the day is new, they apply
            to the directories of its month and year, too.

    Raises:
        TargetError: If a directory cannot be created, or is not a directory. Raised on entering.
    """

    log = logging.getLogger("peerstage.cback3")

    def __init__(self, staging_directory: str, day: str, names: Sequence[str], ownership: Ownership | None) -> None:
        super().__init__(staging_directory, day, ownership)
        self._names = names

    def __enter__(self) -> StagingDirectories:
        with map_errors(self._staging_directory):
            os.makedirs(self._staging_directory, exist_ok=True)
        super().__enter__()
        try:
            for name in self._names:
                found = self._open_or_create(name, self._fd, os.path.join(self.path, name))
                with closing(found.fd):
                    self._warn_of(found)
        except BaseException:
            close_quietly(self._fd)
            raise
        return self

    def _on_opened(self, levels: list[OpenedDirectory]) -> None:
        *parents, day = levels
        self._warn_of(day)
        for parent in parents:
            if day.is_new and not parent.is_new:
                self._change_owner(parent.fd, parent.path)

    def _warn_of(self, found: OpenedDirectory) -> None:
        if not found.is_new:
            self.log.warning("Staging directory %s already exists.", escape(found.path))

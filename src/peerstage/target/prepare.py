"""The last step before files get their names: owner, mode and time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

from peerstage.target.attributes import StagedAttributes
from peerstage.target.file_descriptors import NO_FOLLOW
from peerstage.target.partial_file import PartialFile


def prepare_all(
    files: Iterable[PartialFile],
    attributes: StagedAttributes,
    private_fd: int,
    *,
    fsync: bool,
    check: Callable[[], object],
) -> None:
    """Set owner, mode and time of every file but those that are links.

    Args:
        files: Complete files.
        attributes: What to set.
        private_fd: Descriptor of the private directory.
        fsync: Whether to write the data of each file to the disk.
        check: Called before each file; an exception that it raises ends the run.

    Raises:
        TargetError: If the system does not allow this owner.
        OSError: If the disk failed.
    """
    for file in files:
        check()
        fd = os.open(file.private_name, os.O_RDONLY | NO_FOLLOW, dir_fd=private_fd)
        try:
            if file.linked is None or file.linked.is_copy:
                attributes.set(fd, file.entry)
            if fsync:
                os.fsync(fd)
        finally:
            os.close(fd)

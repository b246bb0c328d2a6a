"""The last step before files get their names: owner, mode, time and data, on the disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection

from peerstage.target import durability
from peerstage.target.attributes import StagedAttributes
from peerstage.target.file_descriptors import NO_FOLLOW
from peerstage.target.partial_file import PartialFile
from peerstage.target.shared_sync import SharedSync


def prepare_all(
    files: Collection[PartialFile],
    attributes: StagedAttributes,
    private_fd: int,
    *,
    durable: bool,
    shared_sync: SharedSync | None,
    check: Callable[[], object],
) -> None:
    """Set owner, mode and time of every file but those that are links, and write the data to the disk.

    Args:
        files: Complete files.
        attributes: What to set.
        private_fd: Descriptor of the private directory.
        durable: Whether the data has to be on the disk.
        shared_sync: Writes everything to the disk, cheaply if there are many files; None where that is not reliable.
        check: Called before each file, and while another run's sync is waited for; an exception that it raises ends
            the run.

    Raises:
        TargetError: If the system does not allow this owner.
        OSError: If the disk failed.
    """
    sync_together = shared_sync if durable and len(files) > durability.MAX_FSYNCS else None
    for file in files:
        check()
        fd = os.open(file.private_name, os.O_RDONLY | NO_FOLLOW, dir_fd=private_fd)
        try:
            if file.linked is None or file.linked.is_copy:
                attributes.set(fd, file.entry)
            if durable and sync_together is None:
                os.fsync(fd)
        finally:
            os.close(fd)
    if sync_together is not None:
        sync_together.sync(check)

"""The directories that one run has open: the target, its private directory, that of kept files, and what syncs them."""

from __future__ import annotations

import contextlib

from peerstage.peer_log import PeerLog
from peerstage.stage_options import StageOptions
from peerstage.target import durability
from peerstage.target.file_descriptors import close_quietly, open_directory
from peerstage.target.kept_files import KeptFiles
from peerstage.target.manifest_writer import require_manifest_names
from peerstage.target.private_directory import PrivateDirectory
from peerstage.target.shared_sync import SharedSync
from peerstage.target.sweep import sweep_directory


class RunDirectories:
    """Opens the target, sweeps it, and creates the private directory.

    Args:
        path: Path of the target.
        options: `partial_dir` is the directory of kept files; with `manifest` the target must not use its names; with
            `durable` the run takes part in the syncs of its file system.
        peer: The peer's name, to find kept files.
        directory: The peer's directory, to find kept files.
        log: The log.

    Attributes:
        target_fd: Descriptor of the target.
        private: The private directory.
        kept: The kept files of the peer's directory; None without `StageOptions.partial_dir`.
        shared_sync: Makes everything durable that this run has written; None if syncfs is not reliable here, or not
            wanted.

    Raises:
        OSError, TargetError: If a directory cannot be used. Nothing is left open, and nothing is left in the target.
    """

    def __init__(self, path: str, options: StageOptions, *, peer: str, directory: bytes, log: PeerLog) -> None:
        self.kept: KeptFiles | None = None
        self.shared_sync: SharedSync | None = None
        with contextlib.ExitStack() as on_failure:
            self.target_fd = open_directory(path, follow=True)
            on_failure.callback(close_quietly, self.target_fd)
            sweep_directory(self.target_fd, path, log)
            if options.manifest:
                require_manifest_names(self.target_fd, path)
            if options.durable and durability.is_syncfs_reliable(self.target_fd):
                self.shared_sync = SharedSync(self.target_fd)
                on_failure.callback(self.shared_sync.close)
            self.private = PrivateDirectory(self.target_fd, path, log)
            on_failure.callback(self.private.remove)
            if options.partial_dir is not None:
                self.kept = KeptFiles(
                    options.partial_dir,
                    target_fd=self.target_fd,
                    private_fd=self.private.fd,
                    peer=peer,
                    directory=directory,
                    log=log,
                )
            on_failure.pop_all()

    def choose_shared_sync(self, count: int) -> SharedSync | None:
        """Return what makes *count* files durable together, if that is cheaper than an fsync for each; else None."""
        if self.shared_sync is None or (count <= durability.MAX_FSYNCS and not self.shared_sync.has_company):
            return None
        return self.shared_sync

    def close(self) -> None:
        """Remove the private directory with what is left in it, and close everything."""
        try:
            self.private.remove()
        finally:
            if self.kept is not None:
                self.kept.close()
            if self.shared_sync is not None:
                self.shared_sync.close()
            close_quietly(self.target_fd)

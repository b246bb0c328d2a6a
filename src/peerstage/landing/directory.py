"""`DirectoryLanding`: files come down in a private directory and get their final names all at the end.

What holds at every instant, a SIGKILL or a power cut included: a final name is the old file or the complete new one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections import deque
from collections.abc import Callable, Collection, Iterator
from types import TracebackType

from peerstage.errors import EntryError, LandingError, NotRegular, ProtocolError, StageError
from peerstage.landing import durability
from peerstage.landing.adopt import NO_FILE, copy, entry_of, open_file, require_file_of
from peerstage.landing.base import Landing, Slot
from peerstage.landing.leftovers import sweep_directory
from peerstage.landing.private import PrivateDirectory, close_quietly, empty_directory, open_directory, require_posix
from peerstage.landing.slot import FileSlot
from peerstage.landing.spelling import NAME_ERRORS, bad_name, find_collisions
from peerstage.landing.store import Failure, Store, disk_error
from peerstage.peer_log import PeerLog
from peerstage.reasons import Reason
from peerstage.records import FAILED, MIB, RESUMED, STAGED, Entry, FileResult, Ownership, permissions_of

_READ = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)

_WORKSPACE = "workspace"

#: A file that nobody announced and that is as large as this has to fit before its first byte is taken.
_LARGE = 8 * MIB


class DirectoryLanding(Landing):
    """Lands files in an existing directory.

    Use as a context manager: leaving the block without `commit` publishes nothing and leaves nothing behind.

    Args:
        target: The directory; it is opened once and everything is done relative to that descriptor, so that a target
            that is renamed or replaced meanwhile is neither followed nor made anew.
        ownership: Owner and group of every file; None leaves them to the process.
        permissions: Permission bits of every file (0o777 at most); None takes the peer's, & 0777 & ~umask, and 0600
            where they are unknown.
        durable: Whether `commit` returns only when everything is on the disk.
        preserve_times: Whether files keep the peer's modification time.
        threads: Whether a thread may be started that hands data to the disk while more arrives (with *durable*).
        peer: The name of the peer whose files these are, for the log.

    Attributes:
        published: How many files have got their names.

    Raises:
        ValueError: If *permissions* is not an integer from 0 to 0o777.
        LandingError: The target can not be written to. Raised on entering.
        NotAvailable: This is not a POSIX system. Raised on entering.
    """

    def __init__(
        self,
        target: str,
        *,
        ownership: Ownership | None = None,
        permissions: int | None = None,
        durable: bool = True,
        preserve_times: bool = False,
        threads: bool = True,
        peer: str = "",
    ) -> None:
        self.target = target
        self._log = PeerLog("peerstage.landing", peer)
        self.ownership = ownership
        self.permissions = permissions_of(permissions)
        self.durable = durable
        self.preserve_times = preserve_times
        self.threads = threads
        self._refused: dict[bytes, Failure] = {}
        self.published = 0
        self._slots: dict[bytes, FileSlot] = {}
        self._announced = False
        self._workspace_fd = -1
        self._umask = current_umask()

    @property
    def resumed_bytes(self) -> int:
        """Bytes that survived a lost connection, and did not have to be sent again; each counts once."""
        return sum(slot.resumed for slot in self._slots.values())

    def __enter__(self) -> DirectoryLanding:
        require_posix()
        try:
            self._target_fd = open_directory(self.target, follow=True)
            try:
                sweep_directory(self._target_fd, self._log)
                self._private = PrivateDirectory(self._target_fd, self._log)
            except BaseException:
                close_quietly(self._target_fd)
                raise
        except StageError:
            raise
        except OSError as exc:
            raise disk_error(exc, self.target) from exc
        self._store = Store(self.target, self._private.fd, writeback=self.durable and self.threads)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._store.close_all()
            if self._workspace_fd >= 0:
                close_quietly(self._workspace_fd)
            self._private.remove()
        finally:
            self._store.end_writeback()
            close_quietly(self._target_fd)

    @property
    def received(self) -> int:
        """Bytes that have come and are kept."""
        return sum(slot.received for slot in self._slots.values())

    def files(self, *, resumes: bool = True) -> Iterator[FileResult]:
        """Yield what has become of each file whose slot was opened, and forget it: of many files both would be much.

        Args:
            resumes: Whether bytes that survive a lost connection are not sent again.
        """
        slots, self._slots = self._slots, {}
        for name in list(slots):
            slot = slots.pop(name)
            entry, failure, decoded = slot.entry, slot.failure, os.fsdecode(name)
            if failure is not None:
                yield _failed(decoded, failure, entry)
            else:
                outcome = RESUMED if resumes and slot.resumed else STAGED
                yield FileResult(decoded, entry.size, self._mode_of(entry), entry.mtime, outcome=outcome)

    def refused(self) -> Iterator[FileResult]:
        """Yield the entries that were not read, with the reason, and forget them."""
        refused, self._refused = self._refused, {}
        for name in list(refused):
            yield _failed(os.fsdecode(name), refused.pop(name))

    def expect(self, files: int, size: int) -> None:
        """Compare what will come with the free space and inodes of the target's file system. See `Landing.expect`."""
        self._announced = True
        room = self._require_room(size - self.received)
        inodes = room.f_ffree if os.geteuid() == 0 else room.f_favail
        if room.f_files and files - len(self._slots) > inodes:
            raise LandingError(
                f"{files - len(self._slots)} files are to come and {inodes} inodes are free here. "
                "Remove files, or choose another target.",
                path=self.target,
                errno=errno.ENOSPC,
                reason=Reason.NO_INODES,
            )

    def _require_room(self, size: int) -> os.statvfs_result:
        """Raise an error if *size* bytes have no room in the target's file system; return what is known of that."""
        try:
            room = os.fstatvfs(self._target_fd)
        except OSError as exc:
            raise self._store.error(exc) from exc
        free = (room.f_bfree if os.geteuid() == 0 else room.f_bavail) * room.f_frsize
        if size > free:
            raise LandingError(
                f"{size} bytes are to come and {free} are free here. Make room, or choose another target.",
                path=self.target,
                errno=errno.ENOSPC,
                reason=Reason.NO_SPACE,
            )
        return room

    def open(self, entry: Entry) -> Slot:
        """See `Landing.open`. A name that this file system can not hold, or that is a directory here, fails at once.

        Raises:
            ProtocolError: The name is none that a file in a directory can have: it would lead out of the target.
        """
        name = entry.name
        if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
            raise ProtocolError("No file in a directory has such a name.", path=name)
        begun = self._slots.get(name)
        if begun is not None and begun.entry == entry and (begun.is_finished or entry.mtime is not None):
            begun.resume()
            return begun
        if begun is not None:
            begun.discard()
        number = begun.number if begun is not None else len(self._slots)
        if not self._announced and entry.size >= _LARGE:
            self._require_room(entry.size)
        slot = self._slots[name] = FileSlot(self._store, entry, number)
        try:
            mode = os.stat(name, dir_fd=self._target_fd, follow_symlinks=False).st_mode
        except FileNotFoundError:
            return slot
        except OSError as exc:
            if exc.errno not in NAME_ERRORS:
                raise self._store.error(exc) from exc
            slot.fail(bad_name(exc))
            return slot
        if stat.S_ISDIR(mode):
            slot.fail(bad_name(IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))))
        return slot

    def refuse(self, name: bytes, error: StageError) -> None:
        """See `Landing.refuse`."""
        self._refused[name] = self._store.failures.keep(error)

    def workspace(self) -> str:
        """See `Landing.workspace`. Called again, it is emptied."""
        self._workspace_owner = os.geteuid()
        try:
            if self._workspace_fd >= 0:
                empty_directory(self._workspace_fd)
            else:
                os.mkdir(_WORKSPACE, 0o700, dir_fd=self._private.fd)
                self._workspace_fd = open_directory(_WORKSPACE, dir_fd=self._private.fd)
        except OSError as exc:
            raise self._store.error(exc) from exc
        return os.path.join(self.target, self._private.name, _WORKSPACE)

    def hand_over(self, owner: Ownership) -> int:
        """See `Landing.hand_over`. That user needs no way to it: whoever has the descriptor is in it already."""
        self.workspace()
        if owner.uid != os.geteuid():
            try:
                os.fchown(self._workspace_fd, *owner)
            except OSError as exc:
                raise self._store.error(exc) from exc
        self._workspace_owner = owner.uid
        return self._workspace_fd

    def adopt(self, name: bytes, check: Callable[[], object] = lambda: None) -> int:
        """See `Landing.adopt`; which way a file is taken, and why, is said in `peerstage.landing.adopt`."""
        owner = self._workspace_owner
        directory, place = self._workspace_fd, os.fsdecode(name)
        moved = owner == os.geteuid() or (self.ownership is not None and self.ownership[0] == owner)
        try:
            if moved:
                if stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
                    raise NotRegular(NO_FILE)  # one that its owner may not write to cannot be moved (rename(2), EACCES)
                directory, place = self._private.fd, f"taken{len(self._slots)}-{len(self._refused)}"
                os.rename(name, place, src_dir_fd=self._workspace_fd, dst_dir_fd=directory)
            fd = open_file(place, directory)
        except (EntryError, FileNotFoundError) as exc:
            self.refuse(name, exc if isinstance(exc, EntryError) else NotRegular(NO_FILE))
            return 0
        except OSError as exc:
            raise self._store.error(exc) from exc
        try:
            found = os.fstat(fd)
            require_file_of(found, owner)
            slot = self.open(entry_of(name, found))
            if not moved:
                copy(fd, found, slot, check)
            elif isinstance(slot, FileSlot) and not slot.is_finished:
                slot.adopt(place, directory)
        except NotRegular as exc:
            self.refuse(name, exc)
            return 0
        except StageError:
            raise
        except OSError as exc:
            raise self._store.error(exc) from exc
        finally:
            close_quietly(fd)
        if not moved:
            with contextlib.suppress(OSError):  # it goes with the directory, then
                os.unlink(name, dir_fd=directory)
        return found.st_size

    def commit(self, check: Callable[[], object] = lambda: None) -> None:
        """Publish every finished file: owner, mode and data of all first, then only renames, then the directory.

        A file whose final name is taken by a directory fails; whatever else has the name is replaced, never followed.
        On a file system that takes different names for the same one (by case, or by Unicode normalisation), the second
        of two such files fails, and so does one that would replace a file of another spelling.

        Args:
            check: Called before each file is prepared and once more before the first rename; what it raises ends the
                run, and nothing is published. From the first rename on it is not called any more.

        Raises:
            LandingError: If ownership is refused or the disk fails. Before the first rename nothing is published; after
                it, each name is old or complete, `published` counts the new ones, and `files` tells which they are.
        """
        ready = deque(slot for slot in self._slots.values() if slot.is_ready)
        try:
            self._prepare_all(ready, check)
            for slot, error in find_collisions(ready, self._target_fd, self._private.fd):
                slot.fail(error)
            check()
            ready = deque(slot for slot in ready if slot.is_ready)
            while ready:
                self.published += self._publish(ready[0])
                ready.popleft()
            if self.durable and self.published:
                durability.sync_directory(self._target_fd)
        except StageError:
            raise
        except OSError as exc:
            failure = self._store.error(exc, published=self.published)
            for slot in ready if self.published else ():
                slot.fail(EntryError("The run ended before it got its name.", reason=Reason.NOT_PUBLISHED))
            raise failure from exc

    def _prepare_all(self, ready: Collection[FileSlot], check: Callable[[], object]) -> None:
        """Give every file its owner, mode and time, and put their data on the disk."""
        each = self.durable and (len(ready) <= durability.FEW or not durability.can_sync_all(self._target_fd))
        for slot in ready:
            check()
            self._prepare(slot, sync=each)
        if self.durable and ready and not each:
            durability.syncfs(self._target_fd)

    def _prepare(self, slot: FileSlot, *, sync: bool) -> None:
        fd = os.open(slot.place, _READ, dir_fd=self._private.fd)
        try:
            if self.ownership is not None:
                try:
                    os.fchown(fd, *self.ownership)
                except OSError as exc:
                    refused = Reason.OWNERSHIP_REFUSED if exc.errno in (errno.EPERM, errno.EINVAL) else None
                    raise self._store.error(exc, reason=refused) from exc
            os.fchmod(fd, self._mode_of(slot.entry))
            if self.preserve_times and slot.entry.mtime is not None:
                os.utime(fd, (slot.entry.mtime, slot.entry.mtime))
            if sync:
                os.fsync(fd)
        finally:
            os.close(fd)

    def _publish(self, slot: FileSlot) -> bool:
        try:
            os.rename(slot.place, slot.entry.name, src_dir_fd=self._private.fd, dst_dir_fd=self._target_fd)
        except OSError as exc:
            if exc.errno not in NAME_ERRORS:
                raise
            slot.fail(bad_name(exc))
            return False
        return True

    def _mode_of(self, entry: Entry) -> int:
        if self.permissions is not None:
            return self.permissions
        return 0o600 if entry.mode is None else entry.mode & 0o777 & ~self._umask


def _failed(name: str, failure: Failure, entry: Entry | None = None) -> FileResult:
    size, mtime = (0, None) if entry is None else (entry.size, entry.mtime)
    return FileResult(name, size, None, mtime, failure.text, FAILED, failure.reason)


def current_umask() -> int:
    """Return the process's umask, without setting it where the system can tell (setting it is seen by all threads)."""
    with (
        contextlib.suppress(OSError, ValueError),
        open("/proc/self/status", encoding="ascii", errors="replace") as file,
    ):
        for line in file:
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    mask = os.umask(0o077)
    os.umask(mask)
    return mask

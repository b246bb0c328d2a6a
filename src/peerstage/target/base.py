"""Interface between transports and the local target, small enough to proxy over a pipe.

A transport says what a peer has, and the target decides which of it is wanted. The transport writes the missing ranges
of these files in any order, and finishes or fails each. The target decides what becomes visible, and when.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from enum import Enum, auto
from typing import NamedTuple, TypeAlias

from peerstage.errors import EntryError, NotAvailable, StageError
from peerstage.reasons import Reason
from peerstage.records import Entry, Ownership

Buffer: TypeAlias = "bytes | bytearray | memoryview"

#: The name for `Target.refuse` of an entry that the peer did not name.
UNNAMED = b"*"
#: What to do about a file that changes.
CHANGED_ADVICE = "Let the peer finish collecting first: it must write its indicator last."
#: Maximum number of files that are opened on the peer, without reading them, if only a list is wanted.
MAX_TRIAL_OPENS = 1000


class Selection(Enum):
    """How much of what a peer has a target wants."""

    #: All of it. A transport need not wait for the answer: it may fetch every file, and drop the content of those that
    #: the target declines.
    ALL = auto()
    #: Perhaps not every file, or only ranges of some: a transport fetches nothing before it knows the answer.
    SOME = auto()
    #: Only a list of the files. No file has missing ranges: a transport opens it on the peer, closes it, and calls
    #: `IncomingFile.finish`.
    NONE = auto()


class ListingChanges(NamedTuple):
    """What a later listing shows of a directory whose files have been fetched.

    Attributes:
        changed: Files with another size or modification time than before, as they are now.
        vanished: Files that are not listed any more, as they were listed.
        appeared: Files that were not listed before.
    """

    changed: Sequence[Entry] = ()
    vanished: Sequence[Entry] = ()
    appeared: Sequence[Entry] = ()


class IncomingFile(ABC):
    """One file that a transport delivers.

    Attributes:
        entry: The file as the peer lists it.
    """

    __slots__ = ()

    entry: Entry

    @property
    @abstractmethod
    def is_finished(self) -> bool:
        """Whether `finish` or `fail` has been called; the file needs nothing more from the peer."""

    @abstractmethod
    def missing(self) -> Sequence[tuple[int, int]]:
        """Return the ranges to fetch, as (start, end): the whole file, or after a lost connection the rest.

        After a lost connection they include a few short ranges that have arrived before, which are compared when they
        are written. If they differ, the file was replaced on the peer, and everything from earlier connections is
        missing again. So a transport that has fetched these ranges asks once more before it calls `finish`.
        """

    @abstractmethod
    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        """Write the concatenation of *buffers* at *offset*.

        Raises:
            TargetError: If they could not be stored; the whole run ends.
            ProtocolError: If they reach beyond the listed size.
        """

    @abstractmethod
    def finish(self) -> None:
        """Mark the file complete, or fail it with `IncompleteFile` if ranges are missing."""

    @abstractmethod
    def fail(self, error: StageError) -> None:
        """Abandon this file; others are unaffected."""


def ranges_to_fetch(file: IncomingFile) -> Iterator[tuple[int, int]]:
    """Yield the missing ranges of *file*, then those that became missing while the first were written."""
    yield from file.missing()
    yield from file.missing()


@contextlib.contextmanager
def read_errors_fail(file: IncomingFile) -> Iterator[None]:
    """Fail *file* if its entry cannot be staged or read in the block; every other `StageError` ends the run."""
    try:
        yield
    except EntryError as exc:
        file.fail(exc)
    except StageError:
        raise
    except OSError as exc:
        file.fail(EntryError(f"It could not be read: {exc.strerror}.", reason=Reason.ENTRY_UNREADABLE))


class Target(ABC):
    """Destination of the files of one directory.

    Attributes:
        selection: How much of what the peer has is wanted. It does not change during a pull.
        verifies_stability: Whether a transport that can list compares another listing with the first one, once every
            file is finished or failed, and passes the differences to `recheck`.
    """

    selection: Selection = Selection.ALL
    verifies_stability: bool = False

    @abstractmethod
    def admit(self, entries: Sequence[Entry]) -> Sequence[IncomingFile]:
        """Return the files to fetch, in the order of *entries*: new ones, and after a lost connection the unfinished.

        A transport passes a whole listing, or if it cannot list, one entry at a time, and finishes or fails each file
        that it gets. After a lost connection it passes what the peer has then. A file that was begun is resumed only if
        its entry is unchanged; otherwise it starts over.

        Args:
            entries: Files that the peer has, with different names.

        Raises:
            TargetError: If there is not enough space for what is missing, or the local side failed; the run ends.
            ProtocolError: If no file in a directory can have one of the names.
        """

    def recheck(self, changes: ListingChanges) -> Sequence[IncomingFile]:
        """Return the files to fetch again, which start over: those that changed for the first time.

        A file that changes a second time fails. The changes of one listing may be passed in several parts.

        Raises:
            TargetError, ProtocolError: As `admit`.
        """
        return ()

    @abstractmethod
    def refuse(self, name: bytes, error: StageError) -> None:
        """Record that the entry *name* was not read, and why it cannot be staged.

        Args:
            name: Its name, or `UNNAMED`.
            error: The reason.
        """


class CommandTarget(Target):
    """A target with a workspace: a directory that a command fills, and from which files are then imported."""

    @abstractmethod
    def create_workspace(self) -> str:
        """Create the workspace and return its path. If it exists, it is emptied. It is removed with the target.

        Raises:
            NotAvailable: If this target has no workspace.
            TargetError: If it cannot be created.
        """

    def create_workspace_for(self, owner: Ownership) -> int:
        """Create the workspace, give it to *owner*, and return its descriptor, which the target closes.

        Raises:
            NotAvailable, TargetError: As `create_workspace`.
        """
        raise NotAvailable("This target cannot give a workspace to another user.")

    @abstractmethod
    def import_file(self, name: bytes, check: Callable[[], object] = lambda: None) -> int:
        """Import the file *name* from the workspace and return its size in bytes.

        Anything but a regular file that belongs to the workspace's owner and has one link is refused.

        Args:
            name: A plain name.
            check: Called from time to time; an exception that it raises ends the run.

        Raises:
            NotAvailable: If this target has no workspace.
            TargetError: If the local side failed; the whole run ends.
        """


def require_command_target(target: Target) -> CommandTarget:
    """Return *target* as a `CommandTarget`.

    Raises:
        NotAvailable: If it is another target, which wants only a list of the files.
    """
    if not isinstance(target, CommandTarget):
        raise NotAvailable("An rcp command can only copy files; it cannot list them. Use SFTP or SCP.")
    return target

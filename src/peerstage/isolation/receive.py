"""What comes up from a child is held against what it may be, and only then given to the real landing.

A child that was taken over can make the run fail, or deliver wrong bytes for the files of that run. It can name nothing
outside the target, promise or send no more than `Limits` and the disk allow, and have nothing kept without bound.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from peerstage.errors import LimitExceeded, ProtocolError, escape
from peerstage.isolation.frames import Adopt, Alive, Data, Expect, Fail, Finish, Log, Open, Record, Refuse, Result, Said
from peerstage.landing.base import Landing, Slot
from peerstage.reasons import Reason
from peerstage.records import ANSWER_BYTES, KIB, Limits
from peerstage.transport.counting import CountingLanding
from peerstage.transport.names import Names, check_name_length

#: Files that may be on their way at once: what the engine has open, and what an ended connection has left.
_MOST_BEGUN = 4 * KIB
#: Log lines that one job may bring.
_MOST_LINES = 1000
#: Answers that a peer gives for one file beside its data, at most.
_ANSWERS_EACH = 8

_ROOMS = frozenset(
    f"peerstage.{room}" for room in ("session", "ssh", "transport", "transport.rcp", "landing", "staging", "isolation")
)


class _Arriving:
    """A file on its way: its slot, and how many bytes may still come under its number."""

    __slots__ = ("left", "name", "slot")

    def __init__(self, name: bytes, slot: Slot, left: int) -> None:
        self.name = name
        self.slot = slot
        self.left = left


class Receiver:
    """Takes the records of one job.

    Args:
        landing: Where files go; None for a job that brings none.
        limits: How many names, and how long.
        tries: How often the child may begin anew.
        adopt: Takes a file from the workspace of a command; None where there is no command.
        said: Takes what a command on the peer says; None where none is run there.

    Attributes:
        result: What the job has come to; None until it has ended.
    """

    def __init__(
        self,
        landing: Landing | None,
        limits: Limits,
        *,
        tries: int = 1,
        directory: bytes = b"",
        adopt: Callable[[bytes], object] | None = None,
        said: Callable[[bytes], object] | None = None,
    ) -> None:
        self.result: dict[str, Any] | None = None
        self._landing = None if landing is None else CountingLanding(landing)
        self._progress = 0
        self._limits = limits
        self._tries = tries
        self._adopt = adopt
        self._said = said
        self._names = Names(directory, limits)
        self._begun: dict[bytes, int] = {}
        self._arriving: dict[int, _Arriving] = {}
        self._next = 0
        self._expected: tuple[int, int] | None = None
        self._announced = 0
        self._opened = 0
        self._lines = 0

    @property
    def received(self) -> int:
        """Bytes that have come, for the deadline: those that are kept, and as many as the child may receive beside.

        That is a listing, and some answers for each file; nothing of it is seen here.
        """
        kept = 0 if self._landing is None else self._landing.high_water
        return kept + self._limits.listing_bytes + _ANSWERS_EACH * ANSWER_BYTES * min(self._next, self._limits.entries)

    def take(self, record: Record) -> None:
        """Act on *record*.

        Raises:
            ProtocolError: It does not fit what came before it.
            LimitExceeded: It is more than what `Limits` allows.
            LandingError: The local side failed.
        """
        if self.result is not None:
            raise ProtocolError("The child process goes on after its job has ended.", reason=Reason.CHILD_VIOLATION)
        if isinstance(record, Data):
            self._write(record)
        elif isinstance(record, Result):
            self.result = record.fields
        elif isinstance(record, Log):
            self._log(record)
        elif isinstance(record, Alive):
            return
        elif isinstance(record, Said):
            if self._said is None:
                raise ProtocolError(
                    "The child process sends the words of a command, and none was run.", reason=Reason.CHILD_VIOLATION
                )
            self._said(record.piece)
        elif self._landing is None:
            raise ProtocolError(
                "The child process sends files, and none were asked for.", reason=Reason.CHILD_VIOLATION
            )
        elif isinstance(record, Open):
            self._open(record, self._landing)
        elif isinstance(record, Finish):
            self._arriving_as(record.slot).slot.finish()
            self._forget(record.slot)
        elif isinstance(record, Fail):
            self._arriving_as(record.slot).slot.fail(record.error)
            self._forget(record.slot)
        elif isinstance(record, Expect):
            self._expect(record, self._landing)
        elif isinstance(record, Refuse):
            self._name(record.name)
            self._landing.refuse(record.name, record.error)
        elif isinstance(record, Adopt):
            self._take_over(record)
        else:
            raise ProtocolError(
                "The child process says something that has no meaning here.", reason=Reason.CHILD_VIOLATION
            )

    def _expect(self, record: Expect, landing: CountingLanding) -> None:
        self._begin_again(landing)
        self._announced += 1
        if self._announced > self._tries:
            raise ProtocolError(
                "The child process announces files more often than it may try.", reason=Reason.CHILD_VIOLATION
            )
        if record.files > self._limits.entries:
            raise LimitExceeded(
                f"{record.files} files are announced (Limits.entries).", reason=Reason.LIMIT_EXCEEDED, limit="entries"
            )
        landing.expect(record.files, record.size)
        self._expected = (record.files, record.size)

    def _begin_again(self, landing: CountingLanding) -> None:
        """After progress, the child may try as often as at first."""
        if landing.high_water > self._progress:
            self._progress = landing.high_water
            self._announced = self._opened = 0

    def _open(self, record: Open, landing: CountingLanding) -> None:
        entry = record.entry
        if record.slot != self._next:
            raise ProtocolError(
                "The child process counts its files wrongly.", path=entry.name, reason=Reason.CHILD_VIOLATION
            )
        self._next += 1
        if self._opened >= self._tries * self._limits.entries:
            self._begin_again(landing)
        self._opened += 1
        if self._opened > self._tries * self._limits.entries:
            raise ProtocolError(
                "The child process begins files more often than it may try.", reason=Reason.CHILD_VIOLATION
            )
        self._name(entry.name)
        if self._expected is not None:
            files, size = self._expected
            self._expected = (files - 1, size - entry.size)
            if min(self._expected) < 0:
                raise ProtocolError(
                    "The child process opens more than it has announced.",
                    path=entry.name,
                    reason=Reason.CHILD_VIOLATION,
                )
        before = self._begun.pop(entry.name, None)
        if before is not None:
            self._arriving.pop(before, None)
        if len(self._arriving) >= _MOST_BEGUN:
            raise ProtocolError(
                "The child process begins too many files at once.", path=entry.name, reason=Reason.CHILD_VIOLATION
            )
        self._arriving[record.slot] = _Arriving(entry.name, landing.open(entry), entry.size)
        self._begun[entry.name] = record.slot

    def _write(self, record: Data) -> None:
        arriving = self._arriving_as(record.slot)
        arriving.left -= len(record.piece)
        if arriving.left < 0:
            raise ProtocolError(
                "More bytes came than were promised.", path=arriving.name, reason=Reason.CHILD_VIOLATION
            )
        if not arriving.slot.is_finished:  # it may have failed here, which the child is not told
            arriving.slot.write(record.offset, (record.piece,))

    def _arriving_as(self, number: int) -> _Arriving:
        arriving = self._arriving.get(number)
        if arriving is None:
            raise ProtocolError(
                "The child process sends something for a file that it has not opened.", reason=Reason.CHILD_VIOLATION
            )
        return arriving

    def _forget(self, number: int) -> None:
        self._begun.pop(self._arriving.pop(number).name, None)

    def _name(self, name: bytes) -> None:
        check_name_length(name, self._limits)
        if name not in self._names:
            self._names.add(name)

    def _take_over(self, record: Adopt) -> None:
        if self._adopt is None:
            raise ProtocolError(
                "The child process has no workspace to leave files in.", path=record.name, reason=Reason.CHILD_VIOLATION
            )
        if record.name in self._names:
            raise ProtocolError(
                "The child process gives this name twice.", path=record.name, reason=Reason.CHILD_VIOLATION
            )
        self._name(record.name)
        self._adopt(record.name)

    def _log(self, record: Log) -> None:
        self._lines += 1
        if self._lines > _MOST_LINES or record.room not in _ROOMS:
            return
        logging.getLogger(record.room).log(record.level, "%s", escape(record.message))

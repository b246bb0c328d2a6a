"""The values that travel between the rooms: frozen, comparable, picklable."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, TypeAlias

from peerstage.documented import Documented
from peerstage.errors import escape
from peerstage.reasons import Reason

#: A path, of whatever kind Python knows.
StrOrBytesPath: TypeAlias = str | bytes | os.PathLike[str] | os.PathLike[bytes]

KIB = 1024
MIB = 1024 * KIB
#: For how many received bytes an answer without data counts: it costs packets in both directions.
ANSWER_BYTES = 256
#: The schema of reports: it changes when a key goes or gets another meaning, not when one is added.
SCHEMA = 1
#: The outcomes of an entry.
STAGED, RESUMED, LINKED, EXCLUDED, FAILED = "staged", "resumed", "linked", "excluded", "failed"

_REASONS: dict[Any, Reason] = {reason.value: reason for reason in Reason}


class Ownership(NamedTuple):
    """Numeric owner and group of a staged file; -1 leaves one as it is (chown(2))."""

    uid: int
    gid: int


def permissions_of(value: Any) -> int | None:
    """Return *value* as the permission bits of a file; None passes.

    A decimal 640 is 0o1200: whoever writes it means 0o640. Set-id and sticky bits are no permissions, so that most such
    slips are found.

    Raises:
        ValueError: If it is not an integer from 0 to 0o777.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 0o777:
        raise ValueError(f"Permissions must be an octal mode such as 0o640, 0o777 at most: {value!r}")
    return value


@dataclass(frozen=True, slots=True)
class Entry:
    """One file as the peer's listing describes it.

    Attributes:
        name: The file's name, as bytes, without a directory.
        size: Bytes promised.
        mode: Permission bits (octal, at most 0o7777), None where the peer does not tell.
        mtime: Modification time in whole seconds since the epoch, None where the peer does not tell.
    """

    name: bytes
    size: int
    mode: int | None = None
    mtime: int | None = None


@dataclass(frozen=True, slots=True)
class FileResult:
    """What became of one entry.

    Attributes:
        name: Its name, without a directory; bytes that are not UTF-8 are surrogate escapes.
        size: Bytes promised.
        mode: Permission bits (octal) that it has in the target, None if it is not staged.
        mtime: Modification time in whole seconds since the epoch, None where the peer does not tell.
        error: Why it is not staged, as one line; None if it is.
        outcome: "staged", "resumed" (staged, and some of its bytes survived a lost connection; told of transports that
            can resume, else it is "staged"), "linked" (staged as a link to an equal file), "excluded" (left out on
            request) or "failed". By default it follows from *error*.
        reason: Why it failed, None if it did not.
    """

    name: str
    size: int = 0
    mode: int | None = None
    mtime: int | None = None
    error: str | None = None
    outcome: str = ""
    reason: Reason | None = None

    def __post_init__(self) -> None:
        if not self.outcome:
            object.__setattr__(self, "outcome", STAGED if self.error is None else FAILED)

    @property
    def is_staged(self) -> bool:
        """Whether the target has the file."""
        return self.outcome in (STAGED, RESUMED, LINKED)

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> FileResult:
        """Return the result that `dataclasses.asdict` gave; keys and reasons that are unknown here are left out.

        Raises:
            TypeError, ValueError: If it is no such result.
        """
        known = _known_fields(cls, raw)
        known["reason"] = _REASONS.get(known.get("reason"))
        return cls(**known)


@dataclass(frozen=True, slots=True)
class Progress(metaclass=Documented):
    """How far a stage has come; totals are None while the listing is not known."""

    files_done: int
    files_total: int | None
    bytes_done: int
    bytes_total: int | None


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a transport can do, as data.

    Attributes:
        name: The transport's name, as in ``transport=``.
        newline_names: Whether a name that holds a newline arrives as it is.
        judges_entries: Whether single entries can fail while the others are staged; not so for a foreign command, whose
            way with odd paths is its own, too.
        resumes: Whether a second ``pull`` goes on in the middle of a file.
    """

    name: str
    newline_names: bool = True
    judges_entries: bool = True
    resumes: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits(metaclass=Documented):
    """How much of a peer is taken, in bytes and in seconds. Every bound is finite.

    Attributes:
        entries: Entries in one collect directory, dotfiles and what is no file included.
        name_bytes: Length of one name.
        path_bytes: Length of a path that is sent to the peer.
        listing_bytes: Everything that the peer sends for one listing; as much again holds its names in memory.
        packet_bytes: One SSH packet; an SFTP packet may hold as much again as a read asked for.
        banner_bytes: Everything before the server's identification line has ended.
        stderr_bytes: What a remote command may say on stderr; of a managed peer's commands, what is logged.
        login_timeout: Seconds from the first packet to the end of authentication.
        reply_timeout: Seconds that one request may stay unanswered. They count from when the request was sent or, if
            that is later, from when the last request before it was answered: on a slow line answers queue. Only the
            time spent waiting for the peer counts.
        stall_timeout: Seconds of waiting for the peer without any progress.
        deadline: Seconds for one operation; None means `grace` plus the bytes received divided by `min_rate`, and for a
            command on a managed peer 12 hours. Sizes that the peer promises do not count, nor do bytes that are not
            kept or that a reconnect made it send again.
        min_rate: Bytes per second below which a peer is too slow, whatever the deadline is. In every stretch of a
            stage, the bytes received must be at least `min_rate` times the seconds spent waiting for the peer, less
            `grace`. So a peer that becomes too slow is given up after at most ten minutes of waiting, however fast it
            was before; shorter breaks are a matter of `stall_timeout`.
        grace: Seconds that both deadline and rate allow on top: 600, for every transport.

    Bytes received are those of files and listings, and 256 for every other answer. What an rcp command transfers is
    measured by the size of the files that it has written.
    """

    grace: ClassVar[float] = 600.0

    entries: int = 120_000
    name_bytes: int = 255
    path_bytes: int = 4096
    listing_bytes: int = 32 * MIB
    packet_bytes: int = 256 * KIB + 1024
    banner_bytes: int = 16 * KIB
    stderr_bytes: int = 64 * KIB
    login_timeout: float = 60.0
    reply_timeout: float = 60.0
    stall_timeout: float = 60.0
    deadline: float | None = None
    min_rate: int = 16 * KIB

    def __post_init__(self) -> None:
        for name in (f.name for f in dataclasses.fields(self)):
            value = getattr(self, name)
            if value is None and name == "deadline":
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
                raise ValueError(f"Limits: {name} must be a finite number above 0, not {value!r}.")

    def seconds_for(self, received: int) -> float:
        """Return the deadline, in seconds, for an operation that has brought *received* bytes so far."""
        return self.deadline if self.deadline is not None else self.grace + received / self.min_rate

    @property
    def seconds_for_command(self) -> float:
        """Seconds that a command on a managed peer may take, be it silent or not.

        12 hours without a `deadline`: a full collect may take a night, and is to be over before the next one.
        """
        return self.deadline if self.deadline is not None else 12 * 3600.0


@dataclass(frozen=True, slots=True)
class StageReport(metaclass=Documented):
    """What one ``stagePeer`` did.

    Attributes:
        peer: The peer's name.
        transport: The way the files came.
        target: The staging directory.
        started: Seconds since the epoch.
        seconds: How long it took.
        files: One result a file whose transfer was begun.
        refused: One result an entry that was not read at all: directories, FIFOs, dangling links ...
        retries: How often a lost connection was made anew.
        resumed_bytes: Bytes that survived a lost connection, and did not have to be sent again; each counts once.
        host_key: The SHA-256 fingerprint of the peer's host key, None where none was seen.
        schema: The version of this form, an integer from 1.
    """

    peer: str
    transport: str
    target: str
    started: float = 0.0
    seconds: float = 0.0
    files: tuple[FileResult, ...] = field(default=(), repr=False)
    refused: tuple[FileResult, ...] = field(default=(), repr=False)
    retries: int = 0
    resumed_bytes: int = 0
    host_key: str | None = None
    schema: int = SCHEMA

    @property
    def count(self) -> int:
        """Files staged."""
        return sum(1 for file in self.files if file.is_staged)

    @property
    def bytes(self) -> int:
        """Bytes staged."""
        return sum(file.size for file in self.files if file.is_staged)

    @property
    def failed(self) -> tuple[FileResult, ...]:
        """Every entry that could not be staged."""
        return tuple(file for file in (*self.files, *self.refused) if file.outcome == FAILED)

    def to_json(self) -> str:
        """Return the report as one JSON object; names that are not UTF-8 are kept by surrogate escapes."""
        return json.dumps({**dataclasses.asdict(self), "count": self.count, "bytes": self.bytes})

    @classmethod
    def from_json(cls, text: str) -> StageReport:
        """Return the report that `to_json` wrote, here or in another version.

        Unknown keys are ignored, unknown reasons become None; so a report of a later schema is read as far as this
        version understands it, and keeps its number.

        Raises:
            ValueError: The text is not such a report.
        """
        try:
            raw = _known_fields(cls, json.loads(text))
            for results in ("files", "refused"):
                raw[results] = tuple(FileResult.from_dict(one) for one in raw[results])
            if isinstance(raw.get("schema", SCHEMA), bool) or not isinstance(raw.get("schema", SCHEMA), int):
                raise ValueError("its schema is not a number")
            return cls(**raw)
        except (AttributeError, TypeError, KeyError, ValueError) as exc:
            raise ValueError(f"Not a stage report: {escape(str(exc))}") from None


def _known_fields(kind: type[Any], raw: dict[str, Any]) -> dict[str, Any]:
    """Return the items of *raw* that are fields of the dataclass *kind*."""
    names = {field.name for field in dataclasses.fields(kind)}
    return {name: value for name, value in raw.items() if name in names}

"""Values that the layers exchange: frozen, comparable, picklable."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, TypeAlias

from peerstage.documented import Documented
from peerstage.printable import escape
from peerstage.reasons import Reason

#: A path of any kind.
StrOrBytesPath: TypeAlias = str | bytes | os.PathLike[str] | os.PathLike[bytes]

KIB = 1024
MIB = 1024 * KIB
TIB = 1024 * 1024 * MIB
#: Bytes credited for a reply without data, which takes packets in both directions.
REPLY_BYTES = 256
#: The schema of reports. It changes if a key is removed or changes its meaning, not if one is added.
SCHEMA = 1
#: A file that was modified at most this many seconds before the newest one in a listing is racy: times are in whole
#: seconds, on some file systems in two, so that a later listing may not show another change.
RACY_SECONDS = 2
#: The outcomes of an entry.
STAGED, RESUMED, LINKED, LEFT_OUT, FAILED = "staged", "resumed", "linked", "left-out", "failed"

#: The least value of `Limits.in_flight_bytes`: two READs of the size that every server accepts.
_MIN_IN_FLIGHT = 64 * KIB
_LIMITS_IN_SECONDS = frozenset({"login_timeout", "reply_timeout", "stall_timeout", "deadline"})
_REASONS: dict[Any, Reason] = {reason.value: reason for reason in Reason}


class Ownership(NamedTuple):
    """Numeric owner and group of a staged file; -1 leaves an id unchanged, as in chown(2)."""

    uid: int
    gid: int


def validate_permissions(value: Any) -> int | None:
    """Return *value* if it is the permission bits of a file, or None.

    Set-id and sticky bits are refused, which catches most modes in decimal by mistake: 640 is 0o1200.

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
    """One file in the peer's listing.

    Attributes:
        name: The file's name without a directory.
        size: Size in bytes.
        mode: Permission bits (at most 0o7777), or None if the peer does not send them.
        mtime: Modification time in whole seconds since the epoch, or None if the peer does not send it.
    """

    name: bytes
    size: int
    mode: int | None = None
    mtime: int | None = None


@dataclass(frozen=True, slots=True)
class RemoteFile(metaclass=Documented):
    """One regular file on a peer.

    Attributes:
        size: Size in bytes, or None if the peer does not send it.
        mtime: Modification time in whole seconds since the epoch, by the peer's clock; None if the peer does not send
            it, as over SCP and an rcp command.
    """

    size: int | None = None
    mtime: int | None = None


@dataclass(frozen=True, slots=True)
class Indicators(metaclass=Documented):
    """The indicator files in a peer's collect directory, as `BackupPeer.readIndicators` found them.

    Attributes:
        collect: The collect indicator; None if the peer has not finished collecting.
        stage: The stage indicator; None if there is none, or if it was not asked for: without a collect indicator, and
            over a transport that does not tell its time.
    """

    collect: RemoteFile | None = None
    stage: RemoteFile | None = None

    @property
    def stage_is_newer(self) -> bool:
        """Whether the peer was marked after it had collected, so that these files were staged before (`Reason.STALE`).

        Both times are whole seconds of the peer's clock: only a later second is newer, and an unknown time never is.
        """
        collected = None if self.collect is None else self.collect.mtime
        marked = None if self.stage is None else self.stage.mtime
        return collected is not None and marked is not None and marked > collected


@dataclass(frozen=True, slots=True)
class FileResult:
    """The outcome of one entry.

    Attributes:
        name: Its name without a directory; bytes that are not UTF-8 become surrogate escapes.
        size: Size in bytes, as listed.
        mode: Permission bits in the target, or None if it is not staged.
        mtime: Modification time in whole seconds since the epoch, or None if the peer does not send it.
        error: Why it is not staged, in one line; None if it is.
        outcome: "staged", "resumed" (staged, and some of its bytes survived a lost connection or were kept by an
            earlier run; only over transports that can resume), "linked" (taken from an earlier staging directory, as a
            link or a copy), "left-out" (on request) or "failed". The default follows from *error*.
        reason: Why it failed or was left out; None if it is staged.
        sha256: The SHA-256 of the staged file in hexadecimal; None if it was not computed, or the file is not staged.
        racy: Whether the file was modified within two seconds of the newest one in the listing, so that a change in the
            same second, without a change of its size, could go unnoticed.
    """

    name: str
    size: int = 0
    mode: int | None = None
    mtime: int | None = None
    error: str | None = None
    outcome: str = ""
    reason: Reason | None = None
    sha256: str | None = None
    racy: bool = False

    def __post_init__(self) -> None:
        if not self.outcome:
            object.__setattr__(self, "outcome", STAGED if self.error is None else FAILED)

    @property
    def is_staged(self) -> bool:
        """Whether the file is in the target."""
        return self.outcome in (STAGED, RESUMED, LINKED)

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> FileResult:
        """Return the result that `dataclasses.asdict` encoded; unknown keys and reasons are ignored.

        Raises:
            TypeError, ValueError: If it is not such a result.
        """
        return cls(**known_fields(cls, raw))


@dataclass(frozen=True, slots=True)
class Progress(metaclass=Documented):
    """Progress of a stage; totals are None until the listing is known."""

    files_done: int
    files_total: int | None
    bytes_done: int
    bytes_total: int | None


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a transport can do.

    Attributes:
        name: The transport's name, as in ``transport=``.
        supports_newline_names: Whether a file name that contains a newline arrives unchanged.
        reports_entry_errors: Whether single entries can fail while the others are staged. An external command
            cannot report that, and treats unusual paths in its own way.
        can_resume: Whether a second ``pull`` continues in the middle of a file.
        can_list: Whether all files are known before the first is transferred.
        reports_mtime: Whether `stat` tells modification times.
    """

    name: str
    supports_newline_names: bool = True
    reports_entry_errors: bool = True
    can_resume: bool = False
    can_list: bool = True
    reports_mtime: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits(metaclass=Documented):
    """Bounds on what a peer may send, how long it may take, and how much of the disk it may fill. All are finite.

    Attributes:
        entries: Entries in one collect directory, including dotfiles and entries that are not files. Also files in the
            manifest of `StageOptions.link_dest`; if there are more, nothing is linked by it.
        name_bytes: Length of one name.
        path_bytes: Length of a path that is sent to the peer.
        listing_bytes: All data of one listing. The names take up to the same amount of memory.
        packet_bytes: One SSH packet. An SFTP packet may be larger by the size of the read request.
        banner_bytes: All data up to the end of the server's identification line.
        stderr_bytes: Output of a remote command on stderr; for commands on a managed peer, output that is logged.
        in_flight_bytes: File data that was requested, or has arrived, and is not written yet: it takes memory. At least
            64 KiB. Data arrives at no more than this per round trip; a slow line, or a bandwidth limit, needs less.
        login_timeout: Seconds from the first packet to the end of authentication.
        reply_timeout: Seconds for the reply to one request, counted from when the request was sent or, if that is
            later, from the reply to the previous request: on a slow line replies queue. Only the time spent waiting
            for the peer counts.
        stall_timeout: Seconds of waiting for the peer without progress.
        deadline: Seconds for one operation. None means `grace` plus the bytes received divided by `min_rate`, and 12
            hours for a command on a managed peer. Announced sizes do not count, nor do bytes that are discarded or
            sent again after a reconnect. The time that `StageOptions.bwlimit` takes for those that count is added.
        total_bytes: All files of one stage, 16 TiB by default: more than 10 Gbit/s carry in three hours. It is compared
            with the listing before anything is written; over SCP, which cannot list, before the file that exceeds it;
            and about once a second with what an rcp command has written.
        file_bytes: One file; a larger one fails, and the others are staged. None means `total_bytes`. (To leave large
            files out without an error, see `StageOptions.max_size`.)
        free_bytes: Bytes that a stage must leave free on the target's file system, 0 by default. They are compared with
            the free space when files are announced, and not while other programs write.
        min_rate: Bytes per second below which a peer is too slow, whatever the deadline is. In every interval of a
            stage, the bytes received must be at least `min_rate` times the seconds spent waiting for the peer, less
            `grace`. A peer that becomes too slow is given up after at most ten minutes of waiting, however fast it was
            before; `stall_timeout` covers shorter pauses. A lower `StageOptions.bwlimit` takes its place.
        grace: Seconds that deadline and rate allow in addition: 600, for every transport.

    Bytes received are those of files and listings, and 256 for every other reply. For an rcp command they are the sizes
    of the files that it has written.
    """

    grace: ClassVar[float] = 600.0

    entries: int = 120_000
    name_bytes: int = 255
    path_bytes: int = 4096
    listing_bytes: int = 32 * MIB
    packet_bytes: int = 256 * KIB + 1024
    banner_bytes: int = 16 * KIB
    stderr_bytes: int = 64 * KIB
    in_flight_bytes: int = 24 * MIB
    login_timeout: float = 60.0
    reply_timeout: float = 60.0
    stall_timeout: float = 60.0
    deadline: float | None = None
    total_bytes: int = 16 * TIB
    file_bytes: int | None = None
    free_bytes: int = 0
    min_rate: int = 16 * KIB

    def __post_init__(self) -> None:
        for limit in dataclasses.fields(self):
            name, value = limit.name, getattr(self, limit.name)
            if value is None and limit.default is None:
                continue
            is_whole = name not in _LIMITS_IN_SECONDS
            is_number = isinstance(value, int if is_whole else (int, float)) and not isinstance(value, bool)
            minimum = _MIN_IN_FLIGHT if name == "in_flight_bytes" else 0
            if not is_number or not minimum <= value < float("inf") or (value == 0 and limit.default != 0):
                kind = "an integer" if is_whole else "a finite number"
                lowest = f"from {minimum} on" if minimum or limit.default == 0 else "above 0"
                raise ValueError(f"Limits: {name} must be {kind} {lowest}, not {value!r}.")

    def deadline_for(self, received: int) -> float:
        """Return the deadline, in seconds, of an operation that has received *received* bytes so far."""
        return self.deadline if self.deadline is not None else self.grace + received / self.min_rate

    @property
    def command_deadline(self) -> float:
        """The deadline of a command on a managed peer, in seconds.

        Without `deadline` it is 12 hours: a full collect may take a night, but must end before the next one.
        """
        return self.deadline if self.deadline is not None else 12 * 3600.0


@dataclass(frozen=True, slots=True)
class StageReport(metaclass=Documented):
    """The report of one ``stagePeer``.

    Attributes:
        peer: The peer's name.
        transport: The transport used: "sftp", "scp", "rcp" or "local".
        target: The staging directory.
        started: Start time, in seconds since the epoch.
        seconds: Duration in seconds.
        files: A result for each file whose transfer was started.
        refused: A result for each entry that was not read: directories, FIFOs, dangling symlinks ...
        left_out: A result for each entry that `StageOptions` leave out; the size of one that was not read is 0.
        retries: How many times a lost connection was re-established.
        resumed_bytes: Bytes that survived a lost connection, or were kept by an earlier run, and were not sent again;
            each counts once.
        host_key: The SHA-256 fingerprint of the peer's host key, or None if the transport does not know it.
        verify: How the staged files were verified, as in `StageOptions`; "" in reports of earlier versions.
        notes: What the user should know although nothing failed, as sentences; each was logged as a warning.
        appeared: The names, 1000 at most, of files that the peer had at the end, and not in its first listing: it was
            still collecting. They are not staged. Only transports that can list find them.
        schema: The version of the JSON form, an integer from 1.
    """

    peer: str
    transport: str
    target: str
    started: float = 0.0
    seconds: float = 0.0
    files: tuple[FileResult, ...] = field(default=(), repr=False)
    refused: tuple[FileResult, ...] = field(default=(), repr=False)
    left_out: tuple[FileResult, ...] = field(default=(), repr=False)
    retries: int = 0
    resumed_bytes: int = 0
    host_key: str | None = None
    verify: str = ""
    notes: tuple[str, ...] = ()
    appeared: tuple[str, ...] = field(default=(), repr=False)
    schema: int = SCHEMA

    @property
    def count(self) -> int:
        """The number of files staged."""
        return sum(1 for file in self.files if file.is_staged)

    @property
    def bytes(self) -> int:
        """The number of bytes staged."""
        return sum(file.size for file in self.files if file.is_staged)

    @property
    def linked(self) -> int:
        """The number of files, of those staged, that were taken from an earlier staging directory."""
        return sum(1 for file in self.files if file.outcome == LINKED)

    @property
    def failed(self) -> tuple[FileResult, ...]:
        """The results of the entries that could not be staged."""
        return tuple(file for file in (*self.files, *self.refused) if file.outcome == FAILED)

    def to_json(self) -> str:
        """Return the report as one JSON object; names that are not UTF-8 hold surrogate escapes."""
        return json.dumps({**dataclasses.asdict(self), "count": self.count, "bytes": self.bytes})

    @classmethod
    def from_json(cls, text: str) -> StageReport:
        """Return the report that `to_json` wrote, in this version or another.

        Unknown keys are ignored and unknown reasons become None. A report with a later schema is read as far as this
        version knows it, and keeps its schema number.

        Raises:
            ValueError: If the text is not such a report.
        """
        try:
            raw = known_fields(cls, json.loads(text))
            for results in ("files", "refused", "left_out"):
                if results != "left_out" or results in raw:  # earlier versions have none
                    raw[results] = tuple(FileResult.from_dict(result) for result in raw[results])
            if isinstance(raw.get("schema", SCHEMA), bool) or not isinstance(raw.get("schema", SCHEMA), int):
                raise ValueError("its schema is not a number")
            for texts in ("notes", "appeared"):
                raw[texts] = tuple(raw.get(texts, ()))
                if not all(isinstance(text, str) for text in raw[texts]):
                    raise ValueError(f"its {texts} are not text")
            return cls(**raw)
        except (AttributeError, TypeError, KeyError, ValueError) as exc:
            raise ValueError(f"Not a stage report: {escape(str(exc))}") from None


def known_fields(kind: type[Any], raw: dict[str, Any]) -> dict[str, Any]:
    """Return the items of *raw* that are fields of the dataclass *kind*; an unknown reason becomes None."""
    names = {field.name for field in dataclasses.fields(kind)}
    known = {name: value for name, value in raw.items() if name in names}
    if "reason" in known:
        known["reason"] = _REASONS.get(known["reason"])
    return known

"""`FleetPlan` and `PeerJob`: what a run of a whole fleet does."""

from __future__ import annotations

import dataclasses
import datetime
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, cast, get_args

from peerstage.documented import Documented
from peerstage.fleet.secrets import Secret
from peerstage.paths import COLLECT_INDICATOR, STAGE_INDICATOR, validate_path
from peerstage.peer.attributes import (
    require_text,
    validate_failure_mode,
    validate_indicator_name,
    validate_peer_name,
    validate_user_name,
)
from peerstage.peer.base import BackupPeer, validate_ownership
from peerstage.peer.local import LocalPeer
from peerstage.peer.remote import RemotePeer
from peerstage.records import Limits, Ownership, validate_permissions
from peerstage.ssh.options import SSHOptions
from peerstage.stage_options import StageOptions
from peerstage.transport.factory import GUARDED, TransportName
from peerstage.transport.retry import Retry

#: Values of `PeerJob.transport`.
JobTransport: TypeAlias = Literal["auto", "sftp", "scp", "rcp", "guarded", "local"]
TRANSPORTS: tuple[str, ...] = get_args(JobTransport)
LOCAL = "local"

_MAX_PARALLEL = 256
#: A hundred years.
_MAX_DAYS = 36_500
#: Bytes in the name of a directory.
_MAX_NAME = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerJob(metaclass=Documented):
    """One peer of a plan: how it is reached, what is wanted of it, and how its result counts.

    Attributes:
        name: The peer's name in the plan, in output, and of its directory below the daily directory.
        collect_dir: Absolute path of the collect directory on the peer.
        host: Host name, address, or ssh_config alias; None for *name*.
        user: The user to log in as; None only for "local".
        local_user: The local user to connect as; only root may name another user.
        transport: "auto", "sftp", "scp", "rcp", "guarded" (SCP behind a forced command), or "local" for a directory of
            this machine.
        rcp_command: The rcp-like command for "rcp".
        ssh: Options that override ssh's configuration.
        stage: What is wanted of a stage. The run adds the manifest, the link destination and the bandwidth limit.
        limits: Upper bounds on what the peer may send, and on how long it may take.
        retry: How often to retry.
        password: Where the password for the login is read; it is never stored or pickled.
        passphrase: Where the passphrase of private keys is read.
        group: The peer's group in the plan; None for none.
        link_dest: Whether a file that is unchanged since the last complete night becomes a hard link. Where the
            transport cannot, files are fetched.
        mark: Whether the stage indicator is written on the peer; False for read-only keys.
        collect_indicator: Name of the collect indicator.
        stage_indicator: Name of the stage indicator.
        indicator_max_age: Seconds after which a collect indicator is stale; None for no maximum.
        ignore_failures: None, "none", "all", "daily" or "weekly": when a failure of this peer does not count in the
            exit status. "weekly" is the first day of the week, "daily" any other day.
        allow_empty: Whether a stage without files, or with empty ones only, is complete.
        min_bytes: Bytes below which a stage is flagged as "smaller"; None for no minimum.
        overdue_after: Seconds without a complete stage after which the peer is overdue; None for never.
        permissions: Mode of staged files (octal); None for the peer's mode & 0777 & ~umask.

    Raises:
        ValueError: If a value is invalid.
    """

    name: str
    collect_dir: str
    host: str | None = None
    user: str | None = None
    local_user: str | None = None
    transport: JobTransport = "auto"
    rcp_command: str | None = None
    ssh: SSHOptions = field(default_factory=SSHOptions)
    stage: StageOptions = field(default_factory=StageOptions)
    limits: Limits = field(default_factory=Limits)
    retry: Retry = field(default_factory=Retry)
    password: Secret | None = None
    passphrase: Secret | None = None
    group: str | None = None
    link_dest: bool = False
    mark: bool = True
    collect_indicator: str = COLLECT_INDICATOR
    stage_indicator: str = STAGE_INDICATOR
    indicator_max_age: float | None = None
    ignore_failures: str | None = None
    allow_empty: bool = False
    min_bytes: int | None = None
    overdue_after: float | None = None
    permissions: int | None = None

    def __post_init__(self) -> None:
        name = validate_peer_name(self.name)
        _require(not name.startswith("."), "name", "a name that does not begin with a dot", name)
        _require(name != STAGE_INDICATOR, "name", "another name than that of the master's stage indicator", name)
        _require(len(os.fsencode(name)) <= _MAX_NAME, "name", f"a name of at most {_MAX_NAME} bytes", name)
        validate_peer_name(self.host or name)
        if not self.is_local or self.user is not None:
            validate_user_name(self.user)
        _require(self.transport in TRANSPORTS, "transport", f"one of {', '.join(TRANSPORTS)}", self.transport)
        path = validate_path(self.collect_dir, "Collect directory")
        _require(path.startswith("/"), "collect_dir", "an absolute path", path)
        for indicator in (self.collect_indicator, self.stage_indicator):
            validate_indicator_name(indicator, "")
        validate_failure_mode(self.ignore_failures)
        validate_permissions(self.permissions)
        for what in ("indicator_max_age", "overdue_after", "min_bytes"):
            value = getattr(self, what)
            _require(value is None or (_is_number(value) and value > 0), what, "a number above 0", value)
        for what in ("ssh", "stage", "limits", "retry"):
            if not isinstance(getattr(self, what), _TYPES[what]):
                raise ValueError(f"PeerJob: {what} must be of type {_TYPES[what].__name__}.")
        self.build_peer()  # raises if options contradict each other

    def __reduce__(self) -> tuple[Any, ...]:
        if any(getattr(self.ssh, name) is not None for name in ("password", "passphrase", "pkey")):
            raise TypeError(
                f"{self.name}: a job whose SSHOptions hold a secret cannot be sent to another process. Name its source "
                "instead: PeerJob(password=Secret(file=...)), or a key file."
            )
        return _rebuild, (type(self), {item.name: getattr(self, item.name) for item in dataclasses.fields(self)})

    @property
    def is_local(self) -> bool:
        """Whether the peer is a directory of this machine."""
        return self.transport == LOCAL

    @property
    def can_link(self) -> bool:
        """Whether the transport can leave out files that are unchanged."""
        return self.transport not in ("rcp", GUARDED)

    @property
    def can_limit_bandwidth(self) -> bool:
        """Whether the transport can limit the bandwidth."""
        return self.transport not in ("rcp", LOCAL)

    def read_secrets(self) -> dict[str, Any]:
        """Return the fields of `SSHOptions` that are secrets, by name.

        Raises:
            ConfigurationError: If one cannot be read.
        """
        sources = {"password": self.password, "passphrase": self.passphrase}
        return {name: source.read() for name, source in sources.items() if source is not None}

    def build_peer(
        self, *, stage: StageOptions | None = None, limits: Limits | None = None, reads_secrets: bool = False
    ) -> BackupPeer:
        """Return the peer, which is not connected.

        Args:
            stage: Replaces `stage`.
            limits: Replaces `limits`.
            reads_secrets: Whether to read the password and the passphrase, as a peer that is to connect needs.

        Raises:
            ValueError: If options contradict each other.
            ConfigurationError: If a secret cannot be read.
        """
        stage, limits = stage or self.stage, limits or self.limits
        if self.is_local:
            local_stage = dataclasses.replace(stage, bwlimit=None)
            return LocalPeer(self.name, self.collect_dir, self.ignore_failures, stage=local_stage, limits=limits)
        secrets = self.read_secrets() if reads_secrets else {}
        is_guarded = self.transport == GUARDED
        peer = RemotePeer(
            self.host or self.name,
            self.collect_dir,
            tempfile.gettempdir(),
            self.user,
            rcpCommand=self.rcp_command if self.transport == "rcp" else None,
            localUser=self.local_user,
            ignoreFailureMode=self.ignore_failures,
            ssh=dataclasses.replace(self.ssh, **secrets),
            transport="scp" if is_guarded else cast(TransportName, self.transport),
            guarded=is_guarded,
            stage=stage,
            retry=self.retry,
            limits=limits,
        )
        peer.validate()
        return peer


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetPlan(metaclass=Documented):
    """A fleet of peers, and how they are staged together.

    Attributes:
        staging: Absolute path of the staging pool; files go to ``STAGING/%Y/%m/%d/PEER``.
        peers: The peers, with names that differ.
        parallel: Peers at a time.
        bwlimit: Bytes per second, all peers together; None for no limit.
        until: The local time of day until which peers that are not ready are asked again. It is the next one within
            twelve hours; if the run starts later than that, or this is None, they are asked once.
        min_free: Bytes that must remain free on the pool's file system.
        keep_days: The number of days with a complete stage of any peer whose daily directories are kept; runs and
            `prune` remove older ones. None keeps all.
        complete_only: Whether the master's stage indicator is held back unless every peer that counts was staged.
        ownership: Owner and group of directories and files; None leaves them to this process, or to `local_user`.
        directory_mode: Mode of new directories (octal); None for 0777 & ~umask.
        starting_day: The first day of the week, 0 for Monday, for `PeerJob.ignore_failures`.
        before: A command (argv, no shell) to run before the run; if it fails, the run does not start.
        after: A command to run at the end.
        after_peer: A command to run after each peer.
        hook_timeout: Seconds that each command may take.
        source: The file that the plan was read from; None if it was made in Python.

    Raises:
        ValueError: If a value is invalid.
    """

    staging: str
    peers: tuple[PeerJob, ...]
    parallel: int = 4
    bwlimit: int | None = None
    until: datetime.time | None = None
    min_free: int = 0
    keep_days: int | None = None
    complete_only: bool = False
    ownership: Ownership | None = None
    directory_mode: int | None = None
    starting_day: int = 0
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    after_peer: tuple[str, ...] = ()
    hook_timeout: float = 600.0
    source: str | None = None

    def __post_init__(self) -> None:
        staging = validate_path(self.staging, "staging")
        _require(os.path.isabs(staging), "staging", "an absolute path", staging, "FleetPlan")
        object.__setattr__(self, "peers", tuple(self.peers))
        object.__setattr__(self, "ownership", validate_ownership(self.ownership))
        validate_permissions(self.directory_mode)
        names = [peer.name for peer in self.peers]
        twice = next((name for name in names if names.count(name) > 1), None) if len(names) > len(set(names)) else None
        _require(bool(names), "peers", "at least one peer", (), "FleetPlan")
        _require(twice is None, "peers", "peers with different names", twice, "FleetPlan")
        for name, (expected, is_valid) in _PLAN_CHECKS.items():
            value = getattr(self, name)
            _require(is_valid(value), name, expected, value, "FleetPlan")
        for name in ("before", "after", "after_peer"):
            command = getattr(self, name)
            _require(not isinstance(command, str), name, "a list of words, the program first", command, "FleetPlan")
            object.__setattr__(self, name, tuple(require_text(word, name) for word in command))

    def peer(self, name: str) -> PeerJob | None:
        """Return the peer of that name; None if the plan has no such peer."""
        return next((peer for peer in self.peers if peer.name == name), None)

    def select(self, names: tuple[str, ...]) -> tuple[PeerJob, ...]:
        """Return the peers that *names* names, by their own names or their groups; all of them for no name.

        Raises:
            ValueError: If a name is neither a peer nor a group.
        """
        known = {peer.name for peer in self.peers} | {peer.group for peer in self.peers if peer.group}
        for name in names:
            if name not in known:
                raise ValueError(f"The plan has no peer and no group {name!r}.")
        return tuple(peer for peer in self.peers if not names or peer.name in names or peer.group in names)


def ignores_failures(mode: str | None, *, is_start_of_week: bool) -> bool:
    """Return whether a failure of a peer does not count today.

    Args:
        mode: The ignore failure mode: None, "none", "all", "daily" or "weekly".
        is_start_of_week: Whether this is the first backup of a week, or a full one.
    """
    return mode == "all" or mode == ("weekly" if is_start_of_week else "daily")


def _rebuild(kind: type[PeerJob], values: dict[str, Any]) -> PeerJob:
    return kind(**values)


def _require(is_valid: bool, name: str, expected: str, value: object, kind: str = "PeerJob") -> None:
    if not is_valid:
        raise ValueError(f"{kind}: {name} must be {expected}, not {value!r}.")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return (_is_int(value) or isinstance(value, float)) and value < float("inf")


_TYPES: dict[str, type] = {"ssh": SSHOptions, "stage": StageOptions, "limits": Limits, "retry": Retry}
#: For each attribute of a plan, what it must be, and the check.
_PLAN_CHECKS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "parallel": (
        f"a number from 1 to {_MAX_PARALLEL}",
        lambda value: _is_int(value) and 1 <= value <= _MAX_PARALLEL,
    ),
    "bwlimit": ("1024 or more bytes per second", lambda value: value is None or (_is_int(value) and value >= 1024)),
    "until": ("a time of day", lambda value: value is None or isinstance(value, datetime.time)),
    "min_free": ("a number of bytes", lambda value: _is_int(value) and value >= 0),
    "keep_days": (
        f"a number of days from 1 to {_MAX_DAYS}",
        lambda value: value is None or (_is_int(value) and 1 <= value <= _MAX_DAYS),
    ),
    "complete_only": ("True or False", lambda value: isinstance(value, bool)),
    "starting_day": ("a number from 0 to 6", lambda value: _is_int(value) and 0 <= value <= 6),
    "hook_timeout": ("a number of seconds above 0", lambda value: _is_number(value) and value > 0),
}

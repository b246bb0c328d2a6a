"""The tables and keys of a plan in TOML, as models of pydantic, which the extra ``fleet`` installs.

They check each value by itself, with the checks of `FleetPlan`, `PeerJob`, `SSHOptions` and `StageOptions`, whose
defaults apply to keys that are not set. The guide's page on plans explains every key.
"""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator

from peerstage.durations import parse_duration
from peerstage.fleet.plan import FleetPlan, JobTransport, PeerJob
from peerstage.fleet.secrets import Secret
from peerstage.ownership import parse_mode, parse_owner
from peerstage.records import Ownership
from peerstage.sizes import parse_size
from peerstage.ssh.config.proxy_jump import parse_jump
from peerstage.ssh.options import SSHOptions
from peerstage.stage_options import StageOptions
from peerstage.transport.rcp.command_line import split_command_line

#: The value by which a group or a peer revokes a key that it would inherit.
NONE = "none"
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")

#: Bytes beyond what a file system can hold.
_TOO_MANY_BYTES = 1 << 63

_TIME = re.compile(r"([01]?[0-9]|2[0-3]):([0-5][0-9])", re.ASCII)


def _parsed(parse: Callable[[str], Any], expected: str) -> PlainValidator:
    """Return a validator for strings that *parse* converts; it raises `ValueError` with what it expects."""

    def validate(value: Any) -> Any:
        if value is None:  # which `_none` made of "none": TOML has no such value
            return None
        if not isinstance(value, str):
            raise ValueError(f"must be {expected}, in quotes")
        try:
            return parse(value)
        except ValueError as exc:
            raise ValueError(f"must be {exc}") from None

    return PlainValidator(validate)


def _accepted_by(kind: type[Any], attribute: str, **others: Any) -> AfterValidator:
    """Return a validator that has *kind* check, and normalize, a value of its *attribute*."""

    def validate(value: Any) -> Any:
        return None if value is None else getattr(kind(**{**others, attribute: value}), attribute)

    return AfterValidator(validate)


def _accepted_by_job(name: str) -> AfterValidator:
    return _accepted_by(PeerJob, name, name="x", user="x", collect_dir="/x")


def _accepted_by_plan(name: str) -> AfterValidator:
    return _accepted_by(FleetPlan, name, staging="/", peers=(PeerJob(name="x", user="x", collect_dir="/x"),))


def _none(value: Any) -> Any:
    return None if value == NONE else value


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _one_or_more(value: Any) -> Any:
    return (value,) if isinstance(value, str) else _as_tuple(value)


def _parse_bytes(value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError('must be a number of bytes, or a string such as "20M"')
    try:
        size = parse_size(value) if isinstance(value, str) else value
    except ValueError as exc:
        raise ValueError(f"must be {exc}") from None
    if size >= _TOO_MANY_BYTES:
        raise ValueError("must be less than 8388608T")
    return size


def _parse_time(value: Any) -> datetime.time:
    if isinstance(value, datetime.time):
        return value
    found = _TIME.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise ValueError('must be a time of day such as "06:00"')
    return datetime.time(int(found[1]), int(found[2]))


def _parse_day(text: str) -> int:
    if text.lower() not in DAYS:
        raise ValueError(f"one of {', '.join(DAYS)}: {text!r}")
    return DAYS.index(text.lower())


def _require_absolute(path: str) -> str:
    """Return *path*, which does not depend on the working directory."""
    if not (path.startswith("~") or os.path.isabs(path)):
        raise ValueError(f"must be an absolute path, or begin with ~: {path!r}")
    return path


def _require_pattern(text: str) -> str:
    StageOptions(exclude=text)
    return text


def _require_jump(text: str) -> str:
    parse_jump(text)
    return text


def _require_command(text: str) -> str:
    if not split_command_line(text):
        raise ValueError("must be a command line")
    return text


class _Table(BaseModel):
    """A table of TOML: no other keys, and no conversion of types."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class SecretTable(_Table):
    """Where a secret is read."""

    file: str | None = None
    env: str | None = None


def _to_secret(table: SecretTable) -> Secret:
    try:
        return Secret(file=table.file, env=table.env)
    except ValueError as exc:
        raise ValueError(str(exc).removeprefix("Secret: ")) from None


_CanBeNone = BeforeValidator(_none)
_Bytes = PlainValidator(_parse_bytes)
_Duration = _parsed(parse_duration, 'a duration such as "20h"')
_Name = Annotated[str, _accepted_by_job("name")]
_Command: TypeAlias = Annotated[tuple[str, ...] | None, BeforeValidator(_as_tuple)]
_Patterns: TypeAlias = Annotated[
    tuple[Annotated[str, AfterValidator(_require_pattern)], ...] | None, BeforeValidator(_one_or_more)
]
_Paths: TypeAlias = Annotated[
    tuple[Annotated[str, AfterValidator(_require_absolute)], ...] | None, BeforeValidator(_one_or_more)
]
_SecretKey: TypeAlias = Annotated[Annotated[SecretTable, AfterValidator(_to_secret)] | None, _CanBeNone]


class PeerKeys(_Table):
    """The keys that ``[defaults]``, a group and a peer may have. None stands for keys that are not set."""

    host: Annotated[str | None, _accepted_by_job("host")] = None
    port: Annotated[int | None, _accepted_by(SSHOptions, "port")] = None
    user: Annotated[str | None, _accepted_by_job("user")] = None
    local_user: Annotated[str | None, _CanBeNone, _accepted_by_job("local_user")] = None
    identity: Annotated[_Paths, _accepted_by(SSHOptions, "identity")] = None
    known_hosts: Annotated[_Paths, _accepted_by(SSHOptions, "known_hosts")] = None
    jump: Annotated[Annotated[str, AfterValidator(_require_jump)] | None, _accepted_by(SSHOptions, "jump")] = None
    password: _SecretKey = None
    passphrase: _SecretKey = None
    connect_retries: Annotated[int | None, Field(ge=0, le=1000)] = None
    transport: JobTransport | None = None
    rcp_command: Annotated[str, AfterValidator(_require_command)] | None = None
    collect_dir: Annotated[str | None, _accepted_by_job("collect_dir")] = None
    include: _Patterns = None
    exclude: _Patterns = None
    checksums: Annotated[str | None, _CanBeNone, _accepted_by(StageOptions, "checksums", verify="sha256")] = None
    link_dest: bool | None = None
    mark: bool | None = None
    indicator_max_age: Annotated[int | None, _Duration, _CanBeNone, _accepted_by_job("indicator_max_age")] = None
    overdue_after: Annotated[int | None, _Duration, _CanBeNone, _accepted_by_job("overdue_after")] = None
    allow_empty: bool | None = None
    min_bytes: Annotated[int | None, _Bytes, _CanBeNone, _accepted_by_job("min_bytes")] = None
    ignore_failures: Literal["none", "all", "daily", "weekly"] | None = None


class PeerTable(PeerKeys):
    """A peer in ``[peers]``."""

    group: str | None = None


class HooksTable(_Table):
    """The table ``[hooks]``."""

    before: Annotated[_Command, _accepted_by_plan("before")] = None
    after: Annotated[_Command, _accepted_by_plan("after")] = None
    after_peer: Annotated[_Command, _accepted_by_plan("after_peer")] = None


class PlanTable(_Table):
    """A whole plan."""

    staging: Annotated[str | None, _accepted_by_plan("staging")] = None
    parallel: Annotated[int | None, _accepted_by_plan("parallel")] = None
    bwlimit: Annotated[int | None, _Bytes, _accepted_by_plan("bwlimit")] = None
    until: Annotated[datetime.time | None, PlainValidator(_parse_time)] = None
    min_free: Annotated[int | None, _Bytes, _accepted_by_plan("min_free")] = None
    keep_days: Annotated[int | None, _accepted_by_plan("keep_days")] = None
    complete_only: bool | None = None
    owner: Annotated[Ownership | None, _parsed(parse_owner, 'such as "backup:backup"')] = None
    mode: Annotated[int | None, _parsed(parse_mode, 'an octal mode such as "0750"')] = None
    starting_day: Annotated[int | None, _parsed(_parse_day, "a day of the week")] = None
    hooks: HooksTable = HooksTable()
    defaults: PeerKeys = PeerKeys()
    groups: dict[_Name, PeerKeys] = Field(default_factory=dict)
    peers: dict[_Name, PeerTable] = Field(default_factory=dict)

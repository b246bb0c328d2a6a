"""Describe what is wrong with a plan: the path of each key, and the key that was probably meant."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from pydantic import BaseModel

from peerstage.fleet.plan import FleetPlan, PeerJob
from peerstage.fleet.plan_file.model import HooksTable, PeerKeys, PeerTable, PlanTable, SecretTable
from peerstage.fleet.plan_file.toml_writer import format_key
from peerstage.printable import escape
from peerstage.records import Limits
from peerstage.ssh.options import SSHOptions
from peerstage.stage_options import StageOptions
from peerstage.transport.retry import Retry

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

#: A key of a plan: ``("peers", "db1", "port")``. A number is an index in a list.
KeyPath: TypeAlias = tuple[str | int, ...]

_MAX_PROBLEM = 400
#: Parts of a name that are shown.
_MAX_LABELS = 12
#: The beginning of a message about an attribute, which the key's path replaces.
_ATTRIBUTE = re.compile(r"(?:FleetPlan|PeerJob|Retry|SSHOptions|StageOptions): (?P<name>\w+) (?=must\b)")
#: Attributes in Python whose key has another name.
RENAMED = {"ownership": "owner", "directory_mode": "mode", "connect": "connect_retries"}
_IN_PYTHON = {
    field.name
    for kind in (FleetPlan, PeerJob, Limits, Retry, SSHOptions, StageOptions)
    for field in dataclasses.fields(kind)
} - {*RENAMED, "name", "source", "ssh", "stage", "limits", "retry"}
_EXPECTED = {
    "bool_type": "true or false",
    "dict_type": "a table",
    "int_type": "a whole number",
    "model_type": "a table",
    "model_attributes_type": "a table",
    "string_type": "a string",
    "tuple_type": "a list of strings",
}


def format_problem(path: KeyPath, text: str) -> str:
    """Return one printable line about the key *path*."""
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{format_key(part)}" for part in path)
    line = escape(f"{key.removeprefix('.')}: {text.rstrip('.')}")
    return line if len(line) <= _MAX_PROBLEM else f"{line[: _MAX_PROBLEM - 3]}..."


def attribute_of(error: ValueError) -> str | None:
    """Return the key for the attribute that *error* is about, as the messages of our classes begin; None if unknown."""
    found = _ATTRIBUTE.match(str(error))
    return None if found is None else RENAMED.get(found["name"], found["name"])


def describe_value_error(error: Exception) -> str:
    """Return the message of *error* without the name of the attribute."""
    return _ATTRIBUTE.sub("", str(error), count=1)


def suggest(word: str, known: Iterable[str]) -> str | None:
    """Return the item of *known* that is spelled most like *word*; None if none is alike."""
    return next(iter(difflib.get_close_matches(word.lower()[:100], known, n=1)), None)


def describe(error: ErrorDetails) -> tuple[KeyPath, str]:
    """Return the key that pydantic's *error* is about, and what is wrong with it."""
    path, kind = error["loc"], error["type"]
    if path[-1:] == ("[key]",):
        path = path[:-1]
    if kind == "extra_forbidden":
        return _describe_unknown(path, error["input"])
    if kind in ("model_type", "model_attributes_type") and path[-1] in ("password", "passphrase"):
        return path, 'must be { file = "..." } or { env = "..." }: a plan holds no secrets'
    if kind in _EXPECTED:
        return path, f"must be {_EXPECTED[kind]}, not {_name_type(error['input'])}"
    if kind == "literal_error":
        return path, f"must be one of {error['ctx']['expected'].replace(' or ', ', ')}"
    if kind in ("greater_than_equal", "less_than_equal"):
        bound, value = next((name, error["ctx"][name]) for name in ("ge", "le") if name in error["ctx"])
        return path, f"must be {value} or {'more' if bound == 'ge' else 'less'}"
    if kind == "value_error":
        return path, describe_value_error(error["ctx"]["error"])
    return path, error["msg"]


def _describe_unknown(path: KeyPath, value: Any) -> tuple[KeyPath, str]:
    """Describe an unknown key."""
    key, known = str(path[-1]), _keys_at(path[:-1])
    if key in RENAMED and RENAMED[key] in known:
        return path, f"unknown, did you mean {RENAMED[key]}?"
    if len(path) == 3 and path[0] == "peers" and isinstance(value, dict):
        full_path = _name_with_dots(path, value)
        return path[:2], f'a name with dots needs quotes: "{".".join(map(str, full_path[1:]))}"'
    if isinstance(value, dict) and len(path) == 1:
        nearest = suggest(key, ("hooks", "defaults", "groups", "peers"))
        hint = f"did you mean [{nearest}]?" if nearest else "the tables are [hooks], [defaults], [groups.NAME], [peers]"
        return path, f"unknown, {hint}"
    if place := _other_place(key, known):
        return path, f"does not belong here: {place}"
    if nearest := suggest(key, known):
        return path, f"unknown, did you mean {nearest}?"
    return path, f"unknown; the keys here are {', '.join(known)}"


def _other_place(key: str, known: Sequence[str]) -> str | None:
    """Return where the *key* may be set instead."""
    if key in known:
        return None
    if key in PlanTable.model_fields:
        return "set it at the top of the file, before the first [table]"
    if key in PeerKeys.model_fields:
        return "set it in [defaults], in a group or for a peer"
    if key in PeerTable.model_fields:
        return "set it for a peer"
    if key in HooksTable.model_fields:
        return "set it in [hooks]"
    return "only a plan in Python can set it" if key in _IN_PYTHON else None


def _keys_at(path: KeyPath) -> tuple[str, ...]:
    """Return the keys of the table *path*."""
    model: type[BaseModel] = PlanTable
    if path and path[-1] in ("password", "passphrase"):
        model = SecretTable
    elif path:
        tables: dict[str | int, type[BaseModel]] = {"hooks": HooksTable, "peers": PeerTable}
        model = tables.get(path[0], PeerKeys)
    return tuple(model.model_fields)


def _name_with_dots(path: KeyPath, value: dict[str, Any]) -> KeyPath:
    """Return the path of the peer that somebody wrote as ``db1.example.com = {}``, without quotes."""
    while len(value) == 1 and len(path) < _MAX_LABELS:
        ((key, inner),) = value.items()
        if not isinstance(inner, dict) or key in PeerTable.model_fields:
            break
        path, value = (*path, key), inner
    return path


_TYPES = {bool: "true or false", str: "a string", int: "a number", float: "a number", dict: "a table", list: "a list"}


def _name_type(value: Any) -> str:
    return next((name for kind, name in _TYPES.items() if isinstance(value, kind)), "a date or time")

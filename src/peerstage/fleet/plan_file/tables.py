"""Build a `FleetPlan` from the tables of a TOML document, and collect everything that is wrong with it."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from peerstage.errors import PlanError
from peerstage.fleet.plan import LOCAL, FleetPlan, PeerJob
from peerstage.fleet.plan_file.model import HooksTable, PeerKeys, PlanTable
from peerstage.fleet.plan_file.problems import (
    RENAMED,
    KeyPath,
    attribute_of,
    describe,
    describe_value_error,
    format_problem,
    suggest,
)
from peerstage.ssh.options import SSHOptions
from peerstage.stage_options import StageOptions
from peerstage.transport.retry import Retry

_MAX_PROBLEMS = 100
#: Keys for attributes of `SSHOptions` and `StageOptions`.
_SSH = ("port", "identity", "known_hosts", "jump")
_STAGE = ("include", "exclude", "checksums")
#: Keys that say how a remote peer is reached.
_REMOTE = {*_SSH, "host", "user", "local_user", "password", "passphrase", "connect_retries"}
#: How deep a table's keys are; those of the document itself are at depth 1.
_DEPTHS = {"hooks": 2, "defaults": 2, "groups": 3, "peers": 3}
_ATTRIBUTES = {key: attribute for attribute, key in RENAMED.items()}


def build_plan(document: dict[str, Any], source: str) -> FleetPlan:
    """Return the plan in the TOML *document*. Nothing is connected.

    Args:
        document: The document, as tomllib returns it.
        source: The path of its file.

    Raises:
        PlanError: If anything is wrong with it; it has every problem.
        StageError: If this process has no descriptor left to look up the owner.
    """
    builder = _PlanBuilder(document)
    plan = builder.build(source)
    problems = tuple(builder.problems)
    if plan is not None and not problems:
        return plan
    if len(problems) > _MAX_PROBLEMS:
        problems = (*problems[:_MAX_PROBLEMS], f"and {len(problems) - _MAX_PROBLEMS} more problems")
    count = f"{len(builder.problems)} problems: " if len(builder.problems) > 1 else ""
    raise PlanError(f"{count}{'; '.join(problems)}.", problems=problems, path=source)


class _PlanBuilder:
    """Collects problems, each once, in the order in which they are found."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document
        self._invalid: set[KeyPath] = set()
        self.problems: dict[str, None] = {}

    def build(self, source: str) -> FleetPlan | None:
        """Return the plan, as far as its keys are valid; None if it cannot be built."""
        table = self._validate()
        for key in ("staging", "peers"):
            if not getattr(table, key) and all(path[0] != key for path in self._invalid):
                self._add((key,), "is missing" if key not in self._document else "must not be empty")
        for name in table.groups:
            if name in table.peers:
                self._add(("groups", name), "a peer has this name, too; choose another")
        jobs = [self._build_job(name, table) for name in table.peers]
        if self.problems:
            return None
        try:
            return FleetPlan(
                peers=tuple(job for job in jobs if job is not None),
                source=source,
                **_set_keys(table, *PlanTable.model_fields.keys() - {"hooks", "defaults", "groups", "peers"}),
                **_set_keys(table.hooks, *HooksTable.model_fields),
            )
        except ValueError as exc:
            self._add((attribute_of(exc) or "peers",), describe_value_error(exc))
            return None

    def _validate(self) -> PlanTable:
        """Return the tables without their invalid keys."""
        try:
            return PlanTable.model_validate(self._document)
        except ValidationError as exc:
            valid = _copy_tables(self._document, max(_DEPTHS.values()))
            for error in exc.errors(include_url=False):
                path, text = describe(error)
                self._add(path, text)
                key = path[: _DEPTHS.get(str(path[0]), 1)]
                self._invalid.add(key)
                _remove(valid, key)
            return PlanTable.model_validate(valid)

    def _build_job(self, name: str, table: PlanTable) -> PeerJob | None:
        peer = table.peers[name]
        layers: list[tuple[KeyPath, PeerKeys]] = [(("defaults",), table.defaults)]
        if peer.group is not None:
            if peer.group in table.groups:
                layers.append((("groups", peer.group), table.groups[peer.group]))
            elif ("groups", peer.group) not in self._invalid and ("groups",) not in self._invalid:
                nearest = suggest(peer.group, table.groups)
                hint = f", did you mean {nearest}?" if nearest else f"; add [groups.{peer.group}]"
                self._add(("peers", name, "group"), f"there is no group {peer.group!r}{hint}")
                return None
        layers.append((("peers", name), peer))
        values: dict[str, Any] = {}
        origins: dict[str, KeyPath] = {}
        for path, keys in layers:
            for key in keys.model_fields_set - {"group"}:
                values[key], origins[key] = getattr(keys, key), (*path, key)
        if not self._has_required_keys(name, values, [path for path, _ in layers]):
            return None
        self._require_effect(name, peer, values)
        try:
            return _make_job(name, peer.group, values)
        except ValueError as exc:
            self._add(origins.get(attribute_of(exc) or "", ("peers", name)), describe_value_error(exc))
            return None

    def _has_required_keys(self, name: str, values: dict[str, Any], layers: list[KeyPath]) -> bool:
        """Return whether the job can be built; a key that is invalid, rather than missing, is a problem already."""
        required = ["collect_dir"] if values.get("transport") == LOCAL else ["collect_dir", "user"]
        missing = [key for key in required if key not in values]
        for key in missing:
            if not any((*path, key) in self._invalid or path in self._invalid for path in layers):
                self._add(("peers", name, key), "is missing; set it here or in [defaults]")
        return not missing

    def _require_effect(self, name: str, peer: PeerKeys, values: dict[str, Any]) -> None:
        """Report keys of the peer itself that its transport ignores; inherited ones may be for other peers."""
        transport = values.get("transport", "auto")
        ignored = set(_REMOTE) if transport == LOCAL else set()
        if transport != "rcp":
            ignored.add("rcp_command")
        for key in PeerKeys.model_fields:
            if key in ignored & peer.model_fields_set:
                self._add(("peers", name, key), f"has no effect with the transport {transport!r}")

    def _add(self, path: KeyPath, text: str) -> None:
        self.problems[format_problem(path, text)] = None


def _make_job(name: str, group: str | None, values: dict[str, Any]) -> PeerJob:
    """Return the job of a peer; keys that are not set have the defaults of Python.

    Raises:
        ValueError: If keys contradict each other.
    """
    given = dict(values)
    ssh = {key: given.pop(key) for key in _SSH if key in given}
    stage = {key: given.pop(key) for key in _STAGE if key in given}
    if stage.get("checksums") is not None:
        stage["verify"] = "sha256"
    retries = given.pop("connect_retries", None)
    return PeerJob(
        name=name,
        group=group,
        ssh=SSHOptions(**ssh),
        stage=StageOptions(**stage),
        retry=Retry() if retries is None else Retry(connect=retries + 1),
        **given,
    )


def _set_keys(table: Any, *keys: str) -> dict[str, Any]:
    """Return the keys of *table* that are set, by the names of their attributes in Python."""
    return {_ATTRIBUTES.get(key, key): getattr(table, key) for key in keys if key in table.model_fields_set}


def _copy_tables(table: dict[str, Any], depth: int) -> dict[str, Any]:
    """Return a copy that shares what is more than *depth* tables deep; a whole one could recurse without bounds."""
    return {
        key: _copy_tables(value, depth - 1) if depth > 1 and isinstance(value, dict) else value
        for key, value in table.items()
    }


def _remove(document: Any, path: KeyPath) -> None:
    for part in path[:-1]:
        document = document.get(part, {})
    document.pop(path[-1], None)

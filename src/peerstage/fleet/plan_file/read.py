"""Read a plan from a file in TOML."""

from __future__ import annotations

import os

from peerstage.bounded_files import read_trusted_file
from peerstage.errors import ConfigurationError, NotAvailable
from peerstage.fleet.plan import FleetPlan
from peerstage.reasons import Reason

#: The plan that commands use unless another is named.
DEFAULT_PLAN = "/etc/peerstage/plan.toml"

_MAX_BYTES = 4 * 1024 * 1024
#: The packages that the extra ``fleet`` installs.
_EXTRA = frozenset({"pydantic", "pydantic_core", "tomli"})


def read_plan(path: str | os.PathLike[str] = DEFAULT_PLAN) -> FleetPlan:
    """Return the plan in the file *path*. Nothing is connected.

    A plan decides which commands root runs and which hosts are trusted, so that only root and the user of this process
    may own it and write to it. A symlink is followed; the file that it leads to counts.

    Raises:
        PlanError: If the file is not TOML, or any key is invalid; it has every problem.
        ConfigurationError: If the file is missing, unreadable, not a regular file, larger than 4 MiB, owned by another
            user, or writable by others.
        NotAvailable: If the extra ``fleet`` is not installed.
        StageError: If this machine is short of descriptors or memory, or its disk fails.
    """
    source = os.path.abspath(path)
    try:
        data = read_trusted_file(source, _MAX_BYTES)
    except FileNotFoundError:
        raise ConfigurationError(
            "There is no such plan. Create one with `peerstage init`.",
            path=source,
            reason=Reason.CONFIGURATION_UNREADABLE,
        ) from None
    return parse_plan(data, source)


def parse_plan(data: bytes, source: str) -> FleetPlan:
    """Return the plan in *data*, the content of a file; see `read_plan`.

    Args:
        data: The content.
        source: The path of the file.

    Raises:
        PlanError: If it is not TOML, or any key is invalid; it has every problem.
        NotAvailable: If the extra ``fleet`` is not installed.
    """
    try:
        from peerstage.fleet.plan_file.syntax import parse_toml
        from peerstage.fleet.plan_file.tables import build_plan
    except ImportError as exc:
        if (exc.name or "").partition(".")[0] not in _EXTRA:
            raise
        raise NotAvailable("Reading a plan needs an extra: pip install 'peerstage[fleet]'") from None
    return build_plan(parse_toml(data, source), source)

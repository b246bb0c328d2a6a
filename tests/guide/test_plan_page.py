"""The page on plans: its tables have every key of the model, in order, with its default."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
from pydantic import BaseModel

from guide.test_guide_pages import section
from peerstage import SSHOptions, StageOptions
from peerstage.fleet.plan import FleetPlan, PeerJob
from peerstage.fleet.plan_file.model import DAYS, HooksTable, PeerTable, PlanTable
from peerstage.fleet.plan_file.problems import RENAMED
from peerstage.fleet.plan_file.toml_writer import format_value
from peerstage.transport.retry import Retry

TABLES: dict[str, tuple[type[BaseModel], tuple[type[Any], ...]]] = {
    "The pool": (PlanTable, (FleetPlan,)),
    "Hooks": (HooksTable, (FleetPlan,)),
    "Peers": (PeerTable, (SSHOptions, StageOptions, PeerJob)),
}
FIELDS = {field.name: field for kind in (FleetPlan, PeerJob) for field in dataclasses.fields(kind)}
#: Defaults that are written in another way than in Python.
OTHER_FORMS = {"starting_day": DAYS[FIELDS["starting_day"].default], "connect_retries": Retry().connect - 1}
ATTRIBUTES = {key: attribute for attribute, key in RENAMED.items()}
#: Keys that are required although Python has a default.
REQUIRED = ("user",)


def rows_of(title: str) -> dict[str, str]:
    """Return the keys of the table in a section, and their defaults."""
    return dict(re.findall(r"^\| `(\w+)` \| .+ \| (.+) \|$", section("plan", title), re.MULTILINE))


@pytest.mark.parametrize("title", TABLES)
def test_the_table_has_every_key_in_order(title: str) -> None:
    tables = ("hooks", "defaults", "groups", "peers")
    assert [*rows_of(title)] == [key for key in TABLES[title][0].model_fields if key not in tables]


@pytest.mark.parametrize("title", TABLES)
def test_the_table_has_the_default_of_every_key(title: str) -> None:
    fields = {field.name: field for kind in TABLES[title][1] for field in dataclasses.fields(kind)}
    for key, cell in rows_of(title).items():
        default = OTHER_FORMS[key] if key in OTHER_FORMS else fields[ATTRIBUTES.get(key, key)].default
        if default is dataclasses.MISSING or key in REQUIRED:
            assert cell.startswith("required"), key
        elif default is None or default == ():
            assert not cell.startswith(("`", "required")), key
        else:
            assert cell == f"`{format_value(default)}`", key


def test_the_keys_that_none_revokes_are_listed() -> None:
    sentence = re.findall(r'The string `"none"` revokes.*?\.\n', section("plan", "Peers"), re.DOTALL)[0]
    revoked = set(re.findall(r"`(\w+)`", sentence))
    assert revoked == {key for key in PeerTable.model_fields if key != "jump" and accepts_none(key)}


def accepts_none(key: str) -> bool:
    """Return whether ``"none"`` has a meaning of its own, which another word has not."""
    from pydantic import ValidationError

    def value_of(word: str) -> Any:
        try:
            return getattr(PeerTable.model_validate({key: word}), key)
        except ValidationError:
            return "invalid"

    return value_of("none") not in (value_of("nine"), "none", ("none",)) or (
        value_of("none") == "none" and value_of("nine") == "invalid"
    )

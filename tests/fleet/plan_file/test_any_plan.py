"""Any value in any key gives a plan, or a `PlanError` that names the key; never another exception."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.plan_file.test_plan_file import EXAMPLE
from peerstage.errors import PlanError
from peerstage.fleet.plan import FleetPlan
from peerstage.fleet.plan_file import parse_plan
from peerstage.fleet.plan_file.model import HooksTable, PeerTable, PlanTable, SecretTable
from peerstage.fleet.plan_file.tables import build_plan
from peerstage.printable import escape
from support.examples import examples

#: Strings that are valid for some key.
WORDS = ("none", "db1", "g", "x", "/srv", "~", "20h", "20M", "06:00", "0750", "0:0", "all", "local", "rcp", "guarded")
STRINGS = st.sampled_from(WORDS) | st.text(max_size=12)
SCALARS = (
    STRINGS
    | st.integers(-1, 70_000)
    | st.integers()
    | st.floats()
    | st.booleans()
    | st.times()
    | st.dates()
    | st.datetimes(timezones=st.none() | st.just(datetime.timezone.utc))
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(STRINGS, inner, max_size=3),
    max_leaves=6,
)
PEER_KEYS = st.sampled_from([*PeerTable.model_fields]) | STRINGS
PEERS = st.dictionaries(PEER_KEYS, VALUES | st.dictionaries(st.sampled_from([*SecretTable.model_fields]), VALUES))
DOCUMENTS = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(PlanTable.model_fields, VALUES),
        "notify": VALUES,
        "hooks": st.dictionaries(st.sampled_from([*HooksTable.model_fields]), VALUES) | VALUES,
        "defaults": PEERS | VALUES,
        "groups": st.dictionaries(STRINGS, PEERS | VALUES, max_size=3) | VALUES,
        "peers": st.dictionaries(STRINGS, PEERS | VALUES, max_size=3) | VALUES,
    },
)


def check(document: dict[str, Any]) -> None:
    try:
        plan = build_plan(document, "/plan.toml")
    except PlanError as error:
        assert error.problems
        for problem in error.problems:
            path, colon, text = problem.partition(": ")
            assert path
            assert colon
            assert text
            assert escape(problem) == problem
        assert str(error).startswith("/plan.toml: ")
    else:
        assert isinstance(plan, FleetPlan)


@examples(40)
@given(DOCUMENTS)
def test_any_document_is_a_plan_or_a_plan_error(document: dict[str, Any]) -> None:
    check(document)


@examples(40)
@given(st.sampled_from([*PlanTable.model_fields]), VALUES)
def test_any_value_of_a_key_of_the_plan(key: str, value: Any) -> None:
    check({"staging": "/s", "peers": {"db1": {"user": "u", "collect_dir": "/c"}}, key: value})


@examples(40)
@given(st.sampled_from([*PeerTable.model_fields]), VALUES, st.sampled_from(["defaults", "group", "peer"]))
def test_any_value_of_a_key_of_a_peer(key: str, value: Any, table: str) -> None:
    common = {"user": "u", "collect_dir": "/c"}
    defaults, group, peer = ({key: value} if table == name else {} for name in ("defaults", "group", "peer"))
    peers = {"db1": {"group": "g", **peer}, "db2": peer}
    check({"staging": "/s", "defaults": {**common, **defaults}, "groups": {"g": group}, "peers": peers})


@pytest.mark.parametrize("key", [*PlanTable.model_fields, *(f"defaults.{key}" for key in PeerTable.model_fields)])
def test_a_number_with_more_digits_than_python_prints_is_refused(key: str) -> None:
    with pytest.raises(PlanError) as caught:
        parse_plan(f"{key} = 0x{'f' * 5000}\n{key}x = [0x{'f' * 5000}]\n".encode(), "/plan.toml")
    assert any(problem.startswith(f"{key}: ") for problem in caught.value.problems)


@examples(40)
@given(st.binary() | st.text().map(str.encode))
def test_any_bytes_are_a_plan_or_a_plan_error(data: bytes) -> None:
    try:
        parse_plan(data, "/plan.toml")
    except PlanError as error:
        assert error.problems


@examples(40)
@given(st.integers(0, len(EXAMPLE) - 1), st.integers(0, 8), st.text(max_size=4))
def test_an_example_with_one_typing_error_is_a_plan_or_a_plan_error(start: int, length: int, text: str) -> None:
    try:
        parse_plan((EXAMPLE[:start] + text + EXAMPLE[start + length :]).encode(), "/plan.toml")
    except PlanError as error:
        assert error.problems

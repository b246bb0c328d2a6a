"""Reasons: each is explained, every error has one, and where an error is raised it is the one of that very failure."""

from __future__ import annotations

import ast
import inspect
import json
import pickle
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import peerstage
from peerstage import Reason, errors
from peerstage.errors import ConnectError, StageError, log_line

SOURCE = Path(peerstage.__file__).parent
KINDS = {name: kind for name, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, StageError)}


@pytest.mark.parametrize("reason", Reason)
def test_a_reason_is_one_word_in_kebab_case_and_explained_in_one_sentence(reason: Reason) -> None:
    assert reason.value == reason.name.lower().replace("_", "-")
    assert reason.meaning == reason.__doc__
    assert reason.meaning[0].isupper()
    assert reason.meaning.endswith(".")
    assert "\n" not in reason.meaning


def test_a_reason_is_written_as_its_word_wherever_it_is_written() -> None:
    reason = Reason.HOST_KEY_CHANGED
    assert str(reason) == f"{reason}" == "%s" % reason == "host-key-changed"  # noqa: UP031
    assert json.dumps({"reason": reason}) == '{"reason": "host-key-changed"}'
    assert Reason("host-key-changed") is reason
    assert pickle.loads(pickle.dumps(reason)) is reason


def test_no_two_reasons_mean_the_same() -> None:
    assert len({reason.meaning for reason in Reason}) == len(Reason)


def test_an_error_that_does_not_stand_for_one_reason_is_not_made_without() -> None:
    with pytest.raises(TypeError, match="ConnectError needs a reason"):
        ConnectError("No way.")


def calls() -> Iterator[tuple[str, ast.Call, str]]:
    """Yield every call of an error's class in the source, and where it stands."""
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in KINDS:
                yield node.func.id, node, f"{path.relative_to(SOURCE)}:{node.lineno}"


def test_wherever_an_error_is_raised_it_has_a_reason() -> None:
    found = list(calls())
    assert len(found) > 200
    without = [
        place
        for name, call, place in found
        if not hasattr(KINDS[name], "reason") and "reason" not in {keyword.arg for keyword in call.keywords}
    ]
    assert without == []


def test_every_reason_is_given_somewhere() -> None:
    uses = Counter(re.findall(r"\bReason\.([A-Z_]+)\b", "".join(path.read_text() for path in SOURCE.rglob("*.py"))))
    assert [reason.name for reason in Reason if uses[reason.name] < 2] == [], "one is in the table of exit codes"


def test_a_line_of_the_log_ends_with_the_reason() -> None:
    error = StageError("No\nroom.", peer="p", reason=Reason.NO_SPACE)
    assert log_line(error) == "p: No\\nroom. [no-space]"
    assert log_line(ValueError("x")) == "x"

"""Reasons: each is explained and used, and every error has one."""

from __future__ import annotations

import ast
import inspect
import json
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import peerstage
from peerstage import Reason, errors
from peerstage.errors import ConnectError, StageError, format_log_line

SOURCE = Path(peerstage.__file__).parent
KINDS = {name: kind for name, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, StageError)}


@pytest.mark.parametrize("reason", Reason)
def test_a_reason_is_in_kebab_case_and_explained_in_one_sentence(reason: Reason) -> None:
    assert reason.value == reason.name.lower().replace("_", "-")
    assert reason.meaning == reason.__doc__
    assert reason.meaning[0].isupper()
    assert reason.meaning.endswith(".")
    assert "\n" not in reason.meaning


def test_a_reason_is_written_as_its_identifier() -> None:
    reason = Reason.HOST_KEY_CHANGED
    assert str(reason) == f"{reason}" == "%s" % reason == "host-key-changed"  # noqa: UP031
    assert json.dumps({"reason": reason}) == '{"reason": "host-key-changed"}'
    assert Reason("host-key-changed") is reason
    assert pickle.loads(pickle.dumps(reason)) is reason


def test_no_two_reasons_have_the_same_meaning() -> None:
    assert len({reason.meaning for reason in Reason}) == len(Reason)


def test_an_error_class_without_a_default_reason_requires_one() -> None:
    with pytest.raises(TypeError, match="ConnectError needs a reason"):
        ConnectError("Failed.")


def calls() -> Iterator[tuple[str, ast.Call, str]]:
    """Yield every call of an error class in the source, and its location."""
    names = re.compile(rf"\b({'|'.join(KINDS)})\(")
    for path in sorted(SOURCE.rglob("*.py")):
        text = path.read_text()
        for node in ast.walk(ast.parse(text)) if names.search(text) else ():
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in KINDS:
                yield node.func.id, node, f"{path.relative_to(SOURCE)}:{node.lineno}"


def test_every_error_in_the_source_has_a_reason() -> None:
    found = list(calls())
    assert len(found) > 150
    without = [
        location
        for name, call, location in found
        if not hasattr(KINDS[name], "reason") and "reason" not in {keyword.arg for keyword in call.keywords}
    ]
    assert without == []


def test_every_reason_is_used() -> None:
    """The table of exit codes does not count."""
    sources = [path.read_text() for path in SOURCE.rglob("*.py") if path.name != "exit_codes.py"]
    used = set(re.findall(r"\bReason\.([A-Z_]+)\b", "".join(sources)))
    assert [reason.name for reason in Reason if reason.name not in used] == []


def test_a_log_line_ends_with_the_reason() -> None:
    error = StageError("No\nroom.", peer="p", reason=Reason.NO_SPACE)
    assert format_log_line(error) == "p: No\\nroom. [no-space]"
    assert format_log_line(ValueError("x")) == "x"

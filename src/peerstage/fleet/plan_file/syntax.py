"""Parse the TOML of a plan: tomllib, or tomli before Python 3.11."""

from __future__ import annotations

import re
import sys
from typing import Any

from peerstage.errors import Location, PlanError
from peerstage.printable import escape

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_POSITION = re.compile(r"(?P<what>.*) \(at (?:line (?P<line>\d+), column (?P<column>\d+)|end of document)\)", re.DOTALL)
#: What the parser says, and what helps.
_ADVICE = {
    "Invalid value": "write strings in quotes",
    "Cannot overwrite a value": "the key or table occurs twice",
    "Unclosed inline table": "an inline table { ... } ends on its own line",
    "Invalid initial character for a key part": "write names with other characters than A-Z a-z 0-9 - _ in quotes",
}


def parse_toml(data: bytes, path: str) -> dict[str, Any]:
    """Return the document in *data*, which may begin with a byte order mark.

    Args:
        data: The content of the file.
        path: Its path, for errors.

    Raises:
        PlanError: If it is not TOML in UTF-8, with the line.
    """
    try:
        document: dict[str, Any] = tomllib.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as exc:
        raise _syntax_error(path, "it is not UTF-8", data.count(b"\n", 0, exc.start) + 1) from None
    except RecursionError:
        raise _syntax_error(path, "lists or tables are nested too deeply") from None
    except ValueError as exc:  # also a number with more digits than Python converts
        found = _POSITION.fullmatch(str(exc))
        if found is None:
            raise _syntax_error(path, escape(str(exc))[:200]) from None
        what = escape(found["what"])[:200]
        advice = next((f"; {text}" for beginning, text in _ADVICE.items() if what.startswith(beginning)), "")
        if found["line"] is None:
            raise _syntax_error(path, f"{what}{advice}, at the end of the file") from None
        raise _syntax_error(path, f"{what}{advice}", int(found["line"]), int(found["column"])) from None
    return document


def _syntax_error(path: str, what: str, line: int = 0, column: int = 0) -> PlanError:
    position = ", ".join(f"{name} {number}" for name, number in (("line", line), ("column", column)) if number)
    problem = f"{position}: {what}" if position else what
    return PlanError(f"Not TOML: {problem}.", problems=(problem,), path=path, location=Location(path, line))

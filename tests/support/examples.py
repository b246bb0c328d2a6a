"""How many cases are tried of those that are too many to try them all: few in each run, more on request."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, TypeVar

from hypothesis import settings

Case = TypeVar("Case")

#: The environment variable with a factor for all numbers of cases.
_FACTOR = int(os.environ.get("PEERSTAGE_EXAMPLES", "1"))


def examples(number: int, **others: Any) -> settings:
    """Return Hypothesis's settings for a test of *number* examples, or a multiple of it; *others* are more settings."""
    return settings(max_examples=number * _FACTOR, deadline=None, **others)


def spread(cases: Sequence[Case], number: int) -> list[Case]:
    """Return *number* of the *cases*, or a multiple of it: the first, the last, and others at equal distances."""
    wanted = min(number * _FACTOR, len(cases))
    return [cases[index * (len(cases) - 1) // max(wanted - 1, 1)] for index in range(wanted)]

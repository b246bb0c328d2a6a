"""The callback by which the command `doctor` follows the steps of a connection."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

#: Called after a step, such as ``banner`` or ``host key``, with the step's name and what was found.
OnStep: TypeAlias = Callable[[str, str], object]


def ignore_step(step: str, found: str) -> None:
    """Do nothing; the default `OnStep`."""

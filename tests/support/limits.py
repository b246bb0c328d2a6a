"""Limits that tests can reach within seconds."""

from __future__ import annotations

from peerstage.records import Limits


class ShortGrace(Limits):
    """Grants half a second instead of ten minutes."""

    grace = 0.5

"""Metaclasses for public classes, which make `help` and `dir` list only what a user can use."""

from __future__ import annotations

from abc import ABCMeta

#: Special methods that a ``with`` statement calls.
_VISIBLE = frozenset({"__enter__", "__exit__"})


class Documented(type):
    """Hides special methods, those of dataclasses and pickling, which would fill most of a page of `help`."""

    def __dir__(cls) -> list[str]:
        return [name for name in super().__dir__() if name in _VISIBLE or not name.startswith("__")]


class DocumentedABC(Documented, ABCMeta):
    """`Documented` for abstract classes."""

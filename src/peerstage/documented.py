"""Metaclasses of what users are given: `help` and `dir` list what a user can use, and not how a class is made."""

from __future__ import annotations

from abc import ABCMeta

#: Special methods that a user calls, by a ``with`` statement.
_USED = frozenset({"__enter__", "__exit__"})


class Documented(type):
    """Hides special names: those of `dataclasses` and of pickling would fill most of a page of `help`."""

    def __dir__(cls) -> list[str]:
        return [name for name in super().__dir__() if name in _USED or not name.startswith("__")]


class DocumentedABC(Documented, ABCMeta):
    """The same for abstract classes."""

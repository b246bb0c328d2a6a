"""Markdown on a terminal."""

from __future__ import annotations

from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import Markdown, TableElement
from rich.table import Table


class _FoldingTable(TableElement):
    """A table that breaks long words; rich's own shortens them, and an identifier must stay whole."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for table in super().__rich_console__(console, options):
            if isinstance(table, Table):
                for column in table.columns:
                    column.overflow = "fold"
            yield table


class _Page(Markdown):
    elements = {**Markdown.elements, "table_open": _FoldingTable}  # noqa: RUF012


def print_markdown(page: str) -> None:
    """Print *page* with headings, colours and tables."""
    Console().print(_Page(page))

"""Print results on a terminal: tables, colours, a progress bar. Text is never read as rich's markup."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.box import ROUNDED
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as ProgressBar
from rich.table import Table as RichTable
from rich.text import Text

from peerstage.cli.output import OnProgress, Output
from peerstage.cli.results import Result, Table
from peerstage.records import Progress


class TerminalOutput(Output):
    """Tables, coloured lines and a progress bar."""

    def __init__(self) -> None:
        self._console = Console(markup=False, emoji=False, highlight=False)

    def show(self, result: Result) -> None:
        for item in result.to_terminal():
            if isinstance(item, Table):
                self._console.print(Text(item.title, "bold"), soft_wrap=True)  # a narrow table would break it
                self._console.print(_draw(item))
            else:
                self._console.print(Text.assemble(*item), soft_wrap=True)

    @contextlib.contextmanager
    def progress(self, beginning: str = "connecting") -> Iterator[OnProgress]:
        bar = ProgressBar(
            TextColumn("{task.fields[files]}", markup=False),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        task = bar.add_task("", total=None, files=beginning)

        def update(progress: Progress) -> None:
            total = "?" if progress.files_total is None else str(progress.files_total)
            bar.update(
                task,
                completed=progress.bytes_done,
                total=progress.bytes_total,
                files=f"{progress.files_done}/{total} files",
            )

        with bar:
            yield update

    @contextlib.contextmanager
    def status(self, text: str) -> Iterator[Callable[[str], object]]:
        with self._console.status(Text(text)) as line:
            yield lambda text: line.update(Text(text))


def _draw(table: Table) -> RichTable:
    drawn = RichTable(box=ROUNDED, show_header=bool(table.header))
    first, last = table.header or ("", "")
    drawn.add_column(Text(first), justify="right" if table.header else "left")
    drawn.add_column(Text(last), overflow="fold")
    for row in table.rows:
        drawn.add_row(*(Text.assemble(cell) for cell in row))
    return drawn

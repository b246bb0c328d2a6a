"""What the verbs say on a terminal: tables, colours, a progress bar. Names are `Text`, never markup."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from rich.box import ROUNDED
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from peerstage.cli.exits import Exit
from peerstage.cli.preview import Preview
from peerstage.cli.results import Finding, Seen
from peerstage.cli.show import Answer, OnProgress, Outcome, Show, rate_of, rows_of
from peerstage.cli.spec import Spec
from peerstage.errors import StageError, escape
from peerstage.records import FileResult, Progress, StageReport

_COLOURS = {"ready": "green", "marked": "green", "not ready": "yellow"}


class TerminalShow(Show):
    """Tables and a progress bar."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(markup=False, emoji=False, highlight=False)

    def answered(self, answer: Answer) -> None:
        if answer.error is not None:
            return
        line = Text.assemble((f"{answer.status:9}", _COLOURS[answer.status]), " ", answer.spec.place)
        if answer.status == "not ready":
            line.append(f": {escape(answer.indicator)} is not there", "dim")
        self._console.print(line, soft_wrap=True)

    def previewed(self, spec: Spec, target: str, preview: Preview) -> None:
        table = _table(f"{spec.place} -> {escape(target)}")
        table.add_column(Text("size"), justify="right")
        table.add_column(Text("name"), overflow="fold")
        for file in preview.files:
            table.add_row(Text(decimal(file.size)), Text(escape(file.name)))
        for file in preview.refused:
            table.add_row(Text("refused", "yellow"), _why(file))
        self._console.print(table)
        self._console.print(
            f"{len(preview.files)} files, {decimal(preview.size)} would come, {len(preview.refused)} entries would be "
            f"refused. Nothing was written; {preview.trials}.",
            soft_wrap=True,
        )

    def staged(self, spec: Spec, target: str, report: StageReport | None, error: StageError | None) -> None:
        if report is None:
            return
        rows = [
            ("files", str(report.count)),
            ("bytes", decimal(report.bytes)),
            ("seconds", f"{report.seconds:.2f}"),
            ("rate", rate_of(report)),
            ("host key", escape(report.host_key or "")),
        ]
        if report.retries:
            rows.append(("retries", f"{report.retries}, {decimal(report.resumed_bytes)} not sent again"))
        table = _facts(f"{spec.place} -> {escape(target)}", rows)
        for file in report.failed:
            table.add_row(Text("not staged", "yellow"), _why(file))
        self._console.print(table)

    def swept(self, root: str, removed: list[str]) -> None:
        for path in removed:
            self._console.print(Text.assemble(("removed", "yellow"), " ", escape(path)), soft_wrap=True)
        self._console.print(f"{escape(root)}: {len(removed)} leftovers removed", soft_wrap=True)

    def found(self, finding: Finding) -> None:
        colour = {"ok": "green", "failed": "bold red", "skipped": "dim"}.get(finding.state, "yellow")
        line = Text.assemble((f"{finding.state:8}", colour), f"{finding.step:14}", escape(finding.seen))
        self._console.print(line, soft_wrap=True)
        for label, text in (("cause", finding.cause), ("remedy", finding.remedy)):
            if text:
                line = Text.assemble(" " * 8, (f"{label + ':':14}", "bold"), escape(text))
                self._console.print(line, soft_wrap=True)

    def examined(self, spec: Spec, findings: list[Finding], status: Exit) -> None:
        failed = [one.step for one in findings if one.state == "failed"]
        said = ("failed: " + ", ".join(failed), "bold red") if failed else ("all is well", "bold green")
        self._console.print(Text.assemble(f"{spec.place}: ", said), soft_wrap=True)

    def keys_seen(self, seen: list[Seen]) -> None:
        for one in seen:  # two lines each, as a fingerprint alone takes 50 columns
            good = one.error is None
            colour = "yellow" if good and one.state == "new" else "green" if good else "bold red"
            self._console.print(Text.assemble(escape(one.host), "  ", (one.remark, colour)), soft_wrap=True)
            if one.fingerprint:
                self._console.print(f"  {one.key_type} {one.fingerprint}", soft_wrap=True)

    def keys_settled(self, seen: list[Seen]) -> None:
        for one in seen:
            if one.added_to is not None:
                line = Text.assemble(("added", "green"), f" {escape(one.host)} to {escape(one.added_to)}")
                self._console.print(line, soft_wrap=True)

    def told(self, text: str) -> None:
        self._console.print(Text(text, "dim"), soft_wrap=True)

    def demonstrated(self, outcome: Outcome) -> None:
        good = not outcome.different
        table = _facts("demo", rows_of(outcome), {"SHA-256": "bold green" if good else "bold red"})
        self._console.print(table)

    @contextlib.contextmanager
    def progress(self) -> Iterator[OnProgress]:
        bar = Bar(
            TextColumn("{task.fields[files]}", markup=False),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        task = bar.add_task("", total=None, files="connecting")

        def tell(progress: Progress) -> None:
            total = "?" if progress.files_total is None else str(progress.files_total)
            bar.update(
                task,
                completed=progress.bytes_done,
                total=progress.bytes_total,
                files=f"{progress.files_done}/{total} files",
            )

        with bar:
            yield tell


def _table(title: str) -> Table:
    return Table(title=Text(title, "bold"), box=ROUNDED, title_justify="left")


def _facts(title: str, rows: Iterable[tuple[str, str]], colours: dict[str, str] | None = None) -> Table:
    table = _table(title)
    table.show_header = False
    table.add_column()
    table.add_column(overflow="fold")
    for label, value in rows:
        table.add_row(Text(label, "dim"), Text(value, (colours or {}).get(label, "")))
    return table


def _why(file: FileResult) -> Text:
    return Text(f"{escape(file.name)}: {escape(file.error or '')}")

"""The command as a whole: the verbs put together, and every way that a run can end."""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated

import typer

import peerstage
from peerstage.cli import demo, doctor, trust, verbs
from peerstage.cli.exits import Exit, code_of, explained
from peerstage.cli.show import complain
from peerstage.errors import StageError, escape

log = logging.getLogger("peerstage.cli")

_EPILOG = f"\b\nExit status (with several peers the highest):\n{explained()}"

app = typer.Typer(
    name="peerstage",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("check", epilog=_EPILOG)(verbs.check_verb)
app.command("stage", epilog=_EPILOG)(verbs.stage_verb)
app.command("mark", epilog=_EPILOG)(verbs.mark_verb)
app.command("sweep", epilog=_EPILOG)(verbs.sweep_verb)
app.command("trust", epilog=_EPILOG)(trust.trust_verb)
app.command("doctor", epilog=_EPILOG)(doctor.doctor_verb)
app.command("demo", epilog=_EPILOG)(demo.demo_verb)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"peerstage {peerstage.__version__}")
        raise typer.Exit


@app.callback(epilog=_EPILOG)
def _peerstage(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Stage the files that backup peers have collected, over SSH."""


def run(arguments: list[str]) -> int:
    """Run the command with *arguments* and return its exit status. Errors are one line on standard error."""
    _print_anything()
    try:
        status = app(arguments, prog_name="peerstage", standalone_mode=False)
        sys.stdout.flush()
    except Exception as exc:
        _give_up_unwritten()
        return _ended_by(exc)
    return int(status or 0)


def _ended_by(exc: Exception) -> int:
    usage = getattr(exc, "format_message", None)  # the parser's own errors: typer brings its click, or uses click's
    if usage is not None:
        print(f"peerstage: {escape(' '.join(usage().split()))} See peerstage --help.", file=sys.stderr)
        return Exit.USAGE
    if isinstance(exc, BrokenPipeError):  # whoever read our output has seen enough
        return Exit.UNEXPECTED
    if not isinstance(exc, (StageError, ValueError)):
        log.debug("A bug, or a problem of this machine.", exc_info=True)
    complain(exc)
    return code_of(exc)


def _give_up_unwritten() -> None:
    """Let go of output that can not be written, or the interpreter complains of it as it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_anything() -> None:
    """Names that the terminal's encoding can not show are shown by escapes."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")

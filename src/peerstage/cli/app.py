"""The command as a whole: the verbs put together, and every way that a run can end."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import sys
from collections.abc import Callable
from typing import Annotated

import typer

import peerstage
from peerstage.cli import demo, doctor, trust, verbs
from peerstage.cli.exits import Exit, code_of, explained, reason_of
from peerstage.cli.show import complain, print_error
from peerstage.errors import StageError

log = logging.getLogger("peerstage.cli")

_EPILOG = f"\b\nExit status (with several peers the highest):\n{explained()}"

app = typer.Typer(
    name="peerstage",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_VERBS: dict[str, Callable[..., int]] = {
    "check": verbs.check_verb,
    "stage": verbs.stage_verb,
    "mark": verbs.mark_verb,
    "sweep": verbs.sweep_verb,
    "trust": trust.trust_verb,
    "doctor": doctor.doctor_verb,
    "demo": demo.demo_verb,
}
for _name, _verb in _VERBS.items():
    app.command(_name, epilog=_EPILOG)(_verb)


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
        return _ended_by(exc, arguments)
    return int(status or 0)


def _ended_by(exc: Exception, arguments: list[str]) -> int:
    """Say why nothing was done, with ``--json`` as an object, too, and return the exit status."""
    if isinstance(exc, BrokenPipeError):  # whoever read our output has seen enough
        return Exit.UNEXPECTED
    usage = getattr(exc, "format_message", None)  # the parser's own errors: typer brings its click, or uses click's
    error = exc if usage is None else ValueError(" ".join(usage().split()))
    if reason_of(error) is None:
        log.debug("A bug, or a problem of this machine.", exc_info=exc)
    elif not isinstance(error, StageError):
        verb = next((word for word in arguments if word in _VERBS), "")
        error = ValueError(f"{str(error).rstrip('.')}. See {' '.join(filter(None, ('peerstage', verb, '--help')))}.")
    complain(error)
    if "--json" in itertools.takewhile(lambda word: word != "--", arguments):
        with contextlib.suppress(OSError):  # it cannot be written, which may be the error itself
            print_error(error)
    return code_of(error)


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

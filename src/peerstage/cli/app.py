"""The command ``peerstage``: its verbs, its help, and how a run ends."""

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
from peerstage.cli import demo, doctor, guide, init, prune, trust, verbs, verify
from peerstage.cli import run as run_module
from peerstage.cli.options import with_shared_options
from peerstage.cli.output import JSONOutput, OutputError, output_errors, print_error
from peerstage.cli.results import Failure
from peerstage.errors import StageError
from peerstage.exit_codes import ExitCode, code_of, format_exit_codes, reason_of
from peerstage.system_errors import system_error

log = logging.getLogger("peerstage.cli")

app = typer.Typer(
    name="peerstage",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
#: The verbs, each with an example.
_VERBS: dict[str, tuple[Callable[..., int], str]] = {
    "check": (verbs.check_verb, "backup@db1:/var/collect backup@db2:/var/collect"),
    "stage": (verbs.stage_verb, "--owner backup:backup backup@db1:/var/collect /srv/staging/db1"),
    "mark": (verbs.mark_verb, "backup@db1:/var/collect"),
    "init": (init.init_verb, "db1 db2 backup@web1:/srv/collect"),
    "run": (run_module.run_verb, "--quiet"),
    "prune": (prune.prune_verb, "--dry-run"),
    "verify": (verify.verify_verb, "/srv/staging/2026/11/23/db1"),
    "sweep": (verbs.sweep_verb, "/srv/staging"),
    "trust": (trust.trust_verb, "--fingerprints fingerprints.txt db1 db2:2222"),
    "doctor": (doctor.doctor_verb, "--local-user backup backup@db1:/var/collect"),
    "demo": (demo.demo_verb, "--small 1000"),
    "guide": (guide.guide_verb, "host-keys"),
}
for _name, (_verb, _example) in _VERBS.items():
    app.command(_name, epilog=f"Example: peerstage {_name} {_example}")(with_shared_options(_verb))


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        print(f"peerstage {peerstage.__version__}")
        raise typer.Exit


@app.callback(epilog=f"\b\nExit status (with several peers the highest):\n{format_exit_codes()}")
def _peerstage(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Stage the files that backup peers have collected, over SSH."""


def run(arguments: list[str]) -> int:
    """Run the command with *arguments* and return its exit status. Errors are one line on standard error."""
    _escape_unencodable_characters()
    try:
        status = app(arguments, prog_name="peerstage", standalone_mode=False)
        with output_errors():
            sys.stdout.flush()
    except Exception as exc:
        _discard_unwritten_output()
        return _report_error(exc, arguments)
    return int(status or 0)


def _report_error(exc: Exception, arguments: list[str]) -> int:
    """Print the error that ended the run, with ``--json`` also as an object, and return the exit status."""
    if isinstance(exc, BrokenPipeError):  # the reader of our output has gone
        return ExitCode.UNEXPECTED
    if isinstance(exc, OutputError):
        exc = system_error("Standard output cannot be written", exc)
    format_usage = getattr(exc, "format_message", None)  # an error of click, which typer may have a copy of
    error = exc if format_usage is None else ValueError(" ".join(format_usage().split()))
    if reason_of(error) is None:
        log.debug("A bug, or a problem of this machine.", exc_info=exc)
    elif not isinstance(error, StageError):
        verb = next((word for word in arguments if word in _VERBS), "")
        end = "" if str(error).endswith((".", "?")) else "."
        error = ValueError(f"{error}{end} See {' '.join(filter(None, ('peerstage', verb, '--help')))}.")
    print_error(error)
    if "--json" in itertools.takewhile(lambda word: word != "--", arguments):
        with contextlib.suppress(OSError):  # it cannot be written, which may be the error itself
            JSONOutput().show(Failure(error))
    return code_of(error)


def _discard_unwritten_output() -> None:
    """Discard output that cannot be written; the interpreter would complain about it at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _escape_unencodable_characters() -> None:
    """Print characters that the terminal's encoding lacks as escapes."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")

"""Print results: as text, or as JSON. The form for terminals is in `peerstage.cli.terminal`."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TypeAlias

from peerstage.cli.option_names import name_options
from peerstage.cli.results import Result
from peerstage.errors import PlanError, StageError
from peerstage.exit_codes import ExitCode, code_of, reason_of
from peerstage.guide import topic_for
from peerstage.printable import escape
from peerstage.records import Progress

OnProgress: TypeAlias = Callable[[Progress], object]


class OutputError(OSError):
    """Standard output cannot be written, for instance because a disk is full."""


@contextlib.contextmanager
def output_errors() -> Iterator[None]:
    """Raise every `OSError` of the block as `OutputError`, except that of a pipe whose reader has gone."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as exc:
        raise OutputError(exc.errno, exc.strerror) from exc


class Output(ABC):
    """Prints results on standard output."""

    #: Whether a person reads it, who may be asked a question.
    is_for_people = True

    @abstractmethod
    def show(self, result: Result) -> None:
        """Print *result*."""

    def progress(self, beginning: str = "connecting") -> AbstractContextManager[OnProgress | None]:
        """Return a context manager for a callback that shows progress; None where none is shown.

        Args:
            beginning: What is shown until the first call.
        """
        return contextlib.nullcontext()

    def status(self, text: str) -> AbstractContextManager[Callable[[str], object]]:
        """Return a context manager for a function that replaces *text*, a line about what is under way."""
        return contextlib.nullcontext(lambda text: None)


class PlainOutput(Output):
    """Lines of text, for files and pipes."""

    def show(self, result: Result) -> None:
        for line in result.to_lines():
            text = "".join(part if isinstance(part, str) else part[0] for part in line)
            with output_errors():
                print(text.rstrip(), flush=True)


class JSONOutput(Output):
    """JSON objects, one per line."""

    is_for_people = False

    def show(self, result: Result) -> None:
        for value in result.to_json():
            with output_errors():
                print(json.dumps(value).replace("\x7f", "\\u007f"), flush=True)


def print_error(error: BaseException, peer: str = "") -> None:
    """Print one line on standard error: what failed, and on which *peer* unless *error* names it itself.

    An invalid plan has a line for each of its problems.
    """
    if isinstance(error, PlanError):
        for problem in error.problems:
            print(f"peerstage: {escape(error.path or 'plan')}: {problem}", file=sys.stderr, flush=True)
        print("peerstage: See: peerstage guide plan", file=sys.stderr, flush=True)
        return
    text = str(error)
    if code_of(error) is ExitCode.UNEXPECTED:
        text = f"unexpected error: {type(error).__name__}: {text}"
    if peer and not isinstance(error, StageError):
        text = f"{peer}: {text}"
    topic = topic_for(reason_of(error))
    if topic is not None:
        text = f"{text} See: peerstage guide {topic}"
    print(f"peerstage: {escape(name_options(text))}", file=sys.stderr, flush=True)


def log_to_stderr(*, verbose: bool) -> None:
    """Log to standard error: warnings, or with *verbose* everything but paramiko's records.

    Without *verbose*, what ``run`` prints about each peer at its end is not logged.
    """
    left_out = {"peerstage.ssh.paramiko"} if verbose else {"peerstage.ssh.paramiko", "peerstage.fleet.results"}
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(lambda record: record.name not in left_out)
    handler.setFormatter(_OneLineFormatter("peerstage: %(message)s" if not verbose else "%(name)s: %(message)s"))
    logger = logging.getLogger("peerstage")
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(logging.DEBUG if verbose else logging.WARNING)


def log_only_errors() -> None:
    """Log errors alone from now on, unless everything is logged."""
    logger = logging.getLogger("peerstage")
    if logger.level > logging.DEBUG:
        logger.setLevel(logging.ERROR)


class _OneLineFormatter(logging.Formatter):
    """Formats a message as one printable line; a traceback keeps its lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return escape(name_options(super().formatMessage(record)))

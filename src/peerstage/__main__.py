"""The command ``peerstage``, also ``python -m peerstage``."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator

from peerstage.cli.signals import Interrupted, end_by_signal, raise_on_signal

#: The modules of the extra ``cli``.
_EXTRA = frozenset({"typer", "rich", "click"})


def main() -> int:
    """Run the command in ``sys.argv`` and return its exit status; die by the signal that interrupted it."""
    try:
        with raise_on_signal():
            return _run(sys.argv[1:])
    except Interrupted as exc:
        end_by_signal(exc.signum)
        return 128 + exc.signum


def _run(arguments: list[str]) -> int:
    try:
        with _quick_imports():
            import rich  # noqa: F401  (used on terminals only; requiring it everywhere is easier to understand)

            from peerstage.cli.app import run
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] not in _EXTRA:
            raise
        if arguments[:1] == ["guide"]:
            return _print_guide(arguments[1:])
        sys.stderr.write("peerstage: the command line needs an extra: pip install 'peerstage[cli]'\n")
        return 2
    return run(arguments)


@contextlib.contextmanager
def _quick_imports() -> Iterator[None]:
    """Import the modules of the command in two thirds of the time."""
    sys.modules.setdefault("invoke", None)  # type: ignore[arg-type]  # optional for paramiko, half of its import time
    if "peerstage.cli.app" in sys.modules:
        yield
        return
    gc.disable()  # it would look at everything again and again while it is imported
    try:
        yield
    finally:
        gc.freeze()  # modules live as long as the process
        gc.enable()


def _print_guide(arguments: list[str]) -> int:
    """Print a page without the extra: it may be the page that explains how to install it."""
    from peerstage.guide import read_page, render_plain

    try:
        page = read_page(next((word for word in arguments if not word.startswith("-")), None))
    except ValueError as exc:
        sys.stderr.write(f"peerstage: {exc}\n")
        return 2
    sys.stdout.write(page if "--raw" in arguments else render_plain(page))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The command ``peerstage``, also ``python -m peerstage``."""

from __future__ import annotations

import sys

from peerstage.cli.signals import Interrupted, end_by, raising

#: The modules that the extra ``cli`` brings.
_EXTRA = frozenset({"typer", "rich", "click"})


def main() -> int:
    """Run the command that ``sys.argv`` holds and return its exit status; end by the signal that interrupted it."""
    try:
        with raising():
            return _run(sys.argv[1:])
    except Interrupted as exc:
        end_by(exc.signum)
        return 128 + exc.signum


def _run(arguments: list[str]) -> int:
    try:
        import rich  # noqa: F401  (needed on terminals alone; missing everywhere is easier to understand)

        from peerstage.cli.app import run
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] not in _EXTRA:
            raise
        sys.stderr.write("peerstage: the command line needs an extra: pip install 'peerstage[cli]'\n")
        return 2
    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())

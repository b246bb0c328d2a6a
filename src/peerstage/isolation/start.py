"""Where a child begins: run as a script by ``python -I -S``, before anything of this package can be imported by name.

usage: start.py PACKAGE [DIRECTORY...]

The package is the parent's own, wherever it lies; what it needs is found where the parent finds it, behind the standard
library. No PYTHONPATH, no user site, no current directory, no code of a site has a part in it.
"""

from __future__ import annotations

import importlib.util
import os
import sys


def main() -> None:
    """Find the package, and leave the rest to it."""
    package, *directories = sys.argv[1:]
    sys.modules["invoke"] = None  # type: ignore[assignment]  # paramiko can do without, and a quarter of its time goes there
    sys.path.extend(directories)
    spec = importlib.util.spec_from_file_location(
        "peerstage", os.path.join(package, "__init__.py"), submodule_search_locations=[package]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"No package in {package}")
    module = importlib.util.module_from_spec(spec)
    sys.modules["peerstage"] = module
    spec.loader.exec_module(module)

    from peerstage.isolation.child import main as run

    run()


if __name__ == "__main__":
    main()

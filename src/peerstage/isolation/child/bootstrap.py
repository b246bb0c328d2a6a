"""Entry point of a child: run as a script by ``python -I -S``, before the package can be imported by name.

usage: bootstrap.py PACKAGE [DIRECTORY...]

The package is the parent's own, wherever it is installed. Its dependencies are found in the parent's directories, which
follow the standard library. PYTHONPATH, the user site, the current directory and ``sitecustomize`` are not used.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import sys


def main() -> None:
    """Load the package and run the child."""
    gc.disable()  # it would look at everything again and again while it is imported
    package, *directories = sys.argv[1:]
    sys.modules["invoke"] = None  # type: ignore[assignment]  # optional for paramiko, and a quarter of its import time
    sys.path.extend(directories)
    spec = importlib.util.spec_from_file_location(
        "peerstage", os.path.join(package, "__init__.py"), submodule_search_locations=[package]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"No package in {package}")
    module = importlib.util.module_from_spec(spec)
    sys.modules["peerstage"] = module
    spec.loader.exec_module(module)

    from peerstage.isolation.child.main import main as run

    run()


if __name__ == "__main__":
    main()

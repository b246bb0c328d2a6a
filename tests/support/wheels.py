"""Wheels of peerstage and its dependencies for the Python of a container; built once per state of the sources."""

from __future__ import annotations

import hashlib
import shutil
import sys
from pathlib import Path

from support.containers import Container
from support.engine import ROOT, CommandRunner

#: The extra of peerstage that a master needs.
_EXTRA = "fleet"
#: Further packages that the containers run.
_OTHERS = ("cedar-backup3>=3.12",)


def make_wheels(container: Container, cache: Path, commands: CommandRunner) -> Path:
    """Return a directory with the wheels.

    Args:
        container: Has the Python that the wheels are for.
        cache: Holds the directory, for later runs too.
        commands: Runs pip.
    """
    digest = hashlib.sha256(repr((_EXTRA, _OTHERS)).encode())
    sources = (path for path in (ROOT / "src").rglob("*") if path.suffix in (".py", ".md", ".svg"))
    for path in sorted([ROOT / "pyproject.toml", ROOT / "README.md", *sources]):
        digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    folder = cache / digest.hexdigest()[:12]
    if not folder.exists():
        shutil.rmtree(cache, ignore_errors=True)
        unfinished = cache / "unfinished"
        query = "import platform as p; print(p.python_version(), p.machine(), p.libc_ver()[1])"
        version, machine, libc = container.execute("python3", "-c", query).decode().split()
        minors = range(17, int(libc.split(".")[1]) + 1)
        platforms = [f"manylinux2014_{machine}", *(f"manylinux_2_{minor}_{machine}" for minor in minors)]
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        commands.run([*pip, "wheel", "--no-deps", "--wheel-dir", unfinished, ROOT])
        ours = next(unfinished.glob("peerstage-*.whl"))
        platform_options = [word for one in platforms for word in ("--platform", one)]
        compatible = ["--only-binary=:all:", "--python-version", version.rpartition(".")[0], *platform_options]
        commands.run([*pip, "download", "--dest", unfinished, *compatible, f"{ours}[{_EXTRA}]", *_OTHERS])
        unfinished.rename(folder)
    return folder

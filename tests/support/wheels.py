"""Our wheel and those of what it needs, for the Python of a container; made once for each state of the sources."""

from __future__ import annotations

import hashlib
import shutil
import sys
from pathlib import Path

from support.containers import Container
from support.engine import ROOT, Commands

#: What the containers run beside us.
_OTHERS = ("cedar-backup3>=3.12",)


def make_wheels(container: Container, kept: Path, commands: Commands) -> Path:
    """Return a directory with the wheels.

    Args:
        container: It has the Python.
        kept: Where the directory is made, and kept for the next run.
        commands: Runs pip.
    """
    digest = hashlib.sha256(repr(_OTHERS).encode())
    for path in sorted([ROOT / "pyproject.toml", ROOT / "README.md", *(ROOT / "src").rglob("*.py")]):
        digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    folder = kept / digest.hexdigest()[:12]
    if not folder.exists():
        shutil.rmtree(kept, ignore_errors=True)
        making = kept / "making"
        question = "import platform as p; print(p.python_version(), p.machine(), p.libc_ver()[1])"
        version, machine, libc = container.execute("python3", "-c", question).decode().split()
        minors = range(17, int(libc.split(".")[1]) + 1)
        platforms = [f"manylinux2014_{machine}", *(f"manylinux_2_{minor}_{machine}" for minor in minors)]
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        commands.run([*pip, "wheel", "--no-deps", "--wheel-dir", making, ROOT])
        ours = next(making.glob("peerstage-*.whl"))
        only = [word for one in platforms for word in ("--platform", one)]
        suits = ["--only-binary=:all:", "--python-version", version.rpartition(".")[0], *only]
        commands.run([*pip, "download", "--dest", making, *suits, ours, *_OTHERS])
        making.rename(folder)
    return folder

"""Run the tests in this folder against another version of paramiko, whatever the requirement in pyproject.toml says.

usage: python tests/ssh/_paramiko/against.py VERSION [argument of pytest ...]

Makes a virtual environment in a temporary directory. If the tests pass with a new version, raise the bound in
pyproject.toml and `TESTED_VERSIONS` in src/peerstage/ssh/_paramiko/self_check.py.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

FOLDER = Path(__file__).parent
PROJECT = FOLDER.parents[2]


def main(version: str, *arguments: str) -> int:
    with tempfile.TemporaryDirectory(prefix="peerstage-paramiko-") as directory:
        venv.create(directory, with_pip=True)
        python = Path(directory, "bin", "python")
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*install, "--editable", f"{PROJECT}[test]"], check=True)
        subprocess.run([*install, f"paramiko=={version}"], check=True)  # pip reports the conflict, and installs it
        pytest = [python, "-m", "pytest", "-p", "no:cacheprovider", str(FOLDER), *arguments]
        return subprocess.run(pytest, cwd=PROJECT, check=False).returncode


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))

"""The house rules, in the same command as everything else: types, style, layers, sizes, what may stand in the tree."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "peerstage"
BIN = Path(sys.executable).parent


def run(*command: str) -> str:
    """Run a tool of this environment in the repository; its complaints are the test's."""
    done = subprocess.run([str(BIN / command[0]), *command[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("version", ["3.10", "3.13"])
def test_types_are_strict_on_the_oldest_and_the_newest_python(version: str) -> None:
    run("mypy", "--strict", "--python-version", version, "src", "tests/typed_script.py")


def test_lint_is_clean() -> None:
    run("ruff", "check", "src", "tests")


def test_format_is_clean() -> None:
    run("ruff", "format", "--check", "src", "tests")


def test_a_room_imports_only_rooms_below_it() -> None:
    assert "0 broken" in run("lint-imports")


def test_modules_are_small() -> None:
    sizes = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in SOURCE.rglob("*.py")}
    assert {path: size for path, size in sizes.items() if size > 400} == {}
    assert sorted(sizes.values())[len(sizes) // 2] <= 175


def test_every_room_says_what_it_is() -> None:
    for path in SOURCE.rglob("*.py"):
        text = path.read_text()
        assert not text or text.startswith('"""'), path


def test_nothing_in_the_source_is_left_for_later() -> None:
    pattern = re.compile(r"NotImplementedError|\b(TODO|FIXME|XXX)\b|^\s*assert\b", re.MULTILINE)
    found = [
        str(path.relative_to(ROOT))
        for path in SOURCE.rglob("*.py")
        if path.parent.name != "testing" and pattern.search(path.read_text())
    ]
    assert found == []


#: Tests that forget something, each of them another kind of thing.
FORGETFUL = """
import socket, subprocess, sys, threading

def test_socket():
    socket.socket()

def test_file():
    open(__file__)

def test_process():
    subprocess.Popen([sys.executable, "-c", ""])

def test_thread():
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()

def test_nothing():
    pass
"""


@pytest.mark.usefixtures("fresh_interpreter")
def test_what_a_test_leaves_open_fails_it(tmp_path: Path) -> None:
    (tmp_path / "test_forgetful.py").write_text(FORGETFUL)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", ROOT / "pyproject.toml"]
    done = subprocess.run([*command, "--rootdir", tmp_path, tmp_path], capture_output=True, text=True, check=False)
    failed = re.findall(r"^FAILED .*::test_(\w+)", done.stdout, re.MULTILINE)
    assert failed == ["socket", "file", "process", "thread"], done.stdout
    assert "1 passed" in done.stdout


def test_no_test_is_skipped_or_expected_to_fail() -> None:
    pattern = re.compile(r"pytest\.skip\(|mark\.skip|mark\.xfail|importorskip")
    found = [path.name for path in (ROOT / "tests").rglob("*.py") if pattern.search(path.read_text())]
    assert [name for name in found if name != Path(__file__).name] == []

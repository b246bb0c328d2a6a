"""The rules for the files of this repository: types, style, layers, sizes, documentation and language."""

from __future__ import annotations

import ast
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.import_graph import find_cycles, import_graph

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "peerstage"
BIN = Path(sys.executable).parent


def run(*command: str) -> str:
    """Run a tool of this environment in the repository; fail with its output."""
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


def test_a_layer_imports_only_the_layers_below_it() -> None:
    assert "0 broken" in run("lint-imports")


def test_the_top_level_holds_nothing_but_what_belongs_there() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    top = {path.partition("/")[0] for path in listed.split("\0") if path}
    belongs = {"CHANGELOG.md", "LICENSE", "README.md", "docker", "pyproject.toml", "src", "tests"}
    assert {name for name in top if not name.startswith(".")} == belongs


def test_modules_are_small() -> None:
    sizes = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in SOURCE.rglob("*.py")}
    assert {path: size for path, size in sizes.items() if size > 400} == {}
    assert sorted(sizes.values())[len(sizes) // 2] <= 175


def test_no_modules_import_each_other() -> None:
    """Imports for type checking alone count too: modules that need each other are really one."""
    assert find_cycles(import_graph(SOURCE)) == []


def test_a_cycle_is_found_whatever_kind_of_import_makes_it(tmp_path: Path) -> None:
    package = tmp_path / "package"
    (package / "sub").mkdir(parents=True)
    (package / "__init__.py").write_text("import os\n")
    (package / "sub" / "__init__.py").write_text("")
    (package / "a.py").write_text("from package.sub import b\n")
    (package / "sub" / "b.py").write_text("if TYPE_CHECKING:\n    from ..c import C\n")
    (package / "c.py").write_text("def f():\n    import package.a\n")
    (package / "d.py").write_text("from package.a import x\n")
    assert find_cycles(import_graph(package)) == [["package.a", "package.c", "package.sub.b"]]


# Documentation

#: Declarations of what another package defines and documents.
DECLARATIONS = {SOURCE / "ssh" / "_paramiko" / "internals.py"}


@dataclass
class Definition:
    """A public class, function or method.

    Attributes:
        where: Its file and line.
        name: Its name.
        is_documented: Whether it has a docstring.
        may_inherit: Whether it is in a class with a base.
        attributes: The annotated attributes of a class with a docstring, which describes them.
    """

    where: str
    name: str
    is_documented: bool
    may_inherit: bool
    attributes: list[str]


def public_definitions(path: Path, tree: ast.Module) -> Iterator[Definition]:
    """Yield the public classes, functions and methods of a module."""

    def definition(node: ast.ClassDef | ast.FunctionDef, *, may_inherit: bool = False) -> Definition:
        where = f"{path.relative_to(ROOT)}:{node.lineno}: {node.name}"
        return Definition(where, node.name, bool(ast.get_docstring(node)), may_inherit, attributes(node))

    for node in tree.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_"):
            yield definition(node)
            for method in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
                    yield definition(method, may_inherit=bool(node.bases))


def test_every_public_name_is_documented() -> None:
    """A method that overrides one of a base class inherits its documentation."""
    definitions: list[Definition] = []
    without_docstring = []
    for path in sorted(SOURCE.rglob("*.py")):
        tree = ast.parse(path.read_text())
        definitions += [] if path in DECLARATIONS else public_definitions(path, tree)
        without_docstring += [path] if tree.body and not ast.get_docstring(tree) else []
    documented = {one.name for one in definitions if one.is_documented} | set(dir(logging.Handler))
    documented |= {name for one in definitions for name in one.attributes}
    undocumented = [
        one.where
        for one in definitions
        if not one.is_documented and not (one.may_inherit and one.name in documented)
        if not one.name.startswith("test_")
    ]
    assert undocumented == []
    assert without_docstring == []


def attributes(node: ast.ClassDef | ast.FunctionDef) -> list[str]:
    """Return the annotated attributes of a class; its docstring describes them."""
    body = node.body if isinstance(node, ast.ClassDef) and ast.get_docstring(node) else []
    return [item.target.id for item in body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)]


# Language

#: Regular expressions for words to avoid, by the advice. Brackets keep this file from matching.
FORBIDDEN = {
    "write it as one word": r"[Cc]an[ ]not",
    "say it in plain words": (
        r"\b(a[n]ew|mea[n]while|me[n]ds?|gone o[n] with|passed ove[r]|taken fo[r])\b"
        r"|(?<![Tt]here )\bis no[n]e\b|\b(hold|holds|held)( \w+)? agains[t]\b"
    ),
    "say the reason itself": r"\b(PARIT[Y]|HOUS[E]|TRUS[T]|SPEE[D]|FLEE[T])\b",
}


def text_files() -> Iterator[Path]:
    for pattern in ("src/**/*.py", "src/**/*.md", "tests/**/*", "docker/**/*", "README.md", "CHANGELOG.md"):
        for path in sorted(ROOT.glob(pattern)):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path


def unwrapped(path: Path) -> str:
    """Return a file as one line, without the marks of comments, so that a phrase is found across lines and in names."""
    text = re.sub(r"\s*\n\s*(?:#:?\s+)?", " ", path.read_bytes().decode("utf-8", "replace"))
    return re.sub(r"(?<=[a-z])_(?=[a-z])", " ", text)


def test_the_language_is_plain() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {text[max(0, match.start() - 30) : match.end() + 30]}: {advice}"
        for path in text_files()
        for text in (unwrapped(path),)
        for advice, pattern in FORBIDDEN.items()
        for match in re.finditer(pattern, text)
    ]
    assert found == []


def test_no_test_file_is_named_after_a_design_document() -> None:
    assert [path.name for path in (ROOT / "tests").rglob("*.py") if "house" in path.name] == []


def test_the_source_has_no_unfinished_code() -> None:
    pattern = re.compile(r"NotImplementedError|\b(TODO|FIXME|XXX)\b|^\s*assert\b", re.MULTILINE)
    found = [
        str(path.relative_to(ROOT))
        for path in SOURCE.rglob("*.py")
        if path.parent.name != "testing" and path not in DECLARATIONS and pattern.search(path.read_text())
    ]
    assert found == []


#: Tests that each leak another kind of resource, and one that leaks nothing.
LEAKING_TESTS = """
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
def test_a_test_that_leaks_fails(tmp_path: Path) -> None:
    (tmp_path / "test_leaks.py").write_text(LEAKING_TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", ROOT / "pyproject.toml"]
    done = subprocess.run([*command, "--rootdir", tmp_path, tmp_path], capture_output=True, text=True, check=False)
    failed = re.findall(r"^FAILED .*::test_(\w+)", done.stdout, re.MULTILINE)
    assert failed == ["socket", "file", "process", "thread"], done.stdout
    assert "1 passed" in done.stdout


def test_no_test_is_skipped_or_expected_to_fail() -> None:
    pattern = re.compile(r"pytest\.skip\(|mark\.skip|mark\.xfail|importorskip")
    found = [path.name for path in (ROOT / "tests").rglob("*.py") if pattern.search(path.read_text())]
    assert [name for name in found if name != Path(__file__).name] == []

"""The imports between the modules of a package, wherever they stand: at the top, in a function, or for types only."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path


def import_graph(package: Path) -> dict[str, set[str]]:
    """Return the modules of *package*, each with the modules of the package that it imports."""
    paths = {_module_name(path, package): path for path in package.rglob("*.py")}
    return {
        name: {target for target in _imported_names(path, name) if target in paths and target != name}
        for name, path in ((name, path) for name, path in paths.items())
    }


def find_cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the groups of modules that import each other, directly or through others (Tarjan's algorithm)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    cycles: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for target in sorted(graph[module]):
            if target not in index:
                visit(target)
                low[module] = min(low[module], low[target])
            elif target in stack:
                low[module] = min(low[module], index[target])
        if low[module] == index[module]:
            at = stack.index(module)
            if len(stack) - at > 1:
                cycles.append(sorted(stack[at:]))
            del stack[at:]

    for module in sorted(graph):
        if module not in index:
            visit(module)
    return cycles


def _module_name(path: Path, package: Path) -> str:
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported_names(path: Path, module: str) -> Iterator[str]:
    """Yield the modules that a module imports; ``from a import b`` imports ``a.b`` if that is a module, else ``a``."""
    base = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in _statements(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = [*(base[: len(base) - node.level + 1] if node.level else []), *(node.module or "").split(".")]
            source = ".".join(filter(None, origin))
            submodules = {alias.name for alias in node.names if _is_module(path, module, f"{source}.{alias.name}")}
            yield from (f"{source}.{name}" for name in submodules)
            if len(submodules) < len(node.names):
                yield source


def _statements(node: ast.AST) -> Iterator[ast.stmt]:
    """Yield the statements of a module at any depth, without a look into their expressions."""
    for block in ("body", "orelse", "finalbody", "handlers", "cases"):
        inner = getattr(node, block, ())
        for one in inner if isinstance(inner, list) else ():  # the body of a lambda is an expression
            if isinstance(one, ast.stmt):
                yield one
            yield from _statements(one)


def _is_module(path: Path, module: str, name: str) -> bool:
    """Return whether *name* is a module, seen from the file *path* of *module*."""
    depth = len(module.split(".")) - (0 if path.name == "__init__.py" else 1)
    root = path.parents[depth]
    file = root.joinpath(*name.split("."))
    return file.with_suffix(".py").is_file() or (file / "__init__.py").is_file()

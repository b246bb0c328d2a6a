"""Only ssh/_paramiko uses what paramiko does not publish, and only what `internals` declares."""

from __future__ import annotations

import ast
import inspect
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import paramiko
import pytest
from paramiko.auth_handler import AuthOnlyHandler
from paramiko.buffered_pipe import BufferedPipe
from paramiko.transport import ChannelMap

import peerstage
from peerstage.ssh._paramiko import internals

SOURCE = Path(peerstage.__file__).parent
PACKAGE = SOURCE / "ssh" / "_paramiko"
#: Modules of paramiko with a page in its documentation.
PUBLISHED = {"paramiko", "paramiko.message", "paramiko.ssh_exception"}
#: Message numbers of RFC 4250; each import fails if one is gone.
NUMBERS = {"paramiko.common"}
#: Names of ours that a class of paramiko happens to have, too.
OURS = {"_buffer", "_log", "get"}
#: Declared names that other code uses for things of its own, or that paramiko documents.
COMMON = {"active", "closed", "lock", "logger", "sock", "transport", "username"}

KINDS = [kind for name, kind in vars(internals).items() if name.endswith("Internals")]
ATTRIBUTES = {name for kind in KINDS for name in kind.__annotations__}
METHODS = {name for kind in KINDS for name in vars(kind) if not name.startswith("__")}
DECLARED = ATTRIBUTES | METHODS


@pytest.fixture(scope="module")
def unpublished() -> set[str]:
    """The names of attributes, of private methods, and of methods without documentation, of paramiko's classes."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        transport = paramiko.Transport(ours)
        handler = AuthOnlyHandler(transport)
        objects = (transport, transport.packetizer, paramiko.Channel(0), handler, ChannelMap(), BufferedPipe())
        return {name for one in objects for name in unpublished_members(one)}


def unpublished_members(one: object) -> Iterator[str]:
    yield from vars(one)
    for name in dir(type(one)):
        member = inspect.getattr_static(type(one), name)
        is_documented = bool(inspect.getdoc(member)) if inspect.isfunction(member) else isinstance(member, property)
        if not name.startswith("__") and (name.startswith("_") or not is_documented):
            yield name


def sources(*, inside: bool) -> list[Path]:
    """Return our modules in the package, or all others."""
    return [path for path in sorted(SOURCE.rglob("*.py")) if (path.parent == PACKAGE) is inside]


def attributes(path: Path, names: str = "") -> Iterator[tuple[str, str]]:
    """Yield every attribute that is used in a module and, if given, matches *names*; and where."""
    text = path.read_text()
    for node in ast.walk(ast.parse(text)) if re.search(names, text) else ():
        if isinstance(node, ast.Attribute) and re.search(names, node.attr):
            yield node.attr, f"{path.relative_to(SOURCE)}:{node.lineno} {ast.unparse(node)}"


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """Yield every module of paramiko that is imported, and where."""
    text = path.read_text()
    for node in ast.walk(ast.parse(text)) if "paramiko" in text else ():
        modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        yield from ((name, f"{path.relative_to(SOURCE)}: {name}") for name in modules if name.startswith("paramiko"))


def test_whatever_the_package_uses_and_paramiko_does_not_publish_is_declared(unpublished: set[str]) -> None:
    checked = [path for path in sources(inside=True) if path.name not in ("internals.py", "self_check.py")]
    used = [use for path in checked for use in attributes(path)]
    assert len(used) > 500
    undeclared = [where for name, where in used if name in unpublished and name not in DECLARED | OURS]
    assert undeclared == []


def test_whatever_is_declared_is_used_or_replaced() -> None:
    modules = [path for path in sources(inside=True) if path.name != "internals.py"]
    used = {name for path in modules for name, _ in attributes(path)}
    nodes = (node for path in modules for node in ast.walk(ast.parse(path.read_text())))
    replaced = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    assert DECLARED - used - replaced == set()


def test_no_other_module_uses_it() -> None:
    private = (ATTRIBUTES | {name for name in METHODS if name.startswith("_")}) - COMMON - OURS
    names = rf"\b({'|'.join(private)})\b"
    assert [where for path in sources(inside=False) for _, where in attributes(path, names)] == []
    assert [where for path in sources(inside=True) for _, where in attributes(path, names)] != []


def test_only_internals_imports_modules_that_paramiko_does_not_document() -> None:
    inside = [use for path in sources(inside=True) if path.name != "internals.py" for use in imports(path)]
    assert [where for name, where in inside if name not in PUBLISHED | NUMBERS] == []
    outside = [use for path in sources(inside=False) for use in imports(path)]
    assert [where for name, where in outside if name not in PUBLISHED] == []


@pytest.mark.parametrize("name", ["_expected_packet", "global_response", "_build_packet", "out_window_size"])
def test_a_name_that_is_not_declared_would_be_found(unpublished: set[str], name: str) -> None:
    assert name in unpublished - DECLARED - OURS


def test_documented_methods_may_be_used_without_declaration(unpublished: set[str]) -> None:
    assert {"is_active", "start_client", "recv", "get_security_options"}.isdisjoint(unpublished)

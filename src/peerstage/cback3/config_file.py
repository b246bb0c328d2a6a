"""Read cback3's configuration file: the attributes that a stage needs of the object that cback3 itself makes of it.

cback3 need not be installed. CedarBackup2 has the same format.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from xml.dom import minidom
from xml.parsers import expat

from peerstage.bounded_files import read_regular_file
from peerstage.errors import ConfigurationError, Location
from peerstage.printable import escape
from peerstage.reasons import Reason

_MAX_BYTES = 4 * 1024 * 1024
#: Elements of each section, by the attributes of cback3's objects.
_OPTIONS = {
    "startingDay": "starting_day",
    "workingDir": "working_dir",
    "backupUser": "backup_user",
    "backupGroup": "backup_group",
    "rcpCommand": "rcp_command",
}
_LOCAL = {"name": "name", "collectDir": "collect_dir", "ignoreFailureMode": "ignore_failures"}
_REMOTE = {**_LOCAL, "remoteUser": "backup_user", "rcpCommand": "rcp_command"}


def read_config(path: str) -> SimpleNamespace:
    """Return the sections ``options``, ``stage`` and ``peers`` of the file *path*; None for a section that is missing.

    Raises:
        ConfigurationError: If the file cannot be read, is larger than 4 MiB, is not XML, or has a document type
            declaration, which could define entities.
    """
    try:
        data = read_regular_file(path, _MAX_BYTES)
    except OSError as exc:
        raise ConfigurationError(
            f"It cannot be read: {exc.strerror}.", path=path, reason=Reason.CONFIGURATION_UNREADABLE
        ) from exc
    root = _first(_parse(data, path), "cb_config")
    if root is None:
        raise ConfigurationError("It is not a configuration of cback3: <cb_config> is missing.", path=path)
    options, stage, peers = (_first(root, name) for name in ("options", "stage", "peers"))
    return SimpleNamespace(
        options=None if options is None else SimpleNamespace(**_texts(options, _OPTIONS)),
        stage=None if stage is None else _peers_of(stage, targetDir=_text(stage, "staging_dir")),
        peers=None if peers is None else _peers_of(peers),
    )


def _parse(data: bytes, path: str) -> minidom.Document:
    """Return the document in *data*, in which no entity is defined."""

    def refuse_doctype(*_: object) -> None:
        raise ConfigurationError("It has a document type declaration. Remove the line <!DOCTYPE ...>.", path=path)

    checker = expat.ParserCreate()
    checker.StartDoctypeDeclHandler = refuse_doctype
    try:
        checker.Parse(data, True)
        return minidom.parseString(data)  # noqa: S318  (without a DOCTYPE there is nothing to expand)
    except (expat.ExpatError, ValueError, LookupError) as exc:  # also an encoding that Python does not know
        location = Location(path, getattr(exc, "lineno", 0))
        raise ConfigurationError(f"It is not XML: {escape(str(exc))}.", path=path, location=location) from exc


def _peers_of(section: minidom.Element, **more: Any) -> SimpleNamespace:
    """Return the peers of a section, or None where it has none of a type, as cback3 does."""
    peers: dict[str | None, list[SimpleNamespace]] = {"local": [], "remote": []}
    for element in _children(section, "peer"):
        kind = _text(element, "type")
        if kind in peers:
            peers[kind].append(SimpleNamespace(**_texts(element, _LOCAL if kind == "local" else _REMOTE)))
    return SimpleNamespace(localPeers=peers["local"] or None, remotePeers=peers["remote"] or None, **more)


def _children(parent: minidom.Node, name: str) -> list[minidom.Element]:
    return [node for node in parent.childNodes if node.nodeType == minidom.Node.ELEMENT_NODE and node.tagName == name]


def _first(parent: minidom.Node, name: str) -> minidom.Element | None:
    return next(iter(_children(parent, name)), None)


def _texts(section: minidom.Element, elements: dict[str, str]) -> dict[str, str | None]:
    return {attribute: _text(section, element) for attribute, element in elements.items()}


def _text(section: minidom.Element, name: str) -> str | None:
    """Return the first text in the elements *name*, spaces included; None if none has a text."""
    texts = (
        child.nodeValue
        for element in _children(section, name)
        for child in element.childNodes
        if child.nodeType == minidom.Node.TEXT_NODE
    )
    return next(texts, None)

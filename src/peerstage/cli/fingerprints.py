"""A list of fingerprints that somebody has from the hosts themselves, to compare with what the hosts show."""

from __future__ import annotations

import base64
import re
import sys
from typing import NamedTuple

from peerstage.errors import HostKeyError, escape
from peerstage.session.files import read_regular
from peerstage.session.known_hosts import KnownHosts, fingerprint, line_type, lookup_name

#: Bytes that a list may hold.
MAX_BYTES = 16 * 1024 * 1024
#: The path that means standard input.
STDIN = "-"
_NAMED = re.compile(r"(?P<names>[^\s#]\S*)\s+(?P<fingerprint>SHA256:[A-Za-z0-9+/]{43})(?:\s.*)?")
_KEYGEN = re.compile(r"\d+ (?P<fingerprint>SHA256:[A-Za-z0-9+/]{43}) (?P<comment>.*) \([A-Z0-9-]+\)")
#: What ssh-keygen prints for a key without a comment.
_NO_COMMENT = "no comment"

Names = list[tuple[str, int]]


class Listing(NamedTuple):
    """What a list says about a key that a host shows.

    Attributes:
        is_listed: Whether the list confirms that the host has the key.
        name: The other name that the list has the key under; empty if it is the host's own, or if there is no such key.
    """

    is_listed: bool
    name: str = ""


class Fingerprints:
    """Fingerprints by host. Made by `read`."""

    def __init__(self, lines: list[_Line], known: KnownHosts) -> None:
        self._lines = lines
        self._known = known

    @classmethod
    def read(cls, path: str) -> Fingerprints:
        """Read the list in the file *path*, or on standard input. Each line is empty, a comment, or:

        - ``HOST SHA256:...``: several hosts have commas between, and a port is written as ``[HOST]:PORT``;
        - what ``ssh-keygen -lf`` prints, where the comment may be, or end with, ``HOST`` or ``USER@HOST``;
        - what ``ssh-keyscan`` prints, or any other line of a known_hosts file.

        Raises:
            ValueError: If it cannot be read, or a line is none of these.
        """
        lines: list[_Line] = []
        known: list[bytes] = []
        for number, raw in enumerate(read_list(path, "--fingerprints").split("\n"), 1):
            text = raw.strip()
            if not text or text.startswith("#"):
                continue
            if match := _KEYGEN.fullmatch(text):
                comment = "" if match["comment"] == _NO_COMMENT else match["comment"]
                name = (comment.split() or [""])[-1].rpartition("@")[2]
                lines.append(_Line(match["fingerprint"], frozenset({_name(name)}), comment, is_comment=True))
            elif match := _NAMED.fullmatch(text):
                names = frozenset(map(_name, match["names"].split(",")))
                lines.append(_Line(match["fingerprint"], names, match["names"], is_comment=False))
            elif KnownHosts.read([_bytes(text)]):
                known.append(_bytes(text))
                if not text.startswith("@"):
                    label, _, key = re.split(r"[ \t]+", text)[:3]
                    lines.append(_Line(fingerprint(base64.b64decode(key)), frozenset(), label, is_comment=False))
            else:
                where = "standard input" if path == STDIN else escape(path)
                raise ValueError(
                    f"{where}:{number} is neither `HOST SHA256:...` nor a line of ssh-keygen -lf or ssh-keyscan."
                )
        return cls(lines, KnownHosts.read([b"\n".join(known)]))

    def look_up(self, names: Names, key: bytes, asked: frozenset[bytes] = frozenset()) -> Listing:
        """Return what the list says about a key.

        The comment of a line of ``ssh-keygen -lf`` is free text. Such a line confirms the key of a host whatever its
        comment says, unless the comment names another host that is asked about, or the list has other keys for this
        one: a host could otherwise pass for any other one on the list.

        Args:
            names: What the host is called, each with its port. Where the list has no line for that port, one for the
                bare name counts.
            key: The public key that the host shows, as SSH encodes it.
            asked: What all hosts are called that are asked about, in the forms of `forms_of`.
        """
        shown = fingerprint(key)
        own = self._lines_for(names)
        same = [line for line in self._lines if line.fingerprint == shown]
        if any(line in own for line in same) or any(self._is_known(*name, key) for name in names):
            return Listing(True)
        if not same:
            return Listing(False)
        others = asked - forms_of(names)
        is_free = all(line.is_comment and not line.names & others for line in same)
        has_other_keys = own or any(self._known.key_types(*name) for name in names)
        return Listing(is_free and not has_other_keys, same[0].label)

    def _lines_for(self, names: Names) -> list[_Line]:
        for form in ({lookup_name(*name) for name in names}, {lookup_name(host) for host, _ in names}):
            if found := [line for line in self._lines if line.names & form]:
                return found
        return []

    def _is_known(self, host: str, port: int, key: bytes) -> bool:
        try:
            self._known.check(host, port, line_type(key), key)
        except HostKeyError:
            return False
        return True


class _Line(NamedTuple):
    """A fingerprint, the names that it is for, and these as the list has them."""

    fingerprint: str
    names: frozenset[bytes]
    label: str
    is_comment: bool


def read_list(path: str, option: str) -> str:
    """Return the text of the file *path*, or of standard input.

    Raises:
        ValueError: If it cannot be read, or is larger than `MAX_BYTES`; the message names *option*.
    """
    try:
        data = _read_stdin() if path == STDIN else read_regular(path, MAX_BYTES)
    except OSError as exc:
        raise ValueError(f"{option} {escape(path)} cannot be read: {exc.strerror or exc}") from None
    return data.decode("utf-8", "surrogateescape")


def _read_stdin() -> bytes:
    if sys.stdin is None:
        raise OSError("standard input is closed")
    data = sys.stdin.buffer.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise OSError(f"larger than {MAX_BYTES} bytes")
    return data


def forms_of(names: Names) -> frozenset[bytes]:
    """Return what a line may call a host of these names: each with its port, and bare."""
    return frozenset(form for host, port in names for form in (lookup_name(host, port), lookup_name(host)))


def _name(text: str) -> bytes:
    return _bytes(text).lower()


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")

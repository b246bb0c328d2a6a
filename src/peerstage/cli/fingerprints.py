"""Compare presented host keys with a list of fingerprints that was obtained from the hosts themselves."""

from __future__ import annotations

import base64
import re
import sys
from typing import NamedTuple, TypeAlias

from peerstage.bounded_files import read_regular_file
from peerstage.errors import HostKeyError
from peerstage.printable import escape
from peerstage.ssh.hostkeys.known_hosts import KnownHosts, is_valid_line, known_hosts_name
from peerstage.ssh.keys.public_keys import fingerprint, parse_key_type

#: Bytes that a list may hold.
MAX_BYTES = 16 * 1024 * 1024
#: The path that means standard input.
STDIN = "-"
_NAMED = re.compile(r"(?P<names>[^\s#]\S*)\s+(?P<fingerprint>SHA256:[A-Za-z0-9+/]{43})(?:\s.*)?")
_KEYGEN = re.compile(r"\d+ (?P<fingerprint>SHA256:[A-Za-z0-9+/]{43}) (?P<comment>.*) \([A-Z0-9-]+\)")
#: What ssh-keygen prints for a key without a comment.
_NO_COMMENT = "no comment"

#: The names of a host, each with its port.
HostNames: TypeAlias = list[tuple[str, int]]


class Listing(NamedTuple):
    """What a list says about a presented key.

    Attributes:
        is_listed: Whether the list confirms that the host has the key.
        name: The other name under which the list has the key; "" if it has none.
    """

    is_listed: bool
    name: str = ""


class Fingerprints:
    """A list of fingerprints, as `parse` returns it."""

    def __init__(self, lines: list[_Line], known: KnownHosts) -> None:
        self._lines = lines
        self._known = known

    @classmethod
    def parse(cls, text: str, source: str = "") -> Fingerprints:
        """Return the list in *text*. Each line is empty, a comment, or:

        - ``HOST SHA256:...``, with commas between several hosts, and with a port as ``[HOST]:PORT``;
        - a line of ``ssh-keygen -lf``, whose comment may be, or end with, ``HOST`` or ``USER@HOST``;
        - a line of ``ssh-keyscan``, or any other line of a known_hosts file.

        Raises:
            ValueError: If a line has another form; the message names *source*.
        """
        lines: list[_Line] = []
        known: list[bytes] = []
        for number, raw in enumerate(text.split("\n"), 1):
            line = raw.strip()
            if not line or line.startswith("#"):
                continue
            if match := _KEYGEN.fullmatch(line):
                comment = "" if match["comment"] == _NO_COMMENT else match["comment"]
                name = (comment.split() or [""])[-1].rpartition("@")[2]
                lines.append(_Line(match["fingerprint"], frozenset({_encode_name(name)}), comment, is_comment=True))
            elif match := _NAMED.fullmatch(line):
                names = frozenset(map(_encode_name, match["names"].split(",")))
                lines.append(_Line(match["fingerprint"], names, match["names"], is_comment=False))
            elif is_valid_line(_encode(line)):
                known.append(_encode(line))
                if not line.startswith("@"):
                    label, _, key = re.split(r"[ \t]+", line)[:3]
                    lines.append(_Line(fingerprint(base64.b64decode(key)), frozenset(), label, is_comment=False))
            else:
                where = "standard input" if source == STDIN else escape(source)
                raise ValueError(
                    f"{where}:{number} is neither `HOST SHA256:...` nor a line of ssh-keygen -lf or ssh-keyscan."
                )
        return cls(lines, KnownHosts.read([b"\n".join(known)]))

    def look_up(self, names: HostNames, key: bytes, all_forms: frozenset[bytes] = frozenset()) -> Listing:
        """Return what the list says about the *key* of a host.

        The comment in a line of ``ssh-keygen -lf`` is free text. Such a line confirms the key of a host whatever its
        comment says, unless the comment names another scanned host, or the list has other keys for this one: a host
        could otherwise pass for any other on the list.

        Args:
            names: The names of the host. If the list has no line for a name with its port, one for the bare name
                counts.
            key: The presented public key, in the SSH wire format.
            all_forms: The forms, as `forms_of` returns them, of the names of all scanned hosts.
        """
        presented = fingerprint(key)
        own = self._lines_for(names)
        same = [line for line in self._lines if line.fingerprint == presented]
        if any(line in own for line in same) or any(self._is_known(*name, key) for name in names):
            return Listing(True)
        if not same:
            return Listing(False)
        others = all_forms - forms_of(names)
        names_no_other = all(line.is_comment and not line.names & others for line in same)
        has_other_keys = own or any(self._known.key_types(*name) for name in names)
        return Listing(names_no_other and not has_other_keys, same[0].label)

    def _lines_for(self, names: HostNames) -> list[_Line]:
        for form in ({known_hosts_name(*name) for name in names}, {known_hosts_name(host) for host, _ in names}):
            if found := [line for line in self._lines if line.names & form]:
                return found
        return []

    def _is_known(self, host: str, port: int, key: bytes) -> bool:
        try:
            self._known.check(host, port, parse_key_type(key), key)
        except HostKeyError:
            return False
        return True


class _Line(NamedTuple):
    """A fingerprint, the names of its hosts, and these as the list has them."""

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
        data = _read_stdin() if path == STDIN else read_regular_file(path, MAX_BYTES)
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


def forms_of(names: HostNames) -> frozenset[bytes]:
    """Return the names as known_hosts has them, with and without their ports."""
    return frozenset(form for host, port in names for form in (known_hosts_name(host, port), known_hosts_name(host)))


def _encode_name(text: str) -> bytes:
    return _encode(text).lower()


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")

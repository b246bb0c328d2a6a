"""A list of fingerprints that somebody has from the hosts themselves, to hold what is shown now against."""

from __future__ import annotations

import re

from peerstage.errors import HostKeyError, escape
from peerstage.session.files import read_regular
from peerstage.session.known_hosts import KnownHosts, fingerprint, line_type, lookup_name

_MOST_BYTES = 16 * 1024 * 1024
_NAMED = re.compile(r"(?P<names>[^\s#]\S*)\s+(?P<fingerprint>SHA256:[A-Za-z0-9+/]{43})(?:\s.*)?")
_KEYGEN = re.compile(r"\d+ (?P<fingerprint>SHA256:[A-Za-z0-9+/]{43}) (?P<comment>.*) \([A-Z0-9-]+\)")


class Fingerprints:
    """Fingerprints by host. Made by `read`."""

    def __init__(self, named: dict[bytes, set[str]], unnamed: set[str], lines: KnownHosts) -> None:
        self._named = named
        self._unnamed = unnamed
        self._lines = lines

    @classmethod
    def read(cls, path: str) -> Fingerprints:
        """Read the list in the file *path*. Each line is of one of three kinds, or empty, or a comment.

        - ``HOST SHA256:...``: several hosts have commas between, and a port is written as ``[HOST]:PORT``;
        - what ``ssh-keygen -lf`` prints, where the comment is, or ends with, ``HOST`` or ``USER@HOST``;
        - what ``ssh-keyscan`` prints, or any other line of a known_hosts file.

        Raises:
            ValueError: The file can not be read, or a line is none of these.
        """
        try:
            text = read_regular(path, _MOST_BYTES).decode("utf-8", "surrogateescape")
        except OSError as exc:
            raise ValueError(f"--fingerprints {escape(path)} can not be read: {exc.strerror or exc}") from None
        named: dict[bytes, set[str]] = {}
        unnamed: set[str] = set()
        lines: list[str] = []
        for number, raw in enumerate(text.split("\n"), 1):
            line = raw.strip()
            if not line or line.startswith("#"):
                continue
            if match := _KEYGEN.fullmatch(line):
                comment = match["comment"].split()[-1:] or [""]
                unnamed.add(match["fingerprint"])
                named.setdefault(_name(comment[0].rpartition("@")[2]), set()).add(match["fingerprint"])
            elif match := _NAMED.fullmatch(line):
                for name in match["names"].split(","):
                    named.setdefault(_name(name), set()).add(match["fingerprint"])
            elif KnownHosts.read([_bytes(line)]):
                lines.append(line)
            else:
                raise ValueError(
                    f"{escape(path)}:{number} is neither `HOST SHA256:...` nor a line of ssh-keygen -lf or ssh-keyscan."
                )
        return cls(named, unnamed, KnownHosts.read([_bytes("\n".join(lines))]))

    def has(self, names: list[tuple[str, int]], key: bytes, *, only_one: bool) -> bool:
        """Whether the list says that a host has this key.

        Args:
            names: What the host is called, each with its port. Where the list has no line for that port, one for the
                bare name counts.
            key: The public key that the host shows, as SSH encodes it.
            only_one: Whether no other host is asked about: then what ``ssh-keygen -lf`` printed is about this one,
                whatever its comment says.
        """
        shown = fingerprint(key)
        listed: set[str] = set()
        for form in ([lookup_name(*name) for name in names], [lookup_name(host, 22) for host, _ in names]):
            listed = listed or set().union(*(self._named.get(name, set()) for name in form))
        return shown in listed or (only_one and shown in self._unnamed) or any(self._is_known(*n, key) for n in names)

    def _is_known(self, host: str, port: int, key: bytes) -> bool:
        try:
            self._lines.check(host, port, line_type(key), key)
        except HostKeyError:
            return False
        return True


def _name(text: str) -> bytes:
    return _bytes(text).lower()


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")

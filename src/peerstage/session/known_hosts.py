"""`KnownHosts`: which keys a host may show, as OpenSSH's known_hosts files say it.

The format is that of sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT"; what it means is what ssh makes of it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import io
import os
import re
import shlex
import stat
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from peerstage.errors import ChangedHostKey, Location, MismatchedHostKey, RevokedHostKey, UnknownHostKey, escape
from peerstage.peer_log import PeerLog
from peerstage.session.files import read_at_most
from peerstage.session.options import expand
from peerstage.session.patterns import match_pattern
from peerstage.system_errors import is_of_this_machine, system_error

_log = PeerLog("peerstage.session")

#: Bytes that a file may hold.
MOST_BYTES = 64 * 1024 * 1024
_MOST_WARNINGS = 100
_LONGEST_PATTERN = 1022
_DEFAULT_PORT = 22
_DATA = "known_hosts data"
_TRUSTED, _REVOKED, _AUTHORITY = b"", b"@revoked", b"@cert-authority"

_LINE = re.compile(
    rb"(?:(?P<marker>@[^ \t]*)[ \t]+)?(?P<names>[^@ \t][^ \t]*)[ \t]+(?P<type>[!-~]{1,64})[ \t]+(?P<key>[^ \t]+)"
    rb"(?:[ \t].*)?",
    re.DOTALL,
)
_WILD = re.compile(rb"[*?!]")
_PATTERN = re.compile(rb"(?:^|,)(!?)([^,]*)")
_SHA1 = rb"([A-Za-z0-9+/]{26}[AEIMQUYcgkosw048]=)"
_HASHED = re.compile(rb"\|1\|" + _SHA1 + rb"\|" + _SHA1)


def fingerprint(blob: bytes) -> str:
    """Return the SHA-256 fingerprint of the public key *blob* (RFC 4253, 6.6), as ``ssh-keygen -l`` shows it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).rstrip(b"=").decode("ascii")


class KnownHosts:
    """The keys that hosts are known by, from any number of sources. Made by `read`; does not change afterwards.

    No line stops a source from loading: one that can not be read is warned about, once, and trusts nothing. A source
    that can not be read is warned about and passed over, likewise.

    A host on another port than 22 is looked up as ``[host]:port``, and only if no key is known there as ``host``; there
    it counts only if it is the very key that the host shows. A key that is ``@revoked`` under either name is refused
    (ssh does not look at the bare name where it knows a key of the port).
    """

    def __init__(self, lines: list[_Line], sources: tuple[str, ...]) -> None:
        self._lines = lines
        self._sources = sources
        self._last: tuple[str, int, _Answer] | None = None

    @classmethod
    def read(cls, sources: Iterable[str | os.PathLike[str] | bytes], log: PeerLog = _log) -> KnownHosts:
        """Read all *sources*, in their order.

        Args:
            sources: Paths of known_hosts files (``~`` is the home directory; one that does not exist is passed over),
                or the data itself as bytes. At most 64 MiB each.
            log: For what cannot be read.
        """
        lines: list[_Line] = []
        labels: list[str] = []
        for given in sources:
            if isinstance(given, bytes):
                source, data = _DATA, given
            else:
                path = expand(given)
                source, data = escape(path), _read_file(path, log)
            if len(data) > MOST_BYTES:
                log.warning("%s is larger than %d bytes and is passed over.", source, MOST_BYTES)
                data = b""
            lines.extend(_read_lines(source, data, log))
            labels.append(source)
        return cls(lines, tuple(labels))

    def key_types(self, host: str, port: int) -> tuple[str, ...]:
        """Return the types of the keys that `check` would accept from *host*, in file order, without repeats."""
        answer = self._look_up(host, port)
        revoked = {line.blob for line in answer.revoked}
        return tuple(dict.fromkeys(line.key_type for line in answer.keys if line.blob not in revoked))

    def authorities(self, host: str, port: int) -> dict[bytes, str]:
        """Return the keys that may vouch for *host* (``@cert-authority``), each with the place of its line."""
        answer = self._look_up(host, port)
        revoked = {line.blob for line in answer.revoked}
        return {line.blob: line.place for line in reversed(answer.authorities) if line.blob not in revoked}

    def may_be_certified(self, host: str, port: int) -> bool:
        """Whether a certificate can be judged: there is an authority for *host*, or nothing else but a revoked one."""
        return bool(
            self.authorities(host, port) or (self._look_up(host, port).authorities and not self.key_types(host, port))
        )

    def knows_nothing_of(self, host: str, port: int) -> bool:
        """Whether there is neither a key of *host* nor an authority that may vouch for it."""
        answer = self._look_up(host, port)
        return not answer.authorities and (answer.is_borrowed or not answer.keys)

    def place_against(self, host: str, port: int, blob: bytes) -> str:
        """Return the place of the line that speaks most against *host* having this key; empty if none does."""
        answer = self._look_up(host, port)
        revoking = [line for line in answer.revoked if line.blob == blob]
        keys = [] if answer.is_borrowed else sorted(answer.keys, key=lambda line: line.key_type != line_type(blob))
        return next((line.place for line in [*revoking, *keys, *answer.authorities]), "")

    def removal(self, host: str, port: int) -> str:
        """Return the command that removes what the first file says that knows a key of *host*; empty if none does."""
        answer = self._look_up(host, port)
        line = next((line for line in answer.keys if line.source != _DATA), None)
        return "" if line is None or answer.is_borrowed else _removal_command(line, host, port)

    def __len__(self) -> int:
        """How many lines could be read."""
        return len(self._lines)

    def refuse_revoked(self, host: str, port: int, blob: bytes, what: str = "the") -> None:
        """Raise `RevokedHostKey` if a ``@revoked`` line for this host holds the key; *what* leads to its type."""
        for line in self._look_up(host, port).revoked:
            if line.blob == blob:
                raise RevokedHostKey(
                    f"The host shows {what} {'' if what == 'the' else 'the '}{escape(line.key_type)} key "
                    f"{fingerprint(blob)}, which is marked @revoked in {line.place}: it may be stolen. Do not connect. "
                    "Give the host a new key, compare its fingerprint on the host itself, and put it in place of the "
                    "old one.",
                    location=line.location,
                )

    def check(self, host: str, port: int, key_type: str, blob: bytes, *, trust: str = "") -> str:
        """Return the place of the line by which *host* is known by this key, if the key is not revoked.

        Args:
            host: Name or address that the user gave; an IPv6 address without brackets.
            port: TCP port.
            key_type: Type of the key that the host shows.
            blob: The public key that the host shows, as SSH encodes it.
            trust: The command that adds a key of this host, to be named in messages.

        Raises:
            RevokedHostKey: A ``@revoked`` line for this host holds the key, whatever other lines say.
            ChangedHostKey: The host is known by keys of this type, and this is none of them.
            MismatchedHostKey: The host is known by keys of other types only.
            UnknownHostKey: No key is known for this host.
        """
        answer = self._look_up(host, port)
        shown = f"The host shows the {escape(key_type)} key {fingerprint(blob)}"
        self.refuse_revoked(host, port, blob)
        same_type = [line for line in answer.keys if line.key_type == key_type]
        place = next((line.place for line in same_type if line.blob == blob), None)
        if place is not None:
            return place
        if same_type and not answer.is_borrowed:
            first, more = same_type[0], len(same_type) - 1
            others = f" (and {more} more of this type)" if more else ""
            raise ChangedHostKey(
                f"{shown}, but {_show(host, port)} is known by {fingerprint(first.blob)} in {first.place}{others}. "
                "Somebody may be between you and the host, or it was given a new key: find out on the host itself. "
                f"If the new key is right, {_removal(first, host, port)} and add the new one"
                f"{f' with `{trust}`' if trust else ''}.",
                location=first.location,
            )
        if answer.keys and not answer.is_borrowed:
            raise MismatchedHostKey(
                f"{shown}, {self._unknown(answer, host, port, trust)}", location=answer.keys[0].location
            )
        raise UnknownHostKey(f"{shown}, {self._unknown(answer, host, port, trust)}")

    def _look_up(self, host: str, port: int) -> _Answer:
        """Return what the lines say about a host; the last answer is kept, for hashed names take their time."""
        last = self._last  # another thread may replace it
        if last is None or last[:2] != (host, port):
            name, bare = lookup_name(host, port), lookup_name(host)
            here = [line for line in self._lines if line.is_for(name)]
            there = [line for line in self._lines if line.is_for(bare)] if bare != name else []
            is_borrowed = not any(line.marker == _TRUSTED for line in here)
            answer = _Answer(
                keys=[line for line in (there if is_borrowed else here) if line.marker == _TRUSTED],
                is_borrowed=is_borrowed,
                revoked=[line for line in here + there if line.marker == _REVOKED],
                authorities=[line for line in here + there if line.marker == _AUTHORITY],
            )
            self._last = last = host, port, answer
        return last[2]

    def _unknown(self, answer: _Answer, host: str, port: int, trust: str) -> str:
        """Return in words why the key is unknown, where was looked, and what to do."""
        reason = f"and no key is known for {_show(host, port)}"
        mend = f"Compare that fingerprint with the one on the host itself, then add the key with `{trust}`. Or get"
        if answer.keys and not answer.is_borrowed:
            known = ", ".join(dict.fromkeys(line.key_type for line in answer.keys))
            first = answer.keys[0]
            reason = f"but {_show(host, port)} is known only by other types of keys: {known} in {first.place}"
            mend = (
                "Find out on the host itself why it has another one. If that is right, "
                f"{_removal(first, host, port)} and add the new one with `{trust}`. Or get"
            )
        if answer.authorities:
            reason += f"; the @cert-authority in {answer.authorities[0].place} vouches for certificates only"
        if answer.authorities or not trust:
            mend = "Get"
        searched = ", ".join(dict.fromkeys(self._sources)) or "nothing, for no known_hosts file is given"
        files = (shlex.quote(source) for source in self._sources if source not in (_DATA, os.devnull))
        target = next(files, "a known_hosts file, and name that by UserKnownHostsFile or the option known hosts")
        scan = f"ssh-keyscan -p {port} {shlex.quote(_show(host))}"
        return (
            f"{reason} (searched: {searched}). {mend} its keys with `{scan}`, compare their "
            f"fingerprints (`{scan} | ssh-keygen -lf -`) with those on the host itself, then add them to {target}."
        )


def line_type(blob: bytes) -> str:
    """Return the type of the public key *blob* as a line says it."""
    return blob[4 : 4 + int.from_bytes(blob[:4], "big")].decode("ascii", "replace")


class _Line(NamedTuple):
    """One key of some hosts. *names* is lower-case patterns, or one hashed name."""

    source: str
    number: int
    marker: bytes
    names: bytes
    key_type: str
    blob: bytes

    @property
    def location(self) -> Location:
        return Location(self.source, self.number)

    @property
    def place(self) -> str:
        return str(self.location)

    def is_for(self, name: bytes) -> bool:
        """Whether the line speaks of *name*: a pattern matches it, and no negated one does."""
        if self.names.startswith(b"|"):
            salt, digest = self.names.split(b"|")[2:]
            return base64.b64encode(hmac.digest(base64.b64decode(salt), name, "sha1")) == digest
        if len(self.names) <= _LONGEST_PATTERN and not _WILD.search(self.names):
            return name in self.names.split(b",")
        is_listed = False
        for match in _PATTERN.finditer(self.names):
            negated, pattern = match.groups()
            if len(pattern) > _LONGEST_PATTERN:
                return False
            if pattern == name or match_pattern(name.decode("latin-1"), pattern.decode("latin-1")):
                if negated:
                    return False
                is_listed = True
        return is_listed


class _Answer(NamedTuple):
    """What the lines say about one host. *is_borrowed*: nothing about its port; the keys are those of the bare name."""

    keys: list[_Line]
    is_borrowed: bool
    revoked: list[_Line]
    authorities: list[_Line]


class _Unreadable(Exception):
    """A line or a file that can not be read, with the reason in words."""


def _read_file(path: str, log: PeerLog) -> bytes:
    """Return what the file holds; nothing if it does not exist or, with a warning, if it cannot be read.

    Raises:
        StageError: If this machine is short of descriptors or memory, or its disk fails.
    """
    if path == os.devnull:
        return b""
    try:
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise _Unreadable("not a regular file")
            return read_at_most(fd, MOST_BYTES + 1)
        finally:
            os.close(fd)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, _Unreadable) as exc:
        if isinstance(exc, OSError) and is_of_this_machine(exc):  # its @revoked lines must count
            raise system_error("It cannot be read", exc, path=path) from exc
        reason = (exc.strerror if isinstance(exc, OSError) else None) or str(exc)
        log.warning("%s can not be read (%s) and is passed over.", escape(path), reason)
    return b""


def _read_lines(source: str, data: bytes, log: PeerLog) -> Iterator[_Line]:
    """Yield the lines that hold keys; warn about those that can not be read, the first hundred one by one."""
    unreadable = 0
    for number, text in enumerate(io.BytesIO(data), start=1):
        text = text.partition(b"\0")[0].strip(b" \t\r\n")
        if not text or text.startswith(b"#"):
            continue
        try:
            yield _Line(source, number, *_parse(text))
        except _Unreadable as exc:
            unreadable += 1
            if unreadable <= _MOST_WARNINGS:
                log.warning("%s:%d can not be read (%s); the line is ignored.", source, number, exc)
    if unreadable > _MOST_WARNINGS:
        log.warning("%s: %d more lines can not be read.", source, unreadable - _MOST_WARNINGS)


def _parse(text: bytes) -> tuple[bytes, bytes, str, bytes]:
    """Return marker, names, key type and key of a line without its white space.

    Raises:
        _Unreadable: It is not such a line.
    """
    match = _LINE.fullmatch(text)
    if match is None:
        raise _Unreadable("expected: [marker] names key-type key")
    marker, names, key_type, encoded = match.groups(b"")
    if marker not in (_TRUSTED, _REVOKED, _AUTHORITY):
        raise _Unreadable("unknown marker")
    if not names.startswith(b"|"):
        names = names.lower()
    elif not _HASHED.fullmatch(names):
        raise _Unreadable("bad hash of a name")
    try:
        blob = binascii.a2b_base64(encoded)
    except ValueError:
        blob = b""
    if binascii.b2a_base64(blob, newline=False) != encoded:
        raise _Unreadable("the key is not base64")
    if not blob.startswith(len(key_type).to_bytes(4, "big") + key_type):
        raise _Unreadable("the key is not of the type that the line says")
    if b"-cert-v0" in key_type:
        raise _Unreadable("a certificate where a key belongs")
    return marker, names, key_type.decode("ascii"), blob


def lookup_name(host: str, port: int = _DEFAULT_PORT) -> bytes:
    """Return the name under which a host is looked up and written. Only ASCII letters lose their case, as in ssh."""
    host = host if port == _DEFAULT_PORT else f"[{host}]:{port}"
    return host.encode("utf-8", "surrogatepass").lower()


def _show(host: str, port: int = _DEFAULT_PORT) -> str:
    """Return that name as it is shown; ssh-keygen finds hashed names only if it is given them in lower case."""
    return escape(lookup_name(host, port).decode("utf-8", "surrogatepass"))


def _removal(line: _Line, host: str, port: int) -> str:
    """Return in words how to remove what *line* says about a host."""
    if line.source == _DATA:
        return f"remove line {line.number} of the {line.source}"
    return f"remove the old one with `{_removal_command(line, host, port)}`"


def _removal_command(line: _Line, host: str, port: int) -> str:
    return shlex.join(["ssh-keygen", "-R", _show(host, port), "-f", line.source])

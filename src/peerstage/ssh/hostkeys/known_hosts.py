"""`KnownHosts`: the keys that hosts are known by, from known_hosts files (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT)."""

from __future__ import annotations

import base64
import binascii
import hmac
import io
import os
import re
import shlex
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from peerstage.bounded_files import read_regular_file
from peerstage.errors import ChangedHostKey, Location, MismatchedHostKey, RevokedHostKey, UnknownHostKey
from peerstage.peer_log import PeerLog
from peerstage.printable import escape
from peerstage.ssh.data_types import pack_string
from peerstage.ssh.keys.public_keys import fingerprint, parse_key_type
from peerstage.ssh.options import expand_home
from peerstage.ssh.patterns import match_pattern
from peerstage.system_errors import is_machine_wide, system_error

_log = PeerLog("peerstage.ssh")

#: Maximum size of a known_hosts file, in bytes.
MAX_BYTES = 64 * 1024 * 1024
_MAX_WARNINGS = 100
_MAX_PATTERN = 1022
_DEFAULT_PORT = 22
_DATA = "known_hosts data"
_HOST_KEY, _REVOKED, _CERT_AUTHORITY = b"", b"@revoked", b"@cert-authority"

_LINE = re.compile(
    rb"(?:(?P<marker>@[^ \t]*)[ \t]+)?(?P<names>[^@ \t][^ \t]*)[ \t]+(?P<type>[!-~]{1,64})[ \t]+(?P<key>[^ \t]+)"
    rb"(?:[ \t].*)?",
    re.DOTALL,
)
_WILDCARD = re.compile(rb"[*?!]")
_PATTERN = re.compile(rb"(?:^|,)(!?)([^,]*)")
_NAME = re.compile(rb"\[([^\[\]]+)\]:([0-9]{1,5})|([^\[\]]+)")
_SHA1 = rb"([A-Za-z0-9+/]{26}[AEIMQUYcgkosw048]=)"
_HASHED = re.compile(rb"\|1\|" + _SHA1 + rb"\|" + _SHA1)


class KnownHosts:
    """The keys that hosts are known by, from any number of sources. Made by `read`; immutable.

    Invalid lines, and files that cannot be read, are logged as warnings and ignored.

    A host on a port other than 22 is looked up as ``[host]:port``. Only if no key is known under that name is it looked
    up as ``host``: a key found there is accepted if it equals the presented key, and is never the reason for a
    `ChangedHostKey`. A key that is ``@revoked`` under either name is rejected; ssh ignores ``@revoked`` lines for
    ``host`` if it knows a key for the port.
    """

    def __init__(self, entries: list[_Entry], sources: tuple[str, ...]) -> None:
        self._entries = entries
        self._sources = sources
        self._last_found: tuple[str, int, _HostKeys] | None = None

    @classmethod
    def read(cls, sources: Iterable[str | os.PathLike[str] | bytes], log: PeerLog = _log) -> KnownHosts:
        """Read all *sources*, in their order.

        Args:
            sources: Paths of known_hosts files (``~`` is the home directory; missing files are ignored), or the content
                of one as bytes. At most `MAX_BYTES` each.
            log: The log for warnings.

        Raises:
            StageError: If this machine is short of descriptors or memory, or its disk fails.
        """
        entries: list[_Entry] = []
        names: list[str] = []
        for source in sources:
            if not isinstance(source, bytes):
                path = expand_home(source)
                name, data = escape(path), _read_file(path, log)
            elif len(source) <= MAX_BYTES:
                name, data = _DATA, source
            else:
                name, data = _DATA, b""
                log.warning("%s is larger than %d bytes and is ignored.", name, MAX_BYTES)
            entries.extend(_parse_entries(name, data, log))
            names.append(name)
        return cls(entries, tuple(names))

    def __bool__(self) -> bool:
        """Return whether any line is valid."""
        return bool(self._entries)

    def listed_keys(self) -> Iterator[ListedKey]:
        """Yield every line with a host key that is not revoked, in file order."""
        for entry in self._entries:
            if entry.marker == _HOST_KEY:
                patterns = [] if entry.names.startswith(b"|") else entry.names.split(b",")
                names = [_NAME.fullmatch(pattern) for pattern in patterns if not _WILDCARD.search(pattern)]
                hosts = tuple(
                    ((name[1] or name[3]).decode("utf-8", "surrogateescape"), int(name[2] or _DEFAULT_PORT))
                    for name in names
                    if name is not None
                )
                yield ListedKey(entry.location, hosts, entry.blob)

    def key_types(self, host: str, port: int) -> tuple[str, ...]:
        """Return the types of the keys that `check` would accept from *host*, in file order, without repeats."""
        found = self._find(host, port)
        revoked = {entry.blob for entry in found.revoked}
        return tuple(dict.fromkeys(entry.key_type for entry in found.keys if entry.blob not in revoked))

    def authorities(self, host: str, port: int) -> dict[bytes, Location]:
        """Return the keys that may certify *host* (``@cert-authority``) and are not revoked, with their locations."""
        found = self._find(host, port)
        revoked = {entry.blob for entry in found.revoked}
        return {entry.blob: entry.location for entry in reversed(found.authorities) if entry.blob not in revoked}

    def expects_certificate(self, host: str, port: int) -> bool:
        """Return whether *host* has an authority, or has a revoked one and no key that `check` would accept."""
        found = self._find(host, port)
        return bool(self.authorities(host, port) or (found.authorities and not self.key_types(host, port)))

    def is_new_host(self, host: str, port: int) -> bool:
        """Return whether neither a key of *host* nor an authority that may certify it is known."""
        found = self._find(host, port)
        return not found.authorities and not found.own_keys

    def conflicting_line(self, host: str, port: int, blob: bytes) -> Location | None:
        """Return the line to correct if *host* has the key *blob*; a ``@revoked`` line for it comes first."""
        found = self._find(host, port)
        revoked = [entry for entry in found.revoked if entry.blob == blob]
        key_type = parse_key_type(blob)
        keys = sorted(found.own_keys, key=lambda entry: entry.key_type != key_type)
        return next((entry.location for entry in [*revoked, *keys, *found.authorities]), None)

    def removal_command(self, host: str, port: int) -> str:
        """Return the command that removes the keys of *host* from the first file that has any; "" if none has."""
        entry = next((entry for entry in self._find(host, port).own_keys if entry.source != _DATA), None)
        return "" if entry is None else _removal_command(entry, host, port)

    def check_key_not_revoked(self, host: str, port: int, blob: bytes, role: str = "the") -> None:
        """Raise `RevokedHostKey` if a ``@revoked`` line for *host* holds the key *blob*.

        In the message *role* precedes the key's type: "the", or "a certificate signed by the".
        """
        for entry in self._find(host, port).revoked:
            if entry.blob == blob:
                raise RevokedHostKey(
                    f"The host presents {role} {escape(entry.key_type)} key {fingerprint(blob)}, which is marked "
                    f"@revoked in {entry.location}: it may be stolen. Do not connect. Give the host a new key, compare "
                    "its fingerprint on the host itself, and replace the old one.",
                    location=entry.location,
                )

    def check(self, host: str, port: int, key_type: str, blob: bytes, *, trust: str = "") -> Location:
        """Return the line by which *host* is known by this key.

        Args:
            host: Name or address that the user gave; an IPv6 address without brackets.
            port: TCP port.
            key_type: Type of the presented key.
            blob: The presented key, as SSH encodes it.
            trust: The command that adds a key of this host, for error messages.

        Raises:
            RevokedHostKey: If a ``@revoked`` line for this host holds the key, whatever other lines say.
            ChangedHostKey: If the host is known by other keys of this type.
            MismatchedHostKey: If the host is known by keys of other types only.
            UnknownHostKey: If no key of this host is known.
        """
        found = self._find(host, port)
        presented = f"The host presents the {escape(key_type)} key {fingerprint(blob)}"
        self.check_key_not_revoked(host, port, blob)
        same_type = [entry for entry in found.keys if entry.key_type == key_type]
        location = next((entry.location for entry in same_type if entry.blob == blob), None)
        if location is not None:
            return location
        if same_type and not found.is_bare_name:
            first, count = same_type[0], len(same_type) - 1
            others = f" (and {count} more of this type)" if count else ""
            raise ChangedHostKey(
                f"{presented}, but the known key of {_display_name(host, port)} is {fingerprint(first.blob)} in "
                f"{first.location}{others}. Either the host was given a new key, or this is a man-in-the-middle "
                "attack: compare the fingerprint on the host itself. If the new key is right, "
                f"{_removal(first, host, port)} and add the new one{f' with `{trust}`' if trust else ''}.",
                location=first.location,
            )
        message = f"{presented}, {self._explain_unknown(found, host, port, trust)}"
        if found.own_keys:
            raise MismatchedHostKey(message, location=found.own_keys[0].location)
        raise UnknownHostKey(message)

    def _find(self, host: str, port: int) -> _HostKeys:
        """Return the entries for a host. The last result is cached, since matching many hashed names is slow."""
        last = self._last_found  # one read, as another thread may replace it
        if last is None or last[:2] != (host, port):
            name, bare = known_hosts_name(host, port), known_hosts_name(host)
            with_port = [entry for entry in self._entries if entry.matches(name)]
            without = [entry for entry in self._entries if entry.matches(bare)] if bare != name else []
            is_bare_name = not any(entry.marker == _HOST_KEY for entry in with_port)
            found = _HostKeys(
                keys=[entry for entry in (without if is_bare_name else with_port) if entry.marker == _HOST_KEY],
                is_bare_name=is_bare_name,
                revoked=[entry for entry in with_port + without if entry.marker == _REVOKED],
                authorities=[entry for entry in with_port + without if entry.marker == _CERT_AUTHORITY],
            )
            self._last_found = last = host, port, found
        return last[2]

    def _explain_unknown(self, found: _HostKeys, host: str, port: int, trust: str) -> str:
        """Return the end of a message: why the key is unknown, which files were searched, and what to do."""
        name = _display_name(host, port)
        searched = ", ".join(dict.fromkeys(self._sources)) or "nothing, as no known_hosts file is given"
        problem = f"and no key is known for {name}"
        fix = f"Compare that fingerprint with the one on the host itself, then add the key with `{trust}`."
        if found.own_keys:
            types, first = ", ".join(dict.fromkeys(entry.key_type for entry in found.own_keys)), found.own_keys[0]
            problem = f"but only keys of other types are known for {name}: {types} in {first.location}"
            fix = (
                "Find out on the host itself why it has another key. If it is right, "
                f"{_removal(first, host, port)} and add the new one with `{trust}`."
            )
        if found.authorities:
            problem += f"; the @cert-authority in {found.authorities[0].location} applies to certificates only"
        if found.authorities or not trust:
            files = (shlex.quote(source) for source in self._sources if source not in (_DATA, os.devnull))
            file = next(files, "a known_hosts file, and name that file by UserKnownHostsFile or the option known hosts")
            scan = f"ssh-keyscan -p {port} {shlex.quote(_display_name(host))}"
            fix = (
                f"Get the host's keys with `{scan}`, compare their fingerprints (`{scan} | ssh-keygen -lf -`) with "
                f"those on the host itself, then add them to {file}."
            )
        return f"{problem} (searched: {searched}). {fix}"


class ListedKey(NamedTuple):
    """A host key in a known_hosts file.

    Attributes:
        location: Its line.
        hosts: The hosts and ports that are spelled out there: none if the name is hashed, or all are patterns.
        blob: The key, in the SSH wire format.
    """

    location: Location
    hosts: tuple[tuple[str, int], ...]
    blob: bytes


class _Entry(NamedTuple):
    """A line that holds a key. *names* is lower-case patterns, or one hashed name."""

    source: str
    number: int
    marker: bytes
    names: bytes
    key_type: str
    blob: bytes

    @property
    def location(self) -> Location:
        return Location(self.source, self.number)

    def matches(self, name: bytes) -> bool:
        """Return whether the hashed name equals *name*, or a pattern matches *name* and no negated one does."""
        if self.names.startswith(b"|"):
            salt, digest = self.names.split(b"|")[2:]
            return base64.b64encode(hmac.digest(base64.b64decode(salt), name, "sha1")) == digest
        if len(self.names) <= _MAX_PATTERN and not _WILDCARD.search(self.names):
            return name in self.names.split(b",")
        is_matched = False
        for match in _PATTERN.finditer(self.names):
            negated, pattern = match.groups()
            if len(pattern) > _MAX_PATTERN:
                return False
            if pattern == name or match_pattern(name.decode("latin-1"), pattern.decode("latin-1")):
                if negated:
                    return False
                is_matched = True
        return is_matched


class _HostKeys(NamedTuple):
    """The entries for one host. *is_bare_name*: no key is known for its port, so *keys* are those of the bare name."""

    keys: list[_Entry]
    is_bare_name: bool
    revoked: list[_Entry]
    authorities: list[_Entry]

    @property
    def own_keys(self) -> list[_Entry]:
        """The keys for its port: any other key of the host is a changed or mismatched one."""
        return [] if self.is_bare_name else self.keys


class _InvalidLine(ValueError):
    """A line that is not in the format of known_hosts."""


def _read_file(path: str, log: PeerLog) -> bytes:
    """Return the content of the file; nothing if it does not exist or, with a warning, if it cannot be read.

    Raises:
        StageError: If this machine is short of descriptors or memory, or its disk fails.
    """
    if path == os.devnull:
        return b""
    try:
        return read_regular_file(path, MAX_BYTES)
    except FileNotFoundError:
        pass
    except OSError as exc:
        if is_machine_wide(exc):  # ignoring the file would ignore its @revoked lines
            raise system_error("It cannot be read", exc, path=path) from exc
        log.warning("%s cannot be read (%s) and is ignored.", escape(path), exc.strerror or exc)
    return b""


def _parse_entries(source: str, data: bytes, log: PeerLog) -> Iterator[_Entry]:
    """Yield the lines that hold keys; log invalid ones, at most _MAX_WARNINGS of them individually."""
    invalid = 0
    for number, line in enumerate(io.BytesIO(data), start=1):
        line = line.partition(b"\0")[0].strip(b" \t\r\n")
        if not line or line.startswith(b"#"):
            continue
        try:
            yield _Entry(source, number, *_parse_line(line))
        except _InvalidLine as exc:
            invalid += 1
            if invalid <= _MAX_WARNINGS:
                log.warning("%s:%d is invalid (%s) and is ignored.", source, number, exc)
    if invalid > _MAX_WARNINGS:
        log.warning("%s: %d more lines are invalid and ignored.", source, invalid - _MAX_WARNINGS)


def _parse_line(line: bytes) -> tuple[bytes, bytes, str, bytes]:
    """Return marker, names, key type and key of a line without surrounding white space."""
    match = _LINE.fullmatch(line)
    if match is None:
        raise _InvalidLine("expected: [marker] names key-type key")
    marker, names, key_type, encoded = match.groups(b"")
    if marker not in (_HOST_KEY, _REVOKED, _CERT_AUTHORITY):
        raise _InvalidLine("unknown marker")
    if not names.startswith(b"|"):
        names = names.lower()
    elif not _HASHED.fullmatch(names):
        raise _InvalidLine("invalid hashed name")
    try:
        blob = binascii.a2b_base64(encoded)
    except ValueError:
        blob = b""
    if binascii.b2a_base64(blob, newline=False) != encoded:
        raise _InvalidLine("the key is not base64")
    if not blob.startswith(pack_string(key_type)):
        raise _InvalidLine("the key is not of the type that the line names")
    if b"-cert-v0" in key_type:
        raise _InvalidLine("a certificate instead of a key")
    return marker, names, key_type.decode("ascii"), blob


def is_valid_line(line: bytes) -> bool:
    """Return whether *line* is a valid line of a known_hosts file, and not empty or a comment."""
    try:
        _parse_line(line.partition(b"\0")[0].strip(b" \t\r\n"))
    except _InvalidLine:
        return False
    return True


def known_hosts_name(host: str, port: int = _DEFAULT_PORT) -> bytes:
    """Return the name of a host in known_hosts: ``host`` or ``[host]:port``, ASCII letters in lower case."""
    host = host if port == _DEFAULT_PORT else f"[{host}]:{port}"
    return host.encode("utf-8", "surrogatepass").lower()


def _display_name(host: str, port: int = _DEFAULT_PORT) -> str:
    """Return that name for messages and commands; ssh-keygen finds hashed names only in lower case."""
    return escape(known_hosts_name(host, port).decode("utf-8", "surrogatepass"))


def _removal(entry: _Entry, host: str, port: int) -> str:
    """Return, as an imperative clause, how to remove the keys of a host from the source of *entry*."""
    if entry.source == _DATA:
        return f"remove line {entry.number} of the {entry.source}"
    return f"remove the old one with `{_removal_command(entry, host, port)}`"


def _removal_command(entry: _Entry, host: str, port: int) -> str:
    return shlex.join(["ssh-keygen", "-R", _display_name(host, port), "-f", entry.source])

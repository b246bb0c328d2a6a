"""One listing of a directory: read ahead, bounded, every name checked before anything else is done with it."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from peerstage.errors import ProtocolError, RemoteError, RemoteNotFound
from peerstage.reasons import Reason
from peerstage.records import Entry, Limits
from peerstage.transport.base import join
from peerstage.transport.names import Names, check_name_length, check_path
from peerstage.transport.refusals import NO_DIRECTORY, NO_DIRECTORY_BUT_A_FILE
from peerstage.transport.sftp import wire
from peerstage.transport.sftp.client import SFTPClient, attributes_of, entry_reason, refusal, status_of

_AHEAD = 4
_STATS_AHEAD = 256
#: Hidden names that are kept.
_MAX_HIDDEN = 20


class Refusal(NamedTuple):
    """Why an entry cannot be staged."""

    reason: Reason
    why: str


_REFUSALS = {
    kind: Refusal(Reason.NOT_A_FILE, f"It is {what}; only regular files are staged.")
    for kind, what in (
        (stat.S_IFDIR, "a directory"),
        (stat.S_IFIFO, "a FIFO"),
        (stat.S_IFSOCK, "a socket"),
        (stat.S_IFBLK, "a block device"),
        (stat.S_IFCHR, "a character device"),
        (stat.S_IFLNK, "a link that leads to no file"),
    )
}
_OTHER = Refusal(Reason.NOT_A_FILE, "It is no regular file; only regular files are staged.")
_SIZELESS = Refusal(Reason.ENTRY_UNREADABLE, "The peer does not tell its size.")


class Listing(NamedTuple):
    """What one directory holds: the files to stage, what cannot be staged, with the reason, and what is hidden.

    Equal reasons are one object: an error each would fill the memory of whoever lists a directory of many thousand
    links.

    Attributes:
        entries: The files to stage.
        refused: What cannot be staged, and why.
        hidden: The first names that begin with a dot; they are not staged.
        hidden_count: How many such names there are.
    """

    entries: list[Entry]
    refused: list[tuple[bytes, Refusal]]
    hidden: Sequence[bytes] = ()
    hidden_count: int = 0


def list_directory(client: SFTPClient, directory: bytes, limits: Limits) -> Listing:
    """List *directory* on the peer: everything that the shell's ``DIR/*`` names, links followed (PARITY 8, 11, 12).

    Raises:
        RemoteError: It is missing or can not be read.
        ProtocolError: A name that no directory can hold, or one that comes twice.
        LimitExceeded: More entries, longer names, or more bytes than `Limits` allows.
    """
    entries: list[Entry] = []
    refused: list[tuple[bytes, Refusal]] = []
    unclear: list[bytes] = []
    hidden: list[bytes] = []
    hidden_count = 0
    for name, attributes in _read_names(client, directory, limits):
        if name.startswith(b"."):
            hidden_count += 1
            if hidden_count <= _MAX_HIDDEN:
                hidden.append(name)
        elif attributes.mode is None or attributes.size is None or stat.S_ISLNK(attributes.mode):
            unclear.append(name)
        else:
            _sort(name, attributes, entries, refused)
    for name, found in _follow(client, directory, unclear, limits):
        if isinstance(found, Refusal):
            refused.append((name, found))
        else:
            _sort(name, found, entries, refused)
    return Listing(entries, refused, tuple(sorted(hidden)), hidden_count)


def _sort(name: bytes, attributes: wire.Attributes, entries: list[Entry], refused: list[tuple[bytes, Refusal]]) -> None:
    mode = attributes.mode
    if mode is not None and stat.S_IFMT(mode) and not stat.S_ISREG(mode):
        refused.append((name, _REFUSALS.get(stat.S_IFMT(mode), _OTHER)))
    elif attributes.size is None:
        refused.append((name, _SIZELESS))
    else:
        permissions = None if mode is None else mode & 0o7777
        entries.append(Entry(name, attributes.size, permissions, attributes.mtime))


def _read_names(client: SFTPClient, directory: bytes, limits: Limits) -> Iterator[tuple[bytes, wire.Attributes]]:
    """Yield what is listed as it comes, dots left out; the names alone are kept, to know one that comes twice."""
    check_path(directory, limits)
    body = wire.string(_open_directory(client, directory))
    names = Names(directory, limits)
    before = client.received
    ended = False
    failed: RemoteError | None = None
    for _ in range(_AHEAD):
        client.request(wire.READDIR, body)
    while client.outstanding:
        reply = client.reply()
        if reply.kind != wire.NAME:
            status = status_of(reply)
            ended = True
            if status.code != wire.FX_EOF:
                failed = failed or refusal(status, directory)
            continue
        payload = reply.body if isinstance(reply.body, bytes) else b"".join(reply.body)
        for name, attributes in wire.parse_names(payload, most=limits.entries + 2):
            if name in (b".", b".."):
                continue
            _check_name(name, limits)
            names.add(name)
            yield name, attributes
        names.require_bytes(client.received - before)
        if not ended:
            client.request(wire.READDIR, body)
    status_of(client.call(wire.CLOSE, body))
    if failed is not None:
        raise failed


def _open_directory(client: SFTPClient, directory: bytes) -> bytes:
    """Return a handle of *directory*; servers refuse a file in various ways, mostly as one that does not exist."""
    try:
        return client.handle(wire.OPENDIR, wire.string(directory), directory)
    except RemoteError:
        require_directory(client, directory)
        raise


def require_directory(client: SFTPClient, directory: bytes) -> None:
    """Raise the `RemoteError` that keeps *directory* from being one; a server that does not tell is believed."""
    try:
        mode = client.stat(directory).mode or 0
    except RemoteNotFound as exc:
        raise RemoteNotFound(NO_DIRECTORY, path=directory) from exc
    except RemoteError:
        return
    if stat.S_IFMT(mode) and not stat.S_ISDIR(mode):
        raise RemoteError(NO_DIRECTORY_BUT_A_FILE, path=directory, reason=Reason.NOT_A_DIRECTORY)


def _check_name(name: bytes, limits: Limits) -> None:
    """A name from a listing is one component of a path, or the peer lies (CVE-2019-6111 and its kin)."""
    if not name or b"/" in name or b"\0" in name:
        raise ProtocolError("The peer lists a name that no file can have. It is not to be trusted.", path=name[:255])
    check_name_length(name, limits)


def _follow(
    client: SFTPClient, directory: bytes, names: list[bytes], limits: Limits
) -> Iterator[tuple[bytes, wire.Attributes | Refusal]]:
    """Ask what links lead to, and about entries that the listing told too little of; many at once.

    Yields the attributes, or the reason why there are none: the status alone, without the peer's own words.
    """
    waiting = iter(names)
    refusals: dict[int, Refusal] = {}
    while True:
        while client.outstanding < _STATS_AHEAD and (name := next(waiting, None)) is not None:
            path = join(directory, name)
            check_path(path, limits)
            client.request(wire.STAT, wire.string(path), name)
        if not client.outstanding:
            return
        reply = client.reply()
        if reply.kind == wire.ATTRS:
            yield reply.context, attributes_of(reply, reply.context)
            continue
        code = status_of(reply).code
        error = refusal(wire.Status(code, ""), reply.context)
        why = f"It is a link that can not be followed: {error.message}"
        yield reply.context, refusals.setdefault(code, Refusal(entry_reason(error), why))

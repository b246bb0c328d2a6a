"""List a remote directory: read ahead, bounded, with every name checked before any other use."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from peerstage.errors import ProtocolError, RemoteError, RemoteNotFound
from peerstage.paths import join_path
from peerstage.reasons import Reason
from peerstage.records import Entry, Limits
from peerstage.ssh.data_types import pack_string
from peerstage.transport.names import ListedNames, check_name_length, check_path_length, is_hidden
from peerstage.transport.refusals import NO_DIRECTORY, NO_DIRECTORY_BUT_A_FILE, entry_reason
from peerstage.transport.sftp import wire
from peerstage.transport.sftp.client import SFTPClient, status_error

_READDIRS_IN_FLIGHT = 4
_STATS_IN_FLIGHT = 256
#: Hidden names to keep for the log.
_MAX_HIDDEN = 20


class Refusal(NamedTuple):
    """Why an entry cannot be staged."""

    reason: Reason
    message: str


_NOT_REGULAR = {
    file_type: Refusal(Reason.NOT_A_FILE, f"It is {name}; only regular files are staged.")
    for file_type, name in (
        (stat.S_IFDIR, "a directory"),
        (stat.S_IFIFO, "a FIFO"),
        (stat.S_IFSOCK, "a socket"),
        (stat.S_IFBLK, "a block device"),
        (stat.S_IFCHR, "a character device"),
        (stat.S_IFLNK, "a dangling symlink"),
    )
}
_UNKNOWN_TYPE = Refusal(Reason.NOT_A_FILE, "It is not a regular file; only regular files are staged.")
_UNKNOWN_SIZE = Refusal(Reason.ENTRY_UNREADABLE, "The peer does not report its size.")


@dataclass(slots=True)
class Listing:
    """What a directory holds.

    Attributes:
        entries: The files to stage.
        refused: The entries that cannot be staged. Entries refused for the same reason share one `Refusal`: one error
            object per entry would exhaust memory in a directory of many thousands of symlinks.
        hidden: The first names that begin with a dot; they are not staged.
        hidden_count: How many such names there are.
    """

    entries: list[Entry] = field(default_factory=list)
    refused: list[tuple[bytes, Refusal]] = field(default_factory=list)
    hidden: list[bytes] = field(default_factory=list)
    hidden_count: int = 0

    def add(self, name: bytes, attributes: wire.Attributes) -> None:
        """Add a file, or refuse an entry, by its attributes."""
        mode = attributes.mode
        if mode is not None and stat.S_IFMT(mode) and not stat.S_ISREG(mode):
            self.refused.append((name, _NOT_REGULAR.get(stat.S_IFMT(mode), _UNKNOWN_TYPE)))
        elif attributes.size is None:
            self.refused.append((name, _UNKNOWN_SIZE))
        else:
            permissions = None if mode is None else mode & 0o7777
            self.entries.append(Entry(name, attributes.size, permissions, attributes.mtime))

    def add_hidden(self, name: bytes) -> None:
        """Count a hidden name, and keep it if it is one of the first."""
        self.hidden_count += 1
        if self.hidden_count <= _MAX_HIDDEN:
            self.hidden.append(name)


def list_directory(client: SFTPClient, directory: bytes) -> Listing:
    """List what the shell's ``DIRECTORY/*`` would match, symlinks followed.

    Raises:
        RemoteError: If *directory* is missing or cannot be read.
        ProtocolError: If the peer lists a name that no directory can hold, or one name twice.
        LimitExceeded: If there are more entries, longer names, or more bytes than the client's limits allow.
    """
    listing = Listing()
    for _ in _fill(listing, client, directory, ListedNames(directory, client.limits)):
        pass
    listing.hidden.sort()
    return listing


def list_files(client: SFTPClient, directory: bytes) -> Iterator[Entry]:
    """Yield the files that `list_directory` would list, as they arrive. None is held in memory, so one may come twice.

    Raises:
        RemoteError, ProtocolError, LimitExceeded: As `list_directory`.
    """
    listing = Listing()
    for _ in _fill(listing, client, directory, ListedNames(directory, client.limits, detects_repetition=False)):
        yield from listing.entries
        listing.entries.clear()
        listing.refused.clear()


def _fill(listing: Listing, client: SFTPClient, directory: bytes, names: ListedNames) -> Iterator[None]:
    """Add the entries of *directory* to *listing*, and yield after each of them."""
    to_stat: list[bytes] = []
    for name, attributes in _read_names(client, directory, names):
        if is_hidden(name):
            listing.add_hidden(name)
        elif attributes.mode is None or attributes.size is None or stat.S_ISLNK(attributes.mode):
            to_stat.append(name)
        else:
            listing.add(name, attributes)
        yield
    for name, found in _stat_names(client, directory, to_stat):
        if isinstance(found, Refusal):
            listing.refused.append((name, found))
        else:
            listing.add(name, found)
        yield


def _read_names(client: SFTPClient, directory: bytes, names: ListedNames) -> Iterator[tuple[bytes, wire.Attributes]]:
    """Yield the names other than ``.`` and ``..``, with their attributes, as they arrive."""
    limits = client.limits
    check_path_length(directory, limits)
    body = pack_string(_open_directory(client, directory))
    received_before = client.reader.received
    at_end = False
    error: RemoteError | None = None
    for _ in range(_READDIRS_IN_FLIGHT):
        client.queue_request(wire.FXP_READDIR, body)
    while client.outstanding:
        reply = client.read_reply()
        if reply.type != wire.FXP_NAME:
            status = reply.expect_status()
            at_end = True
            if status.code != wire.FX_EOF:
                error = error or status_error(status, directory)
            continue
        for name, attributes in wire.parse_names(reply.joined_body(), max_names=limits.entries + 2):
            if name in (b".", b".."):
                continue
            _check_name(name, limits)
            names.add(name)
            yield name, attributes
        names.check_listing_size(client.reader.received - received_before)
        if not at_end:
            client.queue_request(wire.FXP_READDIR, body)
    client.request_reply(wire.FXP_CLOSE, body).expect_status()
    if error is not None:
        raise error


def _open_directory(client: SFTPClient, directory: bytes) -> bytes:
    """Return a handle of *directory*. Most servers refuse a file with SSH_FX_NO_SUCH_FILE: ask what it is."""
    try:
        return client.request_handle(wire.FXP_OPENDIR, pack_string(directory), directory)
    except RemoteError:
        require_directory(client, directory)
        raise


def require_directory(client: SFTPClient, directory: bytes) -> None:
    """Raise `RemoteError` if the peer says that *directory* is missing or not a directory."""
    try:
        mode = client.stat(directory).mode or 0
    except RemoteNotFound as exc:
        raise RemoteNotFound(NO_DIRECTORY, path=directory) from exc
    except RemoteError:
        return
    if stat.S_IFMT(mode) and not stat.S_ISDIR(mode):
        raise RemoteError(NO_DIRECTORY_BUT_A_FILE, path=directory, reason=Reason.NOT_A_DIRECTORY)


def _check_name(name: bytes, limits: Limits) -> None:
    """Raise unless *name* is a single path component: a server must not choose where files are written."""
    if not name or b"/" in name or b"\0" in name:
        raise ProtocolError(
            "The peer listed a name that no file can have. Its server is faulty or compromised.", path=name[:255]
        )
    check_name_length(name, limits)


def _stat_names(
    client: SFTPClient, directory: bytes, names: list[bytes]
) -> Iterator[tuple[bytes, wire.Attributes | Refusal]]:
    """Query the targets of symlinks, and the attributes that the listing left out; many requests in flight.

    Yields the attributes, or a refusal by status code. It omits the peer's message, which could differ for each name.
    """
    remaining = iter(names)
    refusals: dict[int, Refusal] = {}
    while True:
        while client.outstanding < _STATS_IN_FLIGHT and (name := next(remaining, None)) is not None:
            path = join_path(directory, name)
            check_path_length(path, client.limits)
            client.queue_request(wire.FXP_STAT, pack_string(path), name)
        if not client.outstanding:
            return
        reply = client.read_reply()
        if reply.type == wire.FXP_ATTRS:
            yield reply.context, reply.expect_attributes(reply.context)
            continue
        code = reply.expect_status().code
        error = status_error(wire.Status(code, ""), reply.context)
        message = f"It is a symlink that cannot be followed, or its attributes cannot be read: {error.message}"
        yield reply.context, refusals.setdefault(code, Refusal(entry_reason(error.reason), message))

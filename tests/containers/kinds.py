"""The kinds of peer: what each can do, and the one table of what it can not."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from peerstage.errors import IncompleteStage, NoSFTP, ProtocolError, RemoteError, StageError

TRANSPORTS = ("sftp", "scp", "guarded", "rcp")


@dataclass(frozen=True)
class Kind:
    """A service of docker-compose.yml that is a peer.

    Attributes:
        name: The service.
        transports: What it can be staged over; "rcp" is this machine's own scp, told to be the command.
    """

    name: str
    transports: tuple[str, ...]


KINDS = (
    Kind("openssh84", ("sftp", "scp", "rcp")),
    Kind("openssh92", ("sftp", "scp", "rcp")),
    Kind("openssh100", ("sftp", "scp", "rcp")),
    Kind("sftp-only", ("sftp",)),
    Kind("scp-only", ("scp", "rcp")),
    Kind("guard", ("guarded",)),
    Kind("dropbear", ("scp", "rcp")),
    Kind("dropbear-sftp", ("sftp", "scp")),
    Kind("proftpd", ("sftp", "scp")),
    Kind("behind", ("sftp", "scp")),
    Kind("far", ("sftp", "scp")),
    Kind("certs", ("sftp", "scp")),
    Kind("limited", ("sftp", "scp")),
)


@dataclass(frozen=True)
class Failure:
    """How something fails that can not be done: the error, and words of its message."""

    error: type[Exception]
    words: str


#: THE TABLE. What a kind can not do, a transport, "mark" or "command", and how that shows. Nothing of it is skipped.
#: What it can not do over one transport alone has that in front of it.
CAN_NOT: dict[tuple[str, str], Failure] = {
    ("scp-only", "sftp"): Failure(NoSFTP, "no sftp subsystem"),
    ("guard", "sftp"): Failure(NoSFTP, "without a word"),
    ("dropbear", "sftp"): Failure(NoSFTP, "without a word"),
    ("sftp-only", "scp"): Failure(ProtocolError, "sftp connections only"),
    ("sftp-only", "command"): Failure(RemoteError, "ended with status 1, saying .*sftp connections only"),
    ("guard", "command"): Failure(RemoteError, "ended with status 1, saying 'guard: refused'"),
    ("guard", "other paths"): Failure(Exception, "guard: refused|needs quotes"),
    ("proftpd", "command"): Failure(RemoteError, "lets this login run no command"),
    ("proftpd", "scp: other paths"): Failure(
        StageError, "lets this login run no command|sends another file|does not send it"
    ),
    ("proftpd", "scp: links"): Failure(ProtocolError, "gives this name twice"),
    ("proftpd", "scp: the rest"): Failure(IncompleteStage, "may not have sent the files behind that entry"),
    ("limited", "mark"): Failure(RemoteError, "permission"),
}


@dataclass(frozen=True)
class Way:
    """A transport to a kind of peer."""

    kind: Kind
    transport: str

    def __str__(self) -> str:
        return f"{self.kind.name}-{self.transport}"


#: What works, and on which everything is run.
WORKING = [Way(kind, transport) for kind in KINDS for transport in kind.transports]
#: The same without a program that this machine has to have.
ON_OUR_OWN = [way for way in WORKING if way.transport != "rcp"]
#: One for each kind: for what is settled before a transport has begun.
ONE_OF_EACH = [Way(kind, kind.transports[0]) for kind in KINDS]
#: What a kind can not do.
REFUSED = [Way(kind, transport) for kind in KINDS for transport in TRANSPORTS if (kind.name, transport) in CAN_NOT]


def each(ways: list[Way]) -> pytest.MarkDecorator:
    """Run a test on each of *ways*, as its argument ``way``."""
    return pytest.mark.parametrize("way", ways, ids=str)


@contextlib.contextmanager
def fails(failure: Failure) -> Iterator[None]:
    """Expect *failure*."""
    with pytest.raises(failure.error, match=f"(?i){failure.words}"):
        yield


def failure_of(way: Way, what: str) -> Failure | None:
    """Return how *what* fails, None if it works."""
    kind = way.kind.name
    return CAN_NOT.get((kind, what)) or CAN_NOT.get((kind, f"{way.transport}: {what}"))


def as_the_table_says(way: Way, what: str) -> contextlib.AbstractContextManager[None]:
    """Expect what is done inside to fail as `CAN_NOT` says, or to work where it says nothing."""
    failure = failure_of(way, what)
    return contextlib.nullcontext() if failure is None else fails(failure)

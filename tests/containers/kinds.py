"""The kinds of peer: what each can do, and the one table of what it can not."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from peerstage.errors import ConfigurationError, NoSFTP, ProtocolError, RemoteError

#: What peerstage can do so far: transports, and ways to get to a peer. What is added here runs everything below on the
#: kinds that it opens; still to come is "certificate".
THERE: tuple[str, ...] = ("sftp", "scp", "guarded", "rcp", "jump")


@dataclass(frozen=True)
class Kind:
    """A service of docker-compose.yml that is a peer.

    Attributes:
        name: The service.
        transports: What it can be staged over; "rcp" is this machine's own scp, told to be the command.
        needs: What else that takes.
    """

    name: str
    transports: tuple[str, ...]
    needs: tuple[str, ...] = ()


KINDS = (
    Kind("openssh84", ("sftp", "scp", "rcp")),
    Kind("openssh92", ("sftp", "scp", "rcp")),
    Kind("openssh100", ("sftp", "scp", "rcp")),
    Kind("sftp-only", ("sftp",)),
    Kind("scp-only", ("scp", "rcp")),
    Kind("guard", ("guarded",)),
    Kind("dropbear", ("scp", "rcp")),
    Kind("dropbear-sftp", ("sftp", "scp")),
    Kind("behind", ("sftp", "scp"), needs=("jump",)),
    Kind("certs", ("sftp", "scp"), needs=("certificate",)),
    Kind("limited", ("sftp", "scp")),
)


@dataclass(frozen=True)
class Failure:
    """How something fails that can not be done: the error, and words of its message."""

    error: type[Exception]
    words: str


#: THE TABLE. What a kind can not do, a transport or "mark", and how that shows. Nothing of it is skipped.
CAN_NOT: dict[tuple[str, str], Failure] = {
    ("scp-only", "sftp"): Failure(NoSFTP, "no sftp subsystem"),
    ("guard", "sftp"): Failure(NoSFTP, "without a word"),
    ("dropbear", "sftp"): Failure(NoSFTP, "without a word"),
    ("sftp-only", "scp"): Failure(ProtocolError, "sftp connections only"),
    ("guard", "other paths"): Failure(Exception, "guard: refused|needs quotes"),
    ("limited", "mark"): Failure(RemoteError, "permission"),
}

#: What peerstage can not do yet, and how it says so.
NOT_YET: dict[str, Failure] = {
    "certificate": Failure(ConfigurationError, "certificate=.* not honoured yet"),
}


@dataclass(frozen=True)
class Way:
    """A transport to a kind of peer."""

    kind: Kind
    transport: str

    def __str__(self) -> str:
        return f"{self.kind.name}-{self.transport}"

    @property
    def missing(self) -> tuple[str, ...]:
        """What peerstage does not have yet of what this takes, what is looked at first in front."""
        return tuple(one for one in (self.transport, *self.kind.needs) if one not in THERE)


#: What works, and on which everything is run.
WORKING = [way for kind in KINDS for transport in kind.transports if not (way := Way(kind, transport)).missing]
#: The same without a program that this machine has to have.
ON_OUR_OWN = [way for way in WORKING if way.transport != "rcp"]
#: What a kind can do and peerstage can not yet.
WAITING = [way for kind in KINDS for transport in kind.transports if (way := Way(kind, transport)).missing]
#: What a kind can not do.
REFUSED = [Way(kind, transport) for kind in KINDS for transport in THERE if (kind.name, transport) in CAN_NOT]


def each(ways: list[Way]) -> pytest.MarkDecorator:
    """Run a test on each of *ways*, as its argument ``way``."""
    return pytest.mark.parametrize("way", ways, ids=str)


@contextlib.contextmanager
def fails(failure: Failure) -> Iterator[None]:
    """Expect *failure*."""
    with pytest.raises(failure.error, match=f"(?i){failure.words}"):
        yield


def as_the_table_says(kind: Kind, what: str) -> contextlib.AbstractContextManager[None]:
    """Expect what is done inside to fail as `CAN_NOT` says, or to work where it says nothing."""
    failure = CAN_NOT.get((kind.name, what))
    return contextlib.nullcontext() if failure is None else fails(failure)

"""The kinds of peer: the transports of each, and the one table of what each does not support."""

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
        transports: The transports it supports; "rcp" is this machine's own scp as the rcp command.
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
    """How an unsupported operation fails: the error, and a pattern for its message."""

    error: type[Exception]
    pattern: str


#: What a kind does not support (a transport, "mark", "command" ...) and how it fails; nothing is skipped because of it.
#: A key that starts with a transport applies to that transport alone.
UNSUPPORTED: dict[tuple[str, str], Failure] = {
    ("scp-only", "sftp"): Failure(NoSFTP, "no sftp subsystem"),
    ("guard", "sftp"): Failure(NoSFTP, "without sending a byte"),
    ("dropbear", "sftp"): Failure(NoSFTP, "without sending a byte"),
    ("sftp-only", "scp"): Failure(ProtocolError, "sftp connections only"),
    ("sftp-only", "command"): Failure(RemoteError, "ended with status 1 and printed .*sftp connections only"),
    ("guard", "command"): Failure(RemoteError, "ended with status 1 and printed 'guard: refused'"),
    ("guard", "other paths"): Failure(Exception, "guard: refused|needs quotes"),
    ("proftpd", "command"): Failure(RemoteError, "does not let this login run commands"),
    ("proftpd", "scp: other paths"): Failure(
        StageError, "does not let this login run commands|a file other than|did not send it"
    ),
    ("proftpd", "scp: links"): Failure(ProtocolError, "listed this name twice"),
    ("proftpd", "scp: the rest"): Failure(IncompleteStage, "files that follow the entry may be missing"),
    ("limited", "mark"): Failure(RemoteError, "permission"),
}


@dataclass(frozen=True)
class Scenario:
    """A kind of peer, and the transport to it."""

    kind: Kind
    transport: str

    def __str__(self) -> str:
        return f"{self.kind.name}-{self.transport}"


#: All that work; everything runs on these.
WORKING = [Scenario(kind, transport) for kind in KINDS for transport in kind.transports]
#: The same without those that need a local program.
WITHOUT_RCP = [scenario for scenario in WORKING if scenario.transport != "rcp"]
#: One for each kind, for what happens before the transport matters.
ONE_PER_KIND = [Scenario(kind, kind.transports[0]) for kind in KINDS]
#: Transports that a kind does not support.
REFUSED = [
    Scenario(kind, transport) for kind in KINDS for transport in TRANSPORTS if (kind.name, transport) in UNSUPPORTED
]


def run_on(scenarios: list[Scenario]) -> pytest.MarkDecorator:
    """Parametrize a test by *scenarios*, as its argument ``scenario``."""
    return pytest.mark.parametrize("scenario", scenarios, ids=str)


@contextlib.contextmanager
def expect_failure(failure: Failure) -> Iterator[None]:
    """Expect *failure*."""
    with pytest.raises(failure.error, match=f"(?i){failure.pattern}"):
        yield


def find_failure(scenario: Scenario, operation: str) -> Failure | None:
    """Return how *operation* fails; None if it is supported."""
    kind = scenario.kind.name
    return UNSUPPORTED.get((kind, operation)) or UNSUPPORTED.get((kind, f"{scenario.transport}: {operation}"))


def expect_by_table(scenario: Scenario, operation: str) -> contextlib.AbstractContextManager[None]:
    """Expect the block to fail as `UNSUPPORTED` says, or to succeed if it has no entry."""
    failure = find_failure(scenario, operation)
    return contextlib.nullcontext() if failure is None else expect_failure(failure)

"""Results of ``trust``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from peerstage.cli.results import Line, Result, Table, failure_to_json
from peerstage.exit_codes import ExitCode
from peerstage.printable import escape


@dataclass(frozen=True, slots=True, kw_only=True)
class HostKeyResult:
    """The result of ``trust`` for one host.

    Attributes:
        host: The host, as it was named.
        port: Its TCP port.
        key_type: The type of the presented key.
        fingerprint: The fingerprint of the presented key.
        authority: The fingerprint of the CA key, if the host presented a certificate.
        state: "known", "new", "added", "changed", "mismatched", "revoked" or "unreachable".
        why: What is known about the key, and where.
        listed: Whether the list of fingerprints confirms the key; None without a list.
        listed_as: The other name under which the list has the key; empty if there is none.
        added_to: The file that the key was added to.
        error: Why the key is not trusted, or was not added.
        exit: The exit code of this host alone.
    """

    host: str
    port: int | None = None
    key_type: str = ""
    fingerprint: str = ""
    authority: str | None = None
    state: str
    why: str = ""
    listed: bool | None = None
    listed_as: str = ""
    added_to: str | None = None
    error: Exception | None = None
    exit: ExitCode

    @property
    def can_be_added(self) -> bool:
        """Whether the key is added on a yes."""
        return self.state == "new" and self.error is None

    @property
    def remark(self) -> str:
        """State, list, authority and reason as printable text."""
        says_state = self.why.startswith(f"{self.state} ")
        parts = [self.why if says_state else self.state]
        if self.listed is not None and self.listed_as:
            parts.append(f"{'listed as' if self.listed else 'LISTED FOR'} {self.listed_as}")
        elif self.listed is not None:
            parts.append("on the list" if self.listed else "NOT ON THE LIST")
        if self.authority is not None:
            parts.append(f"certified by {self.authority}")
        if self.why and not says_state:
            parts.append(self.why)
        return escape(", ".join(parts))

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {
            "verb": "trust",
            "host": self.host,
            "port": self.port,
            "type": self.key_type or None,
            "fingerprint": self.fingerprint or None,
            "authority": self.authority,
            "state": self.state,
            "why": self.why,
            "listed": self.listed,
            "listed_as": self.listed_as or None,
            "added_to": self.added_to,
            **failure_to_json(self.error),
            "exit": self.exit,
        }


@dataclass(frozen=True, slots=True)
class PresentedKeys(Result):
    """The host keys that ``trust`` was presented, before it asks whether to add the new ones."""

    hosts: list[HostKeyResult]

    def to_json(self) -> list[dict[str, Any]]:
        return []  # `TrustResult` has them in their final state

    def to_lines(self) -> Iterator[Line]:
        rows = [(escape(host.host), escape(host.key_type) or "-", host.fingerprint or "-") for host in self.hosts]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row, host in zip(rows, self.hosts, strict=True):
            yield ("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=True)), host.remark]),)

    def to_terminal(self) -> Iterator[Line | Table]:
        for host in self.hosts:  # two lines each: a fingerprint alone takes 50 columns
            style = "bold red" if host.error is not None else "yellow" if host.state == "new" else "green"
            yield f"{escape(host.host)}  ", (host.remark, style)
            if host.fingerprint:
                yield (f"  {escape(host.key_type)} {host.fingerprint}",)


@dataclass(frozen=True, slots=True)
class TrustResult(Result):
    """The result of ``trust``, after new keys were added."""

    hosts: list[HostKeyResult]

    def to_json(self) -> list[dict[str, Any]]:
        return [host.to_json() for host in self.hosts]

    def to_lines(self) -> Iterator[Line]:
        for path in dict.fromkeys(host.added_to for host in self.hosts if host.added_to is not None):
            count = sum(host.added_to == path for host in self.hosts)
            yield f"{escape(path)}: {count} ", ("added", "green")

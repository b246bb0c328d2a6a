"""What the verbs that look at a way to a peer come to: values, for `show` to show."""

from __future__ import annotations

from dataclasses import dataclass

from peerstage.cli.exits import Exit
from peerstage.errors import escape
from peerstage.reasons import Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What one host showed to ``trust``.

    Attributes:
        host: The host, as it was named.
        port: Its TCP port.
        key_type: The type of its key.
        fingerprint: The fingerprint of its key.
        authority: That of the authority that signed the certificate it showed, None if it showed a key.
        state: "known", "new", "added", "changed", "mismatched", "revoked" or "unreachable".
        why: What is known of it, and where.
        listed: Whether the list that was given confirms this key, None without a list.
        listed_as: The other name that the list has the key under; empty if it is the host's own, or there is none.
        added_to: The file that the key was added to.
        error: Why it is not trusted and was not added.
        exit: What this host alone means for the exit status.
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
    exit: Exit

    @property
    def may_be_added(self) -> bool:
        """Whether only a yes is missing."""
        return self.state == "new" and self.error is None

    @property
    def remark(self) -> str:
        """All that is to be said beside host, type and fingerprint, printable."""
        parts = [self.state]
        if self.listed is not None and self.listed_as:
            parts.append(f"{'listed as' if self.listed else 'LISTED FOR'} {self.listed_as}")
        elif self.listed is not None:
            parts.append("on the list" if self.listed else "NOT ON THE LIST")
        if self.authority is not None:
            parts.append(f"certified by {self.authority}")
        if self.why:
            parts.append(self.why)
        return escape(", ".join(parts))


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What ``doctor`` found at one step of the way.

    Attributes:
        step: The step, as `peerstage.cli.examine` names it.
        state: "ok", "tried" (one of several attempts came to nothing), "failed" or "skipped".
        seen: What was seen.
        cause: What is likely behind it, where it failed.
        remedy: The next step: a command, or a line and the file that it belongs to.
        reason: Why it failed, or came to nothing.
    """

    step: str
    state: str
    seen: str = ""
    cause: str = ""
    remedy: str = ""
    reason: Reason | None = None

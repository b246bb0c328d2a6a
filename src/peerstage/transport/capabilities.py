"""What each way to a peer can do, known before it is loaded."""

from __future__ import annotations

from peerstage.records import Capabilities

SFTP = Capabilities("sftp", resumes=True)
SCP = Capabilities("scp", newline_names=False)
RCP = Capabilities("rcp", newline_names=False, judges_entries=False)

_BY_NAME = {one.name: one for one in (SFTP, SCP, RCP)}


def expected(transport: str, *, by_command: bool, guarded: bool) -> Capabilities:
    """Return what the transport can do that is tried first."""
    if by_command:
        return RCP
    return SCP if guarded or transport == "scp" else SFTP


def named(name: object, otherwise: Capabilities) -> Capabilities:
    """Return the capabilities that have this name, or *otherwise* if none have."""
    return _BY_NAME.get(name, otherwise) if isinstance(name, str) else otherwise

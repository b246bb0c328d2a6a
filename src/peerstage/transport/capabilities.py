"""Capabilities of each transport, known before the transport is imported."""

from __future__ import annotations

from peerstage.records import Capabilities

SFTP = Capabilities("sftp", can_resume=True)
SCP = Capabilities("scp", supports_newline_names=False, can_list=False, reports_mtime=False)
RCP = Capabilities("rcp", supports_newline_names=False, reports_entry_errors=False, can_list=False, reports_mtime=False)

_BY_NAME = {known.name: known for known in (SFTP, SCP, RCP)}


def capabilities_named(name: object, default: Capabilities) -> Capabilities:
    """Return the capabilities of the transport *name*, or *default* for any other name."""
    return _BY_NAME.get(name, default) if isinstance(name, str) else default

"""What README tells a site to write: into cback3's configuration, root's crontab, or a script of its own."""

from __future__ import annotations

import re
from pathlib import Path

_README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def _block(beginning: str) -> str:
    """Return the block of README that begins so."""
    found = re.findall(r"^```\w*\n(.*?)^```", _README, re.MULTILINE | re.DOTALL)
    return next(text for text in found if text.startswith(beginning)).strip("\n")


#: The five lines that a site adds to cback3's configuration, and the command that takes them away again.
FIVE_LINES, TAKES_AWAY = _block("<extensions>"), _block("sed -i")

#: The line of root's crontab, and where it has a site install both.
CRONTAB = _block("15 3 ")
BIN = CRONTAB.split()[5].rpartition("/")[0]

#: The same without cback3, for these peers.
SCRIPT = _block("import os, sys, time") + "\n"
SCRIPT_PEERS = '["db1", "db2", "web1"]'

"""What README tells a site to write: into cback3's configuration, root's crontab, or a script of its own."""

from __future__ import annotations

import re

from peerstage import cback3

#: The five lines that a site adds to cback3's configuration, and the command that takes them away again.
FIVE_LINES, TAKES_AWAY = (
    block.strip("\n").replace("\n    ", "\n").strip()
    for block in re.findall(r"::\n\n((?:    .*\n)+)", cback3.__doc__ or "")
)

#: Where README has a site install both, and the line of root's crontab.
BIN = "/opt/peerstage/bin"
CRONTAB = f"15 3 * * * {BIN}/cback3 stage"

#: The same without cback3, in ten lines, for one peer.
SCRIPT = """\
import os, time
from peerstage import RemotePeer, sweep, util

target = time.strftime("/srv/staging/%Y/%m/%d/db1")
os.makedirs(target, exist_ok=True)
sweep("/srv/staging")
with RemotePeer("db1", "/srv/collect", "/tmp", "backup", localUser="backup") as peer:
    if peer.checkCollectIndicator():
        peer.stagePeer(target, util.getUidGid("backup", "backup"))
        peer.writeStageIndicator()
"""

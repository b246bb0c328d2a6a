"""Code blocks of README and the guide, and those that tell a site what to write into its configuration."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = ROOT / "src" / "peerstage" / "guide"

_BLOCK = re.compile(r"^```(?P<language>\S*)\n(?P<text>.*?)\n```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """One fenced code block.

    Attributes:
        page: The page's file name without its suffix.
        language: The word behind the opening fence.
        text: The lines, without a newline at the end.
    """

    page: str
    language: str
    text: str


def read_blocks(path: Path) -> list[Block]:
    """Return the code blocks of a page."""
    return [Block(path.stem, *found.groups()) for found in _BLOCK.finditer(path.read_text(encoding="utf-8"))]


def read_all_blocks() -> list[Block]:
    """Return the code blocks of README and of every page of the guide."""
    return [block for path in (README, *sorted(PAGES.glob("*.md"))) for block in read_blocks(path)]


def find_block(page: str, beginning: str) -> str:
    """Return the text of the block of *page* that starts with *beginning*."""
    return next(block.text for block in read_blocks(PAGES / f"{page}.md") if block.text.startswith(beginning))


#: What the guide adds to cback3's configuration, and the command that removes it.
CBACK3_EXTENSION = find_block("cback3", "<extensions>")
CBACK3_REMOVAL = find_block("cback3", "sed -i")

#: The line of root's crontab, and the directory of cback3 in it.
CRONTAB_LINE = find_block("cback3", "15 3 ")
CBACK3_BIN = CRONTAB_LINE.split()[5].rpartition("/")[0]

#: A nightly script for these peers, without cback3.
NIGHTLY_SCRIPT = find_block("local-user", "import os, sys, time") + "\n"
NIGHTLY_PEERS = '["db1", "db2", "web1"]'

#: What root runs by the page every-night: on the master, on each peer, and for the timer.
MASTER_SETUP = find_block("every-night", "python3 -m venv")
PEER_SETUP = find_block("every-night", "id backup")
TIMER_SETUP = find_block("every-night", "systemctl enable")

"""Markdown as plain text, for pipes and for installations without rich."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator

_WIDTH = 80
_LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)]*)\)")
_ITEM = re.compile(r"(?:-|\d+\.) ")
_UNDERLINES = {1: "=", 2: "-"}


def render_plain(markdown: str) -> str:
    """Return *markdown* as text of at most 80 columns; code blocks keep their lines, and tables become lists."""
    lines: list[str] = []
    was_item = False
    for block in _split_blocks(markdown):
        is_item = _ITEM.match(block[0]) is not None
        if lines and not (is_item and was_item):
            lines.append("")
        lines.extend(_render_block(block))
        was_item = is_item
    return "\n".join(lines) + "\n"


def _split_blocks(markdown: str) -> Iterator[list[str]]:
    """Yield code blocks, headings, tables, list items and paragraphs, each as its lines."""
    block: list[str] = []
    in_code = False
    for line in markdown.splitlines():
        is_fence = line.startswith("```")
        begins_block = is_fence or line.startswith("#") or _ITEM.match(line)
        if block and not in_code and (begins_block or not line):
            yield block
            block = []
        if line or in_code:
            block.append(line)
        if is_fence:
            in_code = not in_code
        if (is_fence and not in_code) or (line.startswith("#") and not in_code):
            yield block
            block = []
    if block:
        yield block


def _render_block(lines: list[str]) -> Iterator[str]:
    first = lines[0]
    if first.startswith("```"):
        yield from (f"    {line}".rstrip() for line in lines[1:-1])
    elif first.startswith("#"):
        level, _, title = first.partition(" ")
        yield _strip_inline_markup(title)
        if len(level) in _UNDERLINES:
            yield _UNDERLINES[len(level)] * len(_strip_inline_markup(title))
    elif first.startswith("|"):
        yield from _render_table(lines)
    else:
        item = _ITEM.match(first)
        text = _strip_inline_markup(" ".join(line.strip() for line in lines))
        yield from _wrap(text, rest=" " * len(item[0]) if item else "")


def _render_table(lines: list[str]) -> Iterator[str]:
    """Yield each row as its first cell and, indented below it, the other cells.

    Each of these follows its column's title, unless there are only two columns.
    """
    titles, _, *rows = ([_strip_inline_markup(cell.strip()) for cell in line.strip("|").split("|")] for line in lines)
    for number, (name, *cells) in enumerate(rows):
        if number:
            yield ""
        yield from _wrap(name)
        for title, cell in zip(titles[1:], cells, strict=True):
            label = f"{title}: " if title and len(cells) > 1 else ""
            yield from _wrap(label + cell, first="    ", rest="    ")


def _wrap(text: str, *, first: str = "", rest: str = "") -> list[str]:
    return textwrap.wrap(
        text, _WIDTH, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )


def _strip_inline_markup(text: str) -> str:
    """Return *text* without the markup of bold text, links and images.

    A link becomes its text, with the URL if it points outside the guide; an image its alternative text in parentheses.
    """

    def replace(link: re.Match[str]) -> str:
        if link["image"]:
            return f"({link['text']})"
        is_outside = link["target"].startswith("http") and link["target"] != link["text"]
        return f"{link['text']} <{link['target']}>" if is_outside else link["text"]

    return _LINK.sub(replace, text).replace("**", "")

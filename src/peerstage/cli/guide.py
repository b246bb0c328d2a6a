"""``peerstage guide``: the pages of `peerstage.guide`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from peerstage.exit_codes import ExitCode
from peerstage.guide import read_page, render_plain


def guide_verb(
    topic: Annotated[
        str | None, typer.Argument(metavar="TOPIC", help="A page; without one, the list of topics.", show_default=False)
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Print the Markdown source.")] = False,
) -> int:
    """Read the guide, for example about an error or ssh_config."""
    page = read_page(topic)
    if raw:
        sys.stdout.write(page)
    elif sys.stdout.isatty():
        from peerstage.cli.markdown import print_markdown  # needs more of rich than any other verb

        print_markdown(page)
    else:
        sys.stdout.write(render_plain(page))
    return ExitCode.DONE

"""Output: tables and a progress bar on a terminal, plain text elsewhere."""

from __future__ import annotations

import hashlib
import os
import pty
import re
from pathlib import Path

from cli.command import Command


def on_terminal(command: Command, *arguments: object, typed: bytes = b"", columns: int = 160) -> tuple[int, str]:
    """Run the command on a pseudo-terminal; return its status and output."""
    command.environment.update(TERM="xterm", COLUMNS=str(columns))
    ours, theirs = pty.openpty()
    os.write(ours, typed)
    process = command.start(*arguments, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    written = bytearray()
    with process, open(ours, "rb", buffering=0) as terminal:
        while True:
            try:
                piece = terminal.read(65536)
            except OSError:  # Linux says EIO when the last writer has gone
                break
            if not piece:
                break
            written += piece
    return process.returncode, written.decode()


def text_of(written: str) -> str:
    """Return the text without escape sequences."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", written)


def test_stage_shows_a_bar_and_a_table(command: Command, collect: Path, target: Path) -> None:
    (collect / "one").write_bytes(b"1" * 1000)
    status, written = on_terminal(command, "stage", *command.reaching, command.spec(collect), target)
    assert status == 0
    assert "1/1 files" in written
    assert "╭" in written
    assert "SHA256:" in written
    assert written.count("\x1b[?25h") == written.count("\x1b[?25l") > 0  # the cursor is there again


def test_check_is_coloured(command: Command, collect: Path) -> None:
    (collect / "cback.collect").touch()
    status, written = on_terminal(command, "check", *command.reaching, command.spec(collect))
    assert status == 0
    assert "\x1b[32mready" in written
    (collect / "cback.collect").unlink()
    status, written = on_terminal(command, "check", *command.reaching, command.spec(collect))
    assert status == 3
    assert "not ready" in text_of(written)


def test_verify_shows_a_bar_and_colours(command: Command, target: Path) -> None:
    (target / "[red]one").write_bytes(b"")
    digest = hashlib.sha256(b"").hexdigest()
    (target / "peerstage.sha256").write_text(f"{digest}  [red]one\n{digest}  two\n")
    status, written = on_terminal(command, "verify", target)
    assert status == 8
    assert "2/2 files" in written
    assert "\x1b[31m       missing" in written
    (target / "[red]one").write_bytes(b"1")
    assert "changed [red]one" in text_of(on_terminal(command, "verify", target)[1])


def test_names_are_neither_markup_nor_sequences(command: Command, collect: Path, target: Path) -> None:
    names = ["[red]evil[green]", ":smile:", "[bold", "\x1b]0;title\x07", "two\nlines"]
    escaped = ["[red]evil[green]", ":smile:", "[bold", r"\x1b]0;title\x07", r"two\nlines"]
    for name in names:
        (collect / name).mkdir()
        (collect / f"file {name}").write_bytes(b"x")
    for options in ([], ["--dry-run"]):
        status, written = on_terminal(command, "stage", *options, *command.reaching, command.spec(collect), target)
        assert status == 5
        assert [one for one in escaped if f"{one}: It is a directory" not in text_of(written)] == []
        assert "\x1b]" not in written
        assert "\x07" not in written
    assert [one for one in escaped if f"file {one}" not in text_of(written)] == []


def test_an_error_on_a_terminal_is_one_line(command: Command, tmp_path: Path, target: Path) -> None:
    status, written = on_terminal(command, "stage", *command.reaching, command.spec(tmp_path / "none"), target)
    assert status == 4
    assert text_of(written).strip().splitlines()[-1].startswith("peerstage: ")


def test_output_to_a_pipe_is_plain(command: Command, collect: Path, target: Path) -> None:
    command.environment.update(TERM="xterm", FORCE_COLOR="1")
    (collect / "one").write_bytes(b"1")
    for arguments in (["stage"], ["stage", "--dry-run"]):
        done = command.reach(*arguments, command.spec(collect), target)
        assert done.returncode == 0
        assert done.stdout.isprintable() or set(done.stdout) - set(map(chr, range(32, 127))) == {"\n"}

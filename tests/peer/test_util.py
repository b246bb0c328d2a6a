"""`peerstage.util` is compatible with `CedarBackup2.util`."""

from __future__ import annotations

import grp
import os
import pwd
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerstage import RemotePeer, util
from support.examples import examples


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", []),
        ("   ", []),
        ("/usr/bin/scp -B -q -C", ["/usr/bin/scp", "-B", "-q", "-C"]),
        ("  scp   -B  ", ["scp", "-B"]),
        ('scp -o "ProxyCommand ssh gate" -B', ["scp", "-o", "ProxyCommand ssh gate", "-B"]),
        ('"/opt/my tools/scp" -B', ["/opt/my tools/scp", "-B"]),
        ("scp -o 'User x'", ["scp", "-o", "'User", "x'"]),
        ('rsync -e"ssh -p 22"', ["rsync", "-e", "ssh -p 22"]),
        ('scp "" -B', ["scp", "-B"]),
        ("scp a\\ b $HOME *", ["scp", "a\\", "b", "$HOME", "*"]),
    ],
)
def test_a_command_line_is_split_as_the_original_splits_it(line: str, words: list[str]) -> None:
    assert util.splitCommandLine(line) == words


@pytest.mark.parametrize("line", [None, 7, b"scp", '"', 'scp "-B', '"a" "b'])
def test_an_invalid_command_line_is_a_value_error(line: Any) -> None:
    with pytest.raises(ValueError, match=r"split|not closed"):
        util.splitCommandLine(line)


@examples(40)
@given(st.lists(st.text(st.characters(blacklist_characters='"', blacklist_categories=["Cs"]), min_size=1)))
def test_quoted_words_are_returned_unchanged(words: list[str]) -> None:
    assert util.splitCommandLine(" ".join(f'"{word}"' for word in words)) == words


def test_names_are_converted_to_numeric_ids() -> None:
    user, group = pwd.getpwuid(os.getuid()), grp.getgrgid(os.getgid())
    assert util.getUidGid(user.pw_name, group.gr_name) == (user.pw_uid, group.gr_gid)


@pytest.mark.parametrize(("user", "group"), [("no such user", "root"), ("root", "no such group"), (None, None), (0, 0)])
def test_unknown_names_are_a_value_error(user: Any, group: Any) -> None:
    with pytest.raises(ValueError, match="Unable to look up"):
        util.getUidGid(user, group)


@pytest.mark.parametrize(
    ("path", "text"),
    [(None, None), ("/a", "/a"), (b"/a", "/a"), (Path("/a"), "/a"), (b"/\xff", "/\udcff"), ("", ""), (b"", "")],
)
def test_paths_are_returned_as_str(path: Any, text: str | None) -> None:
    assert util.encodePath(path) == text
    if text:
        assert RemotePeer("peer", path, None, "backup").collectDir == text


@pytest.mark.parametrize("path", [7, "/a\0b", b"/a\0b", "/\ud800", object()])
def test_a_path_that_no_file_system_can_hold_is_a_value_error(path: Any) -> None:
    with pytest.raises(ValueError, match="could not be safely encoded"):
        util.encodePath(path)

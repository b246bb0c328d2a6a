"""``peerstage verify``: output, JSON and exit codes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.command import Command
from peerstage.target.checksum_file import format_checksum
from peerstage.target.manifest import CHECKSUMS

COMMAND = Command(None)  # type: ignore[arg-type]  # it needs no server


def make_staged(path: Path, **files: bytes) -> Path:
    """Make a directory with *files* and their manifest."""
    path.mkdir()
    lines = []
    for name, data in files.items():
        (path / name).write_bytes(data)
        lines.append(format_checksum(os.fsencode(name), hashlib.sha256(data).hexdigest()))
    (path / CHECKSUMS).write_bytes(b"".join(lines))
    return path


@pytest.fixture
def staged(tmp_path: Path) -> Path:
    return make_staged(tmp_path / "staged", one=b"1" * 1000, two=b"22")


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    path = make_staged(tmp_path / "damaged", gone=b"", good=b"good", bad=b"bad", **{"wild\x1b[31m\n": b"x"})
    (path / "gone").unlink()
    (path / "bad").write_bytes(b"worse")
    (path / "wild\x1b[31m\n").write_bytes(b"y")
    (path / "more").touch()
    return path


def test_an_intact_directory_is_done_and_counted(staged: Path) -> None:
    done = COMMAND("verify", staged)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{staged}: 2 files in the manifest, 1002 bytes read in ")
    assert done.stdout.endswith(", all intact\n")


def test_every_difference_is_named_on_a_line(damaged: Path, assert_one_line: Callable[[str], None]) -> None:
    done = COMMAND("verify", damaged)
    assert done.returncode == 8
    lines = done.stdout.splitlines()
    assert lines[:4] == [
        "       changed bad",
        "       missing gone",
        "         extra more",
        r"       changed wild\x1b[31m\n",
    ]
    assert lines[4].startswith(f"{damaged}: 4 files in the manifest, 10 bytes read in ")
    assert lines[4].endswith("), 1 missing, 2 changed, 1 extra")
    assert_one_line(done.stderr)
    assert "differs from its manifest: 1 missing, 2 changed, 1 extra. If the peer still has" in done.stderr


def test_json_is_one_object_for_each_directory(staged: Path, damaged: Path) -> None:
    done = COMMAND("verify", "--json", staged, damaged)
    intact, different = map(json.loads, done.stdout.splitlines())
    assert done.returncode == 8
    assert (intact["verb"], intact["status"], intact["exit"], intact["reason"]) == ("verify", "intact", 0, None)
    assert (different["status"], different["exit"], different["reason"]) == ("different", 8, "verification-failed")
    assert (intact["directory"], intact["report"]["files"], intact["report"]["is_intact"]) == (str(staged), 2, True)
    assert {difference["name"]: difference["kind"] for difference in different["report"]["differences"]} == {
        "bad": "changed",
        "gone": "missing",
        "more": "extra",
        "wild\x1b[31m\n": "changed",
    }


def test_a_directory_without_a_manifest_does_not_stop_the_others(staged: Path, target: Path) -> None:
    done = COMMAND("verify", "--json", target, staged)
    assert done.returncode == 6
    first, second = map(json.loads, done.stdout.splitlines())
    assert (first["status"], first["exit"], first["reason"], first["report"]) == ("failed", 6, "no-manifest", None)
    assert second["status"] == "intact"
    assert done.stderr == f"peerstage: {target}: There is no peerstage.sha256 in it. Stage into it with --manifest.\n"


@pytest.mark.parametrize(
    ("make", "status"),
    [
        (lambda path: path.unlink(), 6),
        (lambda path: path.write_bytes(b"damaged"), 8),
        (lambda path: (path.unlink(), path.symlink_to("one")), 8),
    ],
    ids=["missing", "damaged", "link"],
)
def test_a_manifest_that_cannot_be_used_is_one_line(
    staged: Path, make: Callable[[Path], object], status: int, assert_one_line: Callable[[str], None]
) -> None:
    make(staged / CHECKSUMS)
    done = COMMAND("verify", staged)
    assert (done.returncode, done.stdout) == (status, "")
    assert_one_line(done.stderr)


def test_the_next_step_fits_what_was_found(staged: Path) -> None:
    (staged / "more").touch()
    assert "1 extra. Move away what does not belong there." in COMMAND("verify", staged).stderr
    (staged / ".peerstage-01234567").mkdir()
    assert "running, or was killed: stage again, then verify again." in COMMAND("verify", staged).stderr


def test_a_missing_directory_is_a_local_problem(tmp_path: Path, assert_one_line: Callable[[str], None]) -> None:
    done = COMMAND("verify", tmp_path / "none")
    assert (done.returncode, done.stdout) == (6, "")
    assert_one_line(done.stderr)

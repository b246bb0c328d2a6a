"""``peerstage demo``: it stages from a server of its own and compares every file."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.command import Command
from cli.test_terminal import on_terminal, text_of
from support.waiting import wait_until

FEW = ["--small", "5", "--large", "1", "--large-bytes", "300000"]


@pytest.fixture(autouse=True)
def own_temporary(command: Command, tmp_path: Path) -> Path:
    path = tmp_path / "tmp"
    path.mkdir()
    command.environment["TMPDIR"] = str(path)
    return path


def test_demo_stages_and_compares_every_file(command: Command, own_temporary: Path) -> None:
    done = command("demo", *FEW, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads(done.stdout)
    assert result["compared"] == result["equal"] == result["report"]["count"] > 6
    assert result["different"] == result["left_out"] == []
    staged = Path(result["target"])
    assert staged.is_relative_to(own_temporary)
    assert len(os.listdir(staged)) == result["compared"]
    assert os.listdir(staged.parent) == ["staged"]


def test_demo_says_in_plain_text_where_the_files_lie(command: Command, own_temporary: Path) -> None:
    done = command("demo", *FEW, "--no-keep")
    assert done.returncode == 0
    assert "equal\n" in done.stdout
    assert "(removed)" in done.stdout
    assert os.listdir(own_temporary) == []


def test_demo_on_a_terminal_ends_with_a_table(command: Command) -> None:
    status, written = on_terminal(command, "demo", *FEW)
    assert status == 0
    assert "╭" in written
    assert "SHA-256" in text_of(written)


def test_directory_of_the_user_is_served_and_not_written_to(command: Command, collect: Path, target: Path) -> None:
    (collect / "one [red]").write_bytes(b"1" * 100_000)
    (collect / "link").symlink_to("one [red]")
    (collect / ".hidden").write_bytes(b"2")
    (collect / "sub").mkdir()
    before = sorted(os.listdir(collect))
    done = command("demo", "--source", collect, "--target", target, "--json")
    assert done.returncode == 0
    result = json.loads(done.stdout)
    assert (result["compared"], result["equal"], result["target"]) == (2, 2, str(target))
    assert [file["name"] for file in result["report"]["refused"]] == ["sub"]
    assert len(result["left_out"]) == 2
    assert sorted(os.listdir(collect)) == before
    digest = hashlib.sha256(b"1" * 100_000).digest()
    for name in ("one [red]", "link"):
        assert hashlib.sha256((target / name).read_bytes()).digest() == digest


def test_empty_source_has_nothing_to_stage(
    command: Command, collect: Path, own_temporary: Path, assert_one_line: Callable[[str], None]
) -> None:
    done = command("demo", "--source", collect)
    assert done.returncode == 5
    assert_one_line(done.stderr)
    assert os.listdir(own_temporary) == []


def test_interrupted_demo_leaves_nothing(command: Command, own_temporary: Path) -> None:
    with command.start("demo", "--small", "1", "--large", "2", "--large-bytes", str(200 << 20)) as process:
        wait_until(lambda: process.poll() is not None or list(own_temporary.glob("*/staged/.peerstage-*/0")))
        assert process.poll() is None
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM
    assert os.listdir(own_temporary) == []


def test_missing_server_extra_is_not_available(
    command: Command, tmp_path: Path, own_temporary: Path, assert_one_line: Callable[[str], None]
) -> None:
    stub = tmp_path / "stub"
    stub.mkdir()
    (stub / "sitecustomize.py").write_text("import sys\nsys.modules['asyncssh'] = None\n")
    command.environment["PYTHONPATH"] = str(stub)
    done = command.in_a_process("demo", *FEW)
    assert done.returncode == 7
    assert_one_line(done.stderr)
    assert "peerstage[" in done.stderr
    assert os.listdir(own_temporary) == []

"""README's promises beyond its examples, which tests/guide runs: machine-read lines, failing runs, exit codes."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cli.command import Command
from peerstage.exit_codes import format_exit_codes
from support.file_server import Master, serves_files
from support.guide_blocks import NIGHTLY_SCRIPT, README, ROOT, read_blocks
from support.ssh_server import listening
from support.sshd import Sshd

TEXT = README.read_text(encoding="utf-8")


def first_command(heading: str) -> str:
    """Return the first console block below a heading, as `.ci/run` reads it."""
    section = TEXT.split(f"\n## {heading}\n")[1]
    return re.findall(r"^```console\n(.*?)\n```", section, re.MULTILINE | re.DOTALL)[0]


def test_quick_start_is_one_line_that_ends_with_the_demo() -> None:
    line = first_command("Quick start")
    assert "\n" not in line
    assert line.startswith("python3 -m venv .venv && .venv/bin/pip install")
    assert line.endswith("peerstage demo")


def test_ci_runs_the_line_under_tests_and_nothing_else() -> None:
    assert first_command("Tests") == (
        "python3 -m venv .venv && .venv/bin/pip install --quiet -e '.[test]' && "
        '.venv/bin/python -m pytest -n 6 -m "not bulk"'
    )
    assert "README.md" in (ROOT / ".ci" / "run").read_text()


def test_every_verb_on_the_page_exists(sshd: Sshd) -> None:
    console = "\n".join(block.text for block in read_blocks(README) if block.language == "console")
    verbs = set(re.findall(r"^peerstage (\w+)", console, re.MULTILINE))
    assert {"trust", "doctor", "check", "stage", "mark"} <= verbs
    for verb in verbs:
        assert Command(sshd)(verb, "--help").returncode == 0
    assert Command(sshd).in_a_process("--help").returncode == 0


def test_exit_codes_are_those_of_the_help() -> None:
    assert format_exit_codes() in [block.text for block in read_blocks(README)]


@pytest.mark.usefixtures("fresh_interpreter")
def test_the_nightly_script_lists_peers_that_were_not_staged_and_exits_with_1(own_home: Path, tmp_path: Path) -> None:
    (own_home / ".ssh").mkdir()
    master = Master(own_home / ".ssh")
    staging = tmp_path / "staging"
    for name in ("db1", "db2", "web1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cback.collect").touch()
    script = NIGHTLY_SCRIPT
    for written, replacement in {
        '"/srv/collect"': f'f"{tmp_path}/{{name}}"',
        "/srv/staging": str(staging),
        ', localUser="backup"': "",
        ', util.getUidGid("backup", "backup")': "",
    }.items():
        assert written in script
        script = script.replace(written, replacement)

    def run() -> tuple[int, list[str], set[str]]:
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert done.stdout == ""
        staged = {path.parent.name for path in staging.rglob("cback.collect")}
        assert staged == {path.parent.name for path in tmp_path.glob("*/cback.stage")}
        return done.returncode, done.stderr.splitlines(), staged

    with listening(serves_files(master.key)) as port, socket.socket() as dead:
        dead.bind(("127.0.0.1", 0))
        for name, peer_port in {"db1": port, "db2": dead.getsockname()[1], "web1": port}.items():
            master.add_host(name, peer_port, "IdentityFile ~/.ssh/id")
        (tmp_path / "web1" / "cback.collect").unlink()
        status, lines, staged = run()
        assert (status, staged) == (1, {"db1"})
        summary = lines[lines.index("2 of 3 peers were not staged:") + 1 :]
        assert [line.partition(": ")[0] for line in summary] == ["db2", "web1"]
        assert "Connection refused" in summary[0]
        assert summary[1] == "web1: It has not collected yet."
        with listening(serves_files(master.key), dead):
            (tmp_path / "web1" / "cback.collect").touch()
            assert run() == (0, [], {"db1", "db2", "web1"})


def test_the_changelog_describes_what_is_unreleased() -> None:
    unreleased = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").split("## [Unreleased]")[1]
    assert "### Added" in unreleased

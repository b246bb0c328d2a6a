"""README is true: its Python runs, its commands are the ones that are run, its tables are whole."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from cli.command import Command
from peerstage import cback3
from peerstage.cli.exits import Exit
from support.site import FIVE_LINES, SCRIPT, TAKES_AWAY
from support.sshd import Sshd

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_the_first_example_runs_and_prints_what_it_says(
    sshd: Sshd, collect: Path, target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (collect / "cback.collect").touch()
    (collect / "data.tar.gz").write_bytes(b"x" * 1000)
    example = blocks("python")[0]
    for written, here in {
        "/var/backup/collect": str(collect),
        "/srv/staging/2026/11/23/db1": str(target),
        '"backup"': repr(sshd.user),
        "port=2222": f"port={sshd.port}",
        '"~/.ssh/backup_ed25519"': f"{str(sshd.identity)!r}, known_hosts={str(sshd.known_hosts)!r}",
    }.items():
        assert written in example
        example = example.replace(written, here)
    exec(compile(example, "README.md", "exec"), {})
    shape = re.sub(r"\d+", r"\\d+", re.sub(r"SHA256:\S+", r"SHA256:\\S+", blocks("text")[0].strip()))
    assert re.fullmatch(shape, capsys.readouterr().out.strip())
    assert (collect / "cback.stage").exists()


@pytest.mark.usefixtures("fresh_interpreter")
def test_the_example_for_tests_runs_as_it_stands() -> None:
    example = next(block for block in blocks("python") if "ssh_server" in block)
    subprocess.run([sys.executable, "-c", example], check=True)


def test_the_example_of_peers_in_memory_runs_as_it_stands() -> None:
    example = next(block for block in blocks("python") if "memory_peers" in block)
    exec(compile(example, "README.md", "exec"), {})


def test_ci_runs_the_line_under_tests_and_nothing_else() -> None:
    section = README.split("\n## Tests\n")[1]
    line = re.findall(r"^```console\n(.*?)\n```", section, re.MULTILINE | re.DOTALL)[0]
    assert "\n" not in line
    assert line.endswith("""-m pytest -n 4 -m "not bulk\"""")
    assert "README.md" in (ROOT / ".ci" / "run").read_text()


def test_the_quick_start_is_one_line_and_every_verb_is_there(sshd: Sshd) -> None:
    line = re.findall(r"^```console\n(.*?)\n```", README.split("\n## Quick start\n")[1], re.MULTILINE | re.DOTALL)[0]
    assert "\n" not in line
    assert line.endswith("peerstage demo")
    for verb in re.findall(r"^peerstage (\w+)", README, re.MULTILINE):
        assert Command(sshd)(verb, "--help").returncode == 0
    assert Command(sshd).in_a_process("--help").returncode == 0


def test_every_exit_code_has_its_row() -> None:
    assert {int(code) for code in re.findall(r"^\| (\d) \|", README, re.MULTILINE)} == {code.value for code in Exit}


def test_cback3_s_module_says_the_same_lines_as_the_readme() -> None:
    said = re.sub(r"\s+", " ", cback3.__doc__ or "")
    assert FIVE_LINES.count("\n") == 4
    assert SCRIPT.count("\n") == 10
    for lines in (FIVE_LINES, TAKES_AWAY):
        assert re.sub(r"\s+", " ", lines) in said


def test_the_changelog_says_what_is_unreleased() -> None:
    unreleased = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").split("## [Unreleased]")[1]
    assert "### Added" in unreleased

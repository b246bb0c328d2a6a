"""README is true: its Python runs, its commands are the ones that are run, its tables are whole."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cli.command import Command
from peerstage import cback3
from peerstage.cli.exits import Exit
from support.file_server import Master, serves_files
from support.site import FIVE_LINES, SCRIPT, TAKES_AWAY
from support.ssh_server import listening
from support.sshd import Sshd, free_port

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def with_what_is_here(example: str, here: dict[str, str]) -> str:
    """Return *example* with what it needs of this machine in the place of what is written."""
    for written, meant in here.items():
        assert written in example
        example = example.replace(written, meant)
    return example


def first_example(sshd: Sshd, collect: Path, target: Path, port: int) -> None:
    """Run the first example."""
    here = {
        "/var/backup/collect": str(collect),
        "/srv/staging/2026/11/23/db1": str(target),
        '"backup"': repr(sshd.user),
        "port=2222": f"port={port}",
        '"~/.ssh/backup_ed25519"': f"{str(sshd.identity)!r}, known_hosts={str(sshd.known_hosts)!r}",
    }
    exec(compile(with_what_is_here(blocks("python")[0], here), "README.md", "exec"), {})


def test_the_first_example_runs_and_prints_what_it_says(
    sshd: Sshd, collect: Path, target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (collect / "cback.collect").touch()
    (collect / "data.tar.gz").write_bytes(b"x" * 1000)
    first_example(sshd, collect, target, sshd.port)
    shape = re.sub(r"\d+", r"\\d+", re.sub(r"SHA256:\S+", r"SHA256:\\S+", blocks("text")[0].strip()))
    assert re.fullmatch(shape, capsys.readouterr().out.strip())
    assert (collect / "cback.stage").exists()


def test_the_first_example_ends_with_the_reason_if_there_is_nothing_to_stage(
    sshd: Sshd, collect: Path, target: Path
) -> None:
    with pytest.raises(SystemExit, match=r"^The peer has not collected yet\.$"):
        first_example(sshd, collect, target, sshd.port)
    with pytest.raises(SystemExit, match=r"^127\.0\.0\.1: .* Connection refused"):
        first_example(sshd, collect, target, free_port())


@pytest.mark.usefixtures("fresh_interpreter")
def test_the_script_says_which_peers_were_not_staged_and_ends_with_status_1(own_home: Path, tmp_path: Path) -> None:
    (own_home / ".ssh").mkdir()
    master = Master(own_home / ".ssh")
    staging = tmp_path / "staging"
    for name in ("db1", "db2", "web1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cback.collect").touch()
    here = {
        '"/srv/collect"': f'f"{tmp_path}/{{name}}"',
        "/srv/staging": str(staging),
        ', localUser="backup"': "",
        ', util.getUidGid("backup", "backup")': "",
    }
    script = with_what_is_here(SCRIPT, here)

    def run() -> tuple[int, list[str], set[str]]:
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert done.stdout == ""
        staged = {path.parent.name for path in staging.rglob("cback.collect")}
        assert staged == {path.parent.name for path in tmp_path.glob("*/cback.stage")}
        return done.returncode, done.stderr.splitlines(), staged

    with listening(serves_files(master.key)) as port, socket.socket() as dead:
        dead.bind(("127.0.0.1", 0))
        for name, place in {"db1": port, "db2": dead.getsockname()[1], "web1": port}.items():
            master.learn(name, place, "IdentityFile ~/.ssh/id")
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
    for lines in (FIVE_LINES, TAKES_AWAY):
        assert re.sub(r"\s+", " ", lines) in said


def test_the_changelog_says_what_is_unreleased() -> None:
    unreleased = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").split("## [Unreleased]")[1]
    assert "### Added" in unreleased

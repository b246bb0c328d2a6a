"""``peerstage guide``: pages for terminals and pipes, and where the extra is missing."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest

from cli.command import Command
from peerstage.__main__ import main
from peerstage.exit_codes import ExitCode
from peerstage.guide import list_topics, read_page
from support.guide_blocks import PAGES

COMMAND = Command(None)  # type: ignore[arg-type]  # the guide needs no server


def test_without_a_topic_it_lists_all_with_a_line_each() -> None:
    done = COMMAND("guide")
    assert done.returncode == 0
    assert re.findall(r"^- ([a-z0-9-]+): .", done.stdout, re.MULTILINE) == [*list_topics()]
    assert not re.search(r"^  ", done.stdout, re.MULTILINE)


@pytest.mark.parametrize("topic", list_topics())
def test_raw_is_the_page_as_it_is_and_plain_is_not_markdown(topic: str) -> None:
    assert COMMAND("guide", topic, "--raw").stdout == (PAGES / f"{topic}.md").read_text(encoding="utf-8")
    text = COMMAND("guide", topic).stdout
    assert text.splitlines()[0] == read_page(topic).splitlines()[0].removeprefix("# ")
    assert "](" not in text


def test_an_unknown_topic_is_one_line_that_names_the_nearest() -> None:
    done = COMMAND("guide", "hostkey")
    assert (done.returncode, done.stdout) == (ExitCode.USAGE, "")
    assert done.stderr == (
        "peerstage: The guide has no topic 'hostkey'; the nearest is 'host-keys'. See peerstage guide --help.\n"
    )


def test_a_terminal_gets_headings_and_no_markdown(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.argv", ["peerstage", "guide", "troubleshooting"])
    with monkeypatch.context() as patch:
        patch.setattr("sys.stdout", terminal)
        assert main() == 0
    assert "\x1b[" in terminal.getvalue()
    assert "## " not in terminal.getvalue()
    assert "…" not in terminal.getvalue(), "a reason is cut off"


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["guide", "host-keys"], 0, "\nHost certificates\n-----"),
        (["guide", "--raw", "host-keys"], 0, "\n## Host certificates\n"),
        (["guide"], 0, "- troubleshooting: "),
        (["guide", "hostkey"], 2, "peerstage: The guide has no topic 'hostkey'; the nearest is 'host-keys'.\n"),
        (["check"], 2, "peerstage: the command line needs an extra: pip install 'peerstage[cli]'\n"),
    ],
)
def test_without_the_extra_the_guide_still_prints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, words: str
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "rich", None)
    monkeypatch.setattr("sys.argv", ["peerstage", *arguments])
    assert main() == status
    captured = capsys.readouterr()
    assert words in (captured.err if status else captured.out)
    assert not (captured.out if status else captured.err)


def test_a_failed_command_names_the_page_that_helps(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("BindInterface eth0\n")
    done = COMMAND("check", "--config", config, "backup@db1:/srv/collect")
    assert done.returncode == ExitCode.USAGE
    assert done.stderr.endswith(" See: peerstage guide ssh-config\n")
    done = COMMAND("doctor", "--config", config, "backup@db1:/srv/collect")
    assert re.search(r"^ +see: +peerstage guide ssh-config$", done.stdout, re.MULTILINE)
    assert "peerstage guide" not in COMMAND("check", "--port", "0", "backup@db1:/srv/collect").stderr

"""The guide is complete: every page is linked, every link leads somewhere, every reason is explained."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from peerstage import SSHOptions
from peerstage.errors import ConfigurationError
from peerstage.exit_codes import CODES
from peerstage.fleet.hooks import describe_peer, describe_run
from peerstage.fleet.results import FleetReport, PeerResult, Verdict
from peerstage.guide import INDEX, list_topics, read_page, render_plain, topic_for
from peerstage.reasons import Reason
from peerstage.ssh.config.keywords import is_known
from peerstage.ssh.config.resolve import resolve_destination
from support.guide_blocks import PAGES, README, ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:  # which pytest brings where Python does not
    import tomli as tomllib

FILES = [README, *sorted(PAGES.glob("*.md"))]


def section(page: str, title: str) -> str:
    """Return the part of a page below a heading of the second level."""
    return read_page(page).split(f"\n## {title}\n")[1].split("\n## ")[0]


def anchors(path: Path) -> set[str]:
    """Return what a forge makes of the headings of a page."""
    titles = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_index_lists_every_page_and_no_other() -> None:
    assert {*list_topics(), INDEX} == {path.stem for path in PAGES.glob("*.md")}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_link_leads_to_a_page_or_heading(path: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", path.read_text(encoding="utf-8")):
        target, _, anchor = link.partition("#")
        file = path.parent / target if target else path
        assert file.is_file(), link
        assert not anchor or anchor in anchors(file), link


def test_readme_links_every_page_and_fits_its_screen() -> None:
    text = README.read_text(encoding="utf-8")
    for topic in [*list_topics(), INDEX]:
        assert f"(src/peerstage/guide/{topic}.md)" in text
    assert len(text.splitlines()) <= 150
    assert text.count("![") == 1


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_table_row_has_the_columns_of_its_heading(path: Path) -> None:
    for table in re.findall(r"(?:^\|.*\n)+", path.read_text(encoding="utf-8"), re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1, table


def rows_of_troubleshooting() -> dict[str, tuple[str, str, str]]:
    """Return section, cause and next step of each reason."""
    found: dict[str, tuple[str, str, str]] = {}
    for text in read_page("troubleshooting").split("\n## ")[1:]:
        for reason, cause, step in re.findall(r"^\| `([a-z-]+)` \| (.+) \| (.+) \|$", text, re.MULTILINE):
            assert reason not in found
            found[reason] = (text, cause, step)
    return found


def test_every_reason_is_explained_with_cause_and_next_step() -> None:
    rows = rows_of_troubleshooting()
    assert set(rows) == {reason.value for reason in Reason}
    for reason, (_, cause, step) in rows.items():
        assert cause.endswith((".", ".)")), reason
        assert step.endswith((".", "`")), reason


def test_every_reason_is_below_its_exit_code() -> None:
    for reason, (text, cause, _) in rows_of_troubleshooting().items():
        introduction = text.partition("\n|")[0]
        codes = re.findall(r"Exit code (\d+)", cause) or re.findall(r"[Ee]xit code(?: is)? (\d+)", introduction)
        assert codes[:1] == [str(CODES[Reason(reason)].value)], reason


def test_errors_name_only_pages_that_mention_their_reason() -> None:
    explained = {reason: topic for reason in Reason if (topic := topic_for(reason)) is not None}
    assert explained[Reason.HOST_KEY_CHANGED] == "host-keys"
    for reason, topic in explained.items():
        assert topic in list_topics()
        assert f"`{reason}`" in read_page(topic)
    assert topic_for(None) is None


def test_every_variable_of_a_hook_is_described() -> None:
    described = set(re.findall(r"`PEERSTAGE_(\w+)`", section("every-night", "Hooks")))
    result = PeerResult(peer="db1", verdict=Verdict.STAGED)
    report = FleetReport(run="r", plan=None, staging="/s", target="/s/d", day="d", started=0.0)
    common = {"HOOK", "RUN", "PLAN", "STAGING", "DAY", "TARGET"}
    assert described == {*common, *describe_peer(result), *describe_run(report)}


def test_every_supported_keyword_is_one_of_ssh() -> None:
    paragraph = section("ssh-config", "Supported keywords").strip().split("\n\n")[0]
    keywords = re.findall(r"\b[A-Z]\w+\b", paragraph)
    assert len(keywords) > 25
    assert [keyword for keyword in keywords if not is_known(keyword.lower())] == []


def test_every_keyword_in_the_first_row_is_refused(tmp_path: Path) -> None:
    rows = section("ssh-config", "Where peerstage differs from ssh")
    keywords = re.findall(r"\w+", re.findall(r"^\| (Canonicalize.*?) \|", rows, re.MULTILINE)[0])
    assert len(keywords) == 6
    for keyword in keywords:
        (tmp_path / "config").write_text(f"{keyword} yes\n")
        with pytest.raises(ConfigurationError) as caught:
            resolve_destination("db1", "backup", SSHOptions(config=tmp_path / "config"))
        assert caught.value.reason is Reason.UNSUPPORTED_KEYWORD


def test_the_design_page_lists_the_layers_that_are_checked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = project["tool"]["importlinter"]["contracts"][0]["layers"]
    assert layers.pop(0) == "peerstage.__main__"
    modules = [name.removeprefix("peerstage.") for layer in layers for name in layer.split(" : ")]
    cells = re.findall(r"^\| (`.*?) \|", section("design", "Layers"), re.MULTILINE)
    listed = [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]
    assert listed == [name for name in modules if name in listed], "they are in another order"
    packages = {name for name in modules if (ROOT / "src" / "peerstage" / name).is_dir()}
    assert packages | {"staging", "records", "errors", "reasons"} <= {*listed}


def test_plain_text_fits_80_columns_and_loses_nothing() -> None:
    for topic in list_topics():
        page = read_page(topic)
        text = render_plain(page)
        code = {f"    {line}" for line in page.splitlines()}
        assert [line for line in text.splitlines() if len(line) > 80 and line not in code] == [], topic
        missing = set(re.findall(r"`([^`\s]+)`", page)) - set(re.findall(r"`([^`\s]+)`", text))
        assert missing == set(), topic


def test_plain_text_has_no_markdown() -> None:
    page = "# A *title*\n\nSee [b](b.md) and [c](https://c.example), **now**.\n\n- one\n  two\n- three\n\n"
    page += "| a | b | c |\n|---|---|---|\n| 1 | 2 | 3 |\n\n```sh\n# x\n\ny\n```\n\n![picture](p.svg)\n"
    assert render_plain(page) == (
        "A *title*\n=========\n\nSee b and c <https://c.example>, now.\n\n- one two\n- three\n\n"
        "1\n    b: 2\n    c: 3\n\n    # x\n\n    y\n\n(picture)\n"
    )

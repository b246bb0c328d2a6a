"""The options that verbs share: one list for all verbs that connect, validated, completed and named in messages."""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer

import peerstage
from cli.command import Command
from peerstage.cli.access import TransportChoice
from peerstage.cli.app import app
from peerstage.cli.option_names import name_options
from peerstage.cli.options import build_access, build_stage_options
from peerstage.records import Limits
from peerstage.stage_options import StageOptions

CONNECTING = ["check", "stage", "mark", "doctor", "trust"]
_PYTHON = re.compile(r"Limits[.(:]|(?:SSH|Stage)Options[(:]|Retry\(|The option [a-z]|guarded=|localUser|rcpCommand")


@pytest.mark.parametrize("verb", CONNECTING)
def test_every_verb_that_connects_has_every_option_of_access(verb: str) -> None:
    names = {parameter.name for parameter in typer.main.get_command(app).commands[verb].params}  # type: ignore[attr-defined]
    assert set(inspect.signature(build_access).parameters) <= names


def test_every_stage_option_is_an_option_of_the_same_name() -> None:
    fields = list(StageOptions.__dataclass_fields__)
    assert list(inspect.signature(build_stage_options).parameters) == fields
    names = {
        option.removeprefix("--").removeprefix("no-")
        for parameter in typer.main.get_command(app).commands["stage"].params  # type: ignore[attr-defined]
        for option in (*parameter.opts, *parameter.secondary_opts)
    }
    assert {field.replace("_", "-") for field in fields} <= names


def test_limits_in_bytes_may_have_a_suffix_and_are_shown_with_one(command: Command) -> None:
    shown = "".join(command("check", "--help").stdout.split()).replace("│", "")
    assert "listing_bytes=32M,packet_bytes=257K" in shown
    assert "total_bytes=16T,file_bytes=none,free_bytes=0" in shown
    done = command("check", "--limit", "listing_bytes=1G", "--limit", "stall_timeout=1K", "a@127.0.0.1:/x")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--limit stall_timeout needs a number: 'stall_timeout=1K'" in done.stderr


@pytest.mark.parametrize("verb", ["check", "doctor"])
def test_a_limit_may_be_raised_and_lowered(command: Command, collect: Path, verb: str) -> None:
    (collect / "cback.collect").touch()
    assert command.reach(verb, "--limit", "entries=9", "--limit", "min_rate=1", command.spec(collect)).returncode == 0


def test_a_limit_that_is_exceeded_is_named_as_its_option(command: Command, collect: Path, target: Path) -> None:
    (collect / "abcd").touch()
    for options in ([], ["--dry-run"]):
        done = command.reach("stage", *options, "--limit", "name_bytes=3", command.spec(collect), target)
        assert done.returncode == 4
        assert "(--limit name_bytes)" in done.stderr
    report = json.loads(command.reach("doctor", "--json", "--limit", "name_bytes=3", command.spec(collect)).stdout)
    failed = next(step for step in report["steps"] if step["state"] == "failed")
    assert "--limit name_bytes=NUMBER" in failed["remedy"]
    assert command.reach("stage", "--limit", "name_bytes=4", command.spec(collect), target).returncode == 0


def test_a_command_that_copies_may_be_given(command: Command, collect: Path, target: Path) -> None:
    (collect / "one").write_bytes(b"1")
    script = target.parent / "rcp"
    script.write_text('#!/bin/sh\nfor last; do :; done\ncp "${COLLECT:?}"/* "$last"\n')
    script.chmod(0o755)
    command.environment["COLLECT"] = str(collect)
    options = ["--transport", "rcp", "--rcp-command", script]
    assert command.reach("stage", *options, command.spec(collect), target).returncode == 0
    assert (target / "one").read_bytes() == b"1"


@pytest.fixture
def complete(command: Command) -> Callable[[str], list[str]]:
    """Returns what a shell offers for the last word of a line, by typer's protocol for bash."""

    def complete(line: str) -> list[str]:
        words = line.split(" ")
        command.environment.update(_PEERSTAGE_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=str(len(words) - 1))
        done = command.in_a_process()
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.split()

    return complete


def test_verbs_and_choices_are_completed(complete: Callable[[str], list[str]]) -> None:
    verbs = ["check", "stage", "mark", "init", "run", "prune", "verify", "sweep", "trust", "doctor", "demo", "guide"]
    assert complete("peerstage ") == verbs
    assert complete("peerstage d") == ["doctor", "demo"]
    assert complete("peerstage stage --transport ") == [choice.value for choice in TransportChoice]
    assert complete("peerstage trust --transport s") == ["sftp", "scp"]
    assert complete("peerstage doctor --local-") == ["--local-user"]
    assert complete("peerstage doctor --limit stall") == ["stall_timeout="]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_is_printed(command: Command, shell: str) -> None:
    command.environment["_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION"] = "1"
    done = command.in_a_process("--show-completion", shell)
    assert done.returncode == 0
    assert "_PEERSTAGE_COMPLETE" in done.stdout


@pytest.mark.parametrize(
    ("message", "named"),
    [
        ("3 entries (Limits.entries).", "3 entries (--limit entries)."),
        ("late (Limits.deadline, min_rate).", "late (--deadline, --limit min_rate)."),
        ("raise Limits.stall_timeout", "raise --limit stall_timeout"),
        ("raise Limits(deadline=...)", "raise --deadline"),
        ("Limits: deadline must be", "--deadline must be"),
        ("SSHOptions: host_key must be", "--host-key must be"),
        ("Give SSHOptions(config=()).", "Give --no-config."),
        ("or read no ssh configuration and give options instead.", "or give --no-config and options instead."),
        ("SSHOptions(jump=...) leads", "--jump leads"),
        ("Omit StageOptions(preserve_times=True) or guarded=True.", "Omit --preserve-times or --transport guarded."),
        ("StageOptions: max_size must be", "--max-size must be"),
        ("increase Retry(connect=...) or --connect-retries.", "increase --connect-retries."),
        ("Retry(tries=...) or --retries allows more", "--retries allows more"),
        ("Correct the path x (the option known hosts)", "Correct the path x (--known-hosts)"),
        ("Correct localUser, or", "Correct --local-user, or"),
        (
            "guarded=True excludes an rcpCommand.",
            "--transport guarded excludes an --rcp-command.",
        ),
        ("A word about Limits and the option of a peer.", "A word about Limits and the option of a peer."),
    ],
)
def test_a_message_names_options_and_not_parameters(message: str, named: str) -> None:
    assert name_options(message) == named


#: What a message that names a parameter contains.
PARAMETERS = r"Limits\.|(SSHOptions|StageOptions|Retry|RemotePeer)\(|SSHOptions: "


def messages() -> Iterator[str]:
    """Yield the strings of modules that match `PARAMETERS`, but no docstrings; ``0`` replaces each formatted value."""
    package = Path(peerstage.__file__).parent
    for path in package.rglob("*.py"):
        if path.relative_to(package).parts[0] in ("cli", "testing", "cback3", "guide"):
            continue
        text = path.read_text(encoding="utf-8")
        if not re.search(PARAMETERS, text):
            continue
        tree = ast.parse(text)
        documented = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                yield "".join(str(part.value) if isinstance(part, ast.Constant) else "0" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documented:
                yield node.value


def test_no_message_of_the_library_names_a_parameter_that_has_an_option() -> None:
    builders = (build_access, build_stage_options)
    options = "|".join(
        [*(name for build in builders for name in inspect.signature(build).parameters), "connect", "tries"]
    )
    named = [name_options(message) for message in messages() if " " in message]
    limits = "|".join(Limits.__dataclass_fields__)
    wrong = rf"Limits\.({limits})|(SSHOptions|StageOptions|Retry|RemotePeer)\(({options})=|SSHOptions: ({options})\b"
    assert [message for message in named if re.search(wrong, message)] == []
    assert any("--limit" in message for message in named)

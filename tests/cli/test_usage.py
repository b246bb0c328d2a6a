"""How the command is called: wrong usage is one line and status 2; help and version; the table of exit codes."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.command import Command
from peerstage.cli.exits import MEANINGS, REASONS, TABLE, Exit, code_of
from peerstage.cli.spec import Spec, parse_owner, parse_permissions, parse_spec
from peerstage.errors import StageError
from peerstage.reasons import Reason


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nothing-like-it"],
        ["check"],
        ["check", "--no-such-option"],
        ["check", "host"],
        ["check", "host:/x"],
        ["check", "@host:/x"],
        ["check", "user@host"],
        ["check", "user@host:"],
        ["check", "user@host:relative"],
        ["check", "user@::1:/x"],
        ["check", "user@-oProxyCommand=x:/x"],
        ["check", "-", "user@host:/x"],
        ["check", "user@host:/x", "user@ho\nst:/x"],
        ["check", "--port", "many", "user@host:/x"],
        ["check", "--port", "0", "user@host:/x"],
        ["check", "--host-key", "MD5:00", "user@host:/x"],
        ["check", "--deadline", "-1", "user@host:/x"],
        ["check", "--indicator", "a/b", "user@host:/x"],
        ["check", "--config", "x", "--no-config", "user@host:/x"],
        ["check", "--transport", "pigeon", "user@host:/x"],
        ["mark", "user@host"],
        ["stage", "user@host:/x"],
        ["stage", "--permissions", "abc", "user@host:/x", "/tmp"],
        ["stage", "--permissions", "99", "user@host:/x", "/tmp"],
        ["stage", "--permissions", "4755", "user@host:/x", "/tmp"],
        ["stage", "--owner", "somebody", "user@host:/x", "/tmp"],
        ["sweep"],
        ["demo", "--source", "/nonexistent-source"],
        ["demo", "--small", "-1"],
    ],
)
def test_wrong_usage_is_one_line_and_status_2(
    command: Command, arguments: list[str], one_line: Callable[[str], None]
) -> None:
    done = command(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    one_line(done.stderr)
    verb = arguments[0] if arguments and arguments[0] != "nothing-like-it" else ""
    assert done.stderr.endswith(f" See {' '.join(f'peerstage {verb}'.split())} --help.\n")


@pytest.mark.parametrize(
    ("arguments", "status", "reason"),
    [
        (["check", "--json"], 2, "invalid-argument"),
        (["stage", "--json", "user@host:/x"], 2, "invalid-argument"),
        (["stage", "--json", "--permissions", "abc", "user@host:/x", "/tmp"], 2, "invalid-argument"),
        (["mark", "user@host", "--json"], 2, "invalid-argument"),
        (["stage", "--json", "user@host:/x", "/nonexistent/target"], 6, "target-missing"),
        (["stage", "--json", "--config", "/nonexistent/config", "user@host:/x", "/tmp"], 2, "configuration-unreadable"),
        (["stage", "--json", "-n", "--config", "/nonexistent", "user@host:/x", "/tmp"], 2, "configuration-unreadable"),
        (["sweep", "--json", "/nonexistent/pool"], 6, "target-missing"),
        (["trust", "--json"], 2, "invalid-argument"),
        (["doctor", "--json", "--transport", "rcp", "user@host:/x"], 2, "invalid-argument"),
        (["demo", "--json", "--source", "/nonexistent"], 2, "invalid-argument"),
    ],
)
def test_an_error_in_json_mode_is_one_object(
    command: Command, arguments: list[str], status: int, reason: str, one_line: Callable[[str], None]
) -> None:
    done = command(*arguments)
    told = json.loads(done.stdout)
    assert (done.returncode, told["exit"], told["reason"]) == (status, status, reason)
    assert told["error"] in done.stderr
    one_line(done.stderr)


def test_an_error_is_no_object_where_json_is_the_name_of_something(command: Command) -> None:
    done = command("sweep", "--", "--json")
    assert (done.returncode, done.stdout) == (6, "")


@pytest.mark.parametrize("verb", [[], ["check"], ["stage"], ["mark"], ["trust"], ["doctor"], ["sweep"], ["demo"]])
def test_help_tells_every_exit_code(command: Command, verb: list[str]) -> None:
    done = command(*verb, "--help")
    assert done.returncode == 0
    for code, meaning in MEANINGS.items():
        assert f"  {code.value}  {meaning}\n" in done.stdout


def test_version(command: Command) -> None:
    done = command("--version")
    assert done.returncode == 0
    assert done.stdout.startswith("peerstage ")


def test_every_reason_has_a_code_and_every_code_a_meaning() -> None:
    assert set(TABLE) == set(Reason)
    for reason in Reason:
        assert code_of(StageError("x", reason=reason)) is TABLE[reason]
    assert code_of(ValueError("x")) is Exit.USAGE
    assert code_of(RuntimeError("x")) is Exit.UNEXPECTED
    assert code_of(OSError("x")) is Exit.UNEXPECTED
    assert set(MEANINGS) == set(Exit)
    assert set(TABLE.values()) == set(Exit) - {Exit.DONE}


def test_no_reason_has_two_codes() -> None:
    assert sum(len(reasons) for reasons in REASONS.values()) == len(TABLE)


@pytest.mark.parametrize(
    ("reason", "status"),
    [
        (Reason.INVALID_CONFIGURATION, Exit.USAGE),
        (Reason.INSECURE_CONFIGURATION, Exit.USAGE),
        (Reason.NOT_READY, Exit.NOT_READY),
        (Reason.CONNECTION_REFUSED, Exit.UNREACHED),
        (Reason.HOST_KEY_CHANGED, Exit.UNREACHED),
        (Reason.INCOMPLETE_STAGE, Exit.INCOMPLETE),
        (Reason.NO_SPACE, Exit.LOCAL),
        (Reason.TARGET_MISSING, Exit.LOCAL),
        (Reason.OUT_OF_DESCRIPTORS, Exit.LOCAL),
        (Reason.NOT_ROOT, Exit.NOT_AVAILABLE),
    ],
)
def test_a_wrapper_can_tell_by_the_code_whether_to_try_again(reason: Reason, status: Exit) -> None:
    assert code_of(StageError("x", reason=reason)) is status


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("u@h:/a", Spec("u", "h", "/a")),
        ("u@h:/a@b:c", Spec("u", "h", "/a@b:c")),
        ("u@realm@h:/a", Spec("u@realm", "h", "/a")),
        ("u@[fe80::1%eth0]:/a", Spec("u", "[fe80::1%eth0]", "/a")),
        ("u@h:/new\nline", Spec("u", "h", "/new\nline")),
    ],
)
def test_specs(text: str, spec: Spec) -> None:
    assert parse_spec(text) == spec


def test_modes_and_owners() -> None:
    assert parse_permissions("640") == parse_permissions("0o640") == 0o640
    assert parse_owner("34:-1") == (34, -1)
    assert parse_permissions(None) is parse_owner(None) is None


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_the_extra_one_line_says_what_to_install(command: Command, tmp_path: Path, missing: str) -> None:
    (tmp_path / f"{missing}.py").write_text(f"raise ModuleNotFoundError('none', name={missing!r})\n")
    command.environment["PYTHONPATH"] = str(tmp_path)
    done = command.in_a_process("check", "u@h:/x")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "pip install 'peerstage[cli]'" in done.stderr


def test_reader_that_goes_away_is_no_traceback(command: Command) -> None:
    with command.start("--help", stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode in (0, 1)


def test_output_that_can_not_be_written_is_an_unexpected_error(
    command: Command, target: Path, one_line: Callable[[str], None]
) -> None:
    with open("/dev/full", "w") as full, command.start("sweep", target, stdout=full) as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    one_line(err)

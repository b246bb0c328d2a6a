"""Usage: wrong usage is one line and status 2; help, version, arguments, exit codes."""

from __future__ import annotations

import grp
import json
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from cli.command import Command
from peerstage.cli.app import app
from peerstage.cli.arguments import (
    PeerSpec,
    parse_host,
    parse_host_or_peer,
    parse_owner_option,
    parse_peer,
    parse_permissions,
)
from peerstage.errors import StageError
from peerstage.exit_codes import CODES, MEANINGS, REASONS, ExitCode, code_of
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
        ["stage", "--owner", "no-such-user", "user@host:/x", "/tmp"],
        ["stage", "--owner", "root:no-such-group", "user@host:/x", "/tmp"],
        ["stage", "--owner", "0:0:0", "user@host:/x", "/tmp"],
        ["stage", "--owner", ":", "user@host:/x", "/tmp"],
        ["stage", "--owner", "0:", "user@host:/x", "/tmp"],
        ["check", "--limit", "entries", "user@host:/x"],
        ["check", "--limit", "deadline=1", "user@host:/x"],
        ["check", "--limit", "entries=many", "user@host:/x"],
        ["check", "--limit", "entries=0", "user@host:/x"],
        ["check", "user@host:22"],
        ["check", "user@host:22:/x"],
        ["check", "host:22"],
        ["doctor", "host:/x"],
        ["doctor", "host:x"],
        ["doctor", "host:"],
        ["doctor", "fe80::1:22"],
        ["doctor", "user@host:0"],
        ["doctor", "--rcp-command", "scp", "user@host:/x"],
        ["trust", "user@host:/x"],
        ["trust", "--host-key", f"SHA256:{'A' * 43}", "host", "other"],
        ["sweep"],
        ["verify"],
        ["demo", "--source", "/nonexistent-source"],
        ["demo", "--small", "-1"],
    ],
)
def test_wrong_usage_is_one_line_and_status_2(
    command: Command, arguments: list[str], assert_one_line: Callable[[str], None]
) -> None:
    done = command(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert_one_line(done.stderr)
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
    command: Command, arguments: list[str], status: int, reason: str, assert_one_line: Callable[[str], None]
) -> None:
    done = command(*arguments)
    report = json.loads(done.stdout)
    assert (done.returncode, report["exit"], report["reason"]) == (status, status, reason)
    assert report["error"] in done.stderr
    assert_one_line(done.stderr)


def test_an_argument_named_json_is_not_the_option(command: Command) -> None:
    done = command("sweep", "--", "--json")
    assert (done.returncode, done.stdout) == (6, "")


VERBS = ["check", "stage", "mark", "verify", "trust", "doctor", "sweep", "demo"]


def test_help_of_the_command_lists_every_exit_code(command: Command) -> None:
    done = command("--help")
    assert done.returncode == 0
    for code, meaning in MEANINGS.items():
        assert f"  {code.value}  {meaning}\n" in done.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_has_an_example_that_parses(command: Command, verb: str) -> None:
    done = command(verb, "--help")
    assert done.returncode == 0
    example = " ".join(done.stdout.split("\n  Example: ")[1].split())
    assert example.startswith(f"peerstage {verb} ")
    context = typer.main.get_command(app).make_context("peerstage", shlex.split(example)[1:])
    _, parsed, arguments = context.command.resolve_command(context, context._protected_args + context.args)  # type: ignore[attr-defined]
    parsed.make_context(verb, arguments)


def test_version(command: Command) -> None:
    done = command("--version")
    assert done.returncode == 0
    assert done.stdout.startswith("peerstage ")


def test_every_reason_has_a_code_and_every_code_a_meaning() -> None:
    assert set(CODES) == set(Reason)
    for reason in Reason:
        assert code_of(StageError("x", reason=reason)) is CODES[reason]
    assert code_of(ValueError("x")) is ExitCode.USAGE
    assert code_of(RuntimeError("x")) is ExitCode.UNEXPECTED
    assert code_of(OSError("x")) is ExitCode.UNEXPECTED
    assert set(MEANINGS) == set(ExitCode)
    assert set(CODES.values()) == set(ExitCode)


def test_no_reason_has_two_codes() -> None:
    listed = [reason for reasons in REASONS.values() for reason in reasons]
    assert len(listed) == len(set(listed)) == sum(code is not ExitCode.UNREACHED for code in CODES.values())


@pytest.mark.parametrize(
    ("reason", "status"),
    [
        (Reason.INVALID_CONFIGURATION, ExitCode.USAGE),
        (Reason.INSECURE_CONFIGURATION, ExitCode.USAGE),
        (Reason.NOT_READY, ExitCode.NOT_READY),
        (Reason.CONNECTION_REFUSED, ExitCode.UNREACHED),
        (Reason.HOST_KEY_CHANGED, ExitCode.UNREACHED),
        (Reason.INCOMPLETE_STAGE, ExitCode.INCOMPLETE),
        (Reason.NO_SPACE, ExitCode.LOCAL),
        (Reason.TARGET_MISSING, ExitCode.LOCAL),
        (Reason.OUT_OF_DESCRIPTORS, ExitCode.LOCAL),
        (Reason.NOT_ROOT, ExitCode.NOT_AVAILABLE),
    ],
)
def test_exit_codes_tell_whether_to_try_again(reason: Reason, status: ExitCode) -> None:
    assert code_of(StageError("x", reason=reason)) is status


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("u@h:/a", PeerSpec("u", "h", None, "/a")),
        ("u@h:/a@b:c", PeerSpec("u", "h", None, "/a@b:c")),
        ("u@realm@h:/a", PeerSpec("u@realm", "h", None, "/a")),
        ("u@[fe80::1%eth0]:/a", PeerSpec("u", "fe80::1%eth0", None, "/a")),
        ("u@h:/new\nline", PeerSpec("u", "h", None, "/new\nline")),
    ],
)
def test_a_peer_is_user_host_and_directory(text: str, spec: PeerSpec) -> None:
    assert parse_peer(text) == parse_host_or_peer(text) == spec
    with pytest.raises(ValueError, match="leave out the directory"):
        parse_host(text)


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("h", PeerSpec(None, "h")),
        ("u@h", PeerSpec("u", "h")),
        ("h:22", PeerSpec(None, "h", 22)),
        ("u@h:65535", PeerSpec("u", "h", 65535)),
        ("[::1]", PeerSpec(None, "::1")),
        ("[::1]:22", PeerSpec(None, "::1", 22)),
        ("u@[fe80::1%eth0]:22", PeerSpec("u", "fe80::1%eth0", 22)),
        ("[h]:22", PeerSpec(None, "h", 22)),
        ("192.0.2.1:22", PeerSpec(None, "192.0.2.1", 22)),
    ],
)
def test_a_host_may_have_a_user_and_a_port(text: str, spec: PeerSpec) -> None:
    assert parse_host(text) == parse_host_or_peer(text) == spec
    with pytest.raises(ValueError, match="A peer is USER@HOST:DIR"):
        parse_peer(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("::1", "in brackets, [::1]"),
        ("fe80::1:22", "in brackets"),
        ("u@::1:/x", "in brackets, [::1]"),
        ("h:/x", "write USER@h:/x"),
        ("h:x", "a port, or a directory that begins with a slash"),
        ("h:", "a port, or a directory that begins with a slash"),
        ("h:0", "from 1 to 65535"),
        ("h:٢٢", "a port, or a directory"),
        ("u@", "A peer is USER@HOST:DIR, a host"),
        ("[::1", "A peer is USER@HOST:DIR, a host"),
        ("a b", "must not begin with a dash or contain spaces"),
    ],
)
def test_a_host_that_is_ambiguous_or_invalid_is_refused_with_the_form_to_use(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_host_or_peer(text)


def test_modes_are_octal() -> None:
    assert parse_permissions("640") == parse_permissions("0o640") == 0o640
    assert parse_permissions(None) is None


@pytest.mark.parametrize(
    ("text", "ownership"),
    [
        ("34:-1", (34, -1)),
        ("0:-1", (0, -1)),
        ("34", (34, -1)),
        (":34", (-1, 34)),
        ("root", (0, -1)),
        ("root:daemon", (0, grp.getgrnam("daemon").gr_gid)),
        (":daemon", (-1, grp.getgrnam("daemon").gr_gid)),
        (None, None),
    ],
)
def test_owner_and_group_are_names_or_numbers(text: str | None, ownership: tuple[int, int] | None) -> None:
    assert parse_owner_option(text) == ownership


@pytest.mark.parametrize(
    ("text", "missing"), [("nobody-here:0", "user 'nobody-here'"), (":no-such", "group 'no-such'")]
)
def test_an_unknown_owner_or_group_is_named(text: str, missing: str) -> None:
    with pytest.raises(ValueError, match=missing):
        parse_owner_option(text)


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_the_extra_one_line_says_what_to_install(command: Command, tmp_path: Path, missing: str) -> None:
    (tmp_path / f"{missing}.py").write_text(f"raise ModuleNotFoundError('none', name={missing!r})\n")
    command.environment["PYTHONPATH"] = str(tmp_path)
    done = command.in_a_process("check", "u@h:/x")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "pip install 'peerstage[cli]'" in done.stderr


def test_a_closed_pipe_prints_no_traceback(command: Command) -> None:
    with command.start("--help", stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode in (0, 1)


def test_output_that_cannot_be_written_is_an_error_of_this_machine(
    command: Command, target: Path, assert_one_line: Callable[[str], None]
) -> None:
    with open("/dev/full", "w") as full, command.start("sweep", target, stdout=full) as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 6
    assert_one_line(err)
    assert "Standard output cannot be written: No space left on device." in err


def test_garbage_is_collected_once_the_modules_of_the_command_are_imported(fresh_interpreter: str) -> None:
    code = (
        "import gc, sys; from peerstage.__main__ import main; sys.argv = ['peerstage', '--version']; main();"
        "print(gc.isenabled(), gc.get_freeze_count() > 10_000)"
    )
    done = subprocess.run([fresh_interpreter, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "True True"

"""Follow a remedy of the doctor literally: edit the line, run the command, give the option."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

from cli.doctor_setup import DoctorSetup


def follow(setup: DoctorSetup, remedy: str, alternative: int = 0, **answers: str) -> None:
    """Follow one of the alternatives in *remedy*, step by step.

    Args:
        setup: The set-up to change. Its peer is this machine.
        remedy: The remedy in the doctor's report.
        alternative: The index of the alternative.
        answers: What only a person knows: ``value`` for the right value of a line or an option, and a value for each
            placeholder in capital letters.
    """
    chosen = re.split("[;,] or ", remedy)[alternative]
    for step in re.split("(?:, (?:and only then|and|then)|;) ", chosen):
        forms = ((re.match(pattern, step), carry_out) for pattern, carry_out in _FORMS.items())
        match, carry_out = next((form for form in forms if form[0] is not None), (None, None))
        if match is None or carry_out is None:
            raise AssertionError(f"The remedy has no known form: {step}")
        carry_out(setup, match, answers)


def reconfigure(setup: DoctorSetup, line: str) -> None:
    """Replace the keyword of *line* in the configuration of the server, and restart it."""
    _edit_sshd_config(setup, line)
    setup.sshd.restart()


def _edit_sshd_config(setup: DoctorSetup, line: str) -> None:
    path = setup.sshd.home / "sshd_config"
    keyword = line.split()[0].lower()
    kept = [one for one in path.read_text().splitlines() if not one.lower().startswith(keyword)]
    path.write_text("\n".join([line, *kept]) + "\n")


def _correct(setup: DoctorSetup, match: re.Match[str], answers: dict[str, str]) -> None:
    path, at = Path(match["path"]), int(match["line"]) - 1
    lines = path.read_text().splitlines()
    lines[at] = f" {answers['value']}"
    path.write_text("\n".join(lines) + "\n")


def _remove(setup: DoctorSetup, match: re.Match[str], answers: dict[str, str]) -> None:
    path, at = Path(match["path"]), int(match["line"]) - 1
    lines = path.read_text().splitlines()
    del lines[at]
    path.write_text("\n".join(lines) + "\n")


def _add(setup: DoctorSetup, match: re.Match[str], answers: dict[str, str]) -> None:
    path, head = Path(match["path"]).expanduser(), f"Host {match['host']}\n"
    text = path.read_text()
    assert head in text
    added = "".join(f" {_filled(line, answers)}\n" for line in re.findall("`(.*?)`", match["lines"]))
    path.write_text(text.replace(head, head + added))


def _give(setup: DoctorSetup, match: re.Match[str], answers: dict[str, str]) -> None:
    setup.options += [match["option"], answers["value"]]


def _give_another(setup: DoctorSetup, match: re.Match[str], answers: dict[str, str]) -> None:
    setup.options[_at(setup, match)] = answers["value"]


def _leave_out(setup: DoctorSetup, match: re.Match[str], answers: dict[str, str]) -> None:
    at = _at(setup, match)
    del setup.options[at - 1 : at + 1]


def _at(setup: DoctorSetup, match: re.Match[str]) -> int:
    """Return the index of the option's value."""
    at = setup.options.index(match["option"]) + 1
    assert setup.options[at] == match["old"]
    return at


def _give_options(setup: DoctorSetup, match: re.Match[str], answers: dict[str, str]) -> None:
    setup.options += shlex.split(match["options"])


def _other_user(setup: DoctorSetup, match: re.Match[str], answers: dict[str, str]) -> None:
    assert setup.user == match["old"]
    setup.user = answers["value"]


def _other_directory(setup: DoctorSetup, match: re.Match[str], answers: dict[str, str]) -> None:
    assert setup.directory == match["old"]
    setup.directory = match["new"] or answers["value"]


def _run(setup: DoctorSetup, match: re.Match[str], answers: dict[str, str]) -> None:
    line = _filled(match["command"], answers)
    if line.startswith("peerstage trust "):
        done = setup.command("trust", "--yes", *shlex.split(line)[2:])
        assert done.returncode == 0, done.stderr
        return
    done = subprocess.run(
        line, shell=True, capture_output=True, text=True, env=setup.command.environ(), stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr


def _append(setup: DoctorSetup, match: re.Match[str], answers: dict[str, str]) -> None:
    text = match["text"] or Path(match["file"]).expanduser().read_text().strip()
    with (setup.sshd.home / "authorized_keys").open("a") as file:
        file.write(f"{text}\n")


def _set(setup: DoctorSetup, match: re.Match[str], answers: dict[str, str]) -> None:
    _edit_sshd_config(setup, _filled(match["text"], answers))


def _restart(setup: DoctorSetup, match: re.Match[str], answers: dict[str, str]) -> None:
    setup.sshd.restart()


def _compare(setup: DoctorSetup, match: re.Match[str], answers: dict[str, str]) -> None:
    """Do nothing: the fingerprint is right."""


def _filled(text: str, answers: dict[str, str]) -> str:
    for name, value in answers.items():
        text = re.sub(rf"\b{name}\b", lambda match, value=value: value, text)
    return text


_PLACE = r"(?:`[^`]*` in )?(?P<path>/[^:;,]+):(?P<line>\d+)"
_COMMAND = "`(?P<command>[^`]*)`"
_AUTHORIZED = r"~[^/]+/\.ssh/authorized_keys on the peer"
_FORMS: dict[str, Callable[[DoctorSetup, re.Match[str], dict[str, str]], None]] = {
    f"correct {_PLACE}": _correct,
    f"remove {_PLACE}": _remove,
    r"remove (?P<option>--\S+) (?P<old>[^;,]+)": _leave_out,
    r"add (?P<lines>`[^`]*`(?: and `[^`]*`)*) below `Host (?P<host>\S+)` in (?P<path>[^;,]+)": _add,
    r"give another (?P<option>--\S+) than (?P<old>[^;,]+)": _give_another,
    r"give another user than (?P<old>\S+) before the @": _other_user,
    r"give another DIR than (?P<old>[^;,]+)(?:, such as (?P<new>.+))?": _other_directory,
    r"give `(?P<options>--[^`]*)`": _give_options,
    r"(?:give|name a key file with) (?P<option>--\S+)": _give,
    f"append (?:`(?P<text>[^`]*)`|(?P<file>~\\S+)) to {_AUTHORIZED}": _append,
    "set `(?P<text>[^`]*)` in /etc/ssh/sshd_config on the peer": _set,
    "(?:re)?start (?:its )?sshd": _restart,
    "compare the fingerprint": _compare,
    f"(?:run|add one with|have the authority sign the key again:|let it collect \\(by hand:) {_COMMAND}": _run,
}

"""Carries out what a remedy of the doctor's says, to the letter: edits the line, runs the command, gives the option."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

from cli.patient import Patient


def follow(patient: Patient, remedy: str, alternative: int = 0, **answers: str) -> None:
    """Carry out one of the alternatives that *remedy* names, step by step.

    Args:
        patient: Whose set-up is changed. Its peer is this machine.
        remedy: What the doctor says.
        alternative: Which of them, from 0.
        answers: What only a person knows: ``value`` for the right value of a line or an option, and a value for each
            placeholder in capital letters.
    """
    chosen = re.split("[;,] or ", remedy)[alternative]
    for step in re.split("(?:, (?:and only then|and|then)|;) ", chosen):
        forms = ((re.match(pattern, step), carry_out) for pattern, carry_out in _FORMS.items())
        found, carry_out = next((form for form in forms if form[0] is not None), (None, None))
        if found is None or carry_out is None:
            raise AssertionError(f"Nobody could tell what to do: {step}")
        carry_out(patient, found, answers)


def reconfigure(patient: Patient, line: str) -> None:
    """Have the patient's sshd use *line*, in the place of what it has for that keyword."""
    _edit_sshd_config(patient, line)
    patient.sshd.restart()


def _edit_sshd_config(patient: Patient, line: str) -> None:
    path = patient.sshd.home / "sshd_config"
    keyword = line.split()[0].lower()
    kept = [one for one in path.read_text().splitlines() if not one.lower().startswith(keyword)]
    path.write_text("\n".join([line, *kept]) + "\n")


def _correct(patient: Patient, found: re.Match[str], answers: dict[str, str]) -> None:
    path, at = Path(found["path"]), int(found["line"]) - 1
    lines = path.read_text().splitlines()
    lines[at] = f" {answers['value']}"
    path.write_text("\n".join(lines) + "\n")


def _remove(patient: Patient, found: re.Match[str], answers: dict[str, str]) -> None:
    path, at = Path(found["path"]), int(found["line"]) - 1
    lines = path.read_text().splitlines()
    del lines[at]
    path.write_text("\n".join(lines) + "\n")


def _add(patient: Patient, found: re.Match[str], answers: dict[str, str]) -> None:
    path, head = Path(found["path"]).expanduser(), f"Host {found['host']}\n"
    text = path.read_text()
    assert head in text
    added = "".join(f" {_filled(line, answers)}\n" for line in re.findall("`(.*?)`", found["lines"]))
    path.write_text(text.replace(head, head + added))


def _give(patient: Patient, found: re.Match[str], answers: dict[str, str]) -> None:
    patient.options += [found["option"], answers["value"]]


def _give_another(patient: Patient, found: re.Match[str], answers: dict[str, str]) -> None:
    patient.options[_at(patient, found)] = answers["value"]


def _leave_out(patient: Patient, found: re.Match[str], answers: dict[str, str]) -> None:
    at = _at(patient, found)
    del patient.options[at - 1 : at + 1]


def _at(patient: Patient, found: re.Match[str]) -> int:
    """Return where the value of the option stands that is to go."""
    at = patient.options.index(found["option"]) + 1
    assert patient.options[at] == found["old"]
    return at


def _give_options(patient: Patient, found: re.Match[str], answers: dict[str, str]) -> None:
    patient.options += shlex.split(found["options"])


def _other_user(patient: Patient, found: re.Match[str], answers: dict[str, str]) -> None:
    assert patient.user == found["old"]
    patient.user = answers["value"]


def _other_directory(patient: Patient, found: re.Match[str], answers: dict[str, str]) -> None:
    assert patient.directory == found["old"]
    patient.directory = found["new"] or answers["value"]


def _run(patient: Patient, found: re.Match[str], answers: dict[str, str]) -> None:
    line = _filled(found["command"], answers)
    if line.startswith("peerstage trust "):
        done = patient.command("trust", "--yes", *shlex.split(line)[2:])
        assert done.returncode == 0, done.stderr
        return
    done = subprocess.run(
        line, shell=True, capture_output=True, text=True, env=patient.command.environ(), stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr


def _append(patient: Patient, found: re.Match[str], answers: dict[str, str]) -> None:
    text = found["text"] or Path(found["file"]).expanduser().read_text().strip()
    with (patient.sshd.home / "authorized_keys").open("a") as file:
        file.write(f"{text}\n")


def _set(patient: Patient, found: re.Match[str], answers: dict[str, str]) -> None:
    _edit_sshd_config(patient, _filled(found["text"], answers))


def _restart(patient: Patient, found: re.Match[str], answers: dict[str, str]) -> None:
    patient.sshd.restart()


def _compare(patient: Patient, found: re.Match[str], answers: dict[str, str]) -> None:
    """It is right."""


def _filled(text: str, answers: dict[str, str]) -> str:
    for name, value in answers.items():
        text = re.sub(rf"\b{name}\b", lambda found, value=value: value, text)
    return text


_PLACE = r"(?:`[^`]*` in )?(?P<path>/[^:;,]+):(?P<line>\d+)"
_COMMAND = "`(?P<command>[^`]*)`"
_AUTHORIZED = r"~[^/]+/\.ssh/authorized_keys on the peer"
_FORMS: dict[str, Callable[[Patient, re.Match[str], dict[str, str]], None]] = {
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

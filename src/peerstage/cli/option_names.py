"""Name the command line's option where a message of the library names a parameter."""

from __future__ import annotations

import dataclasses
import re

from peerstage.records import Limits
from peerstage.ssh.options import SSHOptions

#: Parameters whose option has another name; any other is named like its parameter.
_OPTIONS = {
    "localUser": "--local-user",
    "rcpCommand": "--rcp-command",
    "guarded=True": "--transport guarded",
    "config=()": "--no-config",
    "read no ssh configuration and give": "give --no-config and",
    "tries": "--retries",
    "connect": "--connect-retries",
}
_FIELDS = "|".join(field.name.replace("_", "[_ ]") for field in dataclasses.fields(SSHOptions))
_LIMIT = "|".join(field.name for field in dataclasses.fields(Limits))
_LIMITS = re.compile(rf"Limits(?:\.|: |\()((?:{_LIMIT})(?:(?:, | and | or )(?:Limits\.)?(?:{_LIMIT}))*)(?:=\.\.\.\))?")
_PARAMETER = re.compile(
    r"(?:RemotePeer|SSHOptions|StageOptions|Retry)\((?P<call>\w+)=(?P<value>True|\(\)|\.\.\.)\)(?: or --[\w-]+)?"
    rf"|\b[Tt]he option (?P<option>{_FIELDS})\b|(?:SSHOptions|StageOptions): (?P<field>\w+)"
    r"|\b(?P<word>localUser\b|rcpCommand\b|guarded=True\b|read no ssh configuration and give\b)"
)


def name_limit(limit: str) -> str:
    """Return the option for a field of `Limits`."""
    return "--deadline" if limit == "deadline" else f"--limit {limit}"


def name_options(message: str) -> str:
    """Return *message* with options in the place of parameters: ``--limit entries`` for ``Limits.entries``."""
    message = _LIMITS.sub(lambda found: re.sub(rf"(?:Limits\.)?({_LIMIT})", _name_found_limit, found[1]), message)
    return _PARAMETER.sub(_name_found_parameter, message)


def _name_found_limit(found: re.Match[str]) -> str:
    return name_limit(found[1])


def _name_found_parameter(found: re.Match[str]) -> str:
    exact = f"{found['call']}={found['value']}"
    parameter = exact if exact in _OPTIONS else found["call"] or found["option"] or found["field"] or found["word"]
    return _OPTIONS.get(parameter, f"--{re.sub('[_ ]', '-', parameter)}")

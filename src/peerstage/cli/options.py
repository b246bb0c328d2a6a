"""The options that verbs share, each defined once, and the decorator that attaches them."""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from enum import Enum
from typing import Annotated, Any

import typer

from peerstage.cli.access import Access, TransportChoice
from peerstage.cli.named_peers import PlanNames
from peerstage.cli.output import JSONOutput, Output, PlainOutput, log_to_stderr
from peerstage.fleet.plan_file import DEFAULT_PLAN
from peerstage.printable import escape
from peerstage.records import Limits
from peerstage.sizes import format_size_exactly, parse_size
from peerstage.ssh.options import SSHOptions
from peerstage.stage_options import StageOptions
from peerstage.transport.rcp.command_line import DEFAULT_COMMAND
from peerstage.transport.retry import Retry


def option(metavar: str, help: str, default: str | bool = True, *, names: str = "", **more: Any) -> Any:  # noqa: A002
    """Return an option of typer, named like its parameter unless *names* says otherwise, separated by spaces."""
    return typer.Option(*names.split(), metavar=metavar, help=help, show_default=default, **more)


def _format_limit(value: float | None) -> str:
    if value is None:
        return "none"
    return format_size_exactly(value) if isinstance(value, int) else f"{value:g}"


def _complete_limit(incomplete: str) -> list[str]:
    return [f"{name}=" for name in _LIMITS if name.startswith(incomplete)]


_LIMITS: dict[str, int | float | None] = {name: value for name, value in asdict(Limits()).items() if name != "deadline"}
_CONFIGURED = "ssh's configuration, or"

Peer = Annotated[
    str,
    typer.Argument(metavar="USER@HOST:DIR|PEER", help="The peer and its collect directory; or its name in the plan."),
]
Peers = Annotated[
    list[str],
    typer.Argument(metavar="USER@HOST:DIR|PEER", help="Peers and their collect directories; or names in the plan."),
]
Plan = Annotated[str, option("FILE", "The plan.", names="--plan")]


def indicator_option(default: str) -> Any:
    """Return the option for the name of an indicator file."""
    return option("NAME", "Name of the indicator file.", f"as the plan says, or {default}")


def build_access(
    port: Annotated[
        int | None, option("PORT", "TCP port.", f"{_CONFIGURED} 22", names="--port -p", min=1, max=65535)
    ] = None,
    identity: Annotated[
        list[str] | None,
        option("FILE", "Private key; repeatable.", f"{_CONFIGURED} ~/.ssh/id_*, and the agent", names="--identity -i"),
    ] = None,
    known_hosts: Annotated[
        list[str] | None, option("FILE", "known_hosts file; repeatable.", f"{_CONFIGURED} ~/.ssh/known_hosts")
    ] = None,
    config: Annotated[
        list[str] | None,
        option("FILE", "ssh_config file; repeatable.", "~/.ssh/config and /etc/ssh/ssh_config", names="--config -F"),
    ] = None,
    no_config: Annotated[bool, typer.Option("--no-config", help="Read no ssh_config.")] = False,
    host_key: Annotated[
        str | None,
        option(
            "SHA256:...", "Fingerprint that the host must present; or strict; or accept-new.", f"{_CONFIGURED} strict"
        ),
    ] = None,
    jump: Annotated[
        str | None, option("[USER@]HOST[:PORT],...", "Jump hosts, as for ssh -J.", names="--jump -J")
    ] = None,
    elevate: Annotated[
        str | None,
        option("COMMAND", "Command on the peer that speaks SFTP, such as: sudo -n /usr/lib/openssh/sftp-server."),
    ] = None,
    transport: Annotated[
        TransportChoice | None,
        typer.Option(help="guarded is SCP behind a forced command; rcp copies by --rcp-command.", show_default="auto"),
    ] = None,
    rcp_command: Annotated[
        str | None, option("COMMAND", "rcp-like command that copies, with --transport rcp.", DEFAULT_COMMAND)
    ] = None,
    local_user: Annotated[
        str | None,
        option("NAME", "For root: connect as this local user, with its keys and configuration.", "the caller"),
    ] = None,
    connect_timeout: Annotated[
        float | None,
        option("SECONDS", "From the name lookup to the end of the key exchange.", f"{_CONFIGURED} 15"),
    ] = None,
    connect_retries: Annotated[
        int | None,
        option(
            "N",
            "How often to try again to connect, for example to a peer that is booting.",
            str(Retry().connect - 1),
            min=0,
        ),
    ] = None,
    retries: Annotated[
        int | None, option("N", "How often to reconnect after a lost connection.", str(Retry().tries - 1), min=0)
    ] = None,
    deadline: Annotated[
        float | None, option("SECONDS", "For one operation.", "600, and 1 for each 16 KiB received")
    ] = None,
    limit: Annotated[
        list[str] | None,
        option(
            "NAME=NUMBER",
            "Limit on what one peer may send or take: a number, or for bytes one with K, M, G or T; repeatable.",
            ", ".join(f"{name}={_format_limit(value)}" for name, value in _LIMITS.items()),
            autocompletion=_complete_limit,
        ),
    ] = None,
) -> Access:
    """Return how the options say that peers are reached.

    Raises:
        ValueError: If an option has an invalid value, or excludes another.
    """
    if no_config and config:
        raise ValueError("--config and --no-config exclude each other.")
    limits = {**({} if deadline is None else {"deadline": deadline}), **dict(map(_parse_limit, limit or ()))}
    attempts = {"connect": connect_retries, "tries": retries}
    retry = {name: number + 1 for name, number in attempts.items() if number is not None}
    return Access(
        ssh=SSHOptions(
            port=port,
            identity=tuple(identity) if identity else None,
            known_hosts=tuple(known_hosts) if known_hosts else None,
            config=() if no_config else tuple(config) if config else None,
            host_key=host_key,
            jump=jump,
            elevate=elevate,
            connect_timeout=connect_timeout,
        ),
        limits=Limits(**limits),
        retry=Retry(**retry),
        transport=transport or TransportChoice.AUTO,
        rcp_command=rcp_command,
        local_user=local_user,
        given={**limits, **retry, **({} if transport is None else {"transport": transport})},
    )


def _parse_limit(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    if name not in _LIMITS:
        raise ValueError(f"--limit is NAME=NUMBER, where NAME is {', '.join(_LIMITS)}: {escape(text)!r}")
    try:
        return name, float(value) if isinstance(_LIMITS[name], float) else parse_size(value)
    except ValueError:
        raise ValueError(f"--limit {name} needs a number: {escape(text)!r}") from None


class VerifyChoice(str, Enum):
    """How staged files are verified."""

    SIZE = "size"
    STABLE = "stable"
    SHA256 = "sha256"


def build_stage_options(
    durable: Annotated[bool, typer.Option(" /--no-durable", help="Do not sync the files to disk.")] = True,
    preserve_times: Annotated[bool, typer.Option("--preserve-times", help="Keep the peer's file times.")] = False,
    include: Annotated[
        list[str] | None,
        option("PATTERN", "Stage only entries whose names match a shell pattern; repeatable.", "all"),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        option("PATTERN", "Leave out entries whose names match a shell pattern; repeatable.", "none"),
    ] = None,
    max_size: Annotated[
        str | None, option("BYTES", "Leave out larger files; a number, or one with K, M, G or T.", "no maximum")
    ] = None,
    verify: Annotated[
        VerifyChoice,
        typer.Option(
            help="size: as the peer announced. stable: and unchanged at the end. sha256: and as in --checksums."
        ),
    ] = VerifyChoice.STABLE,
    checksums: Annotated[
        str | None,
        option("NAME", "Checksum file that the peer collected, as written by sha256sum, for --verify sha256.", "none"),
    ] = None,
    manifest: Annotated[
        bool, typer.Option("--manifest", help="Write peerstage.sha256 and peerstage.json, for peerstage verify.")
    ] = False,
    bwlimit: Annotated[
        str | None, option("BYTES", "Bytes to receive per second, or a number with K, M, G or T.", "no limit")
    ] = None,
    link_dest: Annotated[
        str | None, option("DIR", "Link to the files of this earlier staging directory that are unchanged.", "none")
    ] = None,
    partial_dir: Annotated[
        str | None,
        option("DIR", "Keep the large files of a failed run in this directory, and continue them next time.", "none"),
    ] = None,
) -> StageOptions:
    """Return what the options say that is wanted of a stage.

    Raises:
        ValueError: If an option has an invalid value.
    """
    return StageOptions(
        durable=durable,
        preserve_times=preserve_times,
        include=tuple(include or ()),
        exclude=tuple(exclude or ()),
        max_size=_parse_size_option("max-size", max_size),
        verify=verify.value,
        checksums=checksums,
        manifest=manifest,
        bwlimit=_parse_size_option("bwlimit", bwlimit),
        link_dest=None if link_dest is None else os.path.abspath(link_dest),
        partial_dir=None if partial_dir is None else os.path.abspath(partial_dir),
    )


def _parse_size_option(name: str, text: str | None) -> int | None:
    """Return the number of bytes in *text*, the value of the option *name*; None if it is not given."""
    try:
        return None if text is None else parse_size(text)
    except ValueError as exc:
        raise ValueError(f"--{name} is {exc}") from None


def build_output(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one object per line, and nothing else.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log to standard error.")] = False,
) -> Output:
    """Return where results are printed, and start to log."""
    log_to_stderr(verbose=verbose)
    if as_json:
        return JSONOutput()
    if sys.stdout.isatty():
        from peerstage.cli.terminal import TerminalOutput

        return TerminalOutput()
    return PlainOutput()


def build_plan_names(
    plan: Annotated[
        str | None, option("FILE", "Plan whose peers can be named.", f"{DEFAULT_PLAN}, if it can be read")
    ] = None,
) -> PlanNames:
    """Return the names of the plan's peers."""
    return PlanNames(plan)


#: What builds a parameter of a verb from options, by the parameter's type; the output first, which begins to log.
_BUILDERS: dict[type, Callable[..., Any]] = {
    Output: build_output,
    Access: build_access,
    StageOptions: build_stage_options,
    PlanNames: build_plan_names,
}


def with_shared_options(verb: Callable[..., int]) -> Callable[..., int]:
    """Put shared options in the place of each parameter of *verb* that has a type of `_BUILDERS`."""
    parameters = _parameters(verb)
    builders = {p.name: build for kind, build in _BUILDERS.items() for p in parameters if p.annotation is kind}
    shared = [p for name in reversed(builders) for p in _parameters(builders[name])]
    options = [p.replace(kind=p.KEYWORD_ONLY) for p in (*(p for p in parameters if p.name not in builders), *shared)]

    @functools.wraps(verb)
    def run(**values: Any) -> int:
        built = {
            name: build(**{p.name: values.pop(p.name) for p in _parameters(build)}) for name, build in builders.items()
        }
        return verb(**values, **built)

    run.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in options}
    return run


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    # Not typing.get_type_hints: before Python 3.11 it hides the Annotated of a parameter whose default is None.
    return list(inspect.signature(function, eval_str=True).parameters.values())

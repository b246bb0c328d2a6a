"""``peerstage init``: write a plan for a list of hosts, known hosts, or an installation of cback3."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from peerstage.cback3.config_file import read_config
from peerstage.cback3.import_plan import import_plan
from peerstage.cback3.settings import Settings, settings_path
from peerstage.cli.arguments import parse_host_or_peer
from peerstage.cli.fingerprints import STDIN, read_list
from peerstage.cli.options import option
from peerstage.cli.output import Output
from peerstage.cli.results import Line, Result, format_count
from peerstage.exit_codes import ExitCode
from peerstage.fleet.plan_file import DEFAULT_PLAN, parse_plan
from peerstage.fleet.plan_file.known_hosts_peers import plan_known_hosts
from peerstage.fleet.plan_file.new_plan import COMMON_KEYS, NewPlan, write_new_file
from peerstage.printable import escape

#: The value of ``--output`` that means standard output.
_STDOUT = "-"
#: Files that ssh reads without being told.
_USUAL_KNOWN_HOSTS = ("~/.ssh/known_hosts", "~/.ssh/known_hosts2", "/etc/ssh/ssh_known_hosts")


@dataclass(frozen=True, slots=True, kw_only=True)
class InitResult(Result):
    """The result of ``init``.

    Attributes:
        path: The file of the new plan.
        plan: The plan in it.
    """

    path: str
    plan: NewPlan

    def to_json(self) -> list[dict[str, Any]]:
        return [{"verb": "init", "plan": self.path, "peers": [*self.plan.peers], "notes": [*self.plan.notes]}]

    def to_lines(self) -> Iterator[Line]:
        for note in self.plan.notes:
            yield ("note", "yellow"), f" {escape(note)}"
        yield (
            f"{escape(self.path)}: {format_count(len(self.plan.peers), 'peer')}. Review it: every key has a comment.",
        )


def init_verb(
    hosts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="HOST",
            help="Peers: [USER@]HOST[:PORT] or USER@HOST:DIR; an IPv6 address in brackets.",
            show_default=False,
        ),
    ] = None,
    *,
    from_known_hosts: Annotated[
        str | None, option("FILE", "The hosts of this known_hosts file; - for standard input.")
    ] = None,
    from_cback: Annotated[
        str | None, option("FILE", "The peers of this configuration of cback3, or of CedarBackup2.")
    ] = None,
    to: Annotated[str, option("FILE", "The new plan; - for standard output.", names="--output -o")] = DEFAULT_PLAN,
    output: Output,
) -> int:
    """Write a plan with comments, for `peerstage run`.

    An existing file is never overwritten. The new one can be read by its owner alone.
    """
    sources = {"HOST": hosts, "--from-known-hosts": from_known_hosts, "--from-cback": from_cback}
    given = [name for name, value in sources.items() if value]
    if len(given) != 1:
        wrong = f"{' and '.join(given)} exclude each other" if given else "Name a host at least"
        raise ValueError(f"{wrong}: give hosts, --from-known-hosts or --from-cback.")
    if to == _STDOUT and not output.is_for_people:
        raise ValueError("--json and --output - exclude each other: the plan is TOML.")
    if from_cback is not None:
        plan = _plan_cback(from_cback)
    elif from_known_hosts is not None:
        plan = _plan_known_hosts(from_known_hosts)
    else:
        plan = _plan_hosts(hosts or [])
    path, text = os.path.abspath(to), plan.to_toml()
    parse_plan(text.encode(), "the new plan" if to == _STDOUT else path)  # raises if a run could not read it
    if to == _STDOUT:
        sys.stdout.write(text)
    else:
        write_new_file(path, text)
        output.show(InitResult(path=path, plan=plan))
    return ExitCode.DONE


def _plan_hosts(hosts: list[str]) -> NewPlan:
    peers: dict[str, dict[str, Any]] = {}
    for text in hosts:
        spec = parse_host_or_peer(text)
        if spec.host in peers:
            raise ValueError(f"{escape(spec.host)} is named twice; a plan has each name once.")
        values = {"port": spec.port, "user": spec.user, "collect_dir": spec.directory}
        peers[spec.host] = {**COMMON_KEYS, **{key: value for key, value in values.items() if value is not None}}
    return NewPlan(peers=peers)


def _plan_known_hosts(path: str) -> NewPlan:
    data = read_list(path, "--from-known-hosts").encode("utf-8", "surrogateescape")
    path = os.path.abspath(path)
    is_usual = path == os.path.abspath(STDIN) or path in map(os.path.expanduser, _USUAL_KNOWN_HOSTS)
    return plan_known_hosts(data, {} if is_usual else {"known_hosts": path})


def _plan_cback(path: str) -> NewPlan:
    settings = Settings(settings_path(path))
    settings.read()
    return import_plan(read_config(path), settings)

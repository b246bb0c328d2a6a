"""``peerstage doctor``: check the steps to one peer, one by one."""

from __future__ import annotations

import dataclasses
import os
from typing import Annotated

import typer

from peerstage.cli import options
from peerstage.cli.access import Access, TransportChoice
from peerstage.cli.arguments import parse_host_or_peer
from peerstage.cli.checks import run_checks
from peerstage.cli.doctor_results import DoctorResult, StepResult
from peerstage.cli.named_peers import PlanNames, require_ssh
from peerstage.cli.output import Output
from peerstage.cli.user_process import run_as_local_user
from peerstage.paths import COLLECT_INDICATOR
from peerstage.peer.attributes import validate_indicator_name
from peerstage.records import Limits
from peerstage.stage_options import StageOptions
from peerstage.transport.scp.commands import require_unquoted

#: Seconds for one reply, where ``--limit`` does not say otherwise: a person is waiting.
_REPLY_SECONDS = 15.0
#: Seconds that an interrupt waits until the file on the peer is removed.
_REMOVAL_SECONDS = 10.0


def doctor_verb(
    peer: Annotated[
        str,
        typer.Argument(
            metavar="USER@HOST:DIR|PEER",
            help="The peer and its collect directory; or its name in the plan; or a host alone, [USER@]HOST[:PORT].",
        ),
    ],
    *,
    indicator: Annotated[str | None, options.indicator_option(COLLECT_INDICATOR)] = None,
    plan_names: PlanNames,
    stage_options: StageOptions,
    access: Access,
    output: Output,
) -> int:
    """Find out why a peer cannot be staged.

    The steps of a stage are checked one by one, with what to do about the one that fails. Up to 1000 files are opened
    on the peer, and none is read. Nothing is written here, except the host key with --host-key accept-new; on the peer
    an empty file .peerstage-doctor-... is written into the collect directory and removed, unless the peer is guarded or
    the login cannot remove files.

    It connects once: --retries and --connect-retries have no effect. Of the options for a stage, only those that select
    files have.
    """
    named = plan_names.resolve(peer, parse_host_or_peer, access)
    require_ssh(named, "doctor")
    spec, access, stage_options = named.spec, named.access, named.stage_options(stage_options)
    if indicator is None:
        indicator = COLLECT_INDICATOR if named.job is None else named.job.collect_indicator
    if access.transport is TransportChoice.RCP or access.rcp_command is not None:
        raise ValueError("doctor checks SFTP and SCP; an rcp command connects by itself.")
    validate_indicator_name(indicator, indicator)
    if access.limits.reply_timeout == Limits().reply_timeout:
        access = dataclasses.replace(access, limits=dataclasses.replace(access.limits, reply_timeout=_REPLY_SECONDS))
    transport_options = access.transport_options(spec)
    transport_options.validate()
    if spec.directory is not None and access.is_guarded:
        require_unquoted(os.fsencode(spec.directory))
    steps: list[StepResult] = []

    def show(step: StepResult) -> None:
        steps.append(step)
        output.show(step)

    run_as_local_user(
        access.local_user,
        run_checks,
        StepResult,
        transport_options,
        access.limits,
        {
            "user": spec.user,
            "directory": spec.directory,
            "indicator": indicator,
            "local_user": access.local_user,
            "stage": stage_options.to_json(),
        },
        show,
        cleanup_timeout=_REMOVAL_SECONDS,
    )
    result = DoctorResult(peer=spec, steps=steps)
    output.show(result)
    return result.exit

"""The verbs on peers and on the staging pool: ``check``, ``stage``, ``mark``, ``sweep``."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Annotated

import typer

from peerstage.cli import options
from peerstage.cli.access import Access
from peerstage.cli.arguments import PeerSpec, parse_owner_option, parse_peer, parse_permissions
from peerstage.cli.named_peers import NamedPeer, PlanNames
from peerstage.cli.output import Output, print_error
from peerstage.cli.parallel import run_in_parallel
from peerstage.cli.preview import preview
from peerstage.cli.results import PeerStatus, PreviewResult, StageResult, SweepResult
from peerstage.cli.signals import cancel_on_signal
from peerstage.errors import StageError, TargetError
from peerstage.exit_codes import ExitCode, code_of
from peerstage.paths import COLLECT_INDICATOR, STAGE_INDICATOR, join_path, validate_target_directory
from peerstage.peer.attributes import validate_indicator_name
from peerstage.peer.base import validate_ownership
from peerstage.peer.remote import RemotePeer
from peerstage.reasons import Reason
from peerstage.stage_options import StageOptions
from peerstage.staging import mark, probe
from peerstage.target.private_directory import require_posix
from peerstage.target.sweep import sweep
from peerstage.transport.base import Transport
from peerstage.watchdog import Watchdog


def check_verb(
    peers: options.Peers,
    *,
    indicator: Annotated[str | None, options.indicator_option(COLLECT_INDICATOR)] = None,
    plan_names: PlanNames,
    access: Access,
    output: Output,
) -> int:
    """Check whether peers have collected.

    A peer has collected when its collect indicator exists. 16 peers are checked at a time.
    """

    def check(transport: Transport, path: bytes, peer: str) -> str:
        return "ready" if probe(transport, path, peer=peer) is not None else "not ready"

    def name_indicator(peer: NamedPeer) -> str:
        return indicator or (COLLECT_INDICATOR if peer.job is None else peer.job.collect_indicator)

    return _run_on_peers("check", _resolve(peers, plan_names, access), name_indicator, output, check)


def mark_verb(
    peers: options.Peers,
    *,
    indicator: Annotated[str | None, options.indicator_option(STAGE_INDICATOR)] = None,
    plan_names: PlanNames,
    access: Access,
    output: Output,
) -> int:
    """Mark peers as staged, by creating the stage indicator.

    16 peers are marked at a time.
    """

    def write(transport: Transport, path: bytes, peer: str) -> str:
        mark(transport, path, peer=peer)
        return "marked"

    def name_indicator(peer: NamedPeer) -> str:
        return indicator or (STAGE_INDICATOR if peer.job is None else peer.job.stage_indicator)

    return _run_on_peers("mark", _resolve(peers, plan_names, access), name_indicator, output, write)


def stage_verb(
    peer: options.Peer,
    target: Annotated[str, typer.Argument(metavar="TARGET", help="An existing local directory.")],
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="List the files, and open them on the peer; write nothing.")
    ] = False,
    permissions: Annotated[
        str | None, options.option("MODE", "Mode of the files, in octal: 640.", "the peer's, & 0777 & ~umask")
    ] = None,
    owner: Annotated[
        str | None,
        options.option(
            "USER:GROUP",
            "Owner and group of the files, by name or number; USER or :GROUP alone changes only that.",
            "the caller",
        ),
    ] = None,
    plan_names: PlanNames,
    stage_options: StageOptions,
    access: Access,
    output: Output,
) -> int:
    """Copy what a peer has collected into TARGET.

    All files get their final names at the end. An interrupted run leaves none behind. To stage a peer of the plan into
    the directory of today, use run.
    """
    named = plan_names.resolve(peer, parse_peer, access)
    spec, access, stage_options = named.spec, named.access, named.stage_options(stage_options)
    mode, ownership = parse_permissions(permissions), validate_ownership(parse_owner_option(owner))
    if named.job is not None and named.plan is not None:
        mode = named.job.permissions if mode is None else mode
        ownership = ownership or named.plan.ownership
    access.peer(spec)  # raises for an invalid option or directory, also before a dry run
    directory = validate_target_directory(os.path.abspath(target))
    if dry_run:
        return _preview(spec, directory, stage_options, access, output)
    require_posix()
    with output.progress() as on_progress:
        remote = access.peer(spec, stage=stage_options, on_progress=on_progress)
        error: StageError | None = None
        try:
            with contextlib.ExitStack() as stack:
                if isinstance(remote, RemotePeer):
                    stack.enter_context(remote)
                stack.enter_context(cancel_on_signal(remote.cancel))
                remote.stagePeer(directory, ownership, mode)
        except StageError as exc:
            error = exc
            error.peer = spec.label or error.peer
    output.show(StageResult(peer=spec, target=directory, report=remote.last_report, error=error))
    if error is None:
        return ExitCode.DONE
    print_error(error)
    return code_of(error)


def sweep_verb(
    root: Annotated[str, typer.Argument(metavar="ROOT", help="A staging directory, or one that contains several.")],
    *,
    output: Output,
) -> int:
    """Remove what killed runs have left below ROOT. The directories of running stages are kept."""
    if not os.path.isdir(root):
        if os.path.exists(root):
            raise TargetError("It is not a directory.", path=root, reason=Reason.TARGET_NOT_A_DIRECTORY)
        raise TargetError("There is no such directory.", path=root, reason=Reason.TARGET_MISSING)
    output.show(SweepResult(root=root, removed=sweep(root)))
    return ExitCode.DONE


def _resolve(peers: list[str], plan_names: PlanNames, access: Access) -> list[NamedPeer]:
    return [plan_names.resolve(peer, parse_peer, access) for peer in peers]


def _run_on_peers(
    verb: str,
    peers: list[NamedPeer],
    name_indicator: Callable[[NamedPeer], str],
    output: Output,
    operation: Callable[[Transport, bytes, str], str],
) -> int:
    """Validate all *peers*, run *operation* on them in parallel, and return the highest exit code."""
    for peer in peers:
        peer.access.peer(peer.spec)
        validate_indicator_name(name_indicator(peer), "")

    def run(peer: NamedPeer, watchdog: Watchdog) -> str:
        spec = peer.spec
        path = join_path(os.fsencode(spec.directory or ""), os.fsencode(name_indicator(peer)))
        with peer.access.transport_to(spec, watchdog) as transport:
            return operation(transport, path, spec.label or spec.name)

    highest = ExitCode.DONE
    with contextlib.closing(run_in_parallel(run, peers, lambda peer: peer.access.limits)) as outcomes:
        for outcome, peer in zip(outcomes, peers, strict=True):
            spec, indicator = peer.spec, name_indicator(peer)
            error = outcome if isinstance(outcome, Exception) else None
            if error is not None:
                print_error(error, spec.label or spec.name)
            status = "failed" if isinstance(outcome, Exception) else outcome
            result = PeerStatus(verb=verb, peer=spec, indicator=indicator, status=status, error=error)
            output.show(result)
            highest = max(highest, result.exit)
    return highest


def _preview(spec: PeerSpec, target: str, stage_options: StageOptions, access: Access, output: Output) -> int:
    """Show what would be staged; the exit code is that of the stage, as far as it is known without reading a file."""
    directory = os.fsencode(spec.directory or "")
    with access.connect(spec) as transport:
        found = preview(transport, directory, target, stage_options, access.limits)
    output.show(PreviewResult(peer=spec, target=target, preview=found))
    failure = found.failure(directory)
    if failure is None:
        return ExitCode.DONE
    failure.peer = spec.label or spec.name
    print_error(failure)
    return code_of(failure)

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
from peerstage.reasons import Reason
from peerstage.stage_options import StageOptions
from peerstage.staging import mark, probe
from peerstage.target.private_directory import require_posix
from peerstage.target.sweep import sweep
from peerstage.transport.base import Transport
from peerstage.watchdog import Watchdog


def check_verb(
    peers: options.Peers, *, indicator: options.Indicator = COLLECT_INDICATOR, access: Access, output: Output
) -> int:
    """Check whether peers have collected.

    A peer has collected when its collect indicator exists. 16 peers are checked at a time.
    """

    def check(transport: Transport, path: bytes, peer: str) -> str:
        return "ready" if probe(transport, path, peer=peer) is not None else "not ready"

    return _run_on_peers("check", peers, indicator, access, output, check)


def mark_verb(
    peers: options.Peers, *, indicator: options.Indicator = STAGE_INDICATOR, access: Access, output: Output
) -> int:
    """Mark peers as staged, by creating the stage indicator.

    16 peers are marked at a time.
    """

    def write(transport: Transport, path: bytes, peer: str) -> str:
        mark(transport, path, peer=peer)
        return "marked"

    return _run_on_peers("mark", peers, indicator, access, output, write)


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
    stage_options: StageOptions,
    access: Access,
    output: Output,
) -> int:
    """Copy what a peer has collected into TARGET.

    All files get their final names at the end. An interrupted run leaves none behind.
    """
    spec = parse_peer(peer)
    mode, ownership = parse_permissions(permissions), validate_ownership(parse_owner_option(owner))
    access.peer(spec)  # raises for an invalid option or directory, also before a dry run
    directory = validate_target_directory(os.path.abspath(target))
    if dry_run:
        return _preview(spec, directory, stage_options, access, output)
    require_posix()
    with output.progress() as on_progress:
        remote = access.peer(spec, stage=stage_options, on_progress=on_progress)
        error: StageError | None = None
        try:
            with remote, cancel_on_signal(remote.cancel):
                remote.stagePeer(directory, ownership, mode)
        except StageError as exc:
            error = exc
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


def _run_on_peers(
    verb: str,
    peers: list[str],
    indicator: str,
    access: Access,
    output: Output,
    operation: Callable[[Transport, bytes, str], str],
) -> int:
    """Validate all *peers*, run *operation* on them in parallel, and return the highest exit code."""
    name, specs = validate_indicator_name(indicator, indicator), [parse_peer(peer) for peer in peers]
    for spec in specs:
        access.peer(spec)

    def run(spec: PeerSpec, watchdog: Watchdog) -> str:
        with access.transport_to(spec, watchdog) as transport:
            return operation(transport, join_path(os.fsencode(spec.directory or ""), name), spec.name)

    highest = ExitCode.DONE
    with contextlib.closing(run_in_parallel(run, specs, access.limits)) as outcomes:
        for outcome, spec in zip(outcomes, specs, strict=True):
            error = outcome if isinstance(outcome, Exception) else None
            if error is not None:
                print_error(error, spec.name)
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
    failure.peer = spec.name
    print_error(failure)
    return code_of(failure)

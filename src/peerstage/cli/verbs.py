"""The verbs on peers and on the staging pool: ``check``, ``stage``, ``mark``, ``sweep``."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Annotated

import typer

from peerstage.cli import options
from peerstage.cli.access import Access
from peerstage.cli.exits import Exit, code_of
from peerstage.cli.parallel import each
from peerstage.cli.preview import preview
from peerstage.cli.show import Answer, Show, choose_show, complain, log_to_stderr
from peerstage.cli.signals import cancelling
from peerstage.cli.spec import Spec, parse_owner, parse_permissions, parse_spec
from peerstage.errors import LandingError, StageError
from peerstage.landing.leftovers import sweep
from peerstage.landing.private import require_posix
from peerstage.peer.attributes import indicator_name
from peerstage.peer.base import COLLECT_INDICATOR, STAGE_INDICATOR, ownership_of
from peerstage.reasons import Reason
from peerstage.session.watchdog import Watchdog
from peerstage.staging import mark, probe, target_directory
from peerstage.transport.base import Transport, join


def check_verb(
    peers: options.Peers,
    indicator: options.Indicator = None,
    port: options.Port = None,
    identity: options.Identity = None,
    known_hosts: options.KnownHosts = None,
    config: options.Config = None,
    no_config: options.NoConfig = False,
    host_key: options.HostKey = None,
    jump: options.Jump = None,
    elevate: options.Elevate = None,
    connect_timeout: options.ConnectTimeout = None,
    connect_retries: options.ConnectRetries = options.CONNECT_RETRIES,
    retries: options.Retries = options.RETRIES,
    deadline: options.Deadline = None,
    transport: options.Way = "auto",
    local_user: options.LocalUser = None,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> int:
    """Ask peers, many at once, whether they have collected."""
    log_to_stderr(verbose=verbose)
    access = options.access_of(
        port=port,
        identity=identity,
        known_hosts=known_hosts,
        config=config,
        no_config=no_config,
        host_key=host_key,
        jump=jump,
        elevate=elevate,
        connect_timeout=connect_timeout,
        connect_retries=connect_retries,
        retries=retries,
        deadline=deadline,
        transport=transport,
        local_user=local_user,
    )

    def ask(stack: Transport, path: bytes, peer: str) -> str:
        return "ready" if probe(stack, path, peer=peer) else "not ready"

    name = indicator_name(indicator, COLLECT_INDICATOR)
    return _each("check", peers, name, access, choose_show(as_json=as_json), ask)


def mark_verb(
    peers: options.Peers,
    indicator: options.Indicator = None,
    port: options.Port = None,
    identity: options.Identity = None,
    known_hosts: options.KnownHosts = None,
    config: options.Config = None,
    no_config: options.NoConfig = False,
    host_key: options.HostKey = None,
    jump: options.Jump = None,
    elevate: options.Elevate = None,
    connect_timeout: options.ConnectTimeout = None,
    connect_retries: options.ConnectRetries = options.CONNECT_RETRIES,
    retries: options.Retries = options.RETRIES,
    deadline: options.Deadline = None,
    transport: options.Way = "auto",
    local_user: options.LocalUser = None,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> int:
    """Tell peers that they were staged."""
    log_to_stderr(verbose=verbose)
    access = options.access_of(
        port=port,
        identity=identity,
        known_hosts=known_hosts,
        config=config,
        no_config=no_config,
        host_key=host_key,
        jump=jump,
        elevate=elevate,
        connect_timeout=connect_timeout,
        connect_retries=connect_retries,
        retries=retries,
        deadline=deadline,
        transport=transport,
        local_user=local_user,
    )

    def write(stack: Transport, path: bytes, peer: str) -> str:
        mark(stack, path, peer=peer)
        return "marked"

    name = indicator_name(indicator, STAGE_INDICATOR)
    return _each("mark", peers, name, access, choose_show(as_json=as_json), write)


def stage_verb(
    peer: options.Peer,
    target: Annotated[str, typer.Argument(metavar="TARGET", help="An existing local directory.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="List and open what would come; write nothing.")
    ] = False,
    permissions: Annotated[str | None, typer.Option(metavar="MODE", help="Mode of the files, octal: 640.")] = None,
    owner: Annotated[str | None, typer.Option(metavar="UID:GID", help="Owner and group of the files.")] = None,
    no_durable: Annotated[bool, typer.Option("--no-durable", help="Do not wait for the disk.")] = False,
    preserve_times: Annotated[bool, typer.Option("--preserve-times", help="Keep the peer's file times.")] = False,
    port: options.Port = None,
    identity: options.Identity = None,
    known_hosts: options.KnownHosts = None,
    config: options.Config = None,
    no_config: options.NoConfig = False,
    host_key: options.HostKey = None,
    jump: options.Jump = None,
    elevate: options.Elevate = None,
    connect_timeout: options.ConnectTimeout = None,
    connect_retries: options.ConnectRetries = options.CONNECT_RETRIES,
    retries: options.Retries = options.RETRIES,
    deadline: options.Deadline = None,
    transport: options.Way = "auto",
    local_user: options.LocalUser = None,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> int:
    """Copy what a peer has collected into TARGET.

    The files appear under their names all at the end; a run that is cut off leaves nothing.
    """
    log_to_stderr(verbose=verbose)
    access = options.access_of(
        port=port,
        identity=identity,
        known_hosts=known_hosts,
        config=config,
        no_config=no_config,
        host_key=host_key,
        jump=jump,
        elevate=elevate,
        connect_timeout=connect_timeout,
        connect_retries=connect_retries,
        retries=retries,
        deadline=deadline,
        transport=transport,
        local_user=local_user,
    )
    spec, show = parse_spec(peer), choose_show(as_json=as_json)
    mode, ownership = parse_permissions(permissions), ownership_of(parse_owner(owner))
    access.peer(spec)
    place = target_directory(os.path.abspath(target))
    if dry_run:
        return _preview(spec, place, access, show)
    require_posix()
    with show.progress() as on_progress:
        one = access.peer(spec, durable=not no_durable, preserve_times=preserve_times, on_progress=on_progress)
        error: StageError | None = None
        try:
            with one, cancelling(one.cancel):
                one.stagePeer(place, ownership, mode)
        except StageError as exc:
            error = exc
    show.staged(spec, place, one.last_report, error)
    if error is None:
        return Exit.DONE
    complain(error)
    return code_of(error)


def sweep_verb(
    root: Annotated[str, typer.Argument(metavar="ROOT", help="A staging directory, or a whole pool of them.")],
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> int:
    """Remove what killed runs have left below ROOT.

    What belongs to a run that still lives is not touched.
    """
    log_to_stderr(verbose=verbose)
    show = choose_show(as_json=as_json)
    if not os.path.isdir(root):
        reason = Reason.TARGET_NOT_A_DIRECTORY if os.path.exists(root) else Reason.TARGET_MISSING
        raise LandingError("Can not be swept: it is not a directory.", path=root, reason=reason)
    show.swept(root, sweep(root))
    return Exit.DONE


def _each(
    verb: str,
    peers: list[str],
    indicator: bytes,
    access: Access,
    show: Show,
    operation: Callable[[Transport, bytes, str], str],
) -> int:
    """Do *operation* with each of *peers*, many at once; all are checked before one is connected."""
    specs = [parse_spec(peer) for peer in peers]
    for spec in specs:
        access.peer(spec)

    def ask(spec: Spec, watchdog: Watchdog) -> str:
        with access.watched(spec, watchdog) as stack:
            return operation(stack, join(os.fsencode(spec.directory), indicator), spec.host)

    worst = Exit.DONE
    with contextlib.closing(each(ask, specs, access.limits)) as answers:
        for said, spec in zip(answers, specs, strict=True):
            error = said if isinstance(said, Exception) else None
            if error is not None:
                complain(error, spec.host)
            status = "failed" if isinstance(said, Exception) else said
            answer = Answer(verb=verb, spec=spec, indicator=os.fsdecode(indicator), status=status, error=error)
            show.answered(answer)
            worst = max(worst, answer.exit)
    return worst


def _preview(spec: Spec, target: str, access: Access, show: Show) -> int:
    """Show what would come; the exit status is that of the stage, as far as it can be told without reading a file."""
    with access.stack(spec) as stack:
        found = preview(stack, os.fsencode(spec.directory), target)
    show.previewed(spec, target, found)
    failure = found.failure(os.fsencode(spec.directory))
    if failure is None:
        return Exit.DONE
    failure.peer = spec.host
    complain(failure)
    return code_of(failure)

"""``peerstage doctor``: the way to one peer, walked step by step."""

from __future__ import annotations

import contextlib
import dataclasses
import os

from peerstage.cli import options
from peerstage.cli.examine import Examination
from peerstage.cli.results import Finding
from peerstage.cli.show import choose_show, log_to_stderr
from peerstage.cli.signals import cancelling
from peerstage.cli.spec import parse_spec
from peerstage.peer.attributes import indicator_name
from peerstage.peer.base import COLLECT_INDICATOR
from peerstage.session.watchdog import Watchdog
from peerstage.transport.scp.commands import require_plain

#: Seconds that one answer may take: whoever runs this waits for it.
_REPLY_SECONDS = 15.0


def doctor_verb(
    peer: options.Peer,
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
    deadline: options.Deadline = None,
    transport: options.Way = "auto",
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> int:
    """Walk the way to a peer step by step, and name the next thing to do where a step fails.

    Everything is done as a stage would do it; up to a thousand files are opened on the peer, and none is read. Nothing
    is written here (but the host key, if accept-new is asked for); on the peer an empty file .peerstage-doctor-... is
    written into the collect directory and removed, unless it is guarded, or could not be removed again.
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
        deadline=deadline,
        transport=transport,
    )
    if transport == "rcp":
        raise ValueError("doctor looks at SFTP and SCP; an rcp command connects by itself.")
    spec, show, name = parse_spec(peer), choose_show(as_json=as_json), indicator_name(indicator, COLLECT_INDICATOR)
    access = dataclasses.replace(access, limits=dataclasses.replace(access.limits, reply_timeout=_REPLY_SECONDS))
    access.peer(spec).validate()
    if access.route(spec).guarded:
        require_plain(os.fsencode(spec.directory))
    findings: list[Finding] = []

    def tell(finding: Finding) -> None:
        findings.append(finding)
        show.found(finding)

    watchdog = Watchdog(access.limits, peer=spec.host)
    with contextlib.closing(watchdog), cancelling(watchdog.cancel):
        status = Examination(spec, access, name, watchdog, tell).run()
    show.examined(spec, findings, status)
    return status

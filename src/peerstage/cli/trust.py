"""``peerstage trust``: the keys of many hosts seen at once, compared, and added after one confirmation."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from dataclasses import dataclass
from typing import Annotated

import typer

from peerstage.cli import options
from peerstage.cli.access import Access
from peerstage.cli.exits import Exit, code_of
from peerstage.cli.fingerprints import STDIN, Fingerprints, Names, forms_of, read_list
from peerstage.cli.parallel import each
from peerstage.cli.results import Seen
from peerstage.cli.show import choose_show, complain, log_to_stderr
from peerstage.cli.spec import Host, parse_host
from peerstage.errors import (
    ChangedHostKey,
    HostKeyError,
    MismatchedHostKey,
    RevokedHostKey,
    StageError,
    UnknownHostKey,
    escape,
)
from peerstage.reasons import Reason
from peerstage.session.certificates import blob_type
from peerstage.session.config import Destination, resolve_destination
from peerstage.session.host_key import HostKeys, describe_keys, read_shown
from peerstage.session.known_hosts import fingerprint
from peerstage.session.scan import Scanned, scan
from peerstage.session.watchdog import Watchdog
from peerstage.staging import naming

_STATES = ((ChangedHostKey, "changed"), (RevokedHostKey, "revoked"), (MismatchedHostKey, "mismatched"))


@dataclass(frozen=True, slots=True)
class _Found:
    """What one host has shown on the way to *destination*."""

    destination: Destination
    scanned: Scanned

    @property
    def key(self) -> bytes:
        return read_shown(self.scanned.shown)[1]

    @property
    def names(self) -> Names:
        """What the host may be called in a list of fingerprints."""
        return _names(self.destination)


def trust_verb(
    hosts: Annotated[
        list[str] | None,
        typer.Argument(metavar="HOST...", help="[USER@]HOST, or with a port [USER@][HOST]:PORT.", show_default=False),
    ] = None,
    from_file: Annotated[
        str | None, typer.Option("--from", metavar="FILE", help="A file of hosts, one a line; - for standard input.")
    ] = None,
    fingerprints: Annotated[
        str | None,
        typer.Option(
            "--fingerprints",
            metavar="FILE",
            help="Add only what this list has: HOST SHA256:..., or lines of ssh-keygen -lf or ssh-keyscan; - for "
            "standard input.",
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Add the new keys without a question.")] = False,
    port: options.Port = None,
    identity: options.Identity = None,
    known_hosts: options.KnownHosts = None,
    config: options.Config = None,
    no_config: options.NoConfig = False,
    jump: options.Jump = None,
    connect_timeout: options.ConnectTimeout = None,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> int:
    """Show the host keys of many peers, and add the new ones to known_hosts.

    Each host is reached as a stage would reach it, and not logged in to. The key that is shown, and added, is the one
    that later connections will be shown: the first type of our order that the host has, or with --fingerprints the
    first that the list has, of whichever type. Nothing that is known is ever replaced: for a changed key the command is
    printed that removes the old one. Without --yes, and without a terminal to ask at, nothing is added, and the exit
    status is 4, as it is whenever a host is not trusted in the end.
    """
    log_to_stderr(verbose=verbose)
    access = options.access_of(
        port=port,
        identity=identity,
        known_hosts=known_hosts,
        config=config,
        no_config=no_config,
        host_key=None,
        jump=jump,
        connect_timeout=connect_timeout,
        deadline=None,
        transport="auto",
    )
    if from_file == fingerprints == STDIN:
        raise ValueError("--from - and --fingerprints - exclude each other: standard input can be read once.")
    asked = [parse_host(text) for text in [*(hosts or ()), *_hosts_in(from_file)]]
    if not asked:
        raise ValueError("Name at least one host, or a file of hosts with --from.")
    listed = None if fingerprints is None else Fingerprints.read(fingerprints)
    show = choose_show(as_json=as_json)
    found: list[_Found | Exception] = []
    with contextlib.closing(each(lambda host, dog: _scan(access, host, dog, listed), asked, access.limits)) as answers:
        found.extend(answers)
    named = frozenset().union(*(_forms(host, one) for host, one in zip(asked, found, strict=True)))
    seen = [_describe(host, one, listed, named) for host, one in zip(asked, found, strict=True)]
    show.keys_seen(seen)
    wanted = [number for number, one in enumerate(seen) if one.may_be_added]
    if wanted and (yes or (not as_json and _is_confirmed([found[number] for number in wanted], listed is not None))):
        for number in wanted:
            seen[number] = _add(seen[number], found[number])
    show.keys_settled(seen)
    for one in seen:
        if one.error is not None:
            complain(one.error, one.host)
    left = sum(one.may_be_added for one in seen)
    if left:
        complain(UnknownHostKey(_left_over(left, listed is not None), reason=Reason.HOST_KEY_UNKNOWN))
    return max(one.exit for one in seen)


def _names(destination: Destination) -> Names:
    return [(destination.name, destination.port), (destination.host, destination.port), destination.known_as]


def _forms(host: Host, found: _Found | Exception) -> frozenset[bytes]:
    """Return what a host may be called in a list of fingerprints, in all forms, reached or not."""
    return forms_of([(host.host, host.port or 22)] if isinstance(found, Exception) else found.names)


def _hosts_in(path: str | None) -> list[str]:
    if path is None:
        return []
    lines = read_list(path, "--from").split("\n")
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]


def _scan(access: Access, host: Host, watchdog: Watchdog, listed: Fingerprints | None) -> _Found:
    ssh = access.ssh if host.port is None else dataclasses.replace(access.ssh, port=host.port)
    with naming(host.host):
        destination = resolve_destination(host.host, host.user, ssh, watchdog=watchdog)
        names = _names(destination)
        is_sought = None if listed is None else lambda key: listed.look_up(names, key).is_listed
        scanned = scan(destination, ssh, limits=access.limits, watchdog=watchdog, is_sought=is_sought)
        return _Found(destination, scanned)


def _describe(host: Host, found: _Found | Exception, listed: Fingerprints | None, named: frozenset[bytes]) -> Seen:
    if isinstance(found, Exception):
        return Seen(host=str(host), state="unreachable", error=found, exit=code_of(found))
    scanned, key = found.scanned, found.key
    certificate, _ = read_shown(scanned.shown)
    error: HostKeyError | None = scanned.error
    state, why = "known", "" if scanned.verdict is None else scanned.verdict.why
    if error is not None:
        state = next((name for kind, name in _STATES if isinstance(error, kind)), "new")
        why = f"see {scanned.against}" if scanned.against else ""
        if state == "new" and not scanned.is_new_host:
            state = "mismatched"
        error.peer = host.host
    listing = None if listed is None else listed.look_up(found.names, key, named)
    if listing is not None and not listing.is_listed:
        error = error if error is not None and state != "new" else _not_listed(host, found, listing.name)
    elif state == "new":
        error = None
    return Seen(
        host=str(host),
        port=found.destination.port,
        key_type=blob_type(key),
        fingerprint=fingerprint(key),
        authority=None if certificate is None else fingerprint(certificate.authority),
        state=state,
        why=why,
        listed=None if listing is None else listing.is_listed,
        listed_as="" if listing is None else listing.name,
        error=error,
        exit=Exit.DONE if state == "known" and error is None else Exit.UNREACHED,
    )


def _not_listed(host: Host, found: _Found, listed_as: str) -> HostKeyError:
    keys = [found.key] if listed_as else [found.key, *(read_shown(shown)[1] for shown in found.scanned.unsought)]
    text = f"The host shows {describe_keys(keys)}, "
    if listed_as:
        text += (
            f"which the list of fingerprints has for {listed_as}, not for {host}. Somebody may be between you and the "
            f"host. If both are one machine, add the line `{host} {fingerprint(found.key)}` to the list."
        )
    else:
        text += (
            "and the list of fingerprints has no such key for it. Somebody may be between you and the host, or the "
            "list is old: find out on the host itself."
        )
    return MismatchedHostKey(text, peer=host.host, reason=Reason.HOST_KEY_NOT_LISTED)


def _left_over(count: int, is_listed: bool) -> str:
    keys, were, them = ("key", "was", "it") if count == 1 else ("keys", "were", "them")
    if is_listed:
        return f"{count} new {keys} on the list {were} not added. Add {them} with --yes."
    return f"{count} new {keys} {were} not added. Compare the fingerprints with the hosts' own, then run it with --yes."


def _is_confirmed(wanted: list[_Found | Exception], is_listed: bool) -> bool:
    """Ask the person at the terminal; without one, the answer is no."""
    if not (sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    files = {escape(one.destination.learns_into or "no file") for one in wanted if isinstance(one, _Found)}
    compared = "All are on the list." if is_listed else "Compared with the hosts themselves?"
    sys.stdout.write(f"{compared} Add {len(wanted)} new to {', '.join(sorted(files))} [y/N] ")
    sys.stdout.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _add(seen: Seen, found: _Found | Exception) -> Seen:
    if isinstance(found, Exception):
        return seen
    try:
        verdict = HostKeys.read(found.destination).learn(found.scanned.shown)
    except StageError as exc:
        exc.peer = exc.peer or seen.host
        return dataclasses.replace(seen, error=exc, exit=code_of(exc))
    added_to = os.path.abspath(found.destination.learns_into or "")
    return dataclasses.replace(seen, state="added", why=verdict.why, added_to=added_to, exit=Exit.DONE)

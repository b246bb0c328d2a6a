"""``peerstage trust``: show the host keys of many peers, compare them, and add the new ones after one confirmation."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from peerstage.cli import options
from peerstage.cli.access import Access
from peerstage.cli.arguments import PeerSpec, parse_host
from peerstage.cli.fingerprints import STDIN, Fingerprints, forms_of, read_list
from peerstage.cli.host_scan import HostScan, ScanOutcome, record_keys, scan_hosts
from peerstage.cli.named_peers import NamedPeer, PlanNames, require_ssh
from peerstage.cli.output import Output, print_error
from peerstage.cli.parallel import THREADS
from peerstage.cli.trust_results import HostKeyResult, PresentedKeys, TrustResult
from peerstage.cli.user_process import Function, run_as_local_user
from peerstage.errors import ChangedHostKey, HostKeyError, MismatchedHostKey, RevokedHostKey, UnknownHostKey
from peerstage.exit_codes import ExitCode, code_of
from peerstage.isolation.protocol.values import child_violation
from peerstage.printable import escape
from peerstage.reasons import Reason
from peerstage.ssh.hostkeys.verifier import describe_keys, parse_presented
from peerstage.ssh.keys.public_keys import fingerprint, parse_key_type

_STATES = ((ChangedHostKey, "changed"), (RevokedHostKey, "revoked"), (MismatchedHostKey, "mismatched"))


def trust_verb(
    hosts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[USER@]HOST[:PORT]|PEER",
            help="Hosts, an IPv6 address in brackets; or names in the plan.",
            show_default=False,
        ),
    ] = None,
    *,
    from_file: Annotated[
        str | None, options.option("FILE", "A file of hosts, one per line; - for standard input.", names="--from")
    ] = None,
    fingerprints: Annotated[
        str | None,
        options.option(
            "FILE",
            "Add only keys on this list: HOST SHA256:..., or lines of ssh-keygen -lf or ssh-keyscan; - for standard "
            "input.",
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Add the new keys without asking.")] = False,
    plan_names: PlanNames,
    access: Access,
    output: Output,
) -> int:
    """Show host keys, and add new ones to known_hosts.

    Each host is reached as a stage would reach it, without logging in. The key that is shown, and added, is the one
    that later connections will verify: the first that the host has in peerstage's order of key types, or with
    --fingerprints the first that the list has. A known key is never replaced; for a changed key, the command that
    removes the old one is printed. Without --yes, and without a terminal to ask at, nothing is added. The exit status
    is 4 if any host remains untrusted.

    --host-key SHA256:... is a list of that one fingerprint, for one host. Options that concern the login or the
    transfer have no effect.
    """
    if from_file == fingerprints == STDIN:
        raise ValueError("--from - and --fingerprints - exclude each other: standard input can be read once.")
    peers = [plan_names.resolve(text, parse_host, access) for text in [*(hosts or ()), *_read_hosts(from_file)]]
    if not peers:
        raise ValueError("Name at least one host, or a file of hosts with --from.")
    listed_text = _read_fingerprints(fingerprints, peers)
    listed = None if listed_text is None else Fingerprints.parse(listed_text, fingerprints or "--host-key")
    peers = [_without_login(peer) for peer in peers]
    specs = [peer.spec for peer in peers]
    outcomes = _run(peers, scan_hosts, lambda numbers: {"fingerprints": listed_text}, at_a_time=THREADS)
    all_forms = frozenset().union(*map(_forms, specs, outcomes))
    results = [_describe(*pair, listed, all_forms) for pair in zip(specs, outcomes, strict=True)]
    output.show(PresentedKeys(results))
    new = [number for number, result in enumerate(results) if result.can_be_added]
    scans = [outcomes[number] for number in new]
    if new and (yes or (output.is_for_people and _confirm(scans, is_listed=listed is not None))):
        recorded = _run(
            [peers[number] for number in new],
            record_keys,
            lambda numbers: {"scans": [scans[number].to_message() for number in numbers]},
            at_a_time=1,
        )
        for number, added in zip(new, recorded, strict=True):
            results[number] = _describe_added(results[number], added)
    output.show(TrustResult(results))
    for result in results:
        if result.error is not None:
            print_error(result.error, result.host)
    if count := sum(result.can_be_added for result in results):
        print_error(UnknownHostKey(_not_added(count, listed is not None), reason=Reason.HOST_KEY_UNKNOWN))
    return max(result.exit for result in results)


def _without_login(peer: NamedPeer) -> NamedPeer:
    """Return *peer* without what only concerns the login, and without its host key: this asks before it adds one.

    The port of a peer in the plan goes to its `PeerSpec`, so that more peers are reached alike.
    """
    require_ssh(peer, "trust")
    access, spec = peer.access, peer.spec
    ssh = dataclasses.replace(access.ssh, host_key=None, password=None, passphrase=None)
    if peer.job is not None:
        spec, ssh = spec._replace(port=ssh.port), dataclasses.replace(ssh, port=None)
    access = Access(ssh=ssh, limits=access.limits, local_user=access.local_user)
    return dataclasses.replace(peer, spec=spec, access=access)


def _run(
    peers: list[NamedPeer],
    function: Function[ScanOutcome],
    arguments_for: Callable[[list[int]], dict[str, Any]],
    *,
    at_a_time: int,
) -> list[ScanOutcome]:
    """Return the outcome of *function* for each of *peers*, as the user of ``--local-user``.

    Args:
        peers: The hosts. Those that are reached alike are handled together.
        function: Called with ``hosts`` and other arguments.
        arguments_for: Returns the others for the peers with these numbers.
        at_a_time: Hosts that the function handles at a time.
    """
    groups: list[tuple[Access, list[int]]] = []
    for number, peer in enumerate(peers):
        numbers = next((numbers for access, numbers in groups if access == peer.access), None)
        if numbers is None:
            groups.append((peer.access, [number]))
        else:
            numbers.append(number)
    outcomes: dict[int, ScanOutcome] = {}
    for access, numbers in groups:
        found: list[ScanOutcome] = []
        run_as_local_user(
            access.local_user,
            function,
            ScanOutcome,
            access.transport_options(peers[numbers[0]].spec._replace(port=None)),
            access.limits,
            {"hosts": [peers[number].spec for number in numbers], **arguments_for(numbers)},
            found.append,
            seconds=-(-len(numbers) // at_a_time) * access.limits.deadline_for(0),
        )
        if len(found) != len(numbers):
            raise child_violation("The child process sent an invalid list of host keys.")
        outcomes.update(zip(numbers, found, strict=True))
    return [outcomes[number] for number in range(len(peers))]


def _read_hosts(path: str | None) -> list[str]:
    lines = [] if path is None else read_list(path, "--from").split("\n")
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]


def _read_fingerprints(path: str | None, peers: list[NamedPeer]) -> str | None:
    """Return the text of the list; one line if ``--host-key``, or the plan, gives the fingerprint."""
    pinned = next((peer for peer in peers if (peer.access.ssh.host_key or "").startswith("SHA256:")), None)
    if pinned is None:
        return None if path is None else read_list(path, "--fingerprints")
    if len(peers) != 1 and pinned.job is not None:
        raise ValueError(f"The plan has the fingerprint of {pinned}, which needs no trust: leave it out.")
    if path is not None or len(peers) != 1:
        raise ValueError("--host-key is the fingerprint of one host; list those of several with --fingerprints.")
    return f"{pinned.spec.address} {pinned.access.ssh.host_key}"


def _forms(host: PeerSpec, outcome: ScanOutcome) -> frozenset[bytes]:
    """Return the names that a list may have for a host, reached or not."""
    return forms_of([(host.host, host.port or 22)] if outcome.scan is None else outcome.scan.names)


def _describe(
    host: PeerSpec, outcome: ScanOutcome, listed: Fingerprints | None, all_forms: frozenset[bytes]
) -> HostKeyResult:
    scan = outcome.scan
    if scan is None:
        failure = outcome.error or ValueError("no key was presented")
        return HostKeyResult(host=str(host), state="unreachable", error=failure, exit=code_of(failure))
    error, state, why = scan.error, "known", scan.basis
    if error is not None:
        state = next((name for kind, name in _STATES if isinstance(error, kind)), "new")
        why = f"see {scan.conflicting_line}" if scan.conflicting_line else ""
        if state == "new" and not scan.is_new_host:
            state = "mismatched"
        error.peer = host.label or host.host
    listing = None if listed is None else listed.look_up(scan.names, scan.key, all_forms)
    if listing is not None and not listing.is_listed:
        error = error if error is not None and state != "new" else _not_listed_error(host, scan, listing.name)
    elif state == "new":
        error = None
    certificate, key = parse_presented(scan.presented)
    return HostKeyResult(
        host=str(host),
        port=scan.port,
        key_type=parse_key_type(key),
        fingerprint=fingerprint(key),
        authority=None if certificate is None else fingerprint(certificate.authority),
        state=state,
        why=why,
        listed=None if listing is None else listing.is_listed,
        listed_as="" if listing is None else listing.name,
        error=error,
        exit=ExitCode.DONE if state == "known" and error is None else ExitCode.UNREACHED,
    )


def _describe_added(result: HostKeyResult, added: ScanOutcome) -> HostKeyResult:
    if added.scan is None:
        failure = added.error or ValueError("the key was not added")
        return dataclasses.replace(result, error=failure, exit=code_of(failure))
    path = added.scan.new_keys_file
    return dataclasses.replace(result, state="added", why=added.scan.basis, added_to=path, exit=ExitCode.DONE)


def _not_listed_error(host: PeerSpec, scan: HostScan, listed_as: str) -> HostKeyError:
    keys = [scan.key] if listed_as else [scan.key, *(parse_presented(key)[1] for key in scan.unwanted_keys)]
    message = f"The host presents {describe_keys(keys)}, "
    if listed_as:
        message += (
            f"which the list of fingerprints has for {listed_as}, not for {host}. This may be a man-in-the-middle "
            f"attack. If both names are one machine, add the line `{host.address} {fingerprint(scan.key)}` to the list."
        )
    else:
        message += (
            "which the list of fingerprints does not have for it. This may be a man-in-the-middle attack, or the list "
            "is old: compare with the fingerprint on the host itself."
        )
    return MismatchedHostKey(message, peer=host.label or host.host, reason=Reason.HOST_KEY_NOT_LISTED)


def _not_added(count: int, is_listed: bool) -> str:
    keys, were, them = ("key", "was", "it") if count == 1 else ("keys", "were", "them")
    if is_listed:
        return f"{count} new {keys} on the list {were} not added. Add {them} with --yes."
    return f"{count} new {keys} {were} not added. Compare the fingerprints with the hosts' own, then run it with --yes."


def _confirm(new: list[ScanOutcome], *, is_listed: bool) -> bool:
    """Ask the person at the terminal; without one, the answer is no."""
    if not (sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    files = {escape(outcome.scan.new_keys_file or "no file") for outcome in new if outcome.scan is not None}
    advice = "All are on the list." if is_listed else "Compare the fingerprints with the hosts' own."
    keys = "1 new key" if len(new) == 1 else f"{len(new)} new keys"
    sys.stdout.write(f"{advice} Add {keys} to {', '.join(sorted(files))}? [y/N] ")
    sys.stdout.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")

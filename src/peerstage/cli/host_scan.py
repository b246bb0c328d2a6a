"""Scan and record host keys for ``trust``, as the local user who owns the known_hosts files."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from peerstage.cli.arguments import PeerSpec
from peerstage.cli.fingerprints import Fingerprints, HostNames
from peerstage.cli.parallel import run_in_parallel
from peerstage.errors import ConfigurationError, HostKeyError, StageError
from peerstage.isolation.protocol.error_codec import decode_error, encode_error
from peerstage.isolation.protocol.values import child_violation
from peerstage.reasons import Reason
from peerstage.ssh.config.destination import Destination
from peerstage.ssh.config.resolve import resolve_destination
from peerstage.ssh.hostkeys.verifier import HostKeyVerifier, parse_presented
from peerstage.ssh.keyscan import scan_host_key
from peerstage.ssh.options import SSHOptions
from peerstage.staging import with_peer_name
from peerstage.transport.factory import TransportOptions
from peerstage.watchdog import Watchdog


@dataclass(frozen=True, slots=True, kw_only=True)
class HostScan:
    """The key that a host presented, and what is known about it.

    Attributes:
        names: The names of the host, each with its port.
        port: Its TCP port.
        new_keys_file: The absolute path of the file that new keys are added to; "" if there is none.
        presented: The key or certificate, in the SSH wire format.
        basis: Why it is trusted; "" if it is not.
        error: Why it is not trusted; None if it is.
        conflicting_line: The line of known_hosts that contradicts it; "" if there is none.
        is_new_host: Whether no known_hosts file has a key of the host.
        unwanted_keys: Every key that the host presented, if none of them is wanted; `presented` is the first.
    """

    names: HostNames
    port: int
    new_keys_file: str
    presented: bytes
    basis: str = ""
    error: HostKeyError | None = None
    conflicting_line: str = ""
    is_new_host: bool = False
    unwanted_keys: tuple[bytes, ...] = ()

    @property
    def key(self) -> bytes:
        """The public key, without its certificate."""
        return parse_presented(self.presented)[1]


class ScanOutcome(NamedTuple):
    """The scan of a host, or why it failed."""

    scan: HostScan | None
    error: Exception | None

    def to_message(self) -> dict[str, Any]:
        """See `peerstage.cli.user_process.Message`."""
        scan, error = self.scan, self.error
        if error is not None and not isinstance(error, (StageError, ValueError)):
            error = StageError(f"Unexpected error: {type(error).__name__}: {error}", reason=Reason.CHILD_ENDED)
        return {
            "error": None if error is None else encode_error(error),
            "scan": None
            if scan is None
            else {
                **{field.name: getattr(scan, field.name) for field in dataclasses.fields(scan)},
                "presented": _encode(scan.presented),
                "unwanted_keys": [_encode(key) for key in scan.unwanted_keys],
                "error": None if scan.error is None else encode_error(scan.error),
            },
        }

    @classmethod
    def from_message(cls, message: Any) -> ScanOutcome:
        """See `peerstage.cli.user_process.Message`."""
        try:
            error, scan = message["error"], message["scan"]
            outcome = cls(None if scan is None else _scan_from(scan), None if error is None else decode_error(error))
            if (outcome.scan is None) is (outcome.error is None):
                raise child_violation("The child process sent an invalid scan of a host key.")
            return outcome
        except (KeyError, TypeError, ValueError, OverflowError) as exc:
            raise child_violation("The child process sent an invalid scan of a host key.") from exc


def _scan_from(raw: dict[str, Any]) -> HostScan:
    error = None if raw["error"] is None else decode_error(raw["error"])
    if error is not None and not isinstance(error, HostKeyError):
        raise TypeError("not an error of a host key")
    scan = HostScan(
        names=[(str(name), int(port)) for name, port in raw["names"]],
        port=int(raw["port"]),
        new_keys_file=str(raw["new_keys_file"]),
        presented=base64.b64decode(raw["presented"]),
        basis=str(raw["basis"]),
        error=error,
        conflicting_line=str(raw["conflicting_line"]),
        is_new_host=bool(raw["is_new_host"]),
        unwanted_keys=tuple(map(base64.b64decode, raw["unwanted_keys"])),
    )
    for presented in (scan.presented, *scan.unwanted_keys):
        parse_presented(presented)
    return scan


def scan_hosts(
    options: TransportOptions,
    watchdog: Watchdog,
    arguments: dict[str, Any],
    on_result: Callable[[ScanOutcome], object],
) -> None:
    """Scan ``hosts`` in parallel, and look for the keys in ``fingerprints``, both in *arguments*."""
    listed = None if arguments["fingerprints"] is None else Fingerprints.parse(arguments["fingerprints"])
    hosts = [PeerSpec(*host) for host in arguments["hosts"]]

    def scan(host: PeerSpec, watchdog: Watchdog) -> HostScan:
        return _scan(host, _options_for(host, options), watchdog, listed)

    with contextlib.closing(run_in_parallel(scan, hosts, lambda host: watchdog.limits)) as outcomes:
        for outcome in outcomes:
            on_result(ScanOutcome(None, outcome) if isinstance(outcome, Exception) else ScanOutcome(outcome, None))


def record_keys(
    options: TransportOptions,
    watchdog: Watchdog,
    arguments: dict[str, Any],
    on_result: Callable[[ScanOutcome], object],
) -> None:
    """Add the keys in ``scans``, messages of `ScanOutcome`, to the known_hosts files of ``hosts``."""
    for spec, message in zip(arguments["hosts"], arguments["scans"], strict=True):
        host, scan = PeerSpec(*spec), ScanOutcome.from_message(message).scan
        if scan is None:
            continue
        try:
            with with_peer_name(host.host):
                on_result(ScanOutcome(_record(host, scan, _options_for(host, options), watchdog), None))
        except StageError as exc:
            on_result(ScanOutcome(None, exc))


def _scan(host: PeerSpec, options: SSHOptions, watchdog: Watchdog, listed: Fingerprints | None) -> HostScan:
    with with_peer_name(host.host):
        destination = resolve_destination(host.host, host.user, options, watchdog=watchdog)
        names = _names_of(destination)
        is_wanted = None if listed is None else lambda key: listed.look_up(names, key).is_listed
        found = scan_host_key(destination, options, watchdog=watchdog, is_wanted=is_wanted)
        return HostScan(
            names=names,
            port=destination.port,
            new_keys_file=_new_keys_file(destination),
            presented=found.presented_key,
            basis="" if found.trusted is None else found.trusted.basis,
            error=found.error,
            conflicting_line=str(found.conflicting_line or ""),
            is_new_host=found.is_new_host,
            unwanted_keys=found.unwanted_keys,
        )


def _record(host: PeerSpec, scan: HostScan, options: SSHOptions, watchdog: Watchdog) -> HostScan:
    destination = resolve_destination(host.host, host.user, options, watchdog=watchdog)
    if (_names_of(destination), _new_keys_file(destination)) != (scan.names, scan.new_keys_file):
        raise ConfigurationError("ssh's configuration for this host has changed since the scan. Run the command again.")
    trusted = HostKeyVerifier.read(destination).record(scan.presented)
    return dataclasses.replace(scan, basis=trusted.basis, error=None)


def _options_for(host: PeerSpec, options: TransportOptions) -> SSHOptions:
    return options.ssh if host.port is None else dataclasses.replace(options.ssh, port=host.port)


def _names_of(destination: Destination) -> HostNames:
    return [(destination.name, destination.port), (destination.host, destination.port), destination.host_key_name]


def _new_keys_file(destination: Destination) -> str:
    return os.path.abspath(destination.new_keys_file) if destination.new_keys_file else ""


def _encode(key: bytes) -> str:
    return base64.b64encode(key).decode("ascii")
